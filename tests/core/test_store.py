"""The store under SIGKILL, under several writers, on another file system, and with damaged files; the Triton repository beside it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import onnxruntime
import pytest

from scenarium.core import triton_repository
from scenarium.core.errors import ScenariumError
from scenarium.core.hashes import sha256
from scenarium.core.manifest import Manifest, PluginRef
from scenarium.core.store import Store, Version
from scenarium.core.types import Metric, TensorSpec

INPUTS = [TensorSpec("tokens", "int64", (-1,)), TensorSpec("age", "float32", ())]
OUTPUTS = [TensorSpec("logits", "float32", (4,))]
CHECKED = {"export": "checked"}


def manifest(name: str = "shop", **values: object) -> Manifest:
    made = {
        "scenario": name,
        "created": datetime.now(UTC),
        "plugin": PluginRef(name="shop", distribution="scenarium-shop", version="0.1.0", loadable=">=0.1,<0.2"),
        "config": {},
        "request_schema": {},
        "response_schema": {},
        "sample": {},
        "metric": Metric("accuracy"),
    }
    return Manifest.model_validate({**made, **values})


def commit(store: Store, name: str = "shop", content: bytes = b"weights", **values: object) -> Version:
    with store.draft(name) as draft:
        (draft / "deep").mkdir()
        (draft / "model.safetensors").write_bytes(content)
        (draft / "deep" / "vocabulary.txt").write_bytes(content * 3)
        if "exports" in values:
            (draft / "model.onnx").write_bytes(b"graph of " + content)
            (draft / "model.onnx.data").write_bytes(b"tensors of " + content)
        return store.commit(name, draft, manifest(name, **values))


@pytest.fixture
def store(clean: Path) -> Store:
    return Store(str(clean / "store"))


@pytest.fixture
def memory(clean: Path) -> Iterator[Store]:
    url = "memory://bucket/scenarium"
    yield Store(url, cache=clean / "fetched")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_commit_open_alias_rollback_prune(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    with pytest.raises(ScenariumError, match="SCN-4004"):
        store.open("shop")
    for number in range(1, 6):
        assert commit(store, content=f"weights {number}".encode()).number == number
    assert store.versions("shop") == [1, 2, 3, 4, 5]
    with pytest.raises(ScenariumError, match="SCN-5010"):
        store.open("shop")
    with pytest.raises(ScenariumError, match=r"SCN-5001.*99"):
        store.open("shop", 99)
    with pytest.raises(ScenariumError, match="SCN-5001"):
        store.set_alias("shop", "production", 99, "no such version")
    for number in (1, 2, 4):
        store.set_alias("shop", "production", number, "better")
    assert store.open("shop").manifest.version == 4
    assert (store.open("shop", "latest").folder / "deep" / "vocabulary.txt").read_bytes() == b"weights 5" * 3
    assert store.previous("shop") == 2
    store.set_alias("shop", "production", 2, "back", action="rollback")
    assert store.previous("shop") == 1  # a second rollback goes on, not forth and back
    store.set_alias("shop", "production", 5, "better")
    assert store.previous("shop") == 2
    assert store.prunable("shop", 1) == [1, 3, 4]
    store.delete("shop", [1, 3, 4])
    assert store.versions("shop") == [2, 5]
    assert store.previous("shop") == 2
    history = store.aliases("shop")["history"]
    assert [entry["to"] for entry in history] == [1, 2, 4, 2, 5]
    assert all(entry["by"] and entry["at"] for entry in history)
    assert commit(store).number == 6


def test_an_alias_file_that_is_no_json_is_named(store: Store) -> None:
    commit(store)
    Path(store.path("shop", "aliases.json")).write_text("{", encoding="utf8")
    with pytest.raises(ScenariumError, match="SCN-5009"):
        store.open("shop")


def test_changed_missing_and_foreign_files_are_refused(store: Store, clean: Path) -> None:
    version = commit(store)
    weights = version.folder / "model.safetensors"
    os.utime(weights, (1, 1))
    store.open("shop", 1)  # hashed now, and remembered by size, time and inode
    weights.write_bytes(b"poisoned")
    with pytest.raises(ScenariumError, match=r"SCN-5002.*model\.safetensors"):
        store.open("shop", 1)
    weights.unlink()
    with pytest.raises(ScenariumError, match="SCN-5002"):
        store.open("shop", 1)
    path = version.folder / "manifest.json"
    stored = json.loads(path.read_text(encoding="utf8"))
    path.write_text(json.dumps({**stored, "files": {"../../../secret": stored["files"]["model.safetensors"]}}), encoding="utf8")
    with pytest.raises(ScenariumError, match=r"SCN-5002.*secret"):
        store.open("shop", 1)
    path.write_text(json.dumps({**stored, "format": 99}), encoding="utf8")
    with pytest.raises(ScenariumError, match=r"SCN-5004.*99"):
        store.open("shop", 1)
    path.write_text("{}", encoding="utf8")
    with pytest.raises(ScenariumError, match="SCN-5002"):
        store.open("shop", 1)


def test_a_big_version_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = commit(store, content=os.urandom(1 << 20))
    for path in version.folder.rglob("*"):
        os.utime(path, (1, 1))
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr("scenarium.core.hashes.sha256", counted)
    store.open("shop", 1)
    assert len(read) == 2
    store.open("shop", 1)
    assert len(read) == 2


def test_opens_without_a_cache_folder(store: Store, clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(store)
    (clean / "file").write_text("", encoding="utf8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(clean / "file" / "below"))
    assert store.open("shop", 1).number == 1


WRITER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_store import commit
from scenarium.core.store import Store
store = Store({url!r})
print("ready", flush=True)
for turn in range({turns}):
    version = commit(store, content=str(turn).encode() * 20_000)
    store.set_alias("shop", "production", version.number, f"turn {{turn}}")
    print(version.number, flush=True)
"""


