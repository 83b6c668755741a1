"""ResNet-18 on JPEGs and a small BERT on text at 32 clients, beside LitServe and plain FastAPI; and the share of the bare forward that reaches the client.

The same eager torch module, the same Python before and after it, and the same threads on all sides: as many workers as cores with one
thread each (FastAPI: as many threads of its pool). LitServe batches with the better of a few settings, which a trial chooses. The ResNet's
weights were trained for one short epoch on generated pictures, the BERT's are random: only the time is measured.

The share: one worker with one thread, beside the bare forward in process with one thread on batches of the size that the worker had.

    python -m benchmarks.gateway_models [--rounds 4] [--seconds 6]
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks import load, peers, results
from benchmarks.load import OURS, SERVERS, Server

PACKAGES = ("torch", "torchvision", "transformers", "fastapi", "starlette", "uvicorn", "pillow", "numpy")
CLIENTS = 32
WINDOW_S = {"resnet": 12.0, "bert": 6.0}
SLICE_S = {"resnet": 6.0, "bert": 2.0}
"""How long the worker and the bare forward have their turns."""
CORES = len(os.sched_getaffinity(0))
NAMES = {"resnet": "ResNet-18 on JPEGs", "bert": "small BERT on text"}
LITSERVE = {"resnet": ((4, 0.005), (8, 0.01), (16, 0.01)), "bert": ((16, 0.001), (16, 0.005), (32, 0.005))}
"""Largest batch and seconds to wait for it."""


def picture(number: int) -> bytes:
    """A JPEG of 256 x 256 pixels, soft shapes with some noise: about 15 KB, as a photograph of that size."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(small, dtype=np.int16) + rng.normal(0, 6, (256, 256, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG", quality=85)
    return out.getvalue()


def text() -> str:
    """60 letters."""
    return "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz     "), 60))


def train(model: str, folder: Path) -> tuple[load.Ours, Path, bytes]:
    """A version of the scenario by the ordinary pipeline, its folder, and a request."""
    if model == "bert":
        ours = load.Ours(folder, "bert", str(SERVERS / "bert_plugin.py"))
        return ours, ours.train(), load.json_body({"text": text()})
    for label in range(2):
        (folder / "pictures" / f"class{label}").mkdir(parents=True)
        for number in range(32):
            (folder / "pictures" / f"class{label}" / f"{number}.jpg").write_bytes(picture(100 * label + number))
    ours = load.Ours(folder, "image_classification", "scenarium_image_classification", "scenarium-image-classification")
    version = ours.train(f"data.path={folder / 'pictures'}", "model.size=224", "model.backbone=resnet18", "train.epochs=1", "train.batch_size=16")
    return ours, version, load.json_body({"image": base64.b64encode(picture(7)).decode()})


def right(answer: Any) -> bool:
    """Whether it is an answer of the model."""
    return "label" in answer


def litserve(model: str, version: Path, setting: tuple[int, float], name: str = "LitServe") -> Server:
    """LitServe with a largest batch and a wait for it."""
    command = [str(peers.python_of()), str(SERVERS / "models_litserve.py"), "{port}", model, str(version), "1", str(CORES), str(setting[0]), str(setting[1])]
    return Server(name, command)


def best(model: str, servers: dict[Any, Server], body: bytes, headers: dict[str, str]) -> Any:
    """The setting of the server that answers most."""
    rates = {}
    for setting, server in servers.items():
        with load.running([server], body, right, headers) as up:
            load.wrk(up[server.name], CLIENTS, 2, headers)
            rates[setting] = load.answered(load.wrk(up[server.name], CLIENTS, WINDOW_S[model], headers), WINDOW_S[model])
    print(f"{server.name}, by setting:", ", ".join(f"{setting}: {rate:.1f}/s" for setting, rate in rates.items()), flush=True)
    return max(rates, key=lambda setting: rates[setting])


