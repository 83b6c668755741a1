"""A scenario as a Python object: ``load("fraud_text").train()``, ``.predict({...})``, ``.stream({...})``, ``.evaluate()``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, overload

from pydantic import BaseModel, ValidationError

from scenarium.core import pipeline
from scenarium.core.bodies import problem
from scenarium.core.compare import held_out
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.core.registry import Scenario
from scenarium.core.runtime import Runtime
from scenarium.core.store import PRODUCTION, Store, Version
from scenarium.core.types import Evaluation

Request: TypeAlias = Mapping[str, Any] | BaseModel
"""One request: a mapping of Python or JSON values, or an instance of the plugin's request class."""


class Handle:
    """Train and ask one scenario from Python, without a server. ``ref`` is a version number, an alias or ``latest``."""

    def __init__(self, scenario: Scenario, ref: str | int = PRODUCTION) -> None:
        self.scenario = scenario
        self.ref = ref
        self.store = Store(scenario.settings.store_url)

    def __repr__(self) -> str:
        name = self.scenario.name
        try:
            numbers, aliases = self.store.versions(name), self.store.aliases(name)["aliases"]
        except ScenariumError as fault:
            return f"<scenario {name}: {fault.title()}>"
        if not numbers:
            return f"<scenario {name}, not trained yet: .train()>"
        named = ", ".join(f"{alias} {number}" for alias, number in sorted(aliases.items()))
        return f"<scenario {name}, versions {numbers}, {named or 'no alias'}, uses {self.ref}>"

    def train(self, *, resume: bool = False, progress: Progress | None = None) -> pipeline.Trained:
        """Train, commit, and use the new version from now on.

        Raises:
            ScenariumError: what the data, the settings or the training gave cause for.
        """
        if progress is None:
            from scenarium.core.progress_view import view

            progress = view()
        trained = pipeline.train(self.scenario, self.store, self.scenario.settings.home / "runs", resume=resume, progress=progress)
        self.use(trained.version.number)
        return trained

    def use(self, ref: str | int) -> Handle:
        """Answer from another version from now on."""
        self.ref = ref
        self.close()
        self.__dict__.pop("version", None)
        return self

    def close(self) -> None:
        """End what the loaded version holds beside memory; the next request loads it again."""
        if runtime := self.__dict__.pop("runtime", None):
            runtime.close()

    @cached_property
    def version(self) -> Version:
        """The version in use, its files checked."""
        return self.store.open(self.scenario.name, self.ref)

    @cached_property
    def runtime(self) -> Runtime:
        """The loaded version."""
        return Runtime.open(self.scenario, self.version.folder, self.version.manifest)

    @overload
    def predict(self, request: Request | None = None, /, **fields: Any) -> dict[str, Any]: ...
    @overload
    def predict(self, request: Sequence[Request], /) -> list[dict[str, Any]]: ...
    def predict(self, request: Request | Sequence[Request] | None = None, /, **fields: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer one request, given as a mapping or by keywords, or a list of requests.

        Raises:
            ScenariumError: what a client of the gateway would be told.
        """
        if request is None or isinstance(request, (Mapping, BaseModel)):
            return self._answers([self.request(fields if request is None else request)])[0]
        return self._answers([self.request(one) for one in request])

    def _answers(self, requests: Sequence[BaseModel]) -> list[dict[str, Any]]:
        answers = []
        for answer in self.runtime.predict(requests):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer.model_dump(mode="json"))
        return answers

    def stream(self, request: Request | None = None, /, **fields: Any) -> Iterator[Any]:
        """Yield the parts of one answer as they come.

        Raises:
            ScenariumError: SCN-4005 where the scenario does not stream.
        """
        return self.runtime.stream(self.request(fields if request is None else request))

    def evaluate(self, *, own: bool = False, progress: Progress | None = None) -> Evaluation:
        """Measure the version in use: on the rows that it held out, or with ``own`` on every row of the data that the settings name now.

        Raises:
            ScenariumError: 2xxx where the data cannot be read.
        """
        progress = progress or Progress()
        if own:
            from scenarium.core import datasets

            # Rows that the version may have been trained on are the caller's concern; nothing is set aside here.
            config = self.runtime.scenario.config.model_copy(update={"data": self.scenario.config.data})
            data = datasets.prepare(self.scenario.with_config(config), progress)
            rows = [*data.train, *data.val, *data.test]
        else:
            rows = held_out(self.scenario, self.version.manifest, progress).test
        progress.note(f"measuring on {len(rows)} rows")
        found: Evaluation = self.scenario.hook.evaluate(config=self.runtime.scenario.config, runtime=self.runtime, rows=rows)
        return found

    def request(self, values: Request) -> BaseModel:
        """Validate one request.

        Raises:
            BadInput: names the field.
        """
        cls: type[BaseModel] = self.runtime.schema.request
        if isinstance(values, cls):
            return values
        given = values.model_dump() if isinstance(values, BaseModel) else dict(values)
        try:
            return cls.model_validate(given)
        except ValidationError as fault:
            try:  # JSON forms (base64 for bytes) are understood too
                return cls.model_validate_json(json.dumps(given))
            except (TypeError, ValueError):
                raise problem(fault) from None