def writer(store: Store, turns: int) -> subprocess.Popen[str]:
    script = WRITER.format(tests=str(Path(__file__).parent), url=store.url, turns=turns)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_whole_versions_only(store: Store) -> None:
    """Twelve writers in turn, each killed at another moment. What is visible is always whole, and what they left is swept away."""
    rng = random.Random(0)
    seen = 0
    for _ in range(12):
        child = writer(store, turns=10_000)
        time.sleep(rng.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        numbers = store.versions("shop")
        entries = {entry.name for entry in Path(store.path("shop")).iterdir() if entry.name.isdigit()}
        assert entries == {str(number) for number in numbers}, "a numbered folder without a manifest"
        for number in numbers[-3:]:
            store.open("shop", number)
        if numbers:
            record = store.aliases("shop")
            if record["aliases"]:
                assert record["aliases"]["production"] == record["history"][-1]["to"]
                assert store.open("shop").number == record["aliases"]["production"]
        assert len(numbers) >= seen
        seen = len(numbers)
    assert seen > 12, "the writers got nowhere: the test shows nothing"
    commit(store)
    left = [entry.name for entry in Path(store.path("shop")).iterdir() if entry.name.startswith(".draft")]
    assert left == []


def test_a_living_draft_is_not_swept(store: Store) -> None:
    with store.draft("shop") as first:
        (first / "half").write_text("x", encoding="utf8")
        commit(store)
        assert (first / "half").is_file()


def test_processes_and_threads_that_write_at_once_lose_nothing(store: Store, memory: Store) -> None:
    children = [writer(store, turns=4) for _ in range(3)]
    printed = [int(line) for child in children for line in child.communicate(timeout=120)[0].split()]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(printed) == list(range(1, 13)) == store.versions("shop")
    assert len(store.aliases("shop")["history"]) == 12
    with ThreadPoolExecutor(4) as pool:
        numbers = sorted(version.number for version in pool.map(lambda _: commit(memory), range(8)))
    assert numbers == list(range(1, 9)) == memory.versions("shop")


def test_remote_files_are_fetched_once_and_a_damaged_copy_is_mended(memory: Store) -> None:
    version = commit(memory, content=b"far away")
    inode = (version.folder / "model.safetensors").stat().st_ino
    assert (memory.open("shop", 1).folder / "model.safetensors").stat().st_ino == inode
    (version.folder / "model.safetensors").write_bytes(b"damaged!")
    assert (memory.open("shop", 1).folder / "model.safetensors").read_bytes() == b"far away"
    memory.fs.pipe_file(memory.path("shop", 1, "model.safetensors"), b"poisoned")
    (version.folder / "model.safetensors").unlink()
    with pytest.raises(ScenariumError, match="SCN-5002"):
        memory.open("shop", 1)


# ── models/ ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tree(store: Store) -> set[str]:
    root = triton_repository.root(store)
    return {path.rpartition("/models/")[2] for path in store.fs.find(root)} if store.fs.exists(root) else set()


def configuration(store: Store, name: str = "shop") -> str:
    text: str = store.fs.cat_file(f"{triton_repository.root(store)}/{name}/config.pbtxt").decode()
    return text


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_triton_repository_follows_the_aliases(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = request.getfixturevalue(kind)
    tensors = {"inputs": INPUTS, "outputs": OUTPUTS, "exports": ["model.onnx"], "tags": CHECKED, "max_batch_size": 8}
    commit(store, inputs=INPUTS, outputs=OUTPUTS)  # no export
    store.set_alias("shop", "production", 1, "first")
    assert tree(store) == set()
    for content in (b"two", b"three"):
        commit(store, content=content, **tensors)
    commit(store, content=b"four", **{**tensors, "inputs": INPUTS[:1]})
    assert tree(store) == set(), "only aliased versions"
    unchecked = commit(store, content=b"five", **{**tensors, "tags": {"export": "unchecked: onnxruntime is not installed"}}).number
    store.set_alias("shop", "candidate", unchecked, "to try")
    assert tree(store) == set(), "only checked exports"
    store.set_alias("shop", "production", 2, "exported")
    files = {"shop/config.pbtxt", "shop/2/model.onnx", "shop/2/model.onnx.data"}
    assert tree(store) == files
    assert configuration(store).splitlines() == [
        'name: "shop"',
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 8",
        'input [ { name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] } ]',
        'input [ { name: "age" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]',
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 4 ] } ]',
        "dynamic_batching { }",
        "version_policy { specific { versions: [ 2 ] } }",
    ]
    store.set_alias("shop", "candidate", 3, "to try")
    assert tree(store) == files | {"shop/3/model.onnx", "shop/3/model.onnx.data"}
    assert "versions: [ 2, 3 ]" in configuration(store)
    monkeypatch.setattr(triton_repository, "HOLD_S", 0.0)
    store.set_alias("shop", "candidate", 4, "other tensors than production")
    assert tree(store) == files
    store.set_alias("shop", "production", 3, "better")
    # Version 2 stays, for gateways that did not change over yet; nobody else is given it, since its number is lower.
    assert tree(store) == files | {"shop/3/model.onnx", "shop/3/model.onnx.data"}
    store.set_alias("shop", "production", 1, "back", action="rollback")
    # Version 1 has no export, so the candidate alone stands there, with its own tensors.
    assert tree(store) == {"shop/config.pbtxt", "shop/4/model.onnx", "shop/4/model.onnx.data"}
    assert "age" not in configuration(store)
    store.set_alias("shop", "candidate", 1, "none")
    assert tree(store) == set()


