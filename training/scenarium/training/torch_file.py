"""A PyTorch file as ``model.onnx``: TorchScript, torch.export, or a whole module. Run as a process of its own by ``scenarium import``:
``python -m scenarium.training.torch_file JOB.json RESULT.json``, since such a file is code and pickle, and opening it runs what it holds.

The job: ``file``, ``out`` (a folder), ``inputs`` (name, dtype, dims with the batch axis, -1 where free), ``outputs`` (names, or none), ``unnamed`` (how
those without are named by their place; empty: ``output``, or ``output_0`` and so on). The result: how it was converted and the largest differences on
generated inputs, or ``code`` and ``values`` of an error.
"""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError
from scenarium.core.exports import EXPORT
from scenarium.core.importing.onnx_file import LENGTHS, ROWS, open_session
from scenarium.core.tensor_model import generated
from scenarium.core.types import TensorSpec
from scenarium.training.export import OPSET, reason_of, silence

TOLERANCE = 1e-4
"""``Traits.tolerance`` of what is imported."""


@dataclass(frozen=True)
class Input:
    """One input, every axis; -1 where the length is free."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass
class Opened:
    """What a file held: something to call, its inputs, and how it is written as ONNX."""

    kind: str
    by: str
    call: Callable[..., Any]
    inputs: list[Input]
    write: Callable[[tuple[torch.Tensor, ...], list[str], Path], None]


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """Convert and compare.

    Raises:
        ScenariumError: SCN-5108, SCN-5109, SCN-5110.
    """
    told = [Input(each["name"], each["dtype"], tuple(each["dims"])) for each in job["inputs"]]
    opened = _open(Path(job["file"]), told)
    arguments, outputs = _run(opened)
    names = job["outputs"] or (
        ["output"] if len(outputs) == 1 and not job["unnamed"] else [(job["unnamed"] or "output_{}").format(index) for index in range(len(outputs))]
    )
    if len(names) != len(outputs):
        raise _failed(f"it gives {len(outputs)} outputs, not {len(names)} ({', '.join(names)})")
    path = Path(job["out"]) / EXPORT
    try:
        with silence(), torch.no_grad():
            opened.write(arguments, names, path)
    except Exception as fault:
        raise _failed(reason_of(fault)) from fault
    absolute, relative = _compare(opened, path, arguments, names)
    return {"kind": opened.kind, "by": opened.by, "absolute": absolute, "relative": relative}


def _open(path: Path, told: Sequence[Input]) -> Opened:
    """Told apart by what the archive holds: ``code/`` is TorchScript, ``archive_format`` or ``archive_version`` torch.export, else a pickle."""
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    try:
        if any("/code/" in name for name in names):
            return _script(torch.jit.load(path, map_location="cpu").eval(), told)  # type: ignore[no-untyped-call]
        if any(name.rpartition("/")[2] in ("archive_format", "archive_version", "serialized_exported_program.json") for name in names):
            return _exported(torch.export.load(path))
        found = torch.load(path, map_location="cpu", weights_only=False)
    except ScenariumError:
        raise
    except Exception as fault:
        raise _failed(reason_of(fault)) from fault
    if not isinstance(found, torch.nn.Module):
        raise _failed(f"it holds a {type(found).__name__}, not a model: weights alone say nothing of the forward")
    return _module(found.eval(), told)


def _script(model: Any, told: Sequence[Input]) -> Opened:
    arguments = [each.name for each in model.forward.schema.arguments[1:] if not each.has_default_value()]
    inputs = _matched(arguments, told)

    def write(given: tuple[torch.Tensor, ...], outputs: list[str], path: Path) -> None:
        axes = {each.name: {axis: _axis(each.name, axis) for axis, length in enumerate(each.dims) if length == -1} for each in inputs}
        free = {name: {0: "batch"} for name in outputs} if all(each.dims[:1] == (-1,) for each in inputs) else {}
        # The exporter of torch.export's graphs takes no ScriptModule.
        torch.onnx.export(
            model,
            given,
            str(path),
            input_names=[each.name for each in inputs],
            output_names=outputs,
            dynamic_axes={**axes, **free},
            opset_version=OPSET,
            dynamo=False,
        )

    return Opened("TorchScript", "torch.onnx (TorchScript)", model, inputs, write)


def _module(model: torch.nn.Module, told: Sequence[Input]) -> Opened:
    if not told:
        raise ScenariumError("SCN-5109", inputs="-", example="x")
    inputs = list(told)

    def write(given: tuple[torch.Tensor, ...], outputs: list[str], path: Path) -> None:
        free = tuple(
            {axis: torch.export.Dim("batch") if not axis else torch.export.Dim.DYNAMIC for axis, length in enumerate(each.dims) if length == -1}
            for each in inputs
        )
        names = [each.name for each in inputs]
        torch.onnx.export(
            model, given, str(path), input_names=names, output_names=outputs, dynamic_shapes=free, opset_version=OPSET, dynamo=True, external_data=False
        )

    return Opened("a pickled module", "torch.onnx (torch.export)", model, inputs, write)


def _exported(program: torch.export.ExportedProgram) -> Opened:
    user = set(program.graph_signature.user_inputs)
    inputs = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in user:
            value = node.meta["val"]
            dims = tuple(length if isinstance(length, int) else -1 for length in value.shape)
            inputs.append(Input(node.name, str(value.dtype).removeprefix("torch."), dims))

    def write(given: tuple[torch.Tensor, ...], outputs: list[str], path: Path) -> None:
        names = [each.name for each in inputs]
        torch.onnx.export(program, f=str(path), input_names=names, output_names=outputs, opset_version=OPSET, dynamo=True, external_data=False)

    return Opened("torch.export", "torch.onnx (torch.export)", program.module(), inputs, write)


def _matched(arguments: Sequence[str], told: Sequence[Input]) -> list[Input]:
    """The inputs in the order of the forward: by name where all names are its own, else in the order in which they were told."""
    by_name = {each.name: each for each in told}
    if set(by_name) == set(arguments):
        return [by_name[name] for name in arguments]
    if len(told) == len(arguments) and told:
        return list(told)
    raise ScenariumError("SCN-5109", inputs=", ".join(arguments), example=arguments[0] if arguments else "x")


def _axis(name: str, axis: int) -> str:
    return "batch" if not axis else f"{name}_{axis}"


def _arguments(inputs: Sequence[Input], rows: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    made = []
    for each in inputs:
        batched = each.dims[:1] == (-1,)
        array = generated(TensorSpec(each.name, each.dtype, each.dims[1:] if batched else each.dims), rows if batched else 1, length, rng)
        made.append(torch.from_numpy(array if batched else array[0]))
    return tuple(made)


def _run(opened: Opened) -> tuple[tuple[torch.Tensor, ...], list[np.ndarray]]:
    """Inputs with which the model runs, and its outputs."""
    fault: BaseException | None = None
    for length in LENGTHS:
        try:
            given = _arguments(opened.inputs, ROWS, length, 0)
            return given, _call(opened, given)
        except ScenariumError:
            raise
        except Exception as error:
            fault = fault or error
    assert fault
    raise _failed(f"it does not run on generated inputs: {reason_of(fault)}") from fault


def _call(opened: Opened, given: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        found = opened.call(*given)
    found = found if isinstance(found, (tuple, list)) else (found,)
    if not all(isinstance(each, torch.Tensor) for each in found):
        raise _failed(f"its forward returns {', '.join(type(each).__name__ for each in found)}, not tensors")
    return [each.numpy() for each in found]


def _compare(opened: Opened, path: Path, first: tuple[torch.Tensor, ...], names: list[str]) -> tuple[float, float]:
    """On the inputs of the trace, and on others of another batch and other free lengths where the model takes them."""
    session = open_session(path, path.name)
    absolute = relative = 0.0
    free = max((max(tensor.shape, default=1) for tensor in first), default=1)
    others = (_arguments(opened.inputs, ROWS + 2, length, 1) for length in (free, free + 8))
    for given in (first, *others):
        try:
            ours = _call(opened, given)
        except Exception:  # a length that this model does not take
            continue
        try:
            theirs = session.run(names, {each.name: tensor.numpy() for each, tensor in zip(opened.inputs, given, strict=True)})
        except Exception as fault:
            raise _failed(f"the conversion runs with the lengths of its trace alone: {reason_of(fault)}") from fault
        for ours_of, theirs_of, name in zip(ours, theirs, names, strict=True):
            apart = np.abs(ours_of.astype("float64") - theirs_of) if ours_of.shape == theirs_of.shape else np.array([np.inf])
            absolute = max(absolute, float(apart.max(initial=0)))
            relative = max(relative, float(apart.max(initial=0)) / max(float(np.abs(ours_of).max(initial=0)), 1e-12))
            if found := difference(ours_of, theirs_of, TOLERANCE, name):
                raise ScenariumError("SCN-5110", difference=found, absolute=absolute, relative=relative)
    return absolute, relative


def _failed(reason: str) -> ScenariumError:
    return ScenariumError("SCN-5108", reason=reason)


def main(job: str, result: str) -> None:
    """Convert as the file ``job`` says, and write what came of it into ``result``."""
    warnings.simplefilter("ignore")  # TorchScript is deprecated, which its user knows or cannot change
    try:
        found = convert(json.loads(Path(job).read_text(encoding="utf8")))
    except ScenariumError as error:
        found = {"code": error.code, "values": error.values}
    Path(result).write_text(json.dumps(found), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
