"""Between the messages of the gRPC protocol and the bodies of the HTTP one, which is what workers read.

``pb`` is tritonclient's ``service_pb2``: compiling the protocol's file again would clash with it in one process.
"""

from __future__ import annotations

import array
import math
from typing import Any

from pydantic_core import to_json

from scenarium.core.tensors import BYTES, REQUEST, Malformed, read_elements, read_header, write_elements
from scenarium.gateway.kserve.inference import Reply

CONTENTS = {
    "BOOL": ("bool_contents", "b"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
"""Datatype to the typed field of ``InferTensorContents`` and the code of ``array.array``."""


def to_body(request: Any) -> tuple[bytes, int]:
    """A ``ModelInferRequest`` as a body, and the length of its header.

    Raises:
        Malformed: its tensors have no contents, or more than fit.
    """
    raw = request.raw_input_contents
    inputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor in request.inputs:
        found: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        given = parameters(tensor.parameters)
        if "shared_memory_region" in given:
            found["parameters"] = given
        else:
            if raw and len(parts) >= len(raw):
                raise Malformed("has less raw_input_contents than inputs", "的 raw_input_contents 少于输入")
            data = raw[len(parts)] if raw else _contents(tensor)
            found["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        inputs.append(found)
    if raw and len(parts) != len(raw):
        raise Malformed("has more raw_input_contents than inputs", "的 raw_input_contents 多于输入")
    outputs = [{"name": each.name, "parameters": parameters(each.parameters) | {"binary_data": True}} for each in request.outputs]
    about = {"id": request.id, "parameters": parameters(request.parameters) | {"binary_data_output": True}}
    head = to_json({**about, "inputs": inputs, "outputs": outputs})
    return b"".join((head, *parts)), len(head)


def parameters(given: Any) -> dict[str, Any]:
    """A map of ``InferParameter`` as plain values."""
    return {key: getattr(value, kind) for key, value in given.items() if (kind := value.WhichOneof("parameter_choice"))}


def _contents(tensor: Any) -> bytes:
    """The bytes of what lies in the typed fields."""
    if tensor.datatype == BYTES:
        return write_elements(tensor.contents.bytes_contents)
    field, code = CONTENTS.get(tensor.datatype, ("", ""))
    if not field:
        name, kind = tensor.name[:80], tensor.datatype[:40]
        raise Malformed(f"has no raw_input_contents of input {name!r} of datatype {kind!r}", f"没有输入 {name!r}（{kind!r}）的 raw_input_contents")
    try:
        return array.array(code, getattr(tensor.contents, field)).tobytes()
    except OverflowError:
        raise Malformed(
            f"has values of input {tensor.name[:80]!r} beyond {tensor.datatype}", f"中输入 {tensor.name[:80]!r} 的值超出 {tensor.datatype}"
        ) from None


def to_response(pb: Any, reply: Reply) -> Any:
    """A ``ModelInferResponse`` of an answer whose outputs are binary or lie in shared memory."""
    body = reply.body
    at = reply.length or len(body)
    header = read_header(body[:at])
    response = pb.ModelInferResponse(model_name=header["model_name"], model_version=header["model_version"], id=header.get("id", ""))
    for output in header["outputs"]:
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        size = output.get("parameters", {}).get("binary_data_size", 0)  # what lies in shared memory has no bytes here
        response.raw_output_contents.append(body[at : at + size])
        at += size
    return response


def only_request(request: Any) -> bytes:
    """The one predict request that a ``ModelInferRequest`` for a model that answers in parts holds.

    Raises:
        Malformed: it is none, or not one.
    """
    tensor = request.inputs[0] if len(request.inputs) == 1 else None
    if tensor is None or (tensor.name, tensor.datatype) != (REQUEST.name, BYTES) or "shared_memory_region" in tensor.parameters:
        raise Malformed(f"has another input than {REQUEST.name!r} of {BYTES}", f"的输入不是 {BYTES} 类型的 {REQUEST.name!r}")
    raw = request.raw_input_contents
    data = raw[0] if len(raw) == 1 else _contents(tensor)
    if any(length < 0 for length in tensor.shape) or math.prod(tensor.shape) != 1 or len(raw) > 1:
        raise Malformed("has not one element", "的元素不是一个")
    return read_elements(memoryview(data), 1, tensor.name)[0]
