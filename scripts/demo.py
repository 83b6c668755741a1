"""The demonstration: train three scenarios on real data, serve them, ask each with a real input, show the answers, stop."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import IO, Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demo"
SCENARIUM = [sys.executable, "-m", "scenarium.core.cli"]
NAMES = ("fraud_text", "image_classification", "market_forecast")


def main() -> int:
    """Train what is not trained yet, serve, ask, stop."""
    began = time.monotonic()
    os.environ.update(SCENARIUM_STORE=str(FOLDER / "store"), OMP_NUM_THREADS=str(os.cpu_count() or 1))
    for name in NAMES:
        if (FOLDER / "store" / "scenarios" / name / "aliases.json").is_file():
            print(f"\n==> {name} is trained already (remove {FOLDER.name}/ to train again)")
            continue
        print(f"\n==> scenarium train {name}", flush=True)
        if status := subprocess.run([*SCENARIUM, "train", name], cwd=ROOT).returncode:
            return status
    inputs = {"fraud_text": fraud(), "image_classification": image(), "market_forecast": prices()}
    with gateway() as url:
        for name in NAMES:
            show(url, name, *inputs[name])
    print(f"\n==> done in {time.monotonic() - began:.0f} s; the versions and their reports are in {FOLDER.name}/store, e.g.")
    print(f"    {next((FOLDER / 'store').glob('scenarios/*/*/report.html')).relative_to(ROOT)}")
    return 0


def held_out(name: str) -> list[dict[str, Any]]:
    """The rows that the scenario did not train on."""
    from scenarium.core import datasets
    from scenarium.core.progress import Progress
    from scenarium.core.registry import open_registry

    return datasets.prepare(open_registry().scenario(name), Progress()).test


def fraud() -> tuple[dict[str, Any], str]:
    """A Chinese message that a person might get."""
    return {"text": "恭喜您中奖了，请点击链接领取"}, "a Chinese message"


def image() -> tuple[dict[str, Any], str]:
    """A held-out picture of the data set, as a PNG in base64."""
    from io import BytesIO

    from PIL import Image

    row = held_out("image_classification")[0]
    buffer = BytesIO()
    Image.fromarray(row["image"]).save(buffer, "PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "top_k": 3}, f"a held-out picture of a {row['label']}"


def prices() -> tuple[dict[str, Any], str]:
    """The last 65 held-out days of one stock."""
    rows = [row for row in held_out("market_forecast") if row["series"] == "IBM"]
    rows.sort(key=lambda row: row["time"])
    return {"prices": [round(row["value"], 2) for row in rows[-65:]]}, f"the 65 days of IBM up to {rows[-1]['time']:%Y-%m-%d}"


@contextmanager
def gateway() -> Iterator[str]:
    """Start the gateway on a free port; its URL; stop it cleanly."""
    print("\n==> scenarium serve", flush=True)
    process = subprocess.Popen([*SCENARIUM, "serve", "--port", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = Log()
    # Read to the end: a gateway whose log nobody reads would stand still once the pipe is full.
    reader = Thread(target=log.follow, args=(process.stderr,))
    reader.start()
    try:
        if not (url := log.url.get()):
            sys.exit(f"the gateway did not start:\n{log}")
        for name in NAMES:
            wait_until_ready(f"{url}/scenarios/{name}/ready", log)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        print(f"\n==> the gateway stopped with status {process.returncode}")


class Log:
    """The end of what the gateway says, and the URL that it names; an empty one where it ended without."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=40)
        self.url: Queue[str] = Queue()

    def __str__(self) -> str:
        return "".join(self.lines)

    def follow(self, stream: IO[str]) -> None:
        """Read until the gateway ends."""
        for line in stream:
            self.lines.append(line)
            if found := re.search(r'"url": ?"(http[^"]+)"', line):
                self.url.put(found[1])
        self.url.put("")


def wait_until_ready(url: str, log: Log) -> None:
    """Until a worker answers the scenario's own sample."""
    deadline = time.monotonic() + 60
    while httpx.get(url).status_code != 200:
        if time.monotonic() > deadline:
            sys.exit(f"{url} did not become ready: {httpx.get(url).text}\n{log}")
        time.sleep(0.1)


def show(url: str, name: str, request: dict[str, Any], what: str) -> None:
    """Ask once; print request, answer, origin of the data, and the held-out metric beside the baseline's."""
    body = json.dumps(request, ensure_ascii=False)
    began = time.monotonic()
    answer = httpx.post(f"{url}/scenarios/{name}/predict", content=body.encode(), headers={"Content-Type": "application/json"})
    took = 1000 * (time.monotonic() - began)
    answer.raise_for_status()
    about = httpx.get(f"{url}/scenarios/{name}").json()
    print(f"\n--- POST /scenarios/{name}/predict   ({what}; version {about['version']}; {took:.1f} ms)")
    print(f"request      {shorten(body)}")
    print(f"answer       {shorten(answer.text, 400)}")
    print(f"data_origin  {about['data_origin']}")
    metric, base = about["metric"], about["baseline"]
    print(f"held out     {metric} {about['metrics'][metric]:.4f}   baseline ({base['name']}) {base['metrics'][metric]:.4f}")


def shorten(text: str, length: int = 120) -> str:
    """One line of at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


if __name__ == "__main__":
    sys.exit(main())
