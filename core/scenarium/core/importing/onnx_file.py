"""What an ONNX file is: whether it can be served, its tensors, and whether their first axis is a batch. Found by reading it and by running it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.exports import EXPORT
from scenarium.core.tensor_model import Tensor, TensorModelConfig, generated
from scenarium.core.types import Batch, TensorSpec

DATA = f"{EXPORT}.data"
"""The external data of ``model.onnx``."""
TYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
TYPES |= {name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
"""ONNX Runtime's names of element types to NumPy's."""
LENGTHS = (8, 16, 32, 64, 128, 224, 1)
"""Tried for the free axes, until the model runs."""
ROWS = 3
"""Rows that must answer together as they do alone, for their axis to be a batch."""
STANDARD = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training")
RUNTIMES = ("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc", "org.pytorch.aten")


def place(source: Path, folder: Path) -> Path:
    """Copy an ONNX file into ``folder`` as ``model.onnx``, its external data, whatever their names, as ``model.onnx.data``.

    Raises:
        ScenariumError: SCN-5102 (no ONNX, or its data are missing), SCN-5103 (operators of its own), SCN-5115 (the package onnx is missing).
    """
    try:
        import onnx
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-5115", module=fault.name, extra="train") from fault
    target = folder / EXPORT
    try:
        model = onnx.load(source, load_external_data=False)
        if not model.HasField("graph") or not model.opset_import:
            raise ScenariumError("SCN-5102", file=source, reason=Words("the file holds no ONNX graph.", "文件中没有 ONNX 计算图。"))
        _refuse_custom(model, source)
        if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in onnx.external_data_helper._get_all_tensors(model)):
            onnx.save_model(onnx.load(source), target, save_as_external_data=True, all_tensors_to_one_file=True, location=DATA)
        else:
            target.write_bytes(source.read_bytes())
    except ScenariumError:
        raise
    except Exception as fault:  # protobuf, a missing file beside it, a path that leads elsewhere
        raise ScenariumError("SCN-5102", file=source, reason=first_line(fault)) from fault
    return target


def _refuse_custom(model: Any, source: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    found: set[str] = set()

    def walk(nodes: Any) -> None:
        for node in nodes:
            if node.domain not in (*STANDARD, *RUNTIMES) and (node.domain, node.op_type) not in own:
                found.add(f"{node.domain}::{node.op_type}")
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    walk(graph.node)

    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        walk(nodes)
    if found:
        raise ScenariumError("SCN-5103", file=source, operators=", ".join(sorted(found)))


def open_session(path: Path, source: object) -> Any:
    """An ONNX Runtime session.

    Raises:
        ScenariumError: SCN-5102, SCN-5104 (a later opset or file format than the runtime knows), SCN-5115.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as fault:
        raise ScenariumError("SCN-5115", module=fault.name, extra="train") from fault
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as fault:
        reason = first_line(fault)
        late = re.search(r"IR version|opset \d+ is under development|till opset|max supported", str(fault))
        values = {"installed": onnxruntime.__version__} if late else {}
        raise ScenariumError("SCN-5104" if late else "SCN-5102", file=source, reason=reason, **values) from fault


class _Axes:
    """A tensor as the file declares it: every axis, None where its length is free."""

    def __init__(self, value: Any, side: Words, source: object) -> None:
        element = re.fullmatch(r"tensor\((\w+)\)", value.type)
        if element is None or element[1] not in TYPES:
            raise ScenariumError("SCN-5105", file=source, side=side, tensor=value.name, type=value.type)
        self.name: str = value.name
        self.dtype = TYPES[element[1]]
        self.axes = [axis if isinstance(axis, int) and axis >= 0 else None for axis in value.shape or ()]

    def spec(self, batch: str) -> TensorSpec:
        axes = self.axes if batch == "none" else self.axes[1:]
        return TensorSpec(self.name, self.dtype, tuple(-1 if axis is None else axis for axis in axes))


def known_row(path: Path, given: dict[str, Any] | None, source: object) -> Batch | None:
    """One row as arrays, from the inputs of a request in JSON form.

    Raises:
        ScenariumError: SCN-5114: names the input that is missing, or that does not fit.
    """
    if given is None:
        return None
    tensors = [_Axes(value, Words("input", "输入"), source) for value in open_session(path, source).get_inputs()]
    row: Batch = {}
    for tensor in tensors:
        try:
            row[tensor.name] = np.asarray(given[tensor.name]).astype(tensor.dtype)
        except (KeyError, ValueError, TypeError, OverflowError) as fault:
            shown = {"inputs": {each.name: f"<{each.dtype}>" for each in tensors}}
            raise ScenariumError("SCN-5114", field=f"inputs.{tensor.name}", reason=f"inputs.{tensor.name}: {type(fault).__name__}", sample=shown) from fault
    return row


