"""What was found in a data set: errors that stop, repairs and warnings that are stated. Equal findings are counted, not repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from scenarium.core.errors import ScenariumError, language

Severity: TypeAlias = Literal["error", "warning", "repair"]
SHOWN = 5
"""Places named of one finding."""


@dataclass(slots=True)
class Finding:
    """One kind of finding: an entry of the catalogue, how often it occurred, and where first."""

    severity: Severity
    code: str
    field: str | None = None
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    count: int = 0
    places: list[str] = dataclasses.field(default_factory=list)
    file: str | None = None
    line: int | None = None

    def error(self) -> ScenariumError:
        """The finding as an error (also the way to its texts)."""
        values = {"count": self.count, "places": ", ".join(self.places) or "-", **self.values}
        return ScenariumError(self.code, field=self.field, file=self.file, line=self.line, **values)

    def text(self, lang: str | None = None) -> str:
        """One sentence in the reader's language."""
        return self.error().title(lang or language())

    def json(self) -> dict[str, Any]:
        """JSON form, kept in the data manifest."""
        error = self.error()
        found = {"severity": self.severity, "code": self.code, "text": error.title("en"), "text_zh": error.title("zh"), "count": self.count}
        return found | {"places": self.places}


class Findings:
    """Collects findings by code, field and whatever else tells two kinds apart (``kind``)."""

    def __init__(self) -> None:
        self.by_kind: dict[tuple[str, str | None, str], Finding] = {}

    def add(
        self,
        severity: Severity,
        code: str,
        at: Mapping[str, Any] | None = None,
        *,
        file: object = None,
        line: int | None = None,
        field: str | None = None,
        kind: str = "",
        count: int = 1,
        **values: Any,
    ) -> None:
        """Count one occurrence at ``file``, ``line``, or where the row ``at`` was read. The values of the first one are shown."""
        if at is not None:
            file, line = at.get("_file"), at.get("_line")
        key = (code, field, kind)
        found = self.by_kind.get(key)
        if found is None:
            found = self.by_kind[key] = Finding(severity, code, field, values, file=None if file is None else str(file), line=line)
        found.count += count
        if file is not None and len(found.places) < SHOWN:
            place = Path(str(file)).name + (f":{line}" if line else "")
            if place not in found.places:
                found.places.append(place)

    def __iter__(self) -> Iterator[Finding]:
        order = {"error": 0, "warning": 1, "repair": 2}
        return iter(sorted(self.by_kind.values(), key=lambda f: order[f.severity]))

    def raise_errors(self) -> None:
        """Raise the first error, if there is one."""
        for found in self:
            if found.severity == "error":
                raise found.error()
