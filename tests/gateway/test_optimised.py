"""``scenarium optimize``: a version is trained, tried with other engines, registered, promoted, and answers from workers without torch."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarium.core import devices, optimising, pipeline, triton_repository
from scenarium.core.cli.optimize import _print as print_table
from scenarium.core.engines import openvino_engine
from scenarium.core.errors import ScenariumError
from scenarium.core.registry import open_registry
from scenarium.core.store import Store

pytest.importorskip("openvino")
pytest.importorskip("scenarium_image_classification")
NAME = "image_classification"
CLI = Path(sys.executable).with_name("scenarium")


def picture(number: int) -> bytes:
    """A dark or a light picture with much noise."""
    rng = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(np.clip(rng.normal((110, 145)[number % 2], 60, (32, 32, 3)), 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def trained(shared_lab, tmp_path_factory: pytest.TempPathFactory):
    """A production version by the ordinary pipeline, and the settings with which a command finds it."""
    folder = tmp_path_factory.mktemp("site")
    for number in range(240):
        file = folder / "pictures" / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    tables = {"train": "epochs = 3", "serve": "max_batch_size = 4", "data": f'path = "{folder / "pictures"}"'}
    written = [f"[scenarios.{NAME}.{table}]\n{setting}" for table, setting in tables.items()]
    (folder / "scenarios.toml").write_text("\n".join([f'[scenarium]\nstore = "{shared_lab.store.root}"', *written]))
    scenario = open_registry(folder / "scenarios.toml").scenario(NAME)
    pipeline.train(scenario, shared_lab.store, folder / "runs")
    if not shared_lab.store.aliases(NAME)["aliases"]:
        shared_lab.store.set_alias(NAME, "production", 1, "test")
    return shared_lab, scenario, folder


def optimize(folder: Path, *args: str, lang: str = "en") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SCENARIUM_LANG": lang}
    return subprocess.run([CLI, "optimize", NAME, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def check_table(text: str, found: optimising.Found) -> None:
    head, original, *rows, threads = text.splitlines()
    assert head.split() == ["ENGINE", "PRECISION", "SIZE", "LATENCY", "THROUGHPUT", "accuracy", "CHANGE", "[95", "%]"]
    pace = r"\d+\.\d MB +\d+\.\d\d ms +\d+\.\d/s \([124]\) +[01]\.\d{4}"
    assert re.fullmatch(rf"torch +fp32 +{pace} +version 1 *", original)
    for each, row in zip(found.tried, rows, strict=True):
        start = rf"{each.way.engine} +{each.way.precision} +"
        if each.reason:
            assert re.fullmatch(rf"{start}(- +){{4}}{re.escape(each.reason.en)} *", row)
            continue
        change = r"[+-]\d\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]"
        assert re.fullmatch(rf"{start}{pace} +{change}( kept| loses too much)? *", row), row
        assert ("kept" in row) == (each is found.kept)
    assert f"{found.original.speed.latency_ms:.2f} ms" in original
    assert threads.startswith(f"Threads: {devices.cores()}, as many as serving deals to a worker")


@pytest.mark.slow
def test_the_fastest_within_the_allowed_loss_is_served_without_torch(trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lab, scenario, _ = trained
    monkeypatch.setattr(optimising, "SECONDS", 0.05)
    found = optimising.optimise(scenario, lab.store, max_drop=0.05)
    by_way = {each.way: each for each in found.tried}
    assert set(by_way) == set(optimising.WAYS)
    measured = [each for each in found.tried if each.reason is None]
    assert {each.way for each in measured} >= {("onnx", "fp32"), ("openvino", "fp32"), ("onnx", "int8"), ("openvino", "int8")}
    assert all(each.comparison.rows == len(found.original.evaluation.rows) for each in measured)
    assert by_way["onnx", "fp32"].comparison.new_value == found.original.evaluation.metrics["accuracy"]
    assert by_way["onnx", "int8"].size < 0.5 * by_way["onnx", "fp32"].size
    assert found.kept is optimising.fastest(found.original, found.tried, 0.05)
    capsys.readouterr()
    print_table(found, 0.05)
    check_table(capsys.readouterr().out, found)
    manifest = found.version.manifest
    assert (manifest.optimised.source, manifest.optimised.engine) == (1, found.kept.way.setting)
    assert manifest.tags["optimised"].startswith("optimised from version 1: ")
    assert manifest.data == found.source.manifest.data
    assert "model.safetensors" not in manifest.files
    assert lab.store.aliases(NAME)["aliases"] == {"production": 1, "candidate": found.version.number}

    lab.store.set_alias(NAME, "production", found.version.number, "test")
    entry = Path(triton_repository.root(lab.store)) / NAME
    assert (entry / str(found.version.number) / "model.onnx").read_bytes() == (found.version.folder / "model.onnx").read_bytes()
    gateway = lab.start(None, "scenarios.image_classification.serve.required=true")
    gateway.ready(NAME, timeout=60)
    answer = gateway.client.post(f"/scenarios/{NAME}/predict", json={"image": base64.b64encode(picture(7)).decode()})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-scenarium-version"] == str(found.version.number)
    assert {each["label"] for each in answer.json()["top"]} == {"dark", "light"}
    assert gateway.client.get(f"/scenarios/{NAME}").json()["engine"] == found.kept.way.setting
    for pid in gateway.processes():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text(), "neither gateway, zygote nor worker holds torch"
    again = optimising._source(scenario, lab.store)
    assert again.number == 1, "an optimised production version is optimised anew from where it came from"
    lab.store.set_alias(NAME, "production", 1, "test")


@pytest.mark.slow
def test_the_command_reports_and_promotes(trained) -> None:
    _, _, folder = trained
    found = optimize(folder, "--engine", "onnx", "--precision", "fp32", "--promote", "--json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["promoted"]
    assert [(row["engine"], row["precision"], row["relative_loss"], row["kept"]) for row in told["tried"]] == [("onnx", "fp32", 0.0, True)]
    assert Store(str(trained[0].store.root)).aliases(NAME)["aliases"]["production"] == told["version"]


@pytest.mark.slow
def test_threads_are_those_that_serving_deals(trained) -> None:
    import torch

    lab, _, folder = trained
    for workers in (1, 2, 5):
        several = open_registry(folder / "scenarios.toml", sets=(f"scenarios.{NAME}.serve.workers={workers}",)).scenario(NAME)
        assert optimising._share(several, lab.store) == max(1, devices.cores() // workers)
    before = torch.get_num_threads(), os.environ.get("SCENARIUM_THREADS")
    with optimising._limited(7):
        assert (torch.get_num_threads(), os.environ["SCENARIUM_THREADS"]) == (7, "7")
    assert (torch.get_num_threads(), os.environ.get("SCENARIUM_THREADS")) == before


def test_what_cannot_be_optimised_is_refused(trained, tmp_path: Path) -> None:
    lab, scenario, folder = trained
    refused = optimize(folder, "--engine", "onnx", "--precision", "bf16", lang="zh")
    assert refused.returncode == 1
    assert "SCN-6063 没有可尝试的组合" in refused.stderr
    assert "openvino bf16" in refused.stderr
    with pytest.raises(ScenariumError, match="SCN-4004"):
        optimising.optimise(scenario, Store(str(tmp_path / "empty")))
    lab.publish("unit")
    unit = open_registry(sets=["scenarios.unit.plugin=image_classification"]).scenario("unit")
    with pytest.raises(ScenariumError, match=r"SCN-6061 .*no tensor function"):
        optimising.optimise(unit, lab.store)


def test_a_version_whose_export_was_not_checked_or_without_rows_is_refused(trained, tmp_path: Path) -> None:
    lab, scenario, _ = trained
    store = Store(str(tmp_path / "store"))
    other = {**lab.store.manifest(NAME, 1).data, "sha256": "0" * 64}
    for changed, code in (
        ({"tags": {"export": "none: it differs"}}, "SCN-6061 .*none: it differs"),
        ({"data": {}}, "SCN-6062"),
        ({"data": other}, "SCN-6064 .*changed since"),
    ):
        with store.draft(NAME) as draft:
            for file in (lab.store.open(NAME, 1).folder).iterdir():
                if file.name != "manifest.json":
                    (draft / file.name).write_bytes(file.read_bytes())
            version = store.commit(NAME, draft, lab.store.manifest(NAME, 1).model_copy(update=changed))
        store.set_alias(NAME, "production", version.number, "test")
        with pytest.raises(ScenariumError, match=code):
            optimising.optimise(scenario, store)


def test_bf16_is_left_out_where_the_processor_has_none(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, scenario, _ = trained
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda core=None: False)
    with pytest.raises(ScenariumError, match="SCN-6065"):
        optimising._try(scenario, lab.store.open(NAME, 1), optimising.Way("openvino", "bf16"), tmp_path, None, None, None, None)
    assert not list(tmp_path.iterdir())
