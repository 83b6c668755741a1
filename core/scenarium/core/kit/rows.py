"""Rows made from a plugin's sample, for a check where its data cannot be read."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from scenarium.core.types import Field, Row

COUNT = 48


def generated_rows(hook: Any, config: Any) -> list[Row] | None:
    """``COUNT`` rows that differ a little from the sample; None where a field cannot be made up (an image, a mask).

    Fields of the sample's name take its value; labels alternate between two names, numbers and times count up.
    """
    sample = hook.sample(config=config).model_dump()
    fields: dict[str, Field] = dict(hook.fields(config=config))
    rows: list[Row] = []
    for number in range(COUNT):
        row: Row = {}
        for name, field in fields.items():
            value = _value(field, sample.get(name), number)
            if value is None and field.required:
                return None
            if value is not None:
                row[name] = value
        rows.append(row)
    return rows


def _value(field: Field, given: Any, number: int) -> Any:
    match field.kind:
        case "text":
            return f"{given or 'text'} {number}"
        case "label":
            return ("a", "b")[number % 2]
        case "number":
            return float(given if isinstance(given, (int, float)) else 1.0) + number / 10
        case "integer":
            return int(given if isinstance(given, int) else 0) + number
        case "time":
            return datetime(2024, 1, 1) + timedelta(days=number)
        case "entities":
            return [{"start": 0, "end": 1, "label": ("a", "b")[number % 2]}]
        case "image":
            return given
        case _:
            return given
