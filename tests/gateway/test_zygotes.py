"""Where workers come from."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from scenarium.core.config import ServeConfig
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.types import Metric, TensorSpec
from scenarium.gateway import zygotes
from scenarium.gateway.zygotes import Nursery, zygote_kind


def manifest(inputs=(), preload=()):
    plugin = PluginRef(name="x", distribution="x", version="1", loadable="")
    given = {"inputs": list(inputs), "preload": list(preload), "plugin": plugin, "metric": Metric("m")}
    return Manifest(scenario="x", created="2026-01-01T00:00:00Z", config={}, request_schema={}, response_schema={}, sample={}, **given)


@pytest.mark.parametrize(
    ("engine", "inputs", "preload", "kind"),
    [
        ("torch", [TensorSpec("x", "float32", (3,))], [], "torch"),
        ("onnx", [TensorSpec("x", "float32", (3,))], ["transformers"], "bare"),
        ("torch", [], [], "bare"),
        ("torch", [], ["transformers.models.bert.modeling_bert"], "torch"),
        ("torch", [], ["sklearn.ensemble"], "bare"),
    ],
)
def test_an_exported_scenario_and_one_without_tensors_come_from_the_bare_zygote(engine, inputs, preload, kind):
    assert zygote_kind(ServeConfig(engine=engine), manifest(inputs, preload)) == kind


def modules_of(pid):
    """Whether a process has torch's library mapped."""
    with open(f"/proc/{pid}/maps") as maps:
        return "libtorch" in maps.read()


def test_a_worker_of_the_bare_zygote_holds_no_torch(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    assert not modules_of(gateway.popen.pid)
    assert not any(modules_of(pid) for pid in gateway.processes())


def test_workers_can_be_spawned_where_fork_is_unsafe(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, spawn=True)
    gateway.ready("unit")
    answer = gateway.ask("unit", "spawned", do="print").json()
    assert answer["text"] == "spawned"
    assert len(gateway.processes()) == 2, "the gateway and one worker, no zygote"
    gateway.wait_event("worker_output", line="to stderr: spawned")
    os.kill(answer["pid"], signal.SIGKILL)
    assert gateway.ask("unit", "again").json()["pid"] != answer["pid"]


def test_a_preload_module_that_is_missing_is_told_and_harms_nothing(lab):
    lab.publish("unit", preload=["no_such_module_at_all"])
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    assert "no_such_module_at_all" in gateway.wait_event("preload_failed")["reason"]
    assert gateway.ask("unit").status_code == 200


def test_zygotes_are_made_anew_when_the_installed_set_changes(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = zygotes.installed_stamp()
    assert zygotes.installed_stamp() == before
    (folder / "new_plugin-1.0.dist-info").mkdir()
    os.utime(folder, ns=(1, 1))
    assert zygotes.installed_stamp() != before


LIMITED = """#!{python}
import os, resource, signal, sys
from scenarium.core.workers import process, zygote
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
for number, limit in ((signal.SIGUSR1, 0), (signal.SIGUSR2, soft)):
    signal.signal(number, lambda *_, limit=limit: resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard)))
if os.geteuid() == 0:  # whom no limit of processes holds
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
zygote.main(sys.argv[2:4])
"""


def test_a_fork_that_fails_is_a_failed_start_and_the_zygote_lives(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(LIMITED.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(zygotes, "STATUS_S", 0.3)

    async def run():
        nursery = Nursery()
        await nursery.ready("bare")
        pid = nursery.zygotes["bare"].popen.pid
        os.kill(pid, signal.SIGUSR1)
        await asyncio.sleep(0.2)
        with pytest.raises(BlockingIOError, match="temporarily unavailable"):
            await nursery.start("bare")
        os.kill(pid, signal.SIGUSR2)
        await asyncio.sleep(0.2)
        worker = await nursery.start("bare")
        assert nursery.zygotes["bare"].popen.pid == pid
        worker.kill()
        for _ in range(100):
            if nursery.exits:
                break
            await asyncio.sleep(0.02)
        assert nursery.exits == {worker.pid: -signal.SIGKILL}
        await asyncio.sleep(0.5)
        assert not nursery.exits  # its number may be another process's now
        worker.sock.close()
        worker.close()
        await nursery.close()

    asyncio.run(run())
