"""The report holds what it must, shows Chinese without an installed font, and runs nothing."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import tomllib
import warnings
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fontTools import ttLib as font_tools
from matplotlib.font_manager import fontManager

from scenarium.core import charts, fonts, report
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.types import Baseline, Figure, Metric


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_data(self, data):
        self.words.append(data)


def manifest(**changes) -> Manifest:
    ref = PluginRef(name="toy", distribution="scenarium-toy", version="0.1.0", loadable=">=0.1")
    values = {
        "scenario": "line7",
        "created": datetime(2026, 11, 24, tzinfo=UTC),
        "plugin": ref,
        "config": {"train": {"lr": 0.003, "epochs": 7}, "data": {"map": {"text": "内容"}}},
        "request_schema": {},
        "response_schema": {},
        "sample": {},
        "metric": Metric("f1", floor=0.5),
        "metrics": {"f1": 0.91234, "accuracy": 0.95},
        "baseline": Baseline("majority class", {"f1": 0.25}),
        "data": {"rows": 120, "sha256": "ab" * 32, "files": [{"path": "诈骗.csv", "sha256": "cd" * 32, "rows": 120}]},
        "data_origin": "real parts, generated",
        "packages": {"torch": "2.14.1"},
        "python": "3.11.7",
        "card": {"en": "# Card\n\nFor *tests* <script>alert(1)</script>", "zh": "# 模型卡\n\n| 语言 |\n| --- |\n| 中文 |"},
    }
    return Manifest(**{**values, **changes})


CURVES = {"loss": [(1, 2.0), (2, 1.0)], "val_loss": [(2, 1.1)], "lr": [(1, 0.0), (2, 0.1)], "samples_per_s": [(1, 100.0), (2, 120.0)]}


def write(tmp_path, found: Manifest, curves=CURVES, figures=()) -> str:
    path = tmp_path / "report.html"
    report.write(path, found, curves, figures)
    return path.read_text(encoding="utf8")


def test_it_holds_what_it_must(tmp_path):
    text = write(tmp_path, manifest(), figures=[Figure("Confusion <matrix>", charts.confusion_matrix(["a", "b"], ["a", "a"]))])
    words = " ".join(Page(text).words)
    for wanted in (
        "line7", "2026-11-24", "real parts, generated", "0.9123", "majority class", "0.25", "f1", "higher is better", "0.5", "Confusion <matrix>",
        "train.lr", "0.003", "data.map.text", "内容", "ab" * 32, "诈骗.csv", "cd" * 32, "scenarium-toy", "2.14.1", "3.11.7", "Card", "模型卡",
        "留出集指标", "训练过程",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert Page(text).tags.count("svg") == 4, "loss, rate, speed, and the domain's own"


def test_it_needs_nothing_else_and_runs_nothing(tmp_path):
    images = [np.zeros((8, 8), np.uint8)]
    figures = [Figure("parts", charts.image_grid(images, ["<b>x</b>"])), Figure("heat", charts.heat_maps(images, [np.eye(8)]))]
    page = Page(write(tmp_path, manifest(scenario="<img src=x onerror=alert(1)>"), figures=figures))
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert all(link.startswith(("data:", "#")) for link in page.links)


def test_a_training_without_curves_or_baseline(tmp_path):
    text = write(tmp_path, manifest(baseline=None, metric=Metric("mae", higher_is_better=False), metrics={"mae": 1.0}, card={}), curves={})
    assert "lower is better" in text
    assert "Training /" not in text
    assert "baseline" not in text


def test_what_trains_brings_the_chinese_font():
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]
    assert "scenarium[report]" in extras["train"]
    assert any(line.startswith("mplfonts") for line in extras["report"])


@pytest.fixture
def bare(monkeypatch):
    """A machine without fonts: matplotlib knows its own alone."""
    monkeypatch.setattr(fontManager, "ttflist", [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname])
    caches = (fonts.chinese, fonts.families)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_chinese_glyphs_are_embedded_on_a_machine_without_fonts(bare, tmp_path):
    text = write(tmp_path, manifest())
    found = re.search(r"url\(data:font/woff;base64,([^)]+)\)", text)
    assert found is not None
    with font_tools.TTFont(io.BytesIO(base64.b64decode(found[1]))) as font:
        drawn = font.getBestCmap()
    body = text.partition("</style>")[2]
    wanted = {ord(character) for character in body if "\u4e00" <= character <= "\u9fff"}
    assert len(wanted) > 20
    assert wanted <= drawn.keys()
    assert len(text) < 400_000


def test_chinese_in_plots_is_drawn_as_paths(bare):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = charts.confusion_matrix(["诈骗", "正常", "诈骗"], ["诈骗", "正常", "正常"])
    assert "<text" not in drawn
    assert "<path" in drawn


def test_without_a_chinese_font_the_browser_draws_the_text(monkeypatch):
    monkeypatch.setattr(fonts, "chinese", lambda: None)
    monkeypatch.setattr(fonts, "families", lambda: ["DejaVu Sans"])
    assert "诈骗" in charts.bars({"诈骗": 1.0})
    assert fonts.subset("诈骗") is None


def test_latin_text_needs_no_font():
    assert fonts.subset("only latin") is None


def test_charts_say_what_they_show():
    fan = charts.forecast_fan([1.0, 2.0], {0.1: [2.0, 2.0], 0.5: [3.0, 3.0], 0.9: [4.0, 5.0]}, [3.0, 4.0], title="close")
    assert fan.startswith("<svg")
    assert charts.precision_recall_curve([True, False, True], {"model": [0.9, 0.1, 0.8]}).startswith("<svg")
    assert charts.lines({"loss": [(0, 1.0), (1, 0.1)]}, log=True) == charts.lines({"loss": [(0, 1.0), (1, 0.1)]}, log=True)
    entities = charts.entity_table([("a <b> c", [{"start": 2, "end": 5, "label": "TAG"}], [])])
    assert "&lt;b&gt;<sub>TAG</sub></mark> c" in entities
    assert charts.metrics_table({"a": {"f1": 0.5}, "b": {"mae": 1.0}}).count("<tr>") == 3
    assert "&lt;x&gt;" in charts.table(["h"], [["<x>"]])
    many = [str(index % 40) for index in range(100)]
    assert "not shown" in charts.confusion_matrix(many, many)


def test_classes_stand_beside_the_parts_of_the_data(tmp_path):
    splits = {"train": {"rows": 90, "classes": {"诈骗": 31, "normal": 59}}, "test": {"rows": 30, "classes": {"normal": 30}}}
    data = {"sha256": "ab" * 32, "splits": splits, "sources": [{"name": "own", "map": {"text": "内容"}, "files": [], "root": None}]}
    text = write(tmp_path, manifest(data=data))
    assert "<th>train</th><th>test</th>" in text
    assert "<td>诈骗</td><td class=number>31</td><td class=number>0</td>" in text
    assert "<h3>sources / 来源</h3>" in text
    assert "<td>text: 内容</td>" in text
    assert "<th>root</th>" not in text, "a column without a value"
    assert f"<td class=long>{'ab' * 32}</td>" in text, "a hash may be broken where the page is narrow"


@pytest.mark.browser
@pytest.mark.slow
def test_nothing_is_wider_than_a_telephone(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "needs Chromium: make setup-test installs it"
    metrics = {f"a_long_name_of_metric_{number}": 0.5 for number in range(9)}
    fan = charts.forecast_fan([1.0, 2.0], {0.1: [1.0, 0.9], 0.5: [2.0, 2.1], 0.9: [3.0, 3.5]}, [2.0, 2.2])
    pictures = charts.image_grid([np.zeros((28, 28), np.uint8)] * 12, [f"{number}" for number in range(12)])
    figures = [Figure("Forecast / 预测", fan), Figure("pictures", pictures), Figure("matrix", charts.confusion_matrix(list("abcdefghij"), list("abcdefghij")))]
    write(tmp_path, manifest(metrics={"f1": 0.9, **metrics}, metric=Metric("f1")), figures=figures)
    (tmp_path / "frame.html").write_text(
        "<iframe src=report.html style='width:390px;height:900px;border:0' "
        "onload='document.title = this.contentDocument.documentElement.scrollWidth + \" of \" + this.contentWindow.innerWidth'></iframe>",
        encoding="utf8",
    )
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", "--window-size=800,1000", "--dump-dom", f"file://{tmp_path / 'frame.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(tmp_path)}).stdout
    found = re.search(r"<title>(\d+) of (\d+)</title>", shown)
    assert found is not None, shown[:500]
    assert int(found[1]) <= int(found[2]) == 390


def test_a_training_is_not_lost_where_nothing_draws():
    def lacks(name):
        def draw():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return draw

    (told,) = report.plots(lacks("matplotlib.figure"))
    assert 'pip install "scenarium[report]"' in told.html
    assert "matplotlib.figure" in told.html
    with pytest.raises(ModuleNotFoundError):  # the plugin's own fault
        report.plots(lacks("its_own"))
