"""Streaming: time to the first token through the gateway over calling the model directly, and tokens a second at 8 streams beside transformers' own
continuous batching.

SmolLM2-135M as ``text_generation`` serves it, greedy, asked by the OpenAI API over HTTP; beside it the same weights in a process of its own
(``servers/generation_direct.py``), with as many threads. The two take turns.

    python -m benchmarks.triton_streaming [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks import load, results
from benchmarks.load import OURS, SERVERS

PACKAGES = ("torch", "transformers", "fastapi", "starlette", "uvicorn", "httpx")
STREAMS = 8
TOKENS = 32
TIMES = 5
"""Single streams in a round."""
THREADS = 1
"""Of the model on each side: more of them wait for each other by spinning, which on a shared machine measures the neighbours."""
PLAIN = {"temperature": 0, "repetition_penalty": 1, "top_k": 0, "top_p": 1}
"""Greedy: what is drawn costs the same, but ends where it likes."""
TOPICS = ("a river", "the sea", "an old house", "two friends", "a long winter", "the first train", "a small town", "the night sky")
PROMPTS = [f"This is a long story about {topic}. It begins on a quiet morning, when nobody expected that anything would ever change. Once" for topic in TOPICS]


class Direct:
    """The model in a process of its own, which waits between its turns."""

    def __init__(self, version: Path) -> None:
        command = [sys.executable, str(SERVERS / "generation_direct.py"), str(version), str(THREADS)]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(THREADS)})

    def ask(self, **asked: Any) -> float:
        """One measurement."""
        assert self.popen.stdin
        assert self.popen.stdout
        self.popen.stdin.write(json.dumps(asked) + "\n")
        self.popen.stdin.flush()
        return float(json.loads(self.popen.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self.popen.communicate()


def stream(client: httpx.Client, prompt: str, tokens: int, gate: threading.Barrier | None = None) -> tuple[float, int]:
    """Seconds until the first text, and how many tokens came in all."""
    if gate:
        gate.wait()
    asked = {"model": "text_generation", "prompt": prompt, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}, **PLAIN}
    began, first, made = time.perf_counter(), 0.0, 0
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and chunk["choices"] and chunk["choices"][0]["text"]:
                first = time.perf_counter() - began
            made = (chunk.get("usage") or {}).get("completion_tokens", made)
    assert first
    assert made
    return first, made


def together(client: httpx.Client, pool: ThreadPoolExecutor) -> float:
    """Tokens a second of all streams."""
    gate = threading.Barrier(STREAMS + 1)
    work = [pool.submit(stream, client, prompt, TOKENS, gate) for prompt in PROMPTS]
    gate.wait()
    began = time.perf_counter()
    made = sum(each.result()[1] for each in work)
    assert made == STREAMS * TOKENS, "a stream ended before its time"
    return made / (time.perf_counter() - began)


def figures(rounds: int) -> list[results.Figure]:
    """Measure."""
    from tokenizers import Tokenizer

    added: list[float] = []
    ratios: list[float] = []
    seen: dict[str, list[float]] = {name: [] for name in ("first, ours", "first, direct", "many, ours", "many, direct")}
    with load.scratch() as folder, ThreadPoolExecutor(STREAMS) as pool:
        ours = load.Ours(folder, "text_generation", "scenarium_text_generation", "scenarium-text-generation")
        version = ours.train("model.eval_tokens=64")
        tokenizer = Tokenizer.from_str(json.loads((version / "state.json").read_text())["tokenizer"])
        ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS]
        headers = load.json_headers(ours.key)
        body = load.json_body({"prompt": "Once", "max_new_tokens": 2})
        with load.running([ours.server(workers=1, threads=THREADS)], body, lambda answer: "text" in answer, headers) as servers:
            direct = Direct(version)
            try:
                with httpx.Client(base_url=servers[OURS].url.partition("/scenarios")[0], headers=headers, timeout=120) as client:
                    for number in range(rounds + 1):
                        firsts = [(stream(client, PROMPTS[n], 2)[0], direct.ask(first=ids[n])) for n in range(TIMES)]
                        tokens = together(client, pool), direct.ask(many=ids, tokens=TOKENS)
                        if number:
                            own, bare = (statistics.median(column) for column in zip(*firsts, strict=True))
                            added.append(1000 * (own - bare))
                            ratios.append(tokens[0] / tokens[1])
                            for name, value in zip(seen, (1000 * own, 1000 * bare, *tokens), strict=True):
                                seen[name].append(value)
                            shown = f"first token {1000 * own:.1f} ms, directly {1000 * bare:.1f} ms; {tokens[0]:.1f} tokens/s, directly {tokens[1]:.1f}"
                            print(f"round {number}  {shown}", flush=True)
            finally:
                direct.close()
    name = "streaming, SmolLM2-135M"
    first = load.summary("time to first token over the model, ms", added)
    share = load.summary("tokens/s against continuous batching", ratios)
    middle = {key: statistics.median(values) for key, values in seen.items()}
    return [
        results.figure(f"{name}: time to first token over calling the model directly", first, "ms", "lower", 20, 5),
        results.figure(f"{name}: time to first token, directly", middle["first, direct"], "ms", "lower"),
        results.figure(f"{name}, {STREAMS} streams: tokens/s against transformers' continuous batching", share, "times", "higher", 0.9, 0.98),
        results.figure(f"{name}, {STREAMS} streams: tokens/s, scenarium", middle["many, ours"], "1/s", "higher"),
        results.figure(f"{name}, {STREAMS} streams: tokens/s, transformers", middle["many, direct"], "1/s", "higher"),
    ]


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    made = figures(options.rounds)
    results.show(made)
    results.write("triton", made, PACKAGES)


if __name__ == "__main__":
    main()