def test_a_version_with_a_higher_number_leaves_when_gateways_have_changed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> str:
        return configuration(store).partition("versions: ")[2].partition(" }")[0]

    for _ in range(3):
        commit(store, inputs=INPUTS, outputs=OUTPUTS, exports=["model.onnx"], tags=CHECKED)
    monkeypatch.setattr(triton_repository, "HOLD_S", 0.3)
    store.set_alias("shop", "production", 1, "first")
    assert named() == "[ 1 ]"
    store.set_alias("shop", "candidate", 3, "to try")
    store.set_alias("shop", "production", 2, "better")
    assert named() == "[ 1, 2, 3 ]"
    time.sleep(0.5)
    assert named() == "[ 1, 2, 3 ]", "the one before has a lower number, so it may stay"
    store.set_alias("shop", "candidate", 2, "no more")
    store.set_alias("shop", "production", 1, "worse after all", action="rollback")
    assert named() == "[ 1, 2, 3 ]", "a gateway may ask for any of them"
    store.set_alias("shop", "candidate", 1, "nothing to try")
    assert triton_repository.pending()
    time.sleep(0.5)
    assert named() == "[ 1 ]", "the highest is what a client gets that names no version"


@pytest.mark.parametrize("kind", ["store", "memory"])
def test_what_is_no_tensor_function_stands_there_with_its_own_model(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = request.getfixturevalue(kind)
    monkeypatch.setenv("PYTHONPATH", '/a "b"')
    commit(store)
    store.set_alias("shop", "production", 1, "first")
    assert tree(store) == {"shop/config.pbtxt", "shop/1/model.py"}
    place = store.root if kind == "store" else store.url
    assert configuration(store).splitlines() == [
        'name: "shop"',
        'backend: "python"',
        "max_batch_size: 0",
        'input [ { name: "REQUEST" data_type: TYPE_STRING dims: [ -1 ] } ]',
        'output [ { name: "RESPONSE" data_type: TYPE_STRING dims: [ -1 ] } ]',
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        f'parameters {{ key: "PYTHON" value {{ string_value: "{sys.executable}" }} }}',
        f'parameters {{ key: "STORE" value {{ string_value: "{place}" }} }}',
        'parameters { key: "SCENARIO" value { string_value: "shop" } }',
        'parameters { key: "PYTHONPATH" value { string_value: "/a \\"b\\"" } }',
        "version_policy { specific { versions: [ 1 ] } }",
    ]
    path = f"{triton_repository.root(store)}/shop/1/model.py"
    store.fs.pipe_file(path, b"of an earlier release")
    triton_repository.rebuild(store)
    assert store.fs.cat_file(path) == triton_repository.MODEL.read_bytes()


def test_triton_files_are_links_and_the_repository_is_rebuilt(store: Store) -> None:
    version = commit(store, inputs=INPUTS, outputs=OUTPUTS, exports=["model.onnx"], tags=CHECKED)
    store.set_alias("shop", "production", 1, "first")
    models = Path(triton_repository.root(store))
    assert (models / "shop" / "1" / "model.onnx").samefile(version.folder / "model.onnx")
    whole = tree(store)
    (models / "shop" / "1" / "model.onnx").unlink()
    (models / "stray" / "1").mkdir(parents=True)
    assert triton_repository.rebuild(store) == ["shop"]
    assert tree(store) == whole
    assert not (models / "stray").exists()
    (models / "shop" / "config.pbtxt").unlink()
    triton_repository.rebuild(store)
    assert tree(store) == whole
    assert list((Path(store.root) / ".staging").iterdir()) == []


def test_a_repository_that_cannot_be_written_is_said(store: Store) -> None:
    commit(store, inputs=INPUTS, outputs=OUTPUTS, exports=["model.onnx"], tags=CHECKED)
    Path(triton_repository.root(store)).write_text("in the way", encoding="utf8")
    with pytest.raises(ScenariumError, match="SCN-5008"):
        store.set_alias("shop", "production", 1, "first")
    assert store.aliases("shop")["aliases"] == {"production": 1}


@pytest.mark.slow
def test_no_half_made_folder_is_ever_seen_in_the_repository(store: Store, site: Path) -> None:
    """A reader that looks all the time while aliases change and writers are killed: what the configuration names is there and loads."""
    from scenarium.core import pipeline
    from scenarium.core.registry import open_registry

    scenario = open_registry().scenario("pebbles")
    for _ in range(2):
        pipeline.train(scenario, store, site / "runs")
    script = (
        "import itertools, sys\nfrom scenarium.core.store import Store\nstore = Store(sys.argv[1])\nprint('ready', flush=True)\n"
        "for n in itertools.count(): store.set_alias('pebbles', ('production', 'candidate')[n // 2 % 2], n % 2 + 1, 'again')\n"
    )
    models = Path(triton_repository.root(store))
    looked = 0
    for seconds in (0.7, 0.9, 0.8):
        child = subprocess.Popen([sys.executable, "-c", script, store.url], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            looked += look(models)
        child.kill()
        child.communicate()
        looked += look(models)
    assert looked > 50
    triton_repository.rebuild(store)


def look(models: Path) -> int:
    for folder in models.iterdir():
        inode = (folder / "config.pbtxt").stat().st_ino
        try:
            text = (folder / "config.pbtxt").read_text(encoding="utf8")
            named = [int(n) for n in text.partition("versions: [")[2].partition("]")[0].split(",")]
            sessions = [onnxruntime.InferenceSession(folder / str(n) / "model.onnx", providers=["CPUExecutionProvider"]) for n in named]
        except (OSError, onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile):
            # The configuration may have been replaced since it was read; where it was not, what it names must be there.
            assert (folder / "config.pbtxt").stat().st_ino != inode, f"{folder} names versions that are not there"
            continue
        for session in sessions:
            assert session.run(None, {"grams": np.ones((1, 1), np.float32)})[0].shape == (1, 1)
    return 1


def test_an_entry_is_exported_whole(store: Store, tmp_path: Path) -> None:
    tags = CHECKED | {"warmup": json.dumps({"tokens": [9], "age": []})}
    version = commit(store, inputs=INPUTS, outputs=OUTPUTS, exports=["model.onnx"], tags=tags)
    commit(store, inputs=INPUTS, outputs=OUTPUTS, exports=["model.onnx"], tags={"export": "none: it does not export"})
    out = tmp_path / "repository"
    for _ in range(2):  # one that is there is replaced
        folder, _ = triton_repository.export(store, "shop", 1, out)
        assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
            "shop/config.pbtxt",
            "shop/1/model.onnx",
            "shop/1/model.onnx.data",
        }
    assert not (folder / "1" / "model.onnx").samefile(version.folder / "model.onnx")
    text = (folder / "config.pbtxt").read_text(encoding="utf8")
    assert "versions: [ 1 ]" in text
    assert (
        'model_warmup [ { name: "one row" batch_size: 1 inputs { key: "tokens" value { data_type: TYPE_INT64 dims: [ 9 ] zero_data: true } } '
        'inputs { key: "age" value { data_type: TYPE_FP32 dims: [ 1 ] random_data: true } } } ]'
    ) in text
    (folder / "config.pbtxt").unlink()
    with pytest.raises(ScenariumError, match="SCN-5018"):
        triton_repository.export(store, "shop", 1, out)
    assert (folder / "1" / "model.onnx").is_file(), "what is no entry is somebody's own"
    with pytest.raises(ScenariumError, match=r"SCN-5017 Version 2 .* it does not export"):
        triton_repository.export(store, "shop", 2, out)
