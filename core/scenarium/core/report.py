"""The report of a training: one HTML file that needs no other file, no script, no network and no installed font.

Labels stand in English and Chinese. Chinese glyphs that the page uses are embedded (``scenarium.core.fonts``); plots are SVG whose
text is paths. Everything that comes from data is escaped; the model card is CommonMark with HTML switched off.
"""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scenarium.core import charts, fonts
from scenarium.core.manifest import Manifest
from scenarium.core.types import Figure

Curves = Mapping[str, Sequence[tuple[int, float]]]

_STYLE = """
:root { --ink: #1f2933; --faint: #616e7c; --line: #d9e2ec; --accent: #2563eb }
body { font: 15px/1.5 system-ui, "Report Chinese", sans-serif; color: var(--ink); max-width: 1000px; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) } .faint { color: var(--faint) }
table { border-collapse: collapse; margin: .8rem 0; font-size: 14px }
th, td { text-align: left; padding: .25rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top }
.table { overflow-x: auto; margin: .8rem 0 } .table > table { margin: 0 }
td.number { text-align: right; font-variant-numeric: tabular-nums } td.long { overflow-wrap: anywhere; min-width: 12em }
svg { max-width: 100%; height: auto } .curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 1rem }
section { overflow-x: auto } .grid { display: grid; gap: .5rem; overflow-x: auto } figure { margin: 0 } figcaption { font-size: 12px; color: var(--faint) }
mark { padding: 0 .15em; border-radius: 3px } mark sub { font-size: 10px; margin-left: .2em }
.origin { border: 1px solid var(--accent); border-radius: 4px; padding: 0 .4em }
"""

_RECORDS = {"sources": "sources / 来源", "findings": "findings / 发现", "files": "files / 文件"}

_CURVES: tuple[tuple[str, tuple[str, ...], dict[str, str]], ...] = (
    ("loss / 损失", ("loss", "val_loss"), {"loss": "training / 训练", "val_loss": "validation / 验证"}),
    ("learning rate / 学习率", ("lr",), {}),
    ("samples per second / 每秒样本数", ("samples_per_s",), {}),
)


DRAWING = ("matplotlib", "fontTools", "sklearn")
"""What the extra ``report`` brings."""


def plots(draw: Callable[[], Sequence[Figure]]) -> Sequence[Figure]:
    """The domain's plots; where the packages that draw them are not installed, a line that says so in their place: a training is not lost for its report."""
    try:
        return draw()
    except ModuleNotFoundError as fault:
        if fault.name is None or fault.name.partition(".")[0] not in DRAWING:
            raise
        command = '<code>pip install "scenarium[report]"</code>'
        return [Figure("Plots / 图表", f"<p class=faint>Plots are drawn where {fault.name} is installed / 安装 {fault.name} 后才有图表: {command}</p>")]


def write(path: Path, manifest: Manifest, curves: Curves, figures: Sequence[Figure]) -> None:
    """Write the report of the version that ``manifest`` describes to ``path``.

    Args:
        path: the HTML file.
        manifest: metrics, baseline, settings, data, card.
        curves: what ``Run.log`` recorded: name to (step, value).
        figures: the domain's plots, from the hook ``report``.
    """
    body = "\n".join(_body(manifest, curves, figures))
    font = fonts.subset(body) if importlib.util.find_spec("fontTools") else None
    face = f"@font-face {{ font-family: 'Report Chinese'; src: url({font}) }}" if font else ""
    title = html.escape(f"{manifest.scenario}: training report")
    path.write_text(
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'><title>{title}</title>"
        f"<style>{_STYLE}{face}</style></head>\n<body>\n{body}\n</body></html>\n",
        encoding="utf8",
    )


