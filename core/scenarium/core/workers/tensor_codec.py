"""Arrays from the bytes of a v2 request, and the bytes of its answer; the protocol: ``scenarium.core.tensors``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pydantic_core import to_json

from scenarium.core.tensors import BYTES, DATATYPES, Declared, Malformed, read_elements, read_header, write_elements

_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
"""Kind of the wanted type to the kinds that JSON numbers may have for it."""

KEPT, SHORT = 256, 2048
"""Headers that are remembered at most, and bytes of the longest."""
_NAMES = {np.dtype(name): datatype for name, datatype in DATATYPES.items() if name != "bfloat16"}
_SWAPPED = sys.byteorder == "big"

Values: TypeAlias = "np.ndarray | list[bytes]"
"""The elements of one tensor: an array, or for ``BYTES`` what lies in it, row-major."""


class Wanted(NamedTuple):
    """An output that a request asks for."""

    name: str
    binary: bool
    classes: int = 0
    """Only so many of the highest values of each row, as ``value:index``; 0: all values as they are."""


class Asked(NamedTuple):
    """What one request says."""

    ident: str
    inputs: dict[str, Values]
    rows: int
    outputs: list[Wanted]
    places: tuple[tuple[Declared, tuple[int, ...], int], ...]
    """Of the binary inputs, in order: what it is, its shape, its bytes."""


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(body: memoryview, length: int, inputs: Sequence[Declared], outputs: Sequence[Declared]) -> Asked:
    """What a request asks of a model that takes ``inputs`` and gives ``outputs``. ``length`` is the header's; 0: it is the whole body.

    Raises:
        Malformed: the request does not fit, with the place.
    """
    at = length or len(body)
    header = read_header(bytes(body[:at]))
    listed = header.get("inputs")
    if not isinstance(listed, list) or not listed:
        raise Malformed("has no inputs", "没有 inputs")
    if len(listed) > len(inputs):  # before any of them is looked at
        raise Malformed(f"has {len(listed)} inputs where the model takes {len(inputs)}", f"有 {len(listed)} 个输入，而模型只接受 {len(inputs)} 个")
    known = {spec.name: spec for spec in inputs}
    found: dict[str, Values] = {}
    places: list[tuple[Declared, tuple[int, ...], int]] = []
    rows: int | None = None
    for tensor in listed:
        spec = _spec(tensor, known, found)
        shape = _shape(tensor, spec)
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            found[spec.name] = _from_json(tensor, spec, shape)
        else:
            if type(size) is not int or size < 0:
                raise Malformed(f"has a wrong binary_data_size of input {spec.name!r}", f"中输入 {spec.name!r} 的 binary_data_size 有误")
            found[spec.name] = _from_bytes(body[at : at + size], size, spec, shape)
            places.append((spec, shape, size))
            at += size
        if rows not in (None, shape[0]):
            raise Malformed("has inputs with different numbers of rows", "中各输入的行数不同")
        rows = shape[0]
    if at != len(body):
        raise Malformed(f"has {len(body) - at} bytes that belong to no tensor", f"有 {len(body) - at} 个字节不属于任何张量")
    if missing := known.keys() - found.keys():
        raise Malformed(f"lacks input {min(missing)!r}", f"缺少输入 {min(missing)!r}")
    ident = header.get("id", "")
    if not isinstance(ident, str):
        raise Malformed("has an id that is no string", "的 id 不是字符串")
    return Asked(ident, found, rows or 0, _wanted(header, outputs), tuple(places))


class Headers:
    """Headers that came before and named binary inputs alone. Programs send the same again and again, and to read one takes longer than all
    else that is done for a small request."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Asked]] = {}

    def keep(self, head: bytes, asked: Asked) -> None:
        """Remember what a header means, where it is short and each input is binary."""
        if len(head) > SHORT or len(asked.places) != len(asked.inputs):
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[head] = sum(size for _, _, size in asked.places), asked._replace(inputs={})

    def read(self, head: bytes, body: memoryview) -> Asked | None:
        """What a request asks whose header came before; ``body`` is what follows it. None: it did not, or another number of bytes follows.

        Raises:
            Malformed: the elements of a ``BYTES`` tensor do not fit.
        """
        size, asked = self._known.get(head, (-1, None))
        if asked is None or size != len(body):
            return None
        inputs: dict[str, Values] = {}
        at = 0
        for spec, shape, length in asked.places:
            inputs[spec.name] = _from_bytes(body[at : at + length], length, spec, shape)
            at += length
        return asked._replace(inputs=inputs)


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Malformed("has parameters that are no JSON object", "的 parameters 不是 JSON 对象")
    return parameters


def _spec(tensor: Any, known: Mapping[str, Declared], found: Mapping[str, Any]) -> Declared:
    """What an input says it is."""
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise Malformed("has an input without a name", "有一个输入没有名称")
    spec = known.get(name)
    if spec is None:
        raise Malformed(
            f"has an input {name[:80]!r} that the model does not take ({', '.join(known)})", f"有模型不接受的输入 {name[:80]!r}（{', '.join(known)}）"
        )
    if name in found:
        raise Malformed(f"has input {name!r} twice", f"两次给出输入 {name!r}")
    if tensor.get("datatype") != spec.datatype:
        given = str(tensor.get("datatype"))[:40]
        raise Malformed(f"has input {name!r} of datatype {given}, expected {spec.datatype}", f"中输入 {name!r} 的 datatype 是 {given}，应为 {spec.datatype}")
    return spec


