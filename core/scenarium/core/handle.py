"""A scenario as a Python object: ``load("fraud_text").train()``, ``.predict({...})``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from scenarium.core import pipeline
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.store import PRODUCTION, Store


class Handle:
    """Train and ask one scenario from Python, without a server."""

    def __init__(self, scenario: Scenario, ref: str | int = PRODUCTION) -> None:
        self.scenario = scenario
        self.ref = ref
        self.store = Store(scenario.settings.store_url)

    def train(self, *, resume: bool = False, progress: Progress | None = None) -> pipeline.Trained:
        """Train, commit, and use the new version from now on."""
        trained = pipeline.train(self.scenario, self.store, self.scenario.settings.home / "runs", resume=resume, progress=progress)
        self.ref = trained.version.number
        self.__dict__.pop("runtime", None)
        return trained

    @cached_property
    def runtime(self) -> Runtime:
        """The loaded version."""
        version = self.store.open(self.scenario.name, self.ref)
        return Runtime.open(self.scenario, version.folder, version.manifest)

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request given as a mapping (JSON form or Python values).

        Raises:
            ScenariumError: what a client of the gateway would be told.
        """
        answer = self.runtime.predict([self.runtime.schema.request.model_validate(dict(request))])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer.model_dump(mode="json")

    def stream(self, request: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the parts of one answer."""
        return self.runtime.stream(self.runtime.schema.request.model_validate(dict(request)))
