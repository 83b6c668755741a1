"""Tests of credit_risk: the conformance kit, no torch anywhere, measures against hand-made cases, the user's own columns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scenarium.core.errors import ScenariumError
from scenarium.core.handle import Handle
from scenarium.core.kit import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium_credit_risk import measures

UCI = Path(__file__).parents[4] / "shared" / "data" / "uci_credit_default" / "train.csv.gz"


class TestConformance(ScenarioConformance):
    name = "credit_risk"


@pytest.fixture(autouse=True, scope="module")
def _untracked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        yield


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store")}, sets=["model.trees=40", "train.threads=1", *sets], scenario="credit_risk")
    return Handle(Registry(settings).scenario("credit_risk"))


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Income decides, job helps, shoe size does not; some incomes are missing."""
    rng = np.random.default_rng(0)
    lines = ["income,shoe,job,bad"]
    for _ in range(600):
        income, job = rng.normal(50, 15), rng.choice(["clerk", "诗人"])
        chance = 1 / (1 + np.exp((income - 45) / 4 - (job == "诗人")))
        lines.append(f"{'' if rng.random() < 0.05 else round(income, 2)},{rng.integers(36, 47)},{job},{'yes' if rng.random() < chance else 'no'}")
    path = tmp_path_factory.mktemp("own") / "loans.csv"
    path.write_text("\n".join(lines), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def trained(own_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Handle:
    found = handle(
        tmp_path_factory.mktemp("store"),
        f"data.path={own_file}",
        'data.map={"outcome": "bad"}',
        'data.map_label={"yes": "default", "no": "paid"}',
        'model.numbers=["income", "shoe"]',
        'model.categories=["job"]',
    )
    found.train()
    return found


def test_learns_the_users_own_columns(trained: Handle) -> None:
    manifest = trained.store.manifest("credit_risk", 1)
    assert manifest.data_origin == "real"
    assert manifest.metrics["auc"] > 0.8
    assert manifest.baseline
    assert manifest.baseline.name == "ranking by income alone"
    assert set(manifest.request_schema["properties"]) == {"income", "shoe", "job"}


def test_reasons_add_up_and_name_what_decides(trained: Handle) -> None:
    poor, rich = (trained.predict({"income": income, "shoe": 40, "job": "clerk"}) for income in (20, 80))
    assert poor["probability"] > 0.6 > 0.3 > rich["probability"]
    assert poor["reasons"][0]["field"] == "income"
    assert poor["reasons"][0]["effect"] > 0 > rich["reasons"][0]["effect"]
    # Three reasons for three columns: with the average they are the whole log-odds, so the average is the same for all.
    averages = [np.log(a["probability"] / (1 - a["probability"])) - sum(r["effect"] for r in a["reasons"]) for a in (poor, rich)]
    assert averages[0] == pytest.approx(averages[1], abs=1e-4)


def test_report_shows_the_curve_and_whether_probabilities_come_true(trained: Handle) -> None:
    text = (trained.store.open("credit_risk", 1).folder / "report.html").read_text(encoding="utf8")
    curve = text.partition("ROC 曲线")[2].partition("<h")[0]
    assert "<svg" in curve
    assert text.partition("按预测概率分为十组")[2].partition("</table>")[0].count("<tr>") == 1 + 10


def test_missing_and_unknown_values_are_answered(trained: Handle) -> None:
    assert trained.predict({})["probability"] == pytest.approx(trained.predict({"job": "astronaut"})["probability"], abs=1e-6)


def test_version_is_native_json(trained: Handle) -> None:
    version = trained.store.open("credit_risk", 1)
    assert "learner" in json.loads((version.folder / "model.json").read_text(encoding="utf8"))


def test_three_outcomes_are_refused(own_file: Path, tmp_path: Path) -> None:
    found = handle(tmp_path, f"data.path={own_file}", 'data.map={"outcome": "job", "limit": "income"}', 'model.numbers=["limit"]', "model.categories=[]")
    with pytest.raises(ScenariumError) as caught:
        found.train()
    assert caught.value.code == "SCN-0001"
    assert "clerk" in caught.value.title("en")
    assert "clerk" in caught.value.title("zh")


def test_trains_and_answers_without_torch(own_file: Path, tmp_path: Path) -> None:
    """A torch that cannot be imported stands before the real one."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')", encoding="utf8")
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_credit_risk import handle; from pathlib import Path\n"
        "h = handle(Path(sys.argv[1]), 'data.path=' + sys.argv[3], 'data.map={\"outcome\": \"bad\"}', 'model.positive=yes',"
        " 'model.numbers=[\"income\"]', 'model.categories=[\"job\"]')\n"
        "h.train(); print(h.predict({'income': 20})['probability']); assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent), str(own_file)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": "", "MLFLOW_TRACKING_URI": "", "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.5


def test_area_counts_ties_half() -> None:
    labels = np.array([True, True, False, False])
    assert measures.auc(labels, np.array([3.0, 1.0, 1.0, 0.0])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert measures.auc(labels, np.zeros(4)) == 0.5
    assert measures.auc(np.ones(3, bool), np.arange(3.0)) == 0.5


def test_corners_of_the_roc_curve_enclose_the_area() -> None:
    labels, scores = np.array([True, True, False, False, True]), np.array([3.0, 1.0, 1.0, 0.0, 2.0])
    corners = measures.roc(labels, scores)
    assert corners == [(0, 0), (0, pytest.approx(1 / 3)), (0, pytest.approx(2 / 3)), (0.5, 1), (1, 1)]
    assert np.trapezoid(*np.array(corners).T[::-1]) == pytest.approx(measures.auc(labels, scores))


def test_measures_of_a_perfect_score() -> None:
    labels = np.array([True, False, True, False])
    assert measures.all_of(labels, labels.astype(float)) == {"auc": 1.0, "ks": 1.0, "brier": 0.0}


@pytest.mark.slow
@pytest.mark.skipif(not UCI.is_file(), reason="the labelled file is not here")
def test_beats_the_baseline_on_real_card_clients(tmp_path: Path) -> None:
    numbers = ["LIMIT_BAL", *(f"PAY_{n}" for n in (0, 2, 3, 4, 5, 6)), *(f"PAY_AMT{n}" for n in range(1, 7))]
    found = handle(
        tmp_path,
        f"data.path={UCI}",
        'data.map={"outcome": "default_next_month"}',
        'data.map_label={"1": "default", "0": "paid"}',
        f"model.numbers={json.dumps(numbers)}",
        "model.categories=[]",
        "model.trees=120",
    )
    manifest = found.train().version.manifest
    assert manifest.baseline
    assert manifest.metrics["auc"] > manifest.baseline.metrics["auc"] + 0.03
    assert manifest.metrics["auc"] > 0.75