def _shape(tensor: dict[str, Any], spec: Declared) -> tuple[int, ...]:
    shape = tensor.get("shape")
    wanted = ",".join(map(str, spec.shape))
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise Malformed(f"has a wrong shape of input {spec.name!r}, expected [{wanted}]", f"中输入 {spec.name!r} 的 shape 有误，应为 [{wanted}]")
    if len(shape) != len(spec.shape) or any(want not in (-1, got) for want, got in zip(spec.shape, shape, strict=True)) or shape[0] == 0:
        given = ",".join(map(str, shape[:16]))
        raise Malformed(f"has input {spec.name!r} of shape [{given}], expected [{wanted}]", f"中输入 {spec.name!r} 的形状是 [{given}]，应为 [{wanted}]")
    return tuple(shape)


def _from_bytes(chunk: memoryview, size: int, spec: Declared, shape: tuple[int, ...]) -> Values:
    if len(chunk) != size:
        raise Malformed(f"ends within the {size} bytes of input {spec.name!r}", f"在输入 {spec.name!r} 的 {size} 个字节中间结束")
    count = math.prod(shape)
    if spec.datatype == BYTES:
        return read_elements(chunk, count, spec.name)
    dtype = np.dtype(spec.dtype)
    if count * dtype.itemsize != size:
        raise Malformed(
            f"has {size} bytes of input {spec.name!r}, whose shape needs {count * dtype.itemsize}",
            f"中输入 {spec.name!r} 有 {size} 个字节，而其形状需要 {count * dtype.itemsize} 个",
        )
    array: np.ndarray = np.frombuffer(chunk, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(chunk, dtype.newbyteorder("<") if _SWAPPED else dtype)
    return array.reshape(shape)


def _from_json(tensor: dict[str, Any], spec: Declared, shape: tuple[int, ...]) -> Values:
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Malformed(f"has no data of input {spec.name!r}", f"没有输入 {spec.name!r} 的数据")
    try:
        found = _strings(data, math.prod(shape)) if spec.datatype == BYTES else _numbers(data, np.dtype(spec.dtype), shape)
    except (ValueError, TypeError, OverflowError):  # ragged, or no numbers
        found = None
    if found is None:
        count = math.prod(shape)
        raise Malformed(
            f"has data of input {spec.name!r} that are not {count} values of {spec.datatype}", f"中输入 {spec.name!r} 的数据不是 {count} 个 {spec.datatype} 值"
        )
    return found


def _strings(data: list[Any], count: int) -> list[bytes] | None:
    """The elements, nested or flat, or None where they do not fit."""
    values = np.array(data, dtype=object).ravel().tolist()
    if len(values) != count or not all(isinstance(value, str) for value in values):
        return None
    return [value.encode("utf8", "surrogatepass") for value in values]


def _numbers(data: list[Any], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array, nested or flat in JSON, or None where it does not fit."""
    count = math.prod(shape)
    values = np.array(data) if count else np.empty(0, dtype)
    if dtype == np.uint64 and values.dtype.kind == "f":  # numbers on both sides of 2**63 have no common type of their own
        wide = np.array(data, dtype=object).ravel().tolist()
        values = np.array(wide, dtype) if all(type(value) is int for value in wide) else values
    if values.size != count or values.dtype.kind not in _KINDS[dtype.kind]:
        return None
    if dtype.kind in "iu" and count:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            return None
    with np.errstate(over="ignore"):  # a number beyond float32 is infinite there
        array: np.ndarray = values.astype(dtype).reshape(shape)
    return array


def _wanted(header: dict[str, Any], outputs: Sequence[Declared]) -> list[Wanted]:
    listed = header.get("outputs")
    binary = _parameters(header).get("binary_data_output") is True
    if not listed:
        return [Wanted(spec.name, binary) for spec in outputs]
    if not isinstance(listed, list):
        raise Malformed("has outputs that are no list", "的 outputs 不是列表")
    known = {spec.name: spec for spec in outputs}
    found: dict[str, Wanted] = {}
    for each in listed:
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in known:
            raise Malformed(f"asks for an output that the model does not give ({', '.join(known)})", f"要求了模型没有的输出（{', '.join(known)}）")
        parameters = _parameters(each)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0 or (classes and known[name].datatype == BYTES):
            raise Malformed(f"has a wrong classification of output {name!r}", f"中输出 {name!r} 的 classification 有误")
        found[name] = Wanted(name, bool(parameters.get("binary_data", binary)), classes)
    return list(found.values())


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(about: Mapping[str, Any], wanted: Sequence[Wanted], values: Mapping[str, Values]) -> tuple[int, bytes]:
    """An answer, and its header's length (0: it is all JSON). ``about`` opens the header: model, version, id."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for want in wanted:
        found = values[want.name]
        if want.classes:
            assert isinstance(found, np.ndarray)
            shape, datatype, found = _classify(found, want.classes)
        elif isinstance(found, list):
            shape, datatype = [len(found)], BYTES
        else:
            shape, datatype = list(found.shape), _NAMES[found.dtype]
        output: dict[str, Any] = {"name": want.name, "datatype": datatype, "shape": shape}
        if want.binary:
            raw = write_elements(found) if isinstance(found, list) else (found.byteswap() if _SWAPPED else found).tobytes()
            output["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            output["data"] = [value.decode("utf8", "replace") for value in found] if isinstance(found, list) else found.ravel().tolist()
        outputs.append(output)
    header = to_json({**about, "outputs": outputs}, inf_nan_mode="constants")
    return (len(header), b"".join((header, *parts))) if parts else (0, header)


def _classify(array: np.ndarray, classes: int) -> tuple[list[int], str, list[bytes]]:
    """The highest values of each row with their places, highest first, as ``value:index``."""
    flat = array.reshape(len(array), -1)
    places = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :classes]
    whole = array.dtype.kind in "iub"
    texts = [f"{int(row[place]) if whole else f'{float(row[place]):.6f}'}:{place}".encode() for row, best in zip(flat, places, strict=True) for place in best]
    return list(places.shape), BYTES, texts
