"""The core of Scenarium: hooks, registry, settings, data, store, runtime and command line.

Names are imported on first use, so that the command line starts without pydantic, numpy or a plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarium.core.config import DataConfig as DataConfig
    from scenarium.core.config import ModelConfig as ModelConfig
    from scenarium.core.config import ScenarioConfig as ScenarioConfig
    from scenarium.core.config import Section as Section
    from scenarium.core.config import ServeConfig as ServeConfig
    from scenarium.core.config import TrainConfig as TrainConfig
    from scenarium.core.errors import BadData as BadData
    from scenarium.core.errors import BadInput as BadInput
    from scenarium.core.errors import BadValue as BadValue
    from scenarium.core.errors import ScenariumError as ScenariumError
    from scenarium.core.hookspecs import hookimpl as hookimpl
    from scenarium.core.pipeline import Run as Run
    from scenarium.core.registry import load as load
    from scenarium.core.runtime import Runtime as Runtime
    from scenarium.core.schemas import Base64 as Base64
    from scenarium.core.schemas import Request as Request
    from scenarium.core.schemas import Response as Response
    from scenarium.core.sources import HubDataset as HubDataset
    from scenarium.core.sources import HubFile as HubFile
    from scenarium.core.sources import PackageFile as PackageFile
    from scenarium.core.types import Baseline as Baseline
    from scenarium.core.types import Batch as Batch
    from scenarium.core.types import Data as Data
    from scenarium.core.types import Disagreement as Disagreement
    from scenarium.core.types import Environment as Environment
    from scenarium.core.types import Evaluation as Evaluation
    from scenarium.core.types import Field as Field
    from scenarium.core.types import Figure as Figure
    from scenarium.core.types import Metric as Metric
    from scenarium.core.types import Row as Row
    from scenarium.core.types import Schema as Schema
    from scenarium.core.types import Signature as Signature
    from scenarium.core.types import Source as Source
    from scenarium.core.types import TensorSpec as TensorSpec
    from scenarium.core.types import Traits as Traits

__version__ = "0.1.0"

_HOME = {
    "config": "DataConfig ModelConfig ScenarioConfig Section ServeConfig TrainConfig",
    "errors": "BadData BadInput BadValue ScenariumError",
    "hookspecs": "hookimpl",
    "pipeline": "Run",
    "registry": "load",
    "runtime": "Runtime",
    "schemas": "Base64 Request Response",
    "sources": "HubDataset HubFile PackageFile",
    "types": "Baseline Batch Data Disagreement Environment Evaluation Field Figure Metric Row Schema Signature Source TensorSpec Traits",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [*sorted(_MODULE), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value
