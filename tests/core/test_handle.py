"""A scenario in a notebook: train, predict, stream, evaluate, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarium.core import load
from scenarium.core.errors import BadInput, ScenariumError
from scenarium.core.handle import Handle


@pytest.fixture
def handle(site: Path) -> Handle:
    made: Handle = load("pebbles")
    made.train()
    return made


def test_train_predict_stream_evaluate(handle: Handle, capsys: pytest.CaptureFixture[str]) -> None:
    assert repr(handle) == "<scenario pebbles, versions [1], production 1, uses 1>"
    assert handle.predict({"grams": 9})["heap"] == "heavy"
    assert handle.predict(grams=1)["heap"] == "light"
    assert [answer["heap"] for answer in handle.predict([{"grams": 1}, {"grams": 9}])] == ["light", "heavy"]
    request = handle.runtime.schema.request(grams=9)
    assert handle.predict(request) == handle.predict(grams=9)
    assert "".join(part["text"] for part in handle.stream(grams=2)) == "a pebble of 2 g"
    evaluation = handle.evaluate()
    assert evaluation.metrics == handle.version.manifest.metrics
    assert len(evaluation.rows) == len(evaluation.answers) > 0


def test_progress_is_shown_on_stderr(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("pebbles").train()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "weighing: 2/2 (100 %)" in shown.err


def test_own_data_is_evaluated_whole(handle: Handle, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("grams,heap\n" + "".join(f"{1 + i / 100},light\n{8 + i / 100},heavy\n" for i in range(20)), encoding="utf8")
    made: Handle = load("pebbles", sets=(f"data.path={file}",), scenario="pebbles")
    evaluation = made.evaluate(own=True)
    assert len(evaluation.rows) == 40
    assert evaluation.metrics["accuracy"] == 1.0


def test_errors_name_the_field_and_what_to_do(handle: Handle) -> None:
    with pytest.raises(BadInput, match="'grams' is missing"):
        handle.predict({})
    with pytest.raises(BadInput, match="'gramms' is unknown"):
        handle.predict(grams=1, gramms=2)
    with pytest.raises(BadInput, match="'grams' cannot be used"):
        handle.predict(grams="heavy")
    with pytest.raises(BadInput, match="cannot be negative"):
        handle.predict(grams=-1)
    with pytest.raises(ScenariumError, match="SCN-5001"):
        Handle(handle.scenario, 9).predict(grams=1)


def test_an_untrained_scenario_says_how_to_train(site: Path) -> None:
    with pytest.raises(ScenariumError, match=r"SCN-4004[\s\S]*scenarium train pebbles"):
        load("pebbles").predict(grams=1)
    assert ".train()" in repr(load("pebbles"))


def test_use_changes_the_version(handle: Handle) -> None:
    shifted: Handle = load("pebbles", sets=("model.shift=3",), scenario="pebbles")
    assert shifted.train().version.number == 2
    assert shifted.predict(grams=6)["heap"] == "light"
    assert shifted.use(1).predict(grams=6)["heap"] == "heavy"
    assert handle.use("latest").version.number == 2
