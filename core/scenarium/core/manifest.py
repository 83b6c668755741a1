"""The manifest of a version: everything that serving, comparing and explaining it needs. Written last; its presence is the commit."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from scenarium.core.types import Baseline, Disagreement, Metric, Signature, TensorSpec, Traits

if TYPE_CHECKING:
    from scenarium.core.config import ServeConfig

FORMAT = 1


class Part(BaseModel):
    """A table of the manifest. Unknown keys are kept, so an older reader does not lose what a newer one wrote."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class PluginRef(Part):
    """Which plugin made the version, and which of its releases can load it."""

    name: str
    distribution: str
    version: str
    loadable: str
    """PEP 440 specifier of the plugin releases that load this version: ``>=0.1,<0.2``."""


class FileRef(Part):
    """One file of the version."""

    sha256: str
    size: int


class Optimised(Part):
    """What ``scenarium optimize`` made of an earlier version."""

    source: int
    """Number of the version that it was made from."""
    engine: str
    """The engine that it was measured with and is served by."""
    precision: str
    """``fp32``, ``bf16`` or ``int8``."""


class Manifest(Part):
    """``manifest.json`` of a version."""

    format: int = FORMAT
    scenario: str
    version: int = 0
    created: datetime
    plugin: PluginRef
    config: dict[str, Any]
    """The settings it was trained with (sections data, model, train, serve)."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    request_schema: dict[str, Any]
    response_schema: dict[str, Any]
    sample: dict[str, Any]
    """One request, JSON form."""
    answer: dict[str, Any] | None = None
    """The answer to the sample when the version was made; recomputed on load where the scenario is pure."""
    pure: bool = True
    streams: bool = False
    concurrency: int | str = "batch"
    max_batch_size: int = 32
    route_key: str | None = None
    preload: list[str] = []
    tolerance: float = 1e-4
    disagreement: Disagreement = Disagreement()
    metric: Metric
    metrics: dict[str, float] = {}
    """Held-out metrics."""
    baseline: Baseline | None = None
    data: dict[str, Any] = {}
    """The data manifest (``scenarium.core.datasets``)."""
    data_origin: str = "real"
    exports: list[str] = []
    optimised: Optimised | None = None
    tags: dict[str, str] = {}
    packages: dict[str, str] = {}
    """Installed distributions that the plugin depends on, with versions."""
    python: str = ""
    card: dict[str, str] = {}
    """The model card as Markdown, by language (``en``, ``zh``)."""
    files: dict[str, FileRef] = {}
    """Every other file of the version by relative path."""

    @property
    def signature(self) -> Signature:
        """The tensor signature."""
        return Signature(tuple(self.inputs), tuple(self.outputs))

    def serving(self, config: ServeConfig) -> ServeConfig:
        """``config`` for this version: an optimised one is served by its own engine, here or in Triton, whatever the others are served by."""
        if self.optimised is None or config.engine == "triton":
            return config
        return config.model_copy(update={"engine": self.optimised.engine})

    @property
    def traits(self) -> Traits:
        """How the version wants to be served."""
        concurrency: int | Literal["batch"] = self.concurrency if isinstance(self.concurrency, int) else "batch"
        return Traits(self.pure, concurrency, self.max_batch_size, self.streams, self.route_key, tuple(self.preload), self.tolerance, self.disagreement)
