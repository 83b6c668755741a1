"""What a scenario makes of a data set, before any training: ``scenarium data check NAME FILE``."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from scenarium.core import datasets, formats
from scenarium.core.errors import ScenariumError, language
from scenarium.core.findings import Finding, Findings
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario


@dataclass
class DataReport:
    """The result of a check. ``findings`` holds errors, warnings and repairs, each with places ``file:line``."""

    scenario: str
    path: str
    ok: bool
    """Whether a training would start."""
    rows: dict[str, int] = field(default_factory=dict)
    """``read``, ``used``, ``train``, ``val``, ``test``."""
    columns: list[str] = field(default_factory=list)
    map: dict[str, str] = field(default_factory=dict)
    """Field to column."""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Class to rows of each split."""
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    """Text field to shortest, median, longest (characters); number field to lowest, median, highest."""
    origin: str = ""
    sha256: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    hints: list[dict[str, str]] = field(default_factory=list)
    """What to do about each finding, ``en`` and ``zh``, in the same order."""

    def json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def text(self, lang: str | None = None, width: int = 120) -> str:
        """The report as plain text with tables, ``width`` columns wide."""
        from rich.console import Console

        out = io.StringIO()
        console = Console(file=out, width=width, no_color=True, highlight=False, emoji=False, markup=False)
        for table in _tables(self, (lang or language()) == "zh"):
            console.print(table)
        return out.getvalue()


WORDS = {
    "split": "划分", "rows": "行数", "field": "字段", "column": "列", "class": "类别", "shortest": "最小", "median": "中位数",
    "longest": "最大", "found": "发现", "severity": "级别", "error": "错误", "warning": "警告", "repair": "已修复",
    "where": "位置", "what to do": "怎么办", "read": "读取", "used": "采用", "train": "训练", "val": "验证", "test": "留出",
}  # fmt: skip


def check(scenario: Scenario, path: str | None = None) -> DataReport:
    """Read, map, clean and split ``path`` (else what the settings name) as a training would, and report instead of raising.

    Errors of the data become findings of severity ``error``; a fault of the plugin itself is raised.
    """
    if path is not None:
        data = scenario.config.data.model_copy(update={"path": path})
        scenario = scenario.with_config(scenario.config.model_copy(update={"data": data}))
    findings = Findings()
    report = DataReport(scenario.name, scenario.config.data.path or "", ok=False)
    try:
        prepared = datasets.assemble(scenario, Progress(), findings)
    except ScenariumError as fault:
        if not fault.code.startswith("SCN-2"):
            raise
        if not any(found.severity == "error" for found in findings):
            values = {"count": 1, "places": _place(fault), **fault.values}
            findings.by_kind[fault.code, fault.field, ""] = Finding("error", fault.code, fault.field, values, 1, [_place(fault)], fault.file, fault.line)
        report.map, report.columns = {}, _columns(scenario)
    else:
        _fill(report, prepared, scenario)
    report.findings = [found.json() for found in findings]
    report.hints = [{lang: found.error().hint(lang) for lang in ("en", "zh")} for found in findings]
    return report


def _place(fault: ScenariumError) -> str:
    return f"{fault.file}:{fault.line}" if fault.file and fault.line else fault.file or "-"


def _columns(scenario: Scenario) -> list[str]:
    """Columns of a file that could not be used, as far as it can be read at all."""
    from pathlib import Path

    config = scenario.config.data
    try:
        fields = scenario.hook.fields(config=scenario.config)
        return formats.read(Path(config.path or "-").expanduser(), fields, Findings(), config.encoding).columns
    except (ScenariumError, OSError):
        return []


def _fill(report: DataReport, prepared: datasets.Prepared, scenario: Scenario) -> None:
    data, manifest = prepared.data, prepared.data.manifest
    report.ok = True
    report.rows = {"read": prepared.read, "used": manifest["rows"]["used"], **{name: len(data.rows(name)) for name in datasets.SPLITS}}
    report.columns = list(dict.fromkeys(column for part in prepared.parts for column in part.columns))
    report.map = {key: column for part in prepared.parts for key, column in part.map.items()}
    report.origin, report.sha256 = data.origin, manifest["sha256"]
    counts = {name: Counter(manifest["splits"][name]["classes"]) for name in datasets.SPLITS}
    report.classes = {label: {name: counts[name][label] for name in datasets.SPLITS} for label in sorted(set().union(*counts.values()))}
    rows = [row for name in datasets.SPLITS for row in data.rows(name)]
    for key, spec in scenario.hook.fields(config=scenario.config).items():
        if spec.kind not in ("text", "number", "integer"):
            continue
        values = [float(len(row[key]) if spec.kind == "text" else row[key]) for row in rows if row.get(key) is not None]
        if values:
            report.lengths[key] = {"shortest": min(values), "median": statistics.median(values), "longest": max(values)}


def _tables(report: DataReport, zh: bool) -> list[Any]:
    from rich.table import Table

    def word(name: str) -> str:
        return WORDS.get(name, name) if zh else name

    def table(*headers: str) -> Any:
        made = Table(show_edge=False, pad_edge=False)
        for header in headers:
            made.add_column(word(header), overflow="fold")
        return made

    made = []
    if report.rows:
        counts = table(*report.rows)
        counts.add_row(*(f"{count:,}" for count in report.rows.values()))
        made.append(counts)
    if report.map:
        fields = table("field", "column", "shortest", "median", "longest")
        for key, column in report.map.items():
            fields.add_row(key, column, *(f"{value:g}" for value in report.lengths.get(key, {}).values()))
        made.append(fields)
    if report.classes:
        classes = table("class", *datasets.SPLITS)
        shown = list(report.classes.items())
        for label, counts_of in shown[:30]:
            classes.add_row(label, *(f"{count:,}" for count in counts_of.values()))
        if len(shown) > 30:
            classes.add_row(f"… +{len(shown) - 30}", "", "", "")
        made.append(classes)
    if report.findings:
        found = table("severity", "found", "what to do")
        for finding, hint in zip(report.findings, report.hints, strict=True):
            found.add_row(word(finding["severity"]), finding["text_zh" if zh else "text"], hint["zh" if zh else "en"])
        made.append(found)
    return made
