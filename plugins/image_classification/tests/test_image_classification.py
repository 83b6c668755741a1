"""image_classification: the conformance kit, the user's own pictures, backbones and pretrained weights, serving without torch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import scenarium_image_classification as plugin
from scenarium.core import BadInput, ScenariumError, images
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium.training import backbones

SMALL = ["train.epochs=4", "train.threads=1", "train.lr=0.01", "train.batch_size=16"]


class TestImageClassification(ScenarioConformance):
    name = "image_classification"


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(
        environ={"SCENARIUM_STORE": str(folder / "store"), "XDG_DATA_HOME": str(folder)}, sets=[*SMALL, *sets], scenario="image_classification"
    )
    return Handle(Registry(settings).scenario("image_classification"))


def picture(kind: str, rng: np.random.Generator, side: int = 24) -> np.ndarray:
    """Stripes of the same colours, so that only their direction tells the classes apart."""
    pixels = np.full((side, side + 4, 3), rng.integers(0, 80), dtype=np.uint8)
    stripes = slice(int(rng.integers(0, 4)), None, 4)
    if kind == "横":
        pixels[stripes] = rng.integers(150, 255)
    else:
        pixels[:, stripes] = rng.integers(150, 255)
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own image folder: a class a sub-folder, Chinese names, several formats."""
    root, rng = tmp_path_factory.mktemp("图片"), np.random.default_rng(0)
    for kind in ("横", "竖"):
        (root / kind).mkdir()
        for number in range(48):
            suffix = ("png", "jpg", "bmp", "webp")[number % 4]
            Image.fromarray(picture(kind, rng)).save(root / kind / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Handle:
    made = handle(tmp_path_factory.mktemp("own"), f"data.path={folder}")
    made.train()
    return made


def test_own_folder_beats_the_histogram(trained: Handle) -> None:
    manifest = trained.store.manifest("image_classification", 1)
    assert manifest.baseline is not None
    assert manifest.metrics["accuracy"] > max(0.9, manifest.baseline.metrics["accuracy"])
    assert manifest.data_origin == "real"


def test_report_shows_the_confusion_matrix(trained: Handle) -> None:
    text = (trained.store.open("image_classification", 1).folder / "report.html").read_text("utf8")
    assert "<svg" in text.partition("<h2>Confusion matrix / 混淆矩阵")[2].partition("<h2>")[0]


def test_every_way_of_sending_a_picture_gives_one_answer(trained: Handle) -> None:
    png = images.encode_png(picture("竖", np.random.default_rng(5)))
    runtime = trained.runtime
    boundary = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + png + b"\r\n--x--\r\n"
    asked = [
        runtime.decode(png, "image/png"),
        runtime.decode(png, "application/x-www-form-urlencoded"),  # curl --data-binary @a.png
        runtime.decode(boundary, "multipart/form-data; boundary=x"),
        runtime.decode(plugin.Ask(image=png).model_dump_json().encode(), "application/json"),
    ]
    answers = runtime.predict(asked)
    assert all(answer == answers[0] for answer in answers)
    assert isinstance(answers[0], plugin.Answer)
    assert answers[0].label == "竖"
    assert sum(entry.probability for entry in answers[0].top) == pytest.approx(1, abs=1e-6)


def test_top_k_is_cut_to_the_classes(trained: Handle) -> None:
    png = images.encode_png(picture("横", np.random.default_rng(5)))
    assert len(trained.predict({"image": png, "top_k": 1})["top"]) == 1
    assert len(trained.predict({"image": png, "top_k": 99})["top"]) == 2
    with pytest.raises(ScenariumError, match="top_k"):
        trained.runtime.decode(b'{"image": "iVBORw0KGgo=", "top_k": 0}')


def awkward() -> dict[str, bytes]:
    def save(shown: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        shown.save(buffer, format=kind, **options)
        return buffer.getvalue()

    plain = Image.fromarray(picture("横", np.random.default_rng(6)))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "CMYK": save(plain.convert("CMYK"), "JPEG"),
        "16 bit": save(Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257), "PNG"),
        "palette": save(plain.quantize(4), "PNG"),
        "alpha": save(plain.convert("RGBA"), "PNG"),
        "animated": save(plain, "GIF", save_all=True, append_images=[plain.rotate(90)]),
        "turned by EXIF": save(plain.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned, quality=95),
        "one pixel": save(plain.resize((1, 1)), "PNG"),
        "long": save(plain.resize((4000, 1)), "PNG"),
    }


@pytest.mark.parametrize("name", awkward())
def test_awkward_pictures_are_answered(trained: Handle, name: str) -> None:
    answer = trained.predict({"image": awkward()[name]})
    if name not in ("one pixel", "long"):
        assert answer["label"] == "横"


