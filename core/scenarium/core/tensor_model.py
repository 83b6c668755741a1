"""The built-in plugin ``tensor_model``: serves a model that exists already by its tensors, without code of its own and without training.

``scenarium import`` makes its versions. What a plugin would know of its model (names, types and shapes of the tensors) are settings here, which
stand in the version's manifest. One request is one row: ``{"inputs": {"x": [[0.1, …], …]}}``, answered by ``{"outputs": {…}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, WithJsonSchema, create_model

from scenarium.core.config import ModelConfig, ScenarioConfig, Section, ServeConfig
from scenarium.core.engines import open_engine
from scenarium.core.errors import BadInput, ScenariumError
from scenarium.core.hookspecs import hookimpl
from scenarium.core.schemas import Request, Response
from scenarium.core.types import Batch, Metric, Schema, Signature, TensorSpec, Traits

FILLED = 4096
"""A generated tensor with more elements is one number repeated, which a request writes as that number."""


class Tensor(Section):
    """One tensor of the model, without the batch axis."""

    name: str
    """Its name in the model."""
    dtype: str
    """NumPy's name of its type."""
    shape: tuple[int, ...]
    """Length of each axis, -1 where it is free."""

    @property
    def spec(self) -> TensorSpec:
        """As hooks have it."""
        return TensorSpec(self.name, self.dtype, self.shape)


class TensorModelConfig(ModelConfig):
    """What `scenarium import` found out about the model."""

    inputs: tuple[Tensor, ...] = ()
    """The tensors that it takes."""
    outputs: tuple[Tensor, ...] = ()
    """The tensors that it gives."""
    batch: Literal["free", "one", "none"] = "free"
    """`free`: rows run together; `one`: the model's batch axis has the fixed length 1; `none`: it has no batch axis. The last two run row by row."""
    max_batch_size: int = Field(32, gt=0)
    """Most rows of one batch."""
    pure: bool = True
    """Whether the same inputs always give the same outputs."""
    length: int = Field(8, gt=0)
    """Length of the free axes in generated inputs, with which the model runs."""


class TensorScenario(ScenarioConfig):
    """The settings of an imported model."""

    model: TensorModelConfig = TensorModelConfig()
    serve: ServeConfig = ServeConfig(engine="onnx")