def _body(manifest: Manifest, curves: Curves, figures: Sequence[Figure]) -> Iterator[str]:
    yield f"<h1>{html.escape(manifest.scenario)}</h1>"
    yield f"<p class=faint>training report / 训练报告 · {manifest.created:%Y-%m-%d %H:%M} UTC</p>"
    yield f"<p>data / 数据: <span class=origin>{html.escape(manifest.data_origin)}</span></p>"
    yield _heading("Held-out metrics", "留出集指标") + _metrics(manifest)
    if any(len(points) > 1 for points in curves.values()) and importlib.util.find_spec("matplotlib"):
        yield _heading("Training", "训练过程") + _curves(curves)
    for figure in figures:
        yield f"<h2>{html.escape(figure.title)}</h2>\n{figure.html}"
    yield _heading("Data", "数据") + _data(manifest.data)
    yield _heading("Settings", "设置") + charts.table(["setting / 设置", "value / 值"], list(_flat(manifest.config)))
    yield _heading("Versions", "软件版本") + _versions(manifest)
    for language, text in manifest.card.items():
        yield f"<section lang={html.escape(language, quote=True)}>{_heading('Model card', '模型卡片')}{_markdown(text)}</section>"


def _heading(english: str, chinese: str) -> str:
    return f"<h2>{english} / {chinese}</h2>\n"


def _metrics(manifest: Manifest) -> str:
    methods = {"this version / 本版本": manifest.metrics}
    if manifest.baseline:
        methods[f"baseline / 基线: {manifest.baseline.name}"] = manifest.baseline.metrics
    metric = manifest.metric
    direction = "higher is better / 越高越好" if metric.higher_is_better else "lower is better / 越低越好"
    floor = "" if metric.floor is None else f", floor / 下限 {metric.floor:g}"
    return charts.metrics_table(methods) + f"<p class=faint>primary metric / 主要指标: {html.escape(metric.name)} ({direction}{floor})</p>"


def _curves(curves: Curves) -> str:
    known = {name for _, names, _ in _CURVES for name in names}
    wanted = [(title, names, labels) for title, names, labels in _CURVES if any(name in curves for name in names)]
    wanted += [(name, (name,), {}) for name in curves if name not in known]
    plots = (charts.lines({labels.get(n, n): curves[n] for n in names if n in curves}, x="step / 步", y=title) for title, names, labels in wanted)
    return "<div class=curves>" + "".join(f"<div>{plot}</div>" for plot in plots) + "</div>"


def _data(data: Mapping[str, Any]) -> str:
    """Plain values as one table, the splits by class and each list of records (files, sources) as one of its own."""
    splits = data.get("splits") or {}
    plain = {name: value for name, value in data.items() if name != "splits" and not _records(value)}
    parts = [charts.table(["", "value / 值"], list(_flat(plain)))] if plain else []
    if splits:
        parts.append(f"<h3>rows / 行数</h3>{_splits(splits)}")
    for name, value in data.items():
        if _records(value):
            # A column that is empty in every record says nothing.
            head = [key for key in dict.fromkeys(key for record in value for key in record) if any(_words(record.get(key)) for record in value)]
            rows = [[_words(record.get(key)) for key in head] for record in value]
            parts.append(f"<h3>{html.escape(_RECORDS.get(name, name))}</h3>{charts.table(head, rows)}")
    return "".join(parts)


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of each part, then of each class in it."""
    labels = dict.fromkeys(label for part in splits.values() for label in part.get("classes") or {})
    rows: list[list[object]] = [["all / 全部", *(part["rows"] for part in splits.values())]]
    rows += [[label, *((part.get("classes") or {}).get(label, 0) for part in splits.values())] for label in labels]
    return charts.table(["", *splits], rows)


def _versions(manifest: Manifest) -> str:
    plugin = manifest.plugin
    rows = [[plugin.distribution, plugin.version], ["python", manifest.python], *([name, version] for name, version in manifest.packages.items())]
    return charts.table(["package / 软件包", "version / 版本"], list(dict.fromkeys(map(tuple, rows))))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield [prefix + name, _shown(value)]


def _records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _words(value: Any) -> str:
    """A value of a record as a reader would write it; nothing for what is empty."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None else _shown(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _markdown(text: str) -> str:
    from markdown_it import MarkdownIt

    rendered: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return rendered
