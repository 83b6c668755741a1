"""The command line: quick, bilingual, clear about errors, and the whole path from train to rollback on a real plugin."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scenarium.core.cli import root, run
from scenarium.core.cli.base import Bilingual, BilingualGroup, BilingualOption
from scenarium.core.cli.table import COMMANDS

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(site: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def asked(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(list(args))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return asked


@pytest.fixture
def trained(ask: Callable[..., Any]) -> Callable[..., Any]:
    assert ask("train", "pebbles")[0] == 0
    return ask


# ── help, speed ───────────────────────────────────────────────────────────────────────────────────────────────────────


def commands() -> list[tuple[str, Any]]:
    context = root.make_context("scenarium", [], resilient_parsing=True)
    found: list[tuple[str, Any]] = []
    for name in COMMANDS:
        made = root.get_command(context, name)
        assert made is not None
        found.append((name, made))
        if isinstance(made, BilingualGroup):
            found += [(f"{name} {inner}", command) for inner, command in made.commands.items()]
    return found


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_command_has_help_in_both_languages(lang: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SCENARIUM_LANG", lang)
    for name, command in commands():
        assert run([*name.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        assert isinstance(command, Bilingual), name
        assert all(command.texts), name
        assert ("用法" if lang == "zh" else "Usage") in shown, name
        if not isinstance(command, BilingualGroup):
            assert command.examples, f"{name} has no example"
            assert all(example in shown for example in command.examples), name
        for param in command.params:
            if param.param_type_name == "option":
                assert isinstance(param, BilingualOption), f"{name}: {param.name}"
                assert all(param.texts), f"{name}: {param.name}"
                assert any("\u4e00" <= letter <= "\u9fff" for letter in param.texts[1]), f"{name}: {param.name}"


@pytest.fixture
def crowd(site: Path, distribution: Callable[..., None], pebbles_source: str) -> Path:
    for number in range(24):
        distribution(site, f"crowd_{number}", pebbles_source)
    return site


@pytest.mark.parametrize("args", [["--help"], ["list"]])
def test_help_and_list_are_quick_and_light(args: list[str], crowd: Path) -> None:
    """With 25 plugins more. Processor time, since other work on the machine does not count against it; the least of several runs."""
    script = f"import sys\nfrom scenarium.core.cli import run\nassert run({args!r}) == 0\nprint(*sorted(sys.modules), file=sys.stderr)"
    seconds = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "pebbles" in child.stdout or args == ["--help"]
    modules = set(child.stderr.split())
    assert not modules & {
        "torch",
        "numpy",
        "pydantic",
        "fsspec",
        "fastapi",
        "uvicorn",
        "scenarium_pebbles",
        "scenarium_crowd_1",
        "subprocess",
        "concurrent.futures",
    }
    assert min(seconds) < 0.3, seconds


# ── listing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_names_what_is_broken(ask: Callable[..., Any], site: Path, distribution: Callable[..., None]) -> None:
    distribution(site, "syntax", "x = (\n")
    distribution(site, "future", "", api="1.9")
    code, out, err = ask("list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "not probed yet" in lines["pebbles"]
    assert "not probed yet" in lines["syntax"]
    assert "broken" in lines["future"]
    assert "pip install -U scenarium" in err
    code, out, err = ask("list", "--probe")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "ready" in lines["pebbles"]
    assert "broken" in lines["syntax"]
    assert "SyntaxError" in err
    ask("train", "pebbles")
    rows = {row["name"]: row for row in json.loads(ask("list", "--json")[1])}
    assert (rows["pebbles"]["state"], rows["pebbles"]["production"], rows["pebbles"]["error"]) == ("ok", 1, None)
    assert rows["syntax"]["error"]["code"] == "SCN-1002"


def test_list_shows_a_table_without_a_plugin(ask: Callable[..., Any], clean: Path) -> None:
    (clean / "scenarios.toml").write_text('[scenarios.line7]\nplugin = "nowhere_else"\n', encoding="utf8")
    code, out, err = ask("list")
    assert code == 0
    assert "line7" in out
    assert "pip install scenarium-nowhere-else" in err


def test_show_before_and_after_training(ask: Callable[..., Any]) -> None:
    code, out, _ = ask("show", "pebbles")
    assert code == 0
    assert "scenarium train pebbles" in out
    assert "grams: number  Weight of the pebble in grams." in out
    ask("train", "pebbles")
    code, out, _ = ask("show", "pebbles")
    assert "1 (production)" in out
    assert "majority" in out
    assert "its answer" in out
    shown = json.loads(ask("show", "pebbles", "--json")[1])
    assert shown["versions"] == [1]
    assert shown["answer"]["heap"] == "heavy"


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_exit_codes_and_languages(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = ask("train", "pebble")
    assert (code, out) == (1, "")
    assert "SCN-1001" in err
    assert "pebbles" in err
    monkeypatch.setenv("SCENARIUM_LANG", "zh")
    assert "没有名为" in ask("train", "pebble")[2]
    monkeypatch.setenv("SCENARIUM_LANG", "en")
    assert ask("lst") == (
        2,
        "",
        "Usage: scenarium [OPTIONS] COMMAND [ARGS]...\nTry 'scenarium --help' for help.\n\nError: there is no command 'lst'; nearest: list\n",
    )
    assert ask("train")[0] == 2
    assert ask("train", "pebbles", "--map", "text")[0] == 2
    assert ask("promote", "pebbles", "--force")[0] == 2
    code, _, err = ask("train", "pebbles", "--set", "train.epoch=1")
    assert code == 1
    assert "train.epochs" in err
    code, _, err = ask("train", "pebbles", "--data", "/nowhere/at/all.csv")
    assert code == 1
    assert "/nowhere/at/all.csv" in err
    assert ask("--version")[1].startswith("scenarium 0.")


def test_json_errors_on_stderr(cli: Run, site: Path) -> None:
    shown = cli("train", "pebble", "--json")
    assert shown.returncode == 1
    assert json.loads(shown.stderr)["error"]["code"] == "SCN-1001"


def test_unforeseen_faults_are_one_line_with_a_way_to_report(cli: Run, site: Path, distribution: Callable[..., None], pebbles_source: str) -> None:
    distribution(site, "faulty", pebbles_source.replace("def metric(): return", "def metric(): 1 / 0; return"))
    shown = cli("train", "faulty")
    assert shown.returncode == 70
    assert "ZeroDivisionError" in shown.stderr
    assert "--debug" in shown.stderr
    assert "Traceback" not in shown.stderr
    shown = cli("train", "faulty", "--debug")
    assert "Traceback" in shown.stderr
    assert shown.returncode == 70


def test_colours_only_on_a_terminal(cli: Run, site: Path) -> None:
    assert "\x1b" not in cli("train", "pebble").stderr
    master, slave = pty.openpty()
    subprocess.run([sys.executable, "-m", "scenarium.core.cli", "train", "pebble"], stderr=slave, stdout=slave, stdin=slave, check=False)
    os.close(slave)
    assert "\x1b[31m" in os.read(master, 10_000).decode()
    os.close(master)


def test_a_reader_that_leaves_makes_no_noise(site: Path) -> None:
    command = f"{sys.executable} -m scenarium.core.cli config explain pebbles | head -1"
    child = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert child.stderr == ""
    assert child.stdout.startswith("data.path")


# ── the path ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_says_what_it_uses_and_what_came_of_it(cli: Run, site: Path) -> None:
    shown = cli("train", "pebbles")
    assert shown.returncode == 0, shown.stderr
    assert "data: pebbles (simulated, CC0-1.0)" in shown.stderr.splitlines()[0]
    assert "quarry (real, CC-BY-NC-4.0)" in shown.stderr
    assert "weighing: 2/2 (100 %)" in shown.stderr
    for piece in ("version 1", "accuracy *", "majority", "data origin: simulated", "scenarium predict pebbles", "scenarium serve"):
        assert piece in shown.stdout
    shown = cli("train", "pebbles", "--json")
    result = json.loads(shown.stdout)
    assert (result["version"], result["production"], result["data_origin"], result["metric"]) == (2, False, "simulated", "accuracy")
    events = [json.loads(line) for line in shown.stderr.splitlines() if line.startswith("{")]
    assert {"event": "start", "what": "weighing", "total": 2} in events
    assert any(event["event"] == "finish" and event["done"] == 2 and event["loss"] == 0.25 for event in events)
    assert "scenarium promote pebbles 3" in cli("train", "pebbles").stdout


def test_own_file_with_maps(ask: Callable[..., Any], clean: Path) -> None:
    lines = "".join(f"{1 + i / 50},轻,{i}\n{8 + i / 50},重,{i}\n" for i in range(40))
    (clean / "石头.csv").write_text("重量,堆,批次\n" + lines, encoding="gb18030")
    options = ["--map", "grams=重量", "--map", "heap=堆", "--map-label", "轻=light", "--map-label", "重=heavy"]
    code, out, err = ask("data", "check", "pebbles", "石头.csv", *options)
    assert code == 0, err + out
    assert "80" in out
    code, _, err = ask("train", "pebbles", "--data", "石头.csv", *options, "--split", "group:批次")
    assert code == 0, err
    assert "your own" in err
    assert ask("data", "verify", "pebbles")[0] == 0
    (clean / "石头.csv").write_text("重量,堆,批次\n" + lines + "9,重,1\n", encoding="gb18030")
    code, out, _ = ask("data", "verify", "pebbles", "--json")
    assert code == 3
    assert json.loads(out)["differences"][0]["kind"] == "changed"
    code, out, _ = ask("data", "check", "pebbles", "石头.csv", "--map", "grams=没有")
    assert code == 3
    code, out, err = ask("evaluate", "pebbles", "--data", "石头.csv", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["accuracy"] == 1.0
    assert json.loads(out)["rows"] == 81


def test_predict_in_every_form(trained: Callable[..., Any], clean: Path, cli: Run) -> None:
    for words in (["grams=9"], ['{"grams": 9}'], ["grams=9", "note=12"]):
        code, out, err = trained("predict", "pebbles", *words)
        assert code == 0, err
        assert json.loads(out)["heap"] == "heavy"
    (clean / "ask.json").write_text('{"grams": 1}', encoding="utf8")
    assert json.loads(trained("predict", "pebbles", "@ask.json")[1])["heap"] == "light"
    (clean / "note.txt").write_text("石", encoding="utf8")
    assert trained("predict", "pebbles", "grams=1", "note=@note.txt")[0] == 0
    assert [json.loads(line)["text"] for line in trained("predict", "pebbles", "grams=3", "--stream")[1].splitlines()] == ["a pebble of ", "3 g"]
    for words, piece in (
        (["grams=heavy"], "'grams'"),
        (["{"], "SCN-4002"),
        (["grams=-1"], "negative"),
        (["@no.json"], "SCN-4020"),
        (["grams=1", "x=1"], "'x' is unknown"),
    ):
        code, _, err = trained("predict", "pebbles", *words)
        assert code == 1
        assert piece in err
    assert trained("predict", "pebbles", "nine")[0] == 2
    shown = cli("predict", "pebbles", stdin='{"grams": 9}\n{"grams": -9}\n\n{"grams": 1}\n')
    answers = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [answer.get("heap") for answer in answers] == ["heavy", None, "light"]
    assert answers[1]["error"]["code"] == "SCN-4001"
    assert shown.returncode == 1
    assert json.loads(cli("predict", "pebbles", stdin='{"grams":\n 9}').stdout)["heap"] == "heavy"


def test_a_conversation_in_the_terminal(trained: Callable[..., Any], cli: Run) -> None:
    shown = cli("predict", "pebbles", "-i", stdin='grams=2\n{"grams": 4}\ngrams=-1\n\n')
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "a pebble of 2 g\na pebble of 4 g\na pebble of -1 g\n"


def test_predict_without_a_version_or_a_request_names_the_command(ask: Callable[..., Any], cli: Run) -> None:
    code, _, err = ask("predict", "pebbles", "grams=1")
    assert code == 1
    assert "scenarium train pebbles" in err
    ask("train", "pebbles")
    shown = cli("predict", "pebbles")
    assert shown.returncode == 2
    assert "scenarium predict pebbles '{\"grams\": 5.5}'" in shown.stderr


@pytest.mark.parametrize("args", [["promote", "pebbles", "2", "--force", "--reason", "x"], ["train", "pebbles"]])
def test_a_full_disk_is_told_as_such_and_changes_nothing(trained: Callable[..., Any], args: list[str]) -> None:
    """A file may not grow beyond 16 bytes (RLIMIT_FSIZE), as on a full disk."""
    trained("train", "pebbles")
    before = trained("versions", "pebbles", "--json")[1]
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (16, -1)); from scenarium.core.cli import run; raise SystemExit(run({args!r}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 1, shown.stderr
    assert "SCN-5016" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert trained("versions", "pebbles", "--json")[1] == before


def test_versions_promote_rollback_prune(trained: Callable[..., Any]) -> None:
    trained("train", "pebbles", "--set", "model.shift=1.5")
    code, out, _ = trained("versions", "pebbles")
    assert code == 0
    assert "production" in out.splitlines()[1]
    code, _, err = trained("promote", "pebbles")
    assert code == 1
    assert "SCN-5006" in err
    assert trained("promote", "pebbles", "2", "--alias", "candidate")[0] == 0
    code, out, _ = trained("promote", "pebbles", "2", "--force", "--reason", "certified", "--json")
    assert json.loads(out)["forced"] is True
    code, out, _ = trained("rollback", "pebbles")
    assert (code, out) == (0, "pebbles: production is version 1 (was 2)\n")
    assert "[forced]" in trained("versions", "pebbles", "--history")[1]
    trained("train", "pebbles")
    code, out, _ = trained("promote", "pebbles", "--json")
    assert json.loads(out)["comparison"]["difference"] == 0
    listed = json.loads(trained("versions", "pebbles", "--json")[1])
    assert [row["aliases"] for row in listed["versions"]] == [[], ["candidate"], ["production"]]
    assert len(listed["history"]) == 5
    assert trained("promote", "pebbles", "1", "--alias", "latest")[0] == 2
    for _ in range(2):
        trained("train", "pebbles")
    assert json.loads(trained("prune", "pebbles", "--keep", "1", "--dry-run", "--json")[1])["deleted"] == [4]
    assert trained("prune", "pebbles", "--keep", "1")[1] == "deleted: 4\n"
    assert json.loads(trained("evaluate", "pebbles", "--version", "latest", "--json")[1])["version"] == 5
    assert trained("versions", "pebbls")[0] == 1


def test_config_explain(ask: Callable[..., Any], clean: Path) -> None:
    (clean / "scenarios.toml").write_text("[scenarios.pebbles.model]\nshift = 0.5\n[gateway]\nport = 81\n", encoding="utf8")
    rows = {row["setting"]: row for row in json.loads(ask("config", "explain", "pebbles", "--set", "train.epochs=9", "--json")[1])}
    assert (rows["model.shift"]["value"], rows["model.shift"]["where"]) == (0.5, f"{clean / 'scenarios.toml'}:2")
    assert rows["model.shift"]["doc"] == "Grams by which the threshold is put in the wrong place."
    assert (rows["train.epochs"]["value"], rows["train.epochs"]["origin"]) == (9, "--set")
    assert all(row["doc"] for row in rows.values())
    changed = ask("config", "explain", "pebbles", "--changed")[1]
    assert changed.startswith("model.shift = 0.5  ← ")
    assert "train.epochs" not in changed
    assert "port = 81" in ask("config", "explain", "gateway")[1]
    assert ask("--config", "none.toml", "config", "explain", "gateway")[0] == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_scenarios(shell: str, cli: Run, site: Path) -> None:
    script = cli("completion", shell).stdout
    assert "_SCENARIUM_COMPLETE" in script
    words, cursor = {"bash": ("scenarium train peb", "2"), "zsh": ("scenarium train peb", "2"), "fish": ("scenarium train peb", "peb")}[shell]
    shown = cli(_SCENARIUM_COMPLETE=f"{shell}_complete", COMP_WORDS=words, COMP_CWORD=cursor)
    assert "pebbles" in shown.stdout
    assert shown.returncode == 0


def test_completion_in_a_real_bash(site: Path, cli: Run) -> None:
    cli("completion", "bash")
    script = 'eval "$(scenarium completion bash)"; COMP_WORDS=(scenarium prom); COMP_CWORD=1; _scenarium_completion scenarium; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False)
    assert shown.stdout.split() == ["promote"], shown.stderr


# ── doctor ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_doctor_finds_what_will_fail(cli: Run, site: Path, clean: Path, distribution: Callable[..., None]) -> None:
    environ = {"PIP_INDEX_URL": "http://user:secret@127.0.0.1:9/simple"}
    # A torchvision that was built for another torch, an unmet requirement, a broken plugin, a wrong setting and a store that cannot be written.
    (site / "torchvision").mkdir()
    (site / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf8")
    distribution(site, "leaver", "import sys\nsys.exit(1)\n")
    metadata = site / "scenarium_pebbles-0.1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text(encoding="utf8") + "Requires-Dist: a-package-that-is-nowhere>=2\n", encoding="utf8")
    (clean / "scenarios.toml").write_text("[scenarios.pebbles.model]\nshfit = 1\n", encoding="utf8")
    (clean / "file").write_text("", encoding="utf8")
    shown = cli("doctor", "--json", SCENARIUM_STORE=str(clean / "file" / "store"), SCENARIUM_LANG="zh", **environ)
    assert shown.returncode == 3, shown.stderr
    assert "secret" not in shown.stdout
    checks = json.loads(shown.stdout)["checks"]
    assert {"python", "packages", "torch", "torchvision", "gpu", "disk", "store", "index", "settings", "plugin"} <= {check["check"] for check in checks}
    fine = {check["check"] for check in checks if check["status"] == "ok"}
    assert {"python", "torch", "disk", "plugin"} <= fine
    assert any(check["found"].startswith("pebbles") and check["status"] == "ok" for check in checks)
    assert next(check for check in checks if check["check"] == "index")["status"] == "warning"
    problems = json.dumps([check for check in checks if check["status"] == "problem"], ensure_ascii=False)
    for piece in ("torchvision::nms", "transformers 也会因此失败", "'a-package-that-is-nowhere>=2'", "sys.exit(1)", "model.shift", "请授予写权限"):
        assert piece in problems, piece


# ── serve ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_serve_refuses_a_taken_port_and_a_wrong_setting(cli: Run, site: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shown = cli("serve", "--port", str(taken.getsockname()[1]))
    assert shown.returncode == 1
    assert "SCN-1009" in shown.stderr
    shown = cli("serve", "--set", "gateway.prot=1")
    assert "SCN-1003" in shown.stderr
    assert "'port'" in shown.stderr
    assert "SCN-1003" in cli("serve", "--set", "pebbels.serve.workers=1").stderr


def test_progress_bar_on_a_terminal(site: Path, clean: Path) -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "scenarium.core.cli", "train", "pebbles"], stderr=slave, stdout=subprocess.DEVNULL, stdin=slave)
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(master, 4096)
        except OSError:  # the terminal's other end is closed
            break
        shown += part
    assert child.wait(timeout=60) == 0
    os.close(master)
    text = shown.decode()
    assert "weighing" in text
    assert "2/2" in text
    assert "━" in text
    assert "loss 0.25" in text


def test_the_handbook_names_every_command() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf8")
    for name in COMMANDS:
        assert text.count(f"`{name}") >= 2, f"docs/cli.md does not name {name!r} in both languages"