def inspect(path: Path, source: object, known: Batch | None = None) -> TensorModelConfig:
    """The model's tensors, its kind of batch axis, whether it is pure, and a length of its free axes with which it runs.

    ``known``: one real row; else rows are generated.

    Raises:
        ScenariumError: SCN-5102, SCN-5104, SCN-5105 (a type that is no number), SCN-5106 (no inputs), SCN-5107 (it does not run).
    """
    session = open_session(path, source)
    inputs = [_Axes(value, Words("input", "输入"), source) for value in session.get_inputs()]
    outputs = [_Axes(value, Words("output", "输出"), source) for value in session.get_outputs()]
    if not inputs:
        raise ScenariumError("SCN-5106", file=source)
    names = [output.name for output in outputs]

    def run(feed: Batch) -> Batch:
        return dict(zip(names, session.run(names, feed), strict=True))

    reason = ""
    for length in LENGTHS if known is None else LENGTHS[:1]:
        for batch in _kinds(inputs):
            specs = [tensor.spec(batch) for tensor in inputs]
            rng = np.random.default_rng(0)
            rows = [known or {spec.name: np.asarray(generated(spec, 1, length, rng)[0]) for spec in specs} for _ in range(ROWS)]
            if known is not None and any(known[spec.name].ndim != len(spec.shape) for spec in specs):
                continue
            try:
                found = _try(run, batch, rows)
            except Exception as fault:
                reason = first_line(fault)
                continue
            if found is not None:
                again = _alone(run, batch, rows[0])
                tensors = tuple(_output(output, batch, found[output.name]) for output in outputs)
                given = tuple(Tensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in specs)
                pure = difference(_alone(run, batch, rows[0]), again, 0.0) is None
                return TensorModelConfig(inputs=given, outputs=tensors, batch=batch, pure=pure, length=length)
    shown = {"inputs": {tensor.name: f"<{tensor.dtype} {['n' if axis is None else axis for axis in tensor.axes]}>" for tensor in inputs}}
    raise ScenariumError("SCN-5107", file=source, reason=reason, sample=str(shown))


def _kinds(inputs: Sequence[_Axes]) -> list[Literal["free", "one", "none"]]:
    """What the first axis may be, the most useful first."""
    first = [tensor.axes[0] if tensor.axes else 0 for tensor in inputs]
    found: list[Literal["free", "one", "none"]] = ["none"]
    if all(axis == 1 for axis in first):
        found.insert(0, "one")
    if all(axis is None for axis in first):
        found.insert(0, "free")
    return found


def _try(run: Any, batch: str, rows: list[Batch]) -> Batch | None:
    """The outputs of the first row, without a batch axis; None where the first axis is no batch."""
    alone = [_alone(run, batch, row) for row in rows]
    if batch == "one":
        return alone[0]
    if batch == "free":
        together = run({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        for index, single in enumerate(alone):
            for name, array in together.items():
                if array.shape[:1] != (len(rows),) or difference(array[index], single[name], 1e-3):
                    return None
    return alone[0]


def _alone(run: Any, batch: str, row: Batch) -> Batch:
    """One row; raises where the model gives no batch axis of length 1 though ``batch`` says that it has one."""
    if batch == "none":
        found: Batch = run(row)
        return found
    given = run({name: array[None] for name, array in row.items()})
    if wrong := [name for name, array in given.items() if array.shape[:1] != (1,)]:
        raise ValueError(f"{', '.join(wrong)}: no batch axis")
    return {name: array[0] for name, array in given.items()}


def _output(declared: _Axes, batch: str, found: np.ndarray) -> Tensor:
    """An axis has the length that the file declares, where the model keeps to it; else it is free."""
    axes = declared.axes if batch == "none" else declared.axes[1:]
    known = axes if len(axes) == found.ndim else [None] * found.ndim
    shape = tuple(axis if axis == length else -1 for axis, length in zip(known, found.shape, strict=True))
    return Tensor(name=declared.name, dtype=str(found.dtype), shape=tuple(-1 if axis is None else axis for axis in shape))


def first_line(fault: BaseException) -> str:
    """What went wrong, in one line."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?", "", str(fault))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(fault).__name__)[:400]
