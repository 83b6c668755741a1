"""Versions of the installed plugins, made by the real pipeline in seconds: a handful of made-up rows, four steps, no export.

What they answer is nonsense, in the real form; so they are good for asking how a scenario takes what it is sent.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from scenarium.core.kit.subject import Subject
from scenarium.core.store import PRODUCTION, Store
from scenarium.core.types import Row

COUNT = 120


def pictures(labels: tuple[str, str]) -> list[Row]:
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), "label": labels[n % 2]} for n in range(COUNT)]


def words(number: int, count: int = 12) -> str:
    """Text that resembles no other, so that none counts as a copy."""
    rng = np.random.default_rng(number)
    return " ".join("".join(chr(letter) for letter in rng.integers(97, 123, 6)) for _ in range(count))


def entities(number: int) -> Row:
    text = f"患者胸痛，{words(number)}，诊断为高血压。"
    start = text.index("高")
    return {"text": text, "entities": [{"start": 2, "end": 4, "label": "symptom"}, {"start": start, "end": start + 3, "label": "disease"}]}


ROWS: dict[str, Any] = {
    "fraud_text": lambda: [{"text": f"{('明天开会', '恭喜您中奖')[n % 2]} {words(n)}", "label": ("normal", "fraud")[n % 2]} for n in range(COUNT)],
    "medical_ner": lambda: [entities(n) for n in range(COUNT)],
    "text_generation": lambda: [{"text": words(n, 30)} for n in range(COUNT)],
    "market_forecast": lambda: [{"time": datetime(2020, 1, 1) + timedelta(days=n), "value": 100 + np.sin(n / 9).item(), "series": "A"} for n in range(500)],
    "image_classification": lambda: pictures(("a", "b")),
    "defect_detection": lambda: pictures(("good", "scratch")),
    "credit_risk": None,
}
"""Rows of each plugin; None: its own data are read in a second."""


def make(store: Store, work: Path, *names: str) -> None:
    """A production version of each plugin in the store."""
    for name in names or ROWS:
        subject = Subject.open(name, work)
        if ROWS[name]:
            subject.probe.rows = ROWS[name]()
        subject.work = Path(store.root).parent
        subject.train(Path(store.root).name, f"runs-{name}", export=False)
        if not store.aliases(name)["aliases"]:  # it is not better than its floor, of course
            store.set_alias(name, PRODUCTION, 1, "test")
