"""A trained module as ``model.onnx``: torch.export's graph, translated by PyTorch's own exporter (``dynamo=True``).

The batch axis and every axis declared -1 stay free. Whether the export answers like the module is checked by the caller
(``scenarium.core.exports``), with the engine that will serve it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from scenarium.core.errors import ScenariumError
from scenarium.core.exports import EXPORT
from scenarium.core.types import Batch, Signature

OPSET = 20
"""Read by ONNX Runtime from 1.17, OpenVINO from 2024.0 and Triton from 24.02 on."""


def export(model: torch.nn.Module, signature: Signature, batch: Batch, out: Path) -> list[str]:
    """Write ``out / "model.onnx"`` and return its name; nothing for a signature without inputs.

    Raises:
        ScenariumError: SCN-3008, the forward is no exportable tensor function.
    """
    if not signature.inputs:
        return []
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        with silence(), torch.no_grad():
            torch.onnx.export(
                model,
                kwargs={spec.name: _varied(batch[spec.name], spec.shape).to(device) for spec in signature.inputs},
                f=str(out / EXPORT),
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_shapes=_free_axes(signature),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
    except Exception as fault:
        (out / EXPORT).unlink(missing_ok=True)
        raise ScenariumError("SCN-3008", reason=reason_of(fault)) from fault
    finally:
        model.train(was_training)
    return [EXPORT]


def _free_axes(signature: Signature) -> dict[str, dict[int, object]]:
    """Axis 0 of every input is one and the same; each -1 axis may or may not equal another, which the exporter finds out."""
    return {
        spec.name: {0: torch.export.Dim("batch"), **{axis: torch.export.Dim.DYNAMIC for axis, length in enumerate(spec.shape, 1) if length == -1}}
        for spec in signature.inputs
    }


def _varied(array: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """At least two along every free axis: torch.export takes a length of 0 or 1 for a constant."""
    for axis, length in enumerate((-1, *shape)):
        if length == -1 and array.shape[axis] < 2:
            array = np.repeat(array, 2, axis=axis)
    return torch.from_numpy(np.ascontiguousarray(array))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporter warns and prints about its own workings; whatever matters becomes the exception."""
    names = ["torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir"]
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def reason_of(fault: BaseException) -> str:
    """The first informative line of the innermost cause."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"{type(fault).__name__}: {lines[0] if lines else ''}"[:300]
