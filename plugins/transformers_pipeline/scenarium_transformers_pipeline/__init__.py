"""Any model of transformers, by its pipeline task: ``scenarium import hf:NAME_OR_PATH --task TASK --name NAME``.

The import copies the model into the version (weights as safetensors, no code), so it is served from there without a network. ``tasks.py`` has the request
and answer of each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from scenarium.core import BadData, Metric, ModelConfig, ScenarioConfig, Schema, Traits, hookimpl
from scenarium_transformers_pipeline.tasks import TASKS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from scenarium.core import Data, Run

FOLDER = "model"
"""The version's folder with the model's files."""


class PipelineConfig(ModelConfig):
    """Which model, and how its answers are cut."""

    task: Literal[
        "text-classification",
        "token-classification",
        "fill-mask",
        "zero-shot-classification",
        "feature-extraction",
        "image-classification",
        "audio-classification",
    ] = "text-classification"
    """The task of transformers' pipelines."""
    source: str = ""
    """A model's name on the Hugging Face hub, or a local folder as `save_pretrained` writes it; needed by the import alone."""
    top_k: int = Field(5, gt=0)
    """Most labels (or words, for `fill-mask`) of an answer, the best first."""
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"
    """How `token-classification` joins tokens to entities."""


class PipelineScenario(ScenarioConfig):
    """The settings."""

    model: PipelineConfig = PipelineConfig()


@hookimpl
def config() -> type[ScenarioConfig]:
    return PipelineScenario


@hookimpl
def fields(config: ScenarioConfig) -> Mapping[str, Any]:
    raise BadData("model", "is imported, not trained: scenarium import hf:NAME --task TASK", "是导入的，不能训练：scenarium import hf:名称 --task 任务")


@hookimpl
def metric() -> Metric:
    return Metric("-")


@hookimpl
def traits() -> Traits:
    # Padding to a batch's longest text moves the last digits.
    return Traits(preload=("transformers.pipelines",), tolerance=1e-3)


@hookimpl
def schema(config: PipelineScenario) -> Schema:
    task = TASKS[config.model.task]
    return Schema(task.request, task.response)


@hookimpl
def sample(config: PipelineScenario) -> BaseModel:
    return TASKS[config.model.task].sample()


@hookimpl
def train(config: PipelineScenario, data: Data, run: Run) -> bool:
    """No training: the model's files are fetched, read and written into the version."""
    from scenarium_transformers_pipeline.models import fetch

    fetch(config.model.source, config.model.task, run.out / FOLDER)
    return True


@hookimpl
def load(config: PipelineScenario, version: Path, device: str) -> Any:
    from scenarium_transformers_pipeline.models import open_version

    return open_version(config.model.task, version / FOLDER, device)


@hookimpl
def preprocess(config: PipelineScenario, request: BaseModel) -> Any:
    return TASKS[config.model.task].read(request)


@hookimpl
def predict_batch(config: PipelineScenario, model: Any, batch: Sequence[Any]) -> Sequence[Any]:
    return TASKS[config.model.task].answer(model, list(batch), config.model)


@hookimpl
def postprocess(config: PipelineScenario, output: Any) -> BaseModel:
    made: BaseModel = TASKS[config.model.task].response.model_validate(output)
    return made
