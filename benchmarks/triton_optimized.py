"""``scenarium optimize`` on a ResNet-50 and a text model of BERT-base's size: requests/s of what it kept, through the gateway, against the same
eager torch model in LitServe, with 8 clients; and what it lost on the held-out rows.

No pretrained weights are needed: both are trained here for a few minutes from random weights, the ResNet-50 on real handwritten digits (0 and 1 of MNIST,
224 pixels), the text model on generated messages. Both sides have as many workers as cores with one thread each; LitServe batches with the better of a few
settings, which a trial chooses.

    python -m benchmarks.triton_optimized [--rounds 4] [--seconds 8]
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import sys
from pathlib import Path

from benchmarks import load, peers, results
from benchmarks.gateway_models import right
from benchmarks.load import OURS, SERVERS, Server

PACKAGES = ("torch", "torchvision", "transformers", "onnxruntime", "openvino", "onnx", "starlette", "uvicorn", "numpy")
CLIENTS = 8
MAX_DROP = 0.01
CORES = len(os.sched_getaffinity(0))
NAMES = {"resnet": "ResNet-50 on pictures", "bert_base": "BERT-base-size model on text"}
LITSERVE = ((2, 0.001), (4, 0.005), (8, 0.01))
"""Largest batch and seconds to wait for it."""
DIGITS, EACH = ("0", "1"), 260


def prepare(model: str, folder: Path) -> tuple[load.Ours, tuple[str, ...], bytes]:
    """The scenario, how it is trained, and a request."""
    if model == "bert_base":
        sys.path.insert(0, str(SERVERS))
        import bert_base_plugin

        sets = ("train.epochs=2", "train.batch_size=8", "train.lr=5e-5", "train.warmup=0.2", "serve.max_batch_size=8")
        return load.Ours(folder, "bert_base", str(SERVERS / "bert_base_plugin.py")), sets, load.json_body({"text": bert_base_plugin.text(7)})
    import scenarium_image_classification as plugin
    from scenarium.core import images
    from scenarium.core.sources import fetch

    taken: dict[str, int] = {}
    body = b""
    for row in plugin.read_mnist([fetch(plugin.MNIST)]):
        label, number = row["label"], taken.get(row["label"], 0)
        if label not in DIGITS or number == EACH:
            continue
        taken[label] = number + 1
        file = folder / "pictures" / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = images.encode_png(row["image"])
        file.write_bytes(picture)
        body = body or load.json_body({"image": base64.b64encode(picture).decode()})
    sets = ("model.size=224", "model.backbone=resnet50", "train.epochs=2", "train.batch_size=8", "train.lr=3e-4", "data.test=0.4", "serve.max_batch_size=8")
    ours = load.Ours(folder, "image_classification", "scenarium_image_classification", "scenarium-image-classification")
    return ours, (f"data.path={folder / 'pictures'}", *sets), body


def litserve(model: str, version: Path, setting: tuple[int, float]) -> Server:
    """LitServe with a largest batch and a wait for it."""
    command = [str(peers.python_of()), str(SERVERS / "models_litserve.py"), "{port}", model, str(version), "1", str(CORES), str(setting[0]), str(setting[1])]
    return Server("LitServe", command, patience_s=180)


def best_litserve(model: str, version: Path, body: bytes, headers: dict[str, str], seconds: float) -> tuple[int, float]:
    """The setting with which LitServe answers most."""
    rates = {}
    for setting in LITSERVE:
        with load.running([litserve(model, version, setting)], body, right, headers) as servers:
            load.wrk(servers["LitServe"], CLIENTS, 2, headers)
            rates[setting] = load.wrk(servers["LitServe"], CLIENTS, seconds, headers).per_second
    print("LitServe, by largest batch and wait:", ", ".join(f"{batch} {wait:g} s: {rate:.1f}/s" for (batch, wait), rate in rates.items()), flush=True)
    return max(rates, key=lambda setting: rates[setting])


def compared(model: str, folder: Path, rounds: int, seconds: float) -> list[results.Figure]:
    """All figures of one model."""
    from scenarium.core import optimising

    ours, sets, body = prepare(model, folder)
    eager = ours.train(*sets)
    store, scenario = ours.store, ours.found(*sets)
    found = optimising.optimise(scenario, store, max_drop=MAX_DROP)
    for each in found.tried:
        told = f"{each.speed}, {each.comparison.text()}" if each.speed and each.comparison else each.reason and each.reason.en
        print(f"{each.way.engine} {each.way.precision}: {told}", flush=True)
    assert found.kept
    assert found.version
    store.set_alias(scenario.name, "production", found.version.number, "benchmark")
    headers = load.json_headers(ours.key)
    setting = best_litserve(model, eager, body, headers, seconds)
    with load.running([litserve(model, eager, setting), ours.server(workers=CORES, threads=1)], body, right, headers) as servers:
        measured = load.measure(servers, (CLIENTS,), rounds, seconds, headers)
    rates = {name: [load.answered(each, seconds) for each in measured[name, CLIENTS]] for name in ("LitServe", OURS)}
    ratio = load.summary(f"{NAMES[model]}: against LitServe", [a / max(b, 1e-3) for a, b in zip(rates[OURS], rates["LitServe"], strict=True)])
    label = f"optimised {NAMES[model]}, 8 clients"
    way = " ".join(found.kept.way)
    made = [
        results.figure(f"{label}, requests/s: against the eager model in LitServe", ratio, "times", "higher", 3, 6),
        results.figure(f"{label}: loss of the held-out {scenario.hook.metric(config=scenario.config).name} ({way})", 100 * found.kept.loss, "%", "lower", 1),
    ]
    for name, values in rates.items():
        made.append(results.figure(f"{label}, requests/s: {name}", statistics.median(values), "1/s", "higher"))
    return made


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args()
    peers.make()
    made = []
    for model in options.models:
        with load.scratch() as folder:
            found = compared(model, folder, options.rounds, options.seconds)
        results.write("triton", found, PACKAGES, peers.versions())  # at once, so that none is lost where the next fails
        made += found
    results.show(made)


if __name__ == "__main__":
    main()