def specs(tensors: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    """Tensors of the settings as hooks have them."""
    return tuple(tensor.spec for tensor in tensors)


def generated(spec: TensorSpec, rows: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """``rows`` rows of an input: numbers from 0 to 1 with two decimals, integers 0 or 1; free axes have ``length``."""
    shape = (rows, *(length if axis == -1 else axis for axis in spec.shape))
    if np.dtype(spec.dtype).kind == "f":
        return rng.random(shape).round(2).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


@hookimpl
def config() -> type[ScenarioConfig]:
    return TensorScenario


@hookimpl
def fields(config: ScenarioConfig) -> Mapping[str, Any]:
    raise ScenariumError("SCN-5112")


@hookimpl
def metric() -> Metric:
    return Metric("-")


@hookimpl
def traits(config: TensorScenario) -> Traits:
    half = any(tensor.dtype == "float16" for tensor in (*config.model.inputs, *config.model.outputs))
    return Traits(pure=config.model.pure, max_batch_size=config.model.max_batch_size, tolerance=1e-2 if half else 1e-4)


@hookimpl
def signature(config: TensorScenario) -> Signature:
    return Signature(specs(config.model.inputs), specs(config.model.outputs))


@hookimpl
def schema(config: TensorScenario) -> Schema:
    # One annotated mapping, not a field a tensor: a tensor's name need not be a Python name, and NumPy reads numbers faster than pydantic.
    inputs = Annotated[dict[str, Any], WithJsonSchema(_object(config.model.inputs, request=True))]
    outputs = Annotated[dict[str, Any], WithJsonSchema(_object(config.model.outputs, request=False))]
    request = create_model("TensorRequest", __base__=Request, inputs=(inputs, Field(description="The model's inputs by name: one row, without a batch axis")))
    response = create_model("TensorResponse", __base__=Response, outputs=(outputs, Field(description="The model's outputs by name")))
    return Schema(request, response)


def _object(tensors: Sequence[Tensor], *, request: bool) -> dict[str, Any]:
    found = {"type": "object", "properties": {tensor.name: _array(tensor, request) for tensor in tensors}, "required": [tensor.name for tensor in tensors]}
    return {**found, "additionalProperties": False}


def _array(tensor: Tensor, request: bool) -> dict[str, Any]:
    """JSON Schema of nested lists. In an answer a number that is none (NaN) or infinite is null."""
    kind = {"f": "number", "b": "boolean"}.get(np.dtype(tensor.dtype).kind, "integer")
    found: dict[str, Any] = {"type": kind if request or kind != "number" else [kind, "null"]}
    for length in reversed(tensor.shape):
        found = {"type": "array", "items": found, **({} if length == -1 else {"minItems": length, "maxItems": length})}
    if request and tensor.shape and -1 not in tensor.shape:
        found = {"anyOf": [found, {"type": kind, "description": "fills the whole tensor"}]}
    return {**found, "description": f"{tensor.dtype}, shape {list(tensor.shape)}"}


@hookimpl
def sample(config: TensorScenario) -> BaseModel:
    rng = np.random.default_rng(0)
    made = {}
    for spec in specs(config.model.inputs):
        array = generated(spec, 1, config.model.length, rng)[0]
        values = np.round(array.astype("float64"), 2) if array.dtype.kind == "f" else array
        made[spec.name] = values.flat[-1].item() if -1 not in spec.shape and array.size > FILLED else values.tolist()
    request: BaseModel = schema(config).request.model_validate({"inputs": made})
    return request


class Known(NamedTuple):
    """What every request needs of the settings."""

    inputs: dict[str, TensorSpec]
    outputs: tuple[str, ...]
    response: type[BaseModel]


@hookimpl
def processor(config: TensorScenario) -> Known:
    inputs = {tensor.name: tensor.spec for tensor in config.model.inputs}
    return Known(inputs, tuple(tensor.name for tensor in config.model.outputs), schema(config).response)


@hookimpl
def preprocess(processor: Known, request: BaseModel) -> Batch:
    given: dict[str, Any] = getattr(request, "inputs")  # noqa: B009 -- the class is made from the settings
    for name in given:
        if name not in processor.inputs:
            listed = ", ".join(processor.inputs)
            raise BadInput(f"inputs.{name[:100]}", f"is no input of the model, which takes: {listed}", f"不是模型的输入；模型的输入为：{listed}")
    return {name: read(spec, given) for name, spec in processor.inputs.items()}


def read(spec: TensorSpec, given: Mapping[str, Any]) -> np.ndarray:
    """One input of a request as an array of the declared type and shape.

    Raises:
        BadInput: names ``inputs.<name>``: it is missing, ragged, of another shape or another kind, or beyond its type's range.
    """
    field = f"inputs.{spec.name}"
    if spec.name not in given:
        raise BadInput(field, "is missing", "缺失")
    try:
        raw = np.asarray(given[spec.name])
    except ValueError:
        raise BadInput(field, "has lists of unequal length", "中的列表长度不一致") from None
    target = np.dtype(spec.dtype)
    wanted = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[target.kind]
    if raw.dtype.kind not in wanted and raw.size:
        words = {"f": ("numbers", "数字"), "b": ("true and false", "true 与 false")}.get(target.kind, ("whole numbers", "整数"))
        raise BadInput(field, f"must hold {words[0]} ({spec.dtype})", f"必须是{words[1]}（{spec.dtype}）")
    if not raw.shape and spec.shape and -1 not in spec.shape:
        raw = np.broadcast_to(raw, spec.shape)
    if len(raw.shape) != len(spec.shape) or any(length != axis if axis != -1 else not length for length, axis in zip(raw.shape, spec.shape, strict=True)):
        shape, found = str(list(spec.shape)).replace("-1", "n"), list(raw.shape)
        raise BadInput(field, f"must have the shape {shape}, not {found}", f"的形状必须是 {shape}，而不是 {found}")
    with np.errstate(over="ignore"):
        array = raw.astype(target)
    inside = np.isfinite(array) if target.kind == "f" else array == raw
    if not inside.all():
        raise BadInput(field, f"has a number that {spec.dtype} cannot hold", f"中有 {spec.dtype} 无法表示的数值")
    return array


@hookimpl
def load(config: TensorScenario, signature: Signature, version: Path, device: str) -> Any:
    if config.serve.engine == "torch":
        raise ScenariumError("SCN-5113")
    engine = open_engine(config.serve.engine, version, signature, device, build=lambda: None)
    return engine if config.model.batch == "free" else RowByRow(engine, config.model.batch == "one")


class RowByRow:
    """Runs a model whose batch axis has the length 1 (``kept``), or that has none, once a row."""

    def __init__(self, engine: Any, kept: bool) -> None:
        self.engine = engine
        self.kept = kept

    def __call__(self, inputs: Batch) -> Batch:
        rows = len(next(iter(inputs.values())))
        found = []
        for row in range(rows):
            one = {name: array[row : row + 1] for name, array in inputs.items()}
            found.append(self.engine(one if self.kept else {name: array.reshape(array.shape[1:]) for name, array in one.items()}))
        join = np.concatenate if self.kept else np.stack
        return {name: join([np.asarray(each[name]) for each in found]) for name in found[0]}


@hookimpl
def predict_batch(model: Any, batch: Sequence[Batch]) -> Sequence[Batch]:
    """Rows of the same shapes run together; none is padded to a longer one, since what padding means is the model's own matter."""
    answers: list[Batch] = [{}] * len(batch)
    alike: dict[Any, list[int]] = {}
    for place, row in enumerate(batch):
        alike.setdefault(tuple(array.shape for array in row.values()), []).append(place)
    for places in alike.values():
        outputs = model({name: np.stack([batch[place][name] for place in places]) for name in batch[places[0]]})
        for index, place in enumerate(places):
            answers[place] = {name: array[index] for name, array in outputs.items()}
    return answers


@hookimpl
def postprocess(processor: Known, output: Batch) -> BaseModel:
    return processor.response.model_construct(outputs={name: _plain(output[name]) for name in processor.outputs})


def _plain(array: np.ndarray) -> Any:
    """Nested lists; JSON has no NaN and no infinity, so they are None."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        objects = array.astype(object)
        objects[~np.isfinite(array)] = None
        return objects.tolist()
    return array.item() if not array.shape else array.tolist()
