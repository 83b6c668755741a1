"""``config.pbtxt`` of an entry that is made from versions of the store.

Format: Triton Inference Server, ``model_config.proto``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from scenarium.core.manifest import Manifest
from scenarium.core.tensors import DATATYPES
from scenarium.core.types import TensorSpec


def torchscript(name: str, manifest: Manifest) -> str:
    """``config.pbtxt`` of a version as TorchScript, whose outputs Triton's pytorch backend knows by their place in the name; inputs by forward's own names."""
    outputs = [replace(spec, name=f"{spec.name}__{place}") for place, spec in enumerate(manifest.outputs)]
    text = configuration(name, {manifest.version: manifest.model_copy(update={"outputs": outputs})}, "")
    return text.replace('platform: "onnxruntime_onnx"', 'platform: "pytorch_libtorch"', 1)


def configuration(name: str, served: dict[int, Manifest], store: str) -> str:
    """``config.pbtxt`` of one scenario out of ``store``. Batch axis left out, free axes -1, as Triton wants them."""
    manifest = next(iter(served.values()))
    versions = f"version_policy {{ specific {{ versions: [ {', '.join(map(str, sorted(served)))} ] }} }}"
    kind = _of_tensors(manifest) if manifest.inputs else _of_whole_requests(name, store)
    return "\n".join([f'name: "{name}"', *kind, versions, *_warmup(manifest), ""])


def _of_tensors(manifest: Manifest) -> list[str]:
    tensors = [*_tensors("input", manifest.inputs), *_tensors("output", manifest.outputs)]
    return ['platform: "onnxruntime_onnx"', f"max_batch_size: {manifest.max_batch_size}", *tensors, "dynamic_batching { }"]


def _of_whole_requests(name: str, store: str) -> list[str]:
    """The gateway's own v2 model of such a scenario, by ``model.py``, which needs to know an interpreter that has the plugin."""
    parameters = {"PYTHON": sys.executable, "STORE": store, "SCENARIO": name}
    if path := os.environ.get("PYTHONPATH"):
        parameters["PYTHONPATH"] = path
    return [
        'backend: "python"',
        "max_batch_size: 0",
        'input [ { name: "REQUEST" data_type: TYPE_STRING dims: [ -1 ] } ]',
        'output [ { name: "RESPONSE" data_type: TYPE_STRING dims: [ -1 ] } ]',
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}' for key, value in parameters.items()),
    ]


def _warmup(manifest: Manifest) -> list[str]:
    """One row of the shapes that a held-out row had, run before the model counts as ready: the first pass is the slow one."""
    if "warmup" not in manifest.tags:
        return []
    shapes, inputs = json.loads(manifest.tags["warmup"]), []
    for spec in manifest.inputs:
        # Zero is a valid index of any table; numbers are drawn between 0 and 1.
        data = "random_data" if spec.dtype.startswith("float") else "zero_data"
        dims = ", ".join(map(str, shapes[spec.name])) or "1"
        inputs.append(f'inputs {{ key: "{spec.name}" value {{ data_type: TYPE_{DATATYPES[spec.dtype]} dims: [ {dims} ] {data}: true }} }}')
    return [f'model_warmup [ {{ name: "one row" batch_size: 1 {" ".join(inputs)} }} ]']


def _tensors(kind: str, specs: Sequence[TensorSpec]) -> list[str]:
    lines = []
    for spec in specs:
        # Triton knows no tensor without an axis beside the batch: one of length 1 is declared and reshaped away.
        dims, reshape = (", ".join(map(str, spec.shape)), "") if spec.shape else ("1", " reshape { shape: [ ] }")
        lines.append(f'{kind} [ {{ name: "{spec.name}" data_type: TYPE_{DATATYPES[spec.dtype]} dims: [ {dims} ]{reshape} }} ]')
    return lines
