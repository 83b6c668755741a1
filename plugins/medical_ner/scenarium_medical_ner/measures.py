"""Entity-level precision, recall and F1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scenarium.core.types import Row


def keys(entities: Iterable[Mapping[str, Any]]) -> set[tuple[int, int, str]]:
    """Start, end and label of each entity."""
    return {(entity["start"], entity["end"], entity["label"]) for entity in entities}


def counts(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Label to [right, answered, true]. An entity is right where start, end and label are all equal."""
    found: dict[str, list[int]] = {}
    for row, answer in zip(rows, answers, strict=True):
        true, answered = keys(row["entities"]), keys(answer["entities"])
        for column, group in enumerate((true & answered, answered, true)):
            for _, _, label in group:
                found.setdefault(label, [0, 0, 0])[column] += 1
    return found


def precision_recall_f1(right: int, answered: int, true: int) -> tuple[float, float, float]:
    """Precision, recall, F1 as conlleval defines them (E. Tjong Kim Sang and S. Buchholz, 2000); 0 where nothing was right."""
    precision, recall = right / max(answered, 1), right / max(true, 1)
    return precision, recall, 2 * right / max(answered + true, 1)


def entity_scores(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Micro precision, recall and F1 over all entities, and the mean F1 of the labels that occur in ``rows``."""
    table = counts(rows, answers)
    precision, recall, f1 = precision_recall_f1(*(sum(column) for column in zip(*table.values(), strict=True))) if table else (0.0, 0.0, 0.0)
    each = [precision_recall_f1(*row)[2] for row in table.values() if row[2]]
    return {"f1": f1, "precision": precision, "recall": recall, "macro_f1": sum(each) / max(len(each), 1)}
