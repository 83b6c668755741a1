"""``scenarium triton start`` over a real store: the three scenarios answer in Triton as they do here; promote and rollback hold for both; a configuration
without outputs is completed."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from scenarium.core import triton_repository
from scenarium.core.config import Settings
from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError
from scenarium.core.kit.subject import Subject
from scenarium.core.registry import Registry, Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.store import PRODUCTION
from scenarium.core.tensors import DATATYPES
from tests.gateway import triton, versions_of_plugins
from tests.gateway.conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))]

NAMES = ("image_classification", "fraud_text", "medical_ner")
SCENARIOS: dict[str, Scenario] = {}
"""Those that know the rows which the versions were trained on."""
SEED = """name: "bert-base"
platform: "pytorch_libtorch"
max_batch_size: 32
input [
  {
    name: "INPUT_IDS"
    data_type: TYPE_INT64
    dims: [ -1 ]
  }
]
"""


class Command:
    """``scenarium triton start`` in a process of its own."""

    def __init__(self, store: str, *more: str) -> None:
        ports = [f"--{kind}-port={triton.free_port()}" for kind in ("http", "grpc", "metrics")]
        environ = os.environ | {"SCENARIUM_STORE": store, "SCENARIUM_TRITON_ENV": str(triton.FOLDER), "SCENARIUM_LANG": "en", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "scenarium.core.cli", "triton", "start", *ports, *more]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.http, self.grpc = re.search(r"http (\S+)  grpc (\S+)", self.wait("Triton: ")).groups()
        self.client = tritonclient.grpc.InferenceServerClient(self.grpc)

    def _read(self) -> None:
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())

    def wait(self, start: str, timeout: float = 60.0) -> str:
        """The first line that starts so."""
        found = until(lambda: next((line for line in list(self.lines) if line.startswith(start)), None) or self.popen.poll() is not None, timeout)
        assert isinstance(found, str), self.lines
        return found

    def stop(self) -> int:
        self.client.close()
        self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(30)
        self._reader.join()
        self.popen.stdout.close()
        return status


def command(store, *words: object) -> str:
    """What a command prints."""
    environ = os.environ | {"SCENARIUM_STORE": store.root, "SCENARIUM_TRITON_ENV": str(triton.FOLDER), "SCENARIUM_LANG": "en"}
    done = subprocess.run([sys.executable, "-m", "scenarium.core.cli", *map(str, words)], stdout=subprocess.PIPE, text=True, env=environ)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def store(shared_lab, tmp_path_factory):
    """A production version of each, with its export."""
    found, work = shared_lab.store, tmp_path_factory.mktemp("work")
    for name in (*NAMES, "credit_risk"):
        subject = Subject.open(name, work)
        if rows := versions_of_plugins.ROWS[name]:
            subject.probe.rows = rows()
        subject.work = Path(found.root).parent
        subject.train(Path(found.root).name, f"runs-{name}")
        found.set_alias(name, PRODUCTION, 1, "test")  # it is not better than its floor, of course
        SCENARIOS[name] = subject.scenario
    return found


@pytest.fixture(scope="module")
def server(store):
    found = Command(store.root)
    for name in (*NAMES, "credit_risk"):
        found.wait(f"{name}: loaded")
    yield found
    assert found.stop() == 0
    assert answering(store) == []


@pytest.fixture(scope="module")
def gateway(store, server, shared_lab):
    """It serves fraud_text by Triton, and credit_risk itself."""
    found = shared_lab.start(
        None,
        *(f"scenarios.{name}.enabled=false" for name in versions_of_plugins.ROWS if name not in ("fraud_text", "credit_risk")),
        'scenarios.fraud_text.serve.engine="triton"',
        f'scenarios.fraud_text.serve.triton_url="{server.grpc}"',
    )
    found.ready("fraud_text", "credit_risk", timeout=60)
    return found


def answering(store) -> list[int]:
    """The processes that answer for Triton's python backend out of this store."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and {b"scenarium.core.triton.answering", store.root.encode()} <= set((entry / "cmdline").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found


def runtime(store, name: str, number: int, engine: str, *sets: str) -> Runtime:
    settings = Settings.read(environ={}, sets=[f'scenarios.{name}.serve.engine="{engine}"', *sets])
    version = store.open(name, number)
    return Runtime.open(Registry(settings).scenario(name), version.folder, version.manifest)