def compared(model: str, folder: Path, rounds: int) -> list[results.Figure]:
    """All figures of one model."""
    ours, version, body = train(model, folder)
    headers, seconds = load.json_headers(ours.key), WINDOW_S[model]
    setting = best(model, {each: litserve(model, version, each) for each in LITSERVE[model]}, body, headers)
    sizes = dict.fromkeys(size for size, _ in LITSERVE[model])
    size = best(model, {each: ours.server(workers=CORES, threads=1, max_batch_size=each) for each in sizes}, body, headers)
    own = ours.server(workers=CORES, threads=1, max_batch_size=size)
    fastapi = Server("FastAPI", [sys.executable, str(SERVERS / "models_fastapi.py"), "{port}", model, str(version), "1", str(CORES)])
    with load.running([fastapi, litserve(model, version, setting), own], body, right, headers) as servers:
        found = load.measure(servers, (CLIENTS,), rounds, seconds, headers)
    rates = {name: [load.answered(each, seconds) for each in found[name, CLIENTS]] for name in ("FastAPI", "LitServe", OURS)}
    made = []
    for peer, label in (("LitServe", "LitServe"), ("FastAPI", "plain FastAPI (thread pool)")):
        ratio = load.summary(f"{NAMES[model]}: against {label}", [a / max(b, 1e-3) for a, b in zip(rates[OURS], rates[peer], strict=True)])
        made.append(results.figure(f"{NAMES[model]}, 32 clients, requests/s: against {label}", ratio, "times", "higher", 1.1, 1.3))
    for name, values in rates.items():
        made.append(results.figure(f"{NAMES[model]}, 32 clients, requests/s: {name}", statistics.median(values), "1/s", "higher"))
    return [*made, share(model, ours, version, body, rounds, size)]


def share(model: str, ours: load.Ours, version: Path, body: bytes, rounds: int, largest: int) -> results.Figure:
    """How much of the bare forward's throughput reaches the client: one worker, one thread. The two take turns every ``SLICE_S`` seconds, so
    that a slower spell of the machine falls on both."""
    headers = load.json_headers(ours.key)
    found = []
    with load.running([ours.server(workers=1, threads=1, max_batch_size=largest)], body, right, headers) as servers, Bare(model, version, body) as bare:
        server = servers[OURS]
        load.wrk(server, CLIENTS, 2, headers)
        for number in range(rounds):
            rate = forward = 0.0
            slices, slice_s = 3, SLICE_S[model]
            for _ in range(slices):
                before = batches(server, headers)
                rate += load.wrk(server, CLIENTS, slice_s, headers).per_second / slices
                items, count = (after - earlier for after, earlier in zip(batches(server, headers), before, strict=True))
                size = max(1, round(items / count))
                forward += bare.per_second(size, slice_s) / slices
            print(f"round {number + 1}  {NAMES[model]}: {rate:.1f}/s of {forward:.1f}/s in process, last batches of {size}", flush=True)
            found.append(100 * rate / forward)
    value = load.summary(f"{NAMES[model]}: share of the bare forward, %", found)
    return results.figure(f"{NAMES[model]}, 32 clients: share of the bare forward's throughput (same batch size, in process)", value, "%", "higher", 85, 95)


def batches(server: load.Running, headers: dict[str, str]) -> tuple[float, float]:
    """Items and batches so far, from the gateway's metrics."""
    lines = httpx.get(server.url.partition("/scenarios")[0] + "/metrics", headers=headers).text.splitlines()
    values = [float(line.split()[-1]) for kind in ("sum", "count") for line in lines if line.startswith(f"scenarium_batch_size_{kind}")]
    return values[0], values[1]


class Bare:
    """The forward alone, in a process of its own that waits between its windows."""

    def __init__(self, model: str, version: Path, body: bytes) -> None:
        command = [sys.executable, str(SERVERS / "models_bare.py"), model, str(version)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        self._tell(body.decode())

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.communicate()  # the end of its input ends it

    def per_second(self, size: int, seconds: float) -> float:
        """Items a second in batches of ``size``."""
        self._tell(f"{size} {seconds}")
        assert self.popen.stdout
        return float(self.popen.stdout.readline())

    def _tell(self, line: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args()
    peers.make()
    made = []
    for model in options.models:
        with load.scratch() as folder:
            found = compared(model, folder, options.rounds)
        results.write("gateway", found, PACKAGES, peers.versions())  # at once, so that none is lost where the next fails
        made += found
    results.show(made)


if __name__ == "__main__":
    main()
