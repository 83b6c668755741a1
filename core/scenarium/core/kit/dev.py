"""``scenarium dev``: one plugin, perhaps a single file, that is served while it is written.

Here stands what needs no server: the plugin, its quick training, what a save changed. ``scenarium.gateway.dev`` serves it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scenarium.core import hookspecs, pipeline
from scenarium.core.errors import ScenariumError, language
from scenarium.core.kit.subject import TRACKING, Located, locate
from scenarium.core.manifest import Manifest
from scenarium.core.progress import Progress
from scenarium.core.registry import Registry
from scenarium.core.settings import Settings, cache_home
from scenarium.core.store import PRODUCTION, Store
from scenarium.core.traces import AUTHOR, author_trace

QUICK = ("data.limit=2000", "train.max_steps=300", "train.nproc=1")
"""Settings of the training that dev does by itself; ``--set`` overrides them."""

TAG = "dev"
"""Tag of a version: what the parts of the source that decide a training were when it was made."""

SERVE_ONLY = {
    *("schema", "sample", "metric", "request", "evaluate", "score", "baseline", "report"),
    *("traits", "load", "preprocess", "predict_batch", "postprocess", "stream", "log_entry"),
}
"""Hooks whose change leaves the trained weights as they are."""


def say(en: str, zh: str) -> None:
    """Tell the author something, on stderr."""
    print(zh if language() == "zh" else en, file=sys.stderr, flush=True)  # noqa: T201 -- dev talks to a person at a terminal


@dataclass
class Session:
    """One plugin under development."""

    target: str
    sets: tuple[str, ...] = ()

    @cached_property
    def located(self) -> Located:
        """The plugin."""
        return locate(self.target)

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.located.name

    @cached_property
    def registry(self) -> Registry:
        """A registry that holds this scenario alone, with the quick settings below the user's own."""
        read = Settings.read(sets=self.sets, scenario=self.name)
        quick = Settings.read(sets=QUICK, scenario=self.name, environ={}).flat
        own = {key: value for key, value in read.flat.items() if key[:2] == ("scenarios", self.name)}
        return Registry(Settings({**{key: value for key, value in quick.items() if key[0] == "scenarios"}, **own}, None), {self.name: self.located.plugin})

    @cached_property
    def home(self) -> Path:
        """What is watched: the single file, or the folder of the package."""
        plugin = self.located.plugin
        if plugin.target.endswith(".py"):
            return Path(plugin.target)
        if self.located.project:
            return self.located.project / plugin.target.partition(":")[0].replace(".", "/")
        file = getattr(plugin.load(), "__file__", None)
        if file is None:
            raise ScenariumError("SCN-7004", file=self.target)
        return Path(file).parent

    @cached_property
    def folder(self) -> Path:
        """Where its versions are kept, apart from the real store."""
        return cache_home() / "dev" / f"{self.name}-{hashlib.sha256(str(self.home).encode()).hexdigest()[:8]}"

    @cached_property
    def store(self) -> Store:
        """The store of the dev versions."""
        return Store(str(self.folder / "store"))

    def files(self) -> list[Path]:
        """The author's files."""
        return [self.home] if self.home.is_file() else sorted(self.home.rglob("*.py"))

    def fault(self) -> str | None:
        """Why the source cannot be read, as Python says it."""
        for path in self.files():
            try:
                compile(path.read_bytes(), str(path), "exec")
            except (SyntaxError, ValueError) as fault:
                return author_trace(fault)
        return None

    def training_key(self) -> str:
        """Hash of what decides a training: the settings, and the source without the bodies of the hooks that only serve."""
        digest = hashlib.sha256(json.dumps(self.sets).encode())
        for path in self.files():
            tree = ast.parse(path.read_bytes())
            tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name in SERVE_ONLY and _is_hook(node))]
            # Docstrings and comments decide nothing; ast holds no comments, and positions are left out.
            digest.update(ast.dump(tree).encode())
        return digest.hexdigest()[:16]

    def current(self) -> int | None:
        """The dev version that fits the source as it is now."""
        number = self.store.aliases(self.name)["aliases"].get(PRODUCTION)
        if number is None or self.store.manifest(self.name, number).tags.get(TAG) != self.training_key():
            return None
        return int(number)

    def prepare(self) -> int:
        """A version for the source as it is now: the one there is, the production version of the real store, or a quick training.

        Raises:
            ScenariumError: SCN-7701 (the training failed; its own words stand above).
        """
        number = self.current()
        if number is None and not self.store.versions(self.name):
            number = self._adopt()
        if number is None:
            say(f"training {self.name} quickly …", f"正在快速训练 {self.name} …")
            # The training answers requests too: there is nobody at its breakpoints. It is a trial, which MLflow need not know.
            environment = {**os.environ, AUTHOR: "1", "PYTHONBREAKPOINT": "0", TRACKING: ""}
            command = [sys.executable, "-m", "scenarium.core.kit.dev", self.target, *self.sets]
            if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode:
                raise ScenariumError("SCN-7701", name=self.name)
            number = self.store.versions(self.name)[-1]
        return number

    def train(self) -> None:
        """The quick training, in this process."""
        key = self.training_key()
        scenario = self.registry.scenario(self.name)
        trained = pipeline.train(scenario, self.store, self.folder / "runs", progress=_Lines(), tags={TAG: key})
        self._use(trained.version.manifest)
        figures = ", ".join(f"{name} {value:.3g}" for name, value in trained.version.manifest.metrics.items())
        say(f"trained in {trained.seconds:.1f} s: {figures}", f"训练用时 {trained.seconds:.1f} 秒：{figures}")

    def _use(self, manifest: Manifest) -> None:
        """Serve a version while its source changes: the answer to the sample is not held against it."""
        path = Path(self.store.path(self.name, manifest.version)) / "manifest.json"
        path.write_text(manifest.model_copy(update={"answer": None}).model_dump_json(indent=1), encoding="utf8")
        self.store.set_alias(self.name, PRODUCTION, manifest.version, "dev")

    def _adopt(self) -> int | None:
        """Take over the production version of the real store."""
        real = Store(Settings.read().store_url)
        number = real.aliases(self.name)["aliases"].get(PRODUCTION)
        if number is None or self.located.plugin.target.endswith(".py"):
            return None
        version = real.open(self.name, number)
        target = Path(self.store.path(self.name, 1))
        shutil.copytree(version.folder, target, dirs_exist_ok=True)
        self._use(version.manifest.model_copy(update={"version": 1, "tags": {TAG: self.training_key()}}))
        return 1


class _Lines(Progress):
    """Says each stage in a line."""

    def note(self, text: str) -> None:
        say(f"  {text}", f"  {text}")


def _is_hook(node: ast.FunctionDef) -> bool:
    return hasattr(hookspecs, node.name) and any("hookimpl" in ast.unparse(decorator) for decorator in node.decorator_list)


def main(arguments: Sequence[str]) -> int:
    """Train once; run by ``Session.prepare`` in a process of its own, so that torch leaves with it."""
    session = Session(arguments[0], tuple(arguments[1:]))
    try:
        session.train()
    except ScenariumError as error:
        say(str(error), str(error))
        if error.__cause__:
            say(author_trace(error.__cause__), author_trace(error.__cause__))
        return 1
    except Exception as fault:
        say(author_trace(fault), author_trace(fault))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