@pytest.mark.parametrize("name", NAMES)
def test_local_and_triton_agree(store, server, name):
    ours = runtime(store, name, 1, "torch")
    theirs = runtime(store, name, 1, "triton", f'scenarios.{name}.serve.triton_url="{server.grpc}"')
    hook, config = ours.scenario.hook, ours.scenario.config
    item = hook.preprocess(config=config, processor=ours.processor, request=hook.sample(config=config))
    batch = hook.collate(config=config, signature=ours.signature, batch=[item, item, item])
    batch = {spec.name: np.asarray(batch[spec.name], spec.dtype) for spec in ours.signature.inputs}
    local, remote = ours.model(batch), theirs.model(batch)
    assert local.keys() == remote.keys()
    for output in local:
        assert local[output].shape == remote[output].shape
        print(name, output, "max absolute difference", np.abs(local[output] - remote[output]).max())
    assert not difference(local, remote, ours.traits.tolerance)
    theirs.close()


def served(gateway, server) -> tuple[str, str]:
    """Which version of fraud_text the gateway and Triton answer from, neither being told one."""
    answer = gateway.client.post("/scenarios/fraud_text/predict", json={"text": "恭喜您中奖了"})
    about = server.client.get_model_metadata("fraud_text")
    inputs = []
    for each in about.inputs:
        dtype = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32}[each.datatype]
        array = np.ones([3 if axis == -1 else axis for axis in each.shape], dtype)
        inputs.append(tritonclient.grpc.InferInput(each.name, array.shape, each.datatype))
        inputs[-1].set_data_from_numpy(array)
    try:
        version = server.client.infer("fraud_text", inputs).get_response().model_version
    except InferenceServerException as fault:
        version = str(fault)
    return answer.headers.get("x-scenarium-version", str(answer.status_code)), version


class Asking:
    """Clients that ask the gateway for fraud_text without a pause; what they were told."""

    def __init__(self, url: str) -> None:
        self.url, self.over = url, threading.Event()
        self.answers: list[tuple[int, str, str]] = []
        self.threads = [threading.Thread(target=self._run) for _ in range(3)]

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.over.is_set():
                answer = client.post("/scenarios/fraud_text/predict", json={"text": "恭喜您中奖了"})
                self.answers.append((answer.status_code, answer.headers.get("x-scenarium-version", ""), answer.json().get("code", "")))

    def __enter__(self) -> Asking:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_promote_and_rollback_hold_for_both_and_lose_nothing(store, server, gateway):
    assert served(gateway, server) == ("1", "1")
    first = store.open("fraud_text", 1)
    with store.draft("fraud_text") as draft:
        shutil.copytree(first.folder, draft, dirs_exist_ok=True)
        assert store.commit("fraud_text", draft, first.manifest).number == 2
    assert served(gateway, server) == ("1", "1")
    with Asking(gateway.url) as asking:
        store.set_alias("fraud_text", PRODUCTION, 2, "test")
        until(lambda: served(gateway, server) == ("2", "2"), 30)
        store.set_alias("fraud_text", PRODUCTION, 1, "test", action="rollback")
        until(lambda: served(gateway, server) == ("1", "1"), 30)
    assert {each[:2] for each in asking.answers} == {(200, "1"), (200, "2")}, collections.Counter(asking.answers)
    assert len(asking.answers) > 500
    text = store.fs.cat_file(f"{triton_repository.root(store)}/fraud_text/config.pbtxt").decode()
    assert "versions: [ 1 ]" in text
    assert "model_warmup" in text  # which Triton has run
    assert "absolute" in store.manifest("fraud_text", 1).tags["parity"]


def whole(client: httpx.Client, *bodies: str) -> tuple[str, object]:
    """What a v2 server answers to whole predict requests: the version and the answers, or the error."""
    asked = {"name": "REQUEST", "datatype": "BYTES", "shape": [len(bodies)], "data": list(bodies)}
    answer = client.post("/v2/models/credit_risk/infer", json={"inputs": [asked]}, timeout=30).json()
    return (answer["model_version"], [json.loads(each) for each in answer["outputs"][0]["data"]]) if "outputs" in answer else ("", answer["error"])


