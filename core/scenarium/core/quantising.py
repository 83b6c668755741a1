"""A version's ONNX export in int8: static, QDQ, one scale for each output channel of the weights, calibrated on inputs of the scenario's own.

A static scale makes an answer independent of what else is in its batch, which a dynamic one is not. Method: Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", as ``onnxruntime.quantization`` does it. No torch is needed.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.core.types import Batch

MATRICES = ("Conv", "Gemm", "MatMul")
"""What costs the time. Quantised alone in a transformer, whose sums and norms lose most and gain least."""


def quantise(source: Path, target: Path, calibration: Sequence[Batch], progress: Progress | None = None) -> None:
    """Write ``source`` (fp32) to ``target`` in int8. ``calibration``: inputs as the model takes them, one batch each.

    Raises:
        ScenariumError: SCN-6002: the package onnx is not installed.
    """
    for module in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise ScenariumError("SCN-6002", engine="int8", module=module, extra="train")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    shown = progress or Progress()

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the batches out, one after the other."""

        def __init__(self) -> None:
            self.given = 0

        def get_next(self) -> Batch | None:
            if self.given == len(calibration):
                return None
            self.given += 1
            shown.advance(1)
            return calibration[self.given - 1]

    with tempfile.TemporaryDirectory(prefix="scenarium-int8-") as scratch, _quiet():
        folded = Path(scratch) / "folded.onnx"
        # Its own shape inference fails on free axes; onnx's, which knows them, is enough.
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        kinds = {node.op_type for node in onnx.load(folded, load_external_data=False).graph.node}
        options: dict[str, Any] = {} if "Conv" in kinds else {"op_types_to_quantize": list(MATRICES)}
        shown.start("calibrating", len(calibration))
        quantize_static(
            str(folded),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **options,
        )
        shown.finish()


class _quiet:
    """The quantiser logs advice to the root logger, which the caller has no use for."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
