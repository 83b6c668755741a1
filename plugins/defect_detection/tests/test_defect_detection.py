"""defect_detection: the conformance kit, both tasks on the user's own folder, PatchCore and PaDiM against a plain computation."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import scenarium_defect_detection as plugin
from scenarium.core import BadInput, ScenariumError, images
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.progress import Progress
from scenarium.core.registry import Registry
from scenarium.training import backbones
from scenarium_defect_detection import fitting, maps, network, simulate
from scenarium_defect_detection.data import GOOD, HELD_OUT, UNSEEN, read_textures
from scenarium_defect_detection.settings import Config, Model, chosen_method

SMALL = ["train.threads=1", "model.size=64"]


class TestDefectDetection(ScenarioConformance):
    name = "defect_detection"


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(
        environ={"SCENARIUM_STORE": str(folder / "store"), "XDG_DATA_HOME": str(folder)}, sets=[*SMALL, *sets], scenario="defect_detection"
    )
    return Handle(Registry(settings).scenario("defect_detection"))


def plate(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A brushed plate of 72 x 96 pixels, with a hole or a dent, and the mask."""
    pixels = 140 + 10 * rng.standard_normal((72, 1)) + 3 * rng.standard_normal((72, 96))
    mask = np.zeros((72, 96), dtype=bool)
    top, left = rng.integers(12, 48), rng.integers(12, 72)
    if kind == "孔":
        mask[top : top + 10, left : left + 10] = True
        pixels[mask] = 30
    elif kind == "凹痕":
        mask[top : top + 6, left : left + 16] = True
        pixels[mask] += 70
    return pixels.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own file: JSON lines that name pictures, labels and masks; good parts are called 合格."""
    root, rng, lines = tmp_path_factory.mktemp("零件"), np.random.default_rng(0), []
    for number in range(120):
        kind = ("合格", "合格", "孔", "凹痕")[number % 4]
        pixels, mask = plate(rng, kind)
        Image.fromarray(pixels).save(root / f"{number}.png")
        line: dict[str, Any] = {"image": f"{number}.png", "label": kind, "mask": None}
        if mask.any():
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"{number}-mask.png")
            line["mask"] = f"{number}-mask.png"
        lines.append(json.dumps(line, ensure_ascii=False))
    (root / "labels.jsonl").write_text("\n".join(lines), encoding="utf8")
    return root


@pytest.fixture(scope="module")
def anomaly(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Handle:
    made = handle(tmp_path_factory.mktemp("anomaly"), f"data.path={folder / 'labels.jsonl'}", "data.good=合格", "train.epochs=12", "train.lr=0.006")
    made.train()
    return made


@pytest.fixture(scope="module")
def classes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Handle:
    sets = [f"data.path={folder / 'labels.jsonl'}", "data.good=合格", "model.task=classify", "train.epochs=12", "train.lr=0.006"]
    made = handle(tmp_path_factory.mktemp("classify"), *sets)
    made.train()
    return made


def test_anomalies_are_found_without_having_seen_one(anomaly: Handle) -> None:
    manifest = anomaly.store.manifest("defect_detection", 1)
    assert manifest.metrics["image_auroc"] > 0.9
    assert manifest.metrics["pixel_auroc"] > 0.9
    assert set(manifest.metrics) == {"image_auroc", "pixel_auroc", "recall", "false_alarm_rate"}
    report = (anomaly.store.open("defect_detection", 1).folder / "report.html").read_text("utf8")
    assert "热力图" in report
    assert "data:image/png" in report


def test_the_answer_points_at_the_defect(anomaly: Handle) -> None:
    pixels, mask = plate(np.random.default_rng(77), "孔")
    answer = anomaly.predict({"image": images.encode_png(pixels)})
    assert answer["is_defect"]
    assert answer["score"] > answer["threshold"]
    x1, y1, x2, y2 = answer["boxes"][0]["box"]
    rows, columns = np.nonzero(mask)
    assert x1 < columns.max()
    assert x2 > columns.min()
    assert y1 < rows.max()
    assert y2 > rows.min()
    assert 0 <= x1 < x2 <= 96
    assert 0 <= y1 < y2 <= 72
    level = maps.read_levels(base64.b64decode(answer["heat_map"], validate=True))
    assert level.shape == (72, 96)
    assert level[mask].mean() > level[~mask].mean() + 30
    assert answer["defect"] is None


def test_a_good_part_has_no_boxes(anomaly: Handle) -> None:
    answers = [anomaly.predict({"image": images.encode_png(plate(np.random.default_rng(seed), "合格")[0]), "heat_map": False}) for seed in range(300, 310)]
    assert sum(answer["is_defect"] for answer in answers) <= 3
    for answer in answers:
        assert answer["heat_map"] is None
        assert bool(answer["boxes"]) == answer["is_defect"]


def test_defect_classes(classes: Handle) -> None:
    manifest = classes.store.manifest("defect_detection", 1)
    assert manifest.baseline is not None
    assert manifest.metrics["macro_f1"] > 0.8
    answer = classes.predict({"image": images.encode_png(plate(np.random.default_rng(78), "孔")[0])})
    assert answer["defect"] == "孔"
    assert answer["is_defect"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["score"] == pytest.approx(1 - answer["probabilities"]["合格"])


def test_a_turned_photograph_gets_boxes_in_upright_pixels(anomaly: Handle) -> None:
    import io

    pixels, mask = plate(np.random.default_rng(77), "孔")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(buffer, format="PNG", exif=exif)
    straight, turned = (anomaly.predict({"image": content}) for content in (images.encode_png(pixels), buffer.getvalue()))
    assert turned["boxes"] == straight["boxes"]
    assert mask.any()


@pytest.mark.parametrize("content", [b"", b"no picture", images.encode_png(np.zeros((9, 9), np.uint8))[:40]])
def test_what_is_no_picture_is_the_clients_error(anomaly: Handle, content: bytes) -> None:
    answers = anomaly.runtime.predict([plugin.Ask(image=content)])
    assert isinstance(answers[0], BadInput)
    assert answers[0].field == "image"


def onnx_answers(handle: Handle, pngs: list[bytes]) -> list[dict[str, Any]]:
    """Answers of the version's ONNX export in an interpreter that never imports torch."""
    folder = handle.store.open("defect_detection", 1).folder
    code = f"""
import json, sys
from pathlib import Path
from scenarium.core.config import Settings
from scenarium.core.registry import Registry
from scenarium.core.runtime import Runtime
from scenarium.core.manifest import Manifest
scenario = Registry(Settings.read(environ={{}}, sets=["serve.engine=onnx"], scenario="defect_detection")).scenario("defect_detection")
folder = Path({str(folder)!r})
runtime = Runtime.open(scenario, folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()))
print(json.dumps([a.model_dump(mode="json") for a in runtime.predict([runtime.schema.request(image=png) for png in {pngs!r}])]))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("task", ["anomaly", "classes"])
def test_onnx_serves_the_same_answers_without_torch(task: str, request: pytest.FixtureRequest) -> None:
    made: Handle = request.getfixturevalue(task)
    pngs = [images.encode_png(plate(np.random.default_rng(seed), kind)[0]) for seed, kind in enumerate(["合格", "孔", "凹痕"])]
    for png, theirs in zip(pngs, onnx_answers(made, pngs), strict=True):
        ours = made.predict({"image": png})
        assert ours["is_defect"] == theirs["is_defect"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-3, abs=1e-5)
        assert ours["defect"] == theirs["defect"]


# ── remembering good parts ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of resnet18. Random, so only the mechanics can be tested with it, and no quality is asserted."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(backbones.build("resnet18", 1000, 224).state_dict(), path)
    return path


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_memories_train_export_and_serve(folder: Path, weights: Path, tmp_path: Path, method: str) -> None:
    sets = [f"data.path={folder / 'labels.jsonl'}", "data.good=合格", f"model.method={method}", "model.backbone=resnet18", f"model.pretrained={weights}"]
    made = handle(tmp_path, *sets, "model.patches=60", "model.features=12")
    made.train()
    manifest = made.store.manifest("defect_detection", 1)
    assert manifest.exports == ["model.onnx"]
    assert manifest.tags["export"] == "checked"
    assert 0 <= manifest.metrics["image_auroc"] <= 1
    weights.rename(weights.with_suffix(".away"))  # a server must not need them
    try:
        assert made.predict({"image": images.encode_png(plate(np.random.default_rng(1), "孔")[0])})["score"] > 0
    finally:
        weights.with_suffix(".away").rename(weights)


def test_patchcore_is_the_distance_to_the_nearest_remembered_patch() -> None:
    torch.manual_seed(0)
    memory = network.Memory("resnet18", 384, 5).eval()
    memory.bank.copy_(torch.randn(5, 384))
    memory.scale.copy_(torch.rand(384) + 0.5)
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        patches = (memory.features(image).permute(0, 2, 3, 1) * memory.scale).reshape(2, 64, 384)
        expected = torch.cdist(patches, memory.bank.expand(2, 5, 384)).amin(2).reshape(2, 8, 8) / 384**0.5
        assert torch.allclose(memory(image)[0], network.scored(expected)[0], rtol=1e-4)


def test_padim_is_the_mahalanobis_distance() -> None:
    torch.manual_seed(0)
    gaussian = network.Gaussian("resnet18", 64, 6)
    rng = np.random.default_rng(0)
    rows = [{"image": plate(rng, "合格")[0], "label": "good"} for _ in range(20)]
    fitting.remember(gaussian, rows, 64, 0, Progress())
    image = next(fitting.batches(rows[:1], 64))
    with torch.inference_mode():
        good = torch.cat([gaussian.features(batch) for batch in fitting.batches(rows, 64)])[:, gaussian.keep].flatten(2).double().numpy()
        place = 27
        apart = good[0, :, place] - good[:, :, place].mean(0)
        noise = 0.01 * np.square(good - good.mean(0)).mean()
        covariance = np.cov(good[:, :, place].T) + noise * np.eye(6)
        expected = np.sqrt(apart @ np.linalg.inv(covariance) @ apart) / 6**0.5
        features = gaussian.features(image)[:, gaussian.keep].flatten(2)[0, :, place]
        got = ((features - gaussian.mean[place]) @ gaussian.whiten[place]).square().sum().sqrt() / 6**0.5
    assert float(got) == pytest.approx(expected, rel=1e-2)


def test_the_core_set_is_spread_out() -> None:
    found = torch.zeros(1, 2, 1, 40)
    found[0, :, 0, :38] = torch.randn(2, 38, generator=torch.Generator().manual_seed(0)) * 0.01
    found[0, :, 0, 38:] = torch.tensor([[5.0, -5.0], [5.0, 5.0]])
    memory = network.Memory("resnet18", 2, 3)
    fitting._core_set(memory, found, torch.Generator().manual_seed(0), Progress())
    far = found[0, :, 0, 38:].T * memory.scale
    assert torch.cdist(far, memory.bank).amin(1).max() < 1e-5


def test_random_features_are_refused() -> None:
    config = Config(model=Model(method="patchcore"))
    with pytest.raises(ScenariumError) as caught:
        plugin.fit(config, [{"image": np.zeros((64, 64), np.uint8), "label": "good"}])
    assert caught.value.code == "SCN-3323"
    assert chosen_method(Config(model=Model(pretrained="hub"))) == "patchcore"
    assert chosen_method(Config()) == "simulate"


def test_few_good_parts_give_a_wide_threshold() -> None:
    rng = np.random.default_rng(0)
    many = rng.standard_normal(4000)
    assert fitting.bound(many, 0.02) == pytest.approx(2.05, abs=0.1)
    exceeded = [rng.standard_normal(50) > fitting.bound(rng.standard_normal(6), 0.02) for _ in range(400)]
    assert np.mean(exceeded) == pytest.approx(0.02, abs=0.008)
    assert fitting.bound(np.array([1.5]), 0.02) == 1.5


@pytest.mark.parametrize(("label", "task", "code"), [("裂纹", "anomaly", "SCN-3320"), (None, "classify", "SCN-3321")])
def test_data_that_does_not_fit_the_task(label: str | None, task: Any, code: str) -> None:
    with pytest.raises(ScenariumError) as caught:
        plugin.fit(Config(model=Model(task=task)), [{"image": np.zeros((64, 64), np.uint8), "label": label}])
    assert caught.value.code == code


# ── simulated defects, default data, maps ─────────────────────────────────────────────────────────────────────────────


def test_simulated_defects_are_where_the_mask_says() -> None:
    pixels = np.random.default_rng(0).integers(90, 160, (64, 64, 3), dtype=np.uint8)
    some = 0
    for seed in range(60):
        changed, mask = simulate.disturb(pixels, np.random.default_rng(seed))
        again, _ = simulate.disturb(pixels, np.random.default_rng(seed))
        assert np.array_equal(changed, again)
        assert np.abs(changed.astype(int) - pixels)[~mask].max(initial=0) <= 14
        some += bool(mask.any())
    assert 25 < some < 55


@pytest.mark.parametrize("kind", simulate.DEFECTS)
def test_drawn_defects_change_what_they_mark(kind: str) -> None:
    grey = np.random.default_rng(0).uniform(90, 160, (128, 128)).astype(np.float32)
    for seed in range(20):
        changed, mask = simulate.DEFECTS[kind](grey, np.random.default_rng(seed))
        if mask.sum() > 20:
            assert np.abs(changed - grey)[mask].mean() > 5


def test_held_out_regions_never_meet_the_training(tmp_path: Path) -> None:
    # Every pixel's value names its place, so a crop tells where it was cut: columns left and right of the border differ.
    paths = []
    for name in ("brick", "grass"):
        texture = np.full((512, 512), 60, np.uint8)
        texture[:, HELD_OUT:] = 190
        Image.fromarray(texture).save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    rows = read_textures(paths, unseen=True)
    again = read_textures(paths, unseen=True)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(rows, again, strict=True))
    for row in rows:
        if row["label"] == GOOD:
            assert (row["image"] > 128).all() == (row["_split"] == "test")
            assert not row["mask"].any()
        else:
            assert row["mask"].any()
    assert {row["_split"] for row in rows if row["label"] == UNSEEN} == {"test"}
    assert UNSEEN not in {row["label"] for row in read_textures(paths, unseen=False)}


def test_auroc_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 9, 50), rng.integers(0, 7, 80)
    expected = roc_auc_score([1] * 50 + [0] * 80, np.concatenate([positive, negative]))
    assert maps.auroc(positive, negative) == pytest.approx(expected)
    counts = [np.bincount(values, minlength=256) for values in (positive, negative)]
    assert maps.auroc_of_counts(*counts) == pytest.approx(expected)


def test_boxes() -> None:
    scores = np.zeros((8, 8))
    scores[1:3, 1:4], scores[6, 6], scores[7, 7] = 0.9, 0.7, 0.6
    found = maps.boxes(scores, 0.5, 80, 160)
    assert [box for box, _ in found] == [[20, 10, 80, 30], [120, 60, 140, 70], [140, 70, 160, 80]]
    assert [score for _, score in found] == [0.9, 0.7, 0.6]
    assert maps.boxes(scores, 0.95, 80, 160) == []


def test_the_heat_map_keeps_its_numbers() -> None:
    scores = np.linspace(0, 4, 64).reshape(8, 8)
    level = maps.levels(scores, 1.0, 8, 8)
    assert level[0, 0] == 0
    assert np.array_equal(maps.read_levels(maps.heat_png(level)), level)
    above = scores > 1.0
    assert level[above].min() >= 128 > level[~above].max()
    assert maps.levels(scores, 1.0, 1000, 500).shape == (256, 128)