def test_what_is_no_tensor_function_answers_in_triton_as_in_the_gateway(store, server, gateway):
    bodies = [json.dumps({"limit": limit, "bill": 20000.0, "education": "university", "marriage": "single"}) for limit in (10000.0, 500000.0)]
    first = store.open("credit_risk", 1)
    with store.draft("credit_risk") as draft:
        shutil.copytree(first.folder, draft, dirs_exist_ok=True)
        (draft / "state.json").write_text(json.dumps(json.loads((first.folder / "state.json").read_text()) | {"reasons": 1}))
        assert store.commit("credit_risk", draft, first.manifest.model_copy(update={"answer": None})).number == 2
    with httpx.Client(base_url=f"http://{server.http}") as triton_client:

        def both(*asked: str):
            return whole(gateway.client, *asked), whole(triton_client, *asked)

        def agreed(version: str):
            found = both(*bodies)
            return found[0] if found[0] == found[1] and found[0][0] == version else None

        _, answers = until(lambda: agreed("1"), 30)
        assert len(answers) == 2
        assert answers[0]["probability"] != answers[1]["probability"]
        assert [len(each["reasons"]) for each in answers] == [3, 3]
        store.set_alias("credit_risk", PRODUCTION, 2, "test")
        assert [len(each["reasons"]) for each in until(lambda: agreed("2"), 30)[1]] == [1, 1]
        store.set_alias("credit_risk", PRODUCTION, 1, "test", action="rollback")
        assert until(lambda: agreed("1"), 30)[1] == answers
        ours, theirs = both(json.dumps({"limit": "much"}))
        assert ours == theirs
        assert theirs[1].startswith("SCN-4001: ")
        (pid,) = until(lambda: len(found := answering(store)) == 1 and found, 30)  # that of version 2 ends with it
        os.kill(pid, signal.SIGKILL)
        until(lambda: whole(triton_client, *bodies) == ("1", answers), 20)
        assert answering(store) != [pid]


def test_exports_and_an_entry_without_outputs_are_loaded_and_completed(server, store, tmp_path):
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(100, 8), torch.nn.Linear(8, 4)

        def forward(self, ids):
            return self.head(self.table(ids).mean(1))

    net = Net().eval()
    entry = tmp_path / "models" / "bert-base"
    (entry / "1").mkdir(parents=True)
    (entry / "config.pbtxt").write_text(SEED)
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.trace(net, torch.zeros(2, 7, dtype=torch.long)).save(entry / "1" / "model.pt")
    done = command(store, "export", "medical_ner", "--out", entry.parent)
    assert done == f"{entry.parent / 'medical_ner'}\n"
    _, told = triton_repository.export(store, "fraud_text", 1, entry.parent, SCENARIOS["fraud_text"])
    assert re.search(r"held-out rows: \S+ absolute, \S+ relative", told), told
    own = Command(store.root, f"--models={entry.parent}")
    own.wait("bert-base: loaded")
    assert own.lines[1:3] == ["bert-base: has no outputs; added from the model", 'output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [4] } ]']
    ids = np.array([[3, 1, 4, 1, 5]])
    asked = tritonclient.grpc.InferInput("INPUT_IDS", ids.shape, "INT64")
    asked.set_data_from_numpy(ids)
    found = own.client.infer("bert-base", [asked]).as_numpy("OUTPUT__0")
    np.testing.assert_allclose(found, net(torch.from_numpy(ids)).detach().numpy(), atol=1e-6)
    assert (entry / "config.pbtxt").read_text() == SEED
    own.wait("medical_ner: loaded")
    own.wait("fraud_text: loaded")
    ours = runtime(store, "fraud_text", 1, "torch")
    batch = {spec.name: np.ones((2, *(9 if axis == -1 else axis for axis in spec.shape)), spec.dtype) for spec in ours.signature.inputs}
    asked = [tritonclient.grpc.InferInput(name, array.shape, DATATYPES[array.dtype.name]) for name, array in batch.items()]
    for each, array in zip(asked, batch.values(), strict=True):
        each.set_data_from_numpy(array)
    answer = own.client.infer("fraud_text", asked)
    assert "model.pt" in [path.name for path in (entry.parent / "fraud_text" / "1").iterdir()]
    assert not difference(ours.model(batch), {spec.name: answer.as_numpy(f"{spec.name}__{n}") for n, spec in enumerate(ours.signature.outputs)}, 1e-4)
    assert own.stop() == 0
    assert 'bert-base: has no outputs; added from the model\noutput [ { name: "OUTPUT__0"' in command(store, "triton", "check", entry.parent, "--write")
    assert command(store, "triton", "check", entry.parent) == "bert-base: complete\nfraud_text: complete\nmedical_ner: complete\n"
    assert "--model-repository=/models" in command(store, "triton", "start", "--print", "--models", entry.parent)


def test_a_server_that_ends_at_once_says_why(tmp_path):
    with pytest.raises(ScenariumError, match="nowhere") as refused:
        triton.start(tmp_path, tmp_path / "nowhere", "--exit-on-error=true")
    assert refused.value.code == "SCN-6044"