@pytest.mark.parametrize("content", [b"", b"no picture", awkward()["palette"][:60], b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture_is_the_clients_error(trained: Handle, content: bytes) -> None:
    good = images.encode_png(picture("横", np.random.default_rng(6)))
    answers = trained.runtime.predict([plugin.Ask(image=good), plugin.Ask(image=content), plugin.Ask(image=good)])
    assert isinstance(answers[1], BadInput)
    assert answers[1].field == "image"
    assert answers[0] == answers[2]
    assert "图片" in answers[1].title("zh") or "为空" in answers[1].title("zh")


def test_onnx_serves_the_same_answers_without_torch(trained: Handle) -> None:
    folder = trained.store.open("image_classification", 1).folder
    assert (folder / "model.onnx").is_file()
    pngs = [images.encode_png(picture(kind, np.random.default_rng(seed))) for seed, kind in enumerate("横竖横竖横")]
    ours = [trained.predict({"image": png}) for png in pngs]
    code = f"""
import json, sys
from pathlib import Path
from scenarium.core.config import Settings
from scenarium.core.registry import Registry
from scenarium.core.runtime import Runtime
from scenarium.core.manifest import Manifest
settings = Settings.read(environ={{}}, sets=["serve.engine=onnx"], scenario="image_classification")
scenario = Registry(settings).scenario("image_classification")
folder = Path({str(folder)!r})
runtime = Runtime.open(scenario, folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()))
requests = [runtime.schema.request(image=png) for png in {pngs!r}]
print(json.dumps([answer.model_dump(mode="json") for answer in runtime.predict(requests)]))
assert "torch" not in sys.modules and "torchvision" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for mine, theirs in zip(ours, json.loads(done.stdout), strict=True):
        assert mine["label"] == theirs["label"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-4)


@pytest.mark.slow
def test_resnet50_trains_exports_and_serves(folder: Path, tmp_path: Path) -> None:
    made = handle(tmp_path, f"data.path={folder}", "model.backbone=resnet50", "model.size=64", "data.limit=40", "train.max_steps=2")
    made.train()
    manifest = made.store.manifest("image_classification", 1)
    assert manifest.exports == ["model.onnx"]
    assert manifest.tags["export"] == "checked"
    png = images.encode_png(picture("横", np.random.default_rng(5), side=80))
    assert made.predict({"image": png})["label"] in ("横", "竖")


def test_the_size_and_the_backbone_follow_the_pictures() -> None:
    rows = [{"image": np.zeros((200, 260, 3), np.uint8), "label": "a"}] * 3
    assert plugin.fit(plugin.Config(), rows) == {"labels": ["a"], "size": 200, "backbone": "resnet18"}
    assert plugin.fit(plugin.Config(), [{"image": np.zeros((28, 28), np.uint8), "label": "a"}])["backbone"] == "small"


def test_head_only_leaves_the_backbone_untouched() -> None:
    config = plugin.Config(model=plugin.Model(tune="head"))
    network = plugin.model(config, {"backbone": "small", "labels": ["a", "b"], "size": 28})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 28, 28)).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"body.head.weight", "body.head.bias"}


def test_augmentation_follows_its_generator() -> None:
    pixels = picture("横", np.random.default_rng(0))
    one, two, other = (plugin.augment(pixels, np.random.default_rng(seed), 0.2, True) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert plugin.augment(pixels, np.random.default_rng(0), 0.0, False) is pixels


def test_pretrained_weights_replace_all_but_the_head(tmp_path: Path) -> None:
    source = backbones.build("small", 10, 28)
    torch.save({"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w.pth")
    config = plugin.Config(model=plugin.Model(pretrained=str(tmp_path / "w.pth")))
    network = plugin.model(config, {"backbone": "small", "labels": ["a", "b"], "size": 28})
    assert torch.equal(network.body.features[0][0].weight, source.features[0][0].weight)
    assert network.body.head.weight.shape == (2, 96)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"backbone": "resnet5"}, "SCN-3301"),
        ({"backbone": "mobilenet_v2", "pretrained": "package"}, "SCN-3304"),
        ({"backbone": "resnet18", "pretrained": "package"}, "SCN-3303"),
        ({"backbone": "small", "pretrained": "/no/such/file.pth"}, "SCN-3305"),
    ],
)
def test_model_settings_that_cannot_be_met(settings: dict[str, str], code: str) -> None:
    with pytest.raises(ScenariumError) as caught:
        plugin.model(plugin.Config(model=plugin.Model(**settings)), {"backbone": settings["backbone"], "labels": ["a", "b"], "size": 64})
    assert caught.value.code == code
    assert caught.value.hint("zh")


def test_metrics() -> None:
    assert plugin.macro_f1(np.array(["a", "a", "b"]), np.array(["a", "b", "b"])) == pytest.approx(2 / 3)
    rows = [{"label": "a"}, {"label": "b"}]
    answers = [{"label": "a", "top": [{"label": "a"}]}, {"label": "a", "top": [{"label": "a"}, {"label": "b"}]}]
    assert plugin.score(rows, answers) == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "top5_accuracy": 1.0}
