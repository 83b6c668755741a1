"""The README's own lines, run as they stand: the four-line start, and the Python block."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scenarium.core.registry import Registry
from scenarium.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"SCENARIUM_FRAUD_TEXT__DATA__LIMIT": "300", "SCENARIUM_FRAUD_TEXT__TRAIN__MAX_STEPS": "30"}
FRAUD = ("恭喜您中奖了，请点击链接领取奖金", "您的账户异常，请立即转账到安全账户", "内部消息，稳赚不赔，马上加群", "冒充客服退款，请提供验证码")
NORMAL = ("今天下午三点开会，请带上材料", "您的快递已到，请凭取件码领取", "妈妈让你周末回家吃饭", "明天的天气晴，适合出门散步")

_BUFFER = io.BytesIO()
Image.new("RGB", (32, 32)).save(_BUFFER, "PNG")
PICTURE = base64.b64encode(_BUFFER.getvalue()).decode()
MORE = {"transformers_pipeline": ["scenarios.shown.model.task=text-classification"]}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        **SMALL,
        "SCENARIUM_STORE": str(tmp_path / "store"),
        "SCENARIUM_GATEWAY__PORT": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.S)


@pytest.mark.slow
def test_the_four_line_start_works_as_written(tmp_path: Path, environment: dict[str, str]) -> None:
    install, train, serve, curl = (line.removeprefix("$ ") for line in blocks("console")[0].splitlines())
    assert install == 'pip install "scenarium[train]" scenarium-fraud-text'
    rows = [
        (f"{text}，编号{n}，{'请速回复' if n % 2 else '谢谢'}{n * 37 % 91}", label)
        for n in range(20)
        for texts, label in ((FRAUD, "诈骗"), (NORMAL, "正常"))
        for text in texts
    ]
    (tmp_path / "我的.csv").write_text("\n".join(["内容,标签", *(f"{text},{label}" for text, label in rows)]), encoding="utf8")
    subprocess.run(shlex.split(train), cwd=tmp_path, env=environment, check=True)
    server = subprocess.Popen(shlex.split(serve), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(found[1] for line in server.stderr if (found := re.search(r'"url": ?"(http[^"]+)"', line)))
        command = [part.replace("localhost:8080", url) for part in shlex.split(curl)]
        answer = json.loads(subprocess.run([*command, "-s"], capture_output=True, check=True).stdout)
        assert answer["label"] == "诈骗"
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0


@pytest.mark.slow
def test_the_python_block_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'label'" in done.stdout


# ── the plugins' pages ────────────────────────────────────────────────────────────────────────────────────────────────


def examples(plugin: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the page's curl lines send, and the answers, which begin a line. What is cut short by dots ends there."""
    page = (ROOT / "plugins" / plugin / "README.md").read_text(encoding="utf8").replace('\\"', '"').replace("…", "")
    page = re.sub(r",? ?\.\.\.[^]\n]*]", "]", page)
    read = json.JSONDecoder().raw_decode
    sent = [read(page, at.end())[0] for at in re.finditer(r"""-d (?:'|")(?={"[^$]*$)""", page, re.M)]
    if re.search(r"--data-binary @\S+\.png localhost", page):
        sent.append({"image": PICTURE})
    answers, at = [], 0
    while found := re.compile(r'^ *(?={"[a-z_]+": )', re.M).search(page, at):
        answer, at = read(page, found.end())
        answers.append(answer)
    return sent, answers


@pytest.mark.parametrize("plugin", sorted(folder.name for folder in (ROOT / "plugins").iterdir() if (folder / "README.md").is_file()))
def test_examples_of_a_plugins_page_fit_its_schema(plugin: str) -> None:
    settings = Settings.read(environ={}, sets=[f"scenarios.shown.plugin={plugin}", *MORE.get(plugin, ())])
    scenario = Registry(settings).scenario("shown")
    schema = scenario.hook.schema(config=scenario.config)
    requests, answers = examples(plugin)
    assert requests
    for request in requests:
        schema.request.model_validate(request)
    if plugin == "transformers_pipeline":  # the answers of its tasks stand in a table
        return
    assert answers
    for answer in answers:
        schema.response.model_validate(answer)
