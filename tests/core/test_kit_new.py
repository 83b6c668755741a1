"""``scenarium new``: what each template writes passes its checks as written and trains on the user's own file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scenarium.core import pipeline
from scenarium.core.errors import ScenariumError
from scenarium.core.images import encode_png
from scenarium.core.kit.check import run_checks
from scenarium.core.kit.new import TEMPLATES, check_name, create
from scenarium.core.kit.subject import locate
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings
from scenarium.core.store import Store

NOUNS = ["apple", "boat", "cloud", "drum", "earth", "frost", "grass", "house", "iron", "jar", "king", "lamp", "moon", "nest", "ocean", "plum"]


def scenario_of(template: str) -> str:
    return f"my_{template.replace('-', '_')}"


@pytest.fixture(scope="module", params=TEMPLATES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    template: str = request.param
    return template, create(scenario_of(template), template, tmp_path_factory.mktemp("new"))


@pytest.mark.slow
def test_passes_its_checks_as_written(written: tuple[str, Path]) -> None:
    _, folder = written
    report = run_checks(str(folder))
    assert report.tier == "silver"
    assert not report.names("failed") + report.names("blocked"), [result for result in report.results if result.status == "failed"]
    assert "readme" in report.names("passed")


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def own_file(template: str, folder: Path) -> tuple[Path, list[str]]:
    """A small file of the user's with other column names, and the settings that map it."""
    rng = np.random.default_rng(1)
    if template == "image":
        for label, grey in (("dark", 40), ("light", 210)):
            (folder / label).mkdir(parents=True)
            for number in range(12):
                picture = np.clip(rng.normal(grey, 9, (20, 24)), 0, 255).astype(np.uint8)
                (folder / label / f"{number}.png").write_bytes(encode_png(picture))
        return folder, []
    lines, map = {
        "text": (
            ["content,class", *(f"{word} {' '.join(rng.choice(NOUNS, 4))},{word}" for _ in range(40) for word in ("old", "new"))],
            {"text": "content", "label": "class"},
        ),
        "table": (
            ["size,rooms,district,price", *(f"{30 + n},{1 + n % 4},{'ab'[n % 2]},{500 + 9 * n}" for n in range(60))],
            {"area": "size", "rent": "price"},
        ),
        "series": (["date,sales", *(f"2024-{1 + n // 28:02d}-{1 + n % 28:02d},{10 + n % 7}" for n in range(200))], {"time": "date", "value": "sales"}),
        "no-torch": (
            ["petal,width,class", *(f"{1 + n % 2 * 3 + n / 100},{0.2 + n % 2},{'xy'[n % 2]}" for n in range(60))],
            {"length": "petal", "species": "class"},
        ),
    }[template]
    folder.mkdir()
    path = folder / "own.csv"
    path.write_text("\n".join(lines), encoding="utf8")
    sets = [f"data.map={json.dumps(map)}"] + (['data.split="time:date"'] if template == "series" else [])
    return path, sets


def test_trains_on_the_users_own_file(written: tuple[str, Path], tmp_path: Path) -> None:
    template, folder = written
    path, sets = own_file(template, tmp_path / "own")
    located = locate(str(folder))
    settings = Settings.read(environ={}, sets=[f"data.path={path}", "train.epochs=4", "train.precision=fp32", *sets], scenario=located.name)
    scenario = Registry(settings, {located.name: located.plugin}).scenario(located.name)
    trained = pipeline.train(scenario, Store(str(tmp_path / "store")), tmp_path / "runs")
    manifest = trained.version.manifest
    assert manifest.data_origin == "real"
    assert manifest.metric.name in manifest.metrics


@pytest.mark.parametrize("name", ["My-Scenario", "1st", "a__b", "_a", "class", "a" * 41, "中文", "", "a_"])
def test_bad_name_is_refused_with_a_good_one(name: str) -> None:
    with pytest.raises(ScenariumError) as caught:
        check_name(name)
    assert caught.value.code == "SCN-7601"
    suggestion = caught.value.values["suggestion"]
    if suggestion not in ("my",):
        check_name(suggestion)


def test_taken_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "taken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: taken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scenarium.scenarios]\ntaken_name = taken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ScenariumError) as caught:
        create("taken_name", "text", tmp_path)
    assert caught.value.code == "SCN-7604"
    assert not (tmp_path / "taken_name").exists()


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("kept")
    with pytest.raises(ScenariumError) as caught:
        create("mine", "text", tmp_path)
    assert caught.value.code == "SCN-7602"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.txt"]


def test_unknown_template_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ScenariumError) as caught:
        create("mine", "tabel", tmp_path)
    assert caught.value.code == "SCN-7603"
    assert caught.value.values["nearest"] == "table"
    assert not (tmp_path / "mine").exists()
