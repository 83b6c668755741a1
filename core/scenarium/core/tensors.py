"""Tensors as the Open Inference Protocol (KServe v2) writes them: a JSON header, then the bytes of the binary tensors one after another.

Source: KServe "Open Inference Protocol", and Triton's extensions "binary tensor data" and "classification". The header of a request
names ``inputs`` (``name``, ``datatype``, ``shape``, and either ``data`` or ``parameters.binary_data_size``) and may name ``outputs``.
Numbers lie row-major and little-endian; an element of ``BYTES`` is its length (``u32``) and its bytes.

What both ends of a worker's socket need, without NumPy; the arrays are made in ``scenarium.core.workers.tensor_codec``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json

from scenarium.core.errors import ScenariumError
from scenarium.core.types import TensorSpec

DATATYPES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
DATATYPES |= {f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""NumPy's name of a type to the protocol's."""
BYTES = "BYTES"
LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<III")
"""Before a worker's answer: length of its header (0: it is all JSON), its rows, rows of the run that it was part of."""


class Malformed(ScenariumError):
    """A v2 request that cannot be read; the sentences go on "The inference request …"."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__("SCN-4201", reason_en=en, reason_zh=zh)


class Declared(NamedTuple):
    """A tensor that a model takes or gives, with its batch axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where the length is free."""
    dtype: str = ""
    """NumPy's name; empty for ``BYTES``."""


REQUEST, RESPONSE = Declared("REQUEST", BYTES, (-1,)), Declared("RESPONSE", BYTES, (-1,))
"""Whole predict requests and their answers, one an element."""


def declared(specs: Sequence[TensorSpec]) -> tuple[Declared, ...]:
    """A signature's tensors with their batch axis. A row without an axis is one of length 1, since the protocol's other servers know no other."""
    return tuple(Declared(spec.name, DATATYPES.get(spec.dtype, spec.dtype), (-1, *(spec.shape or (1,))), spec.dtype) for spec in specs)


def read_header(head: bytes) -> dict[str, Any]:
    """The JSON header.

    Raises:
        Malformed: it is no JSON object.
    """
    try:
        header = from_json(head)
    except ValueError as fault:
        raise Malformed(f"is no JSON: {fault}", f"不是 JSON：{fault}") from None
    if not isinstance(header, dict):
        raise Malformed("is no JSON object", "不是 JSON 对象")
    return header


def read_elements(chunk: memoryview, count: int, name: str) -> list[bytes]:
    """The ``count`` elements of a ``BYTES`` tensor called ``name``.

    Raises:
        Malformed: there are more or fewer, or one is cut off.
    """
    found: list[bytes] = []
    at, end = 0, len(chunk)
    while at + 4 <= end and len(found) <= count:
        (length,) = LENGTH.unpack_from(chunk, at)
        at += 4 + length
        found.append(bytes(chunk[at - length : at]))
    if at != end or len(found) != count:
        raise Malformed(f"has elements of input {name!r} that do not fit its shape", f"中输入 {name!r} 的元素与形状不符")
    return found


def write_elements(values: Sequence[bytes]) -> bytes:
    """The bytes of a ``BYTES`` tensor."""
    return b"".join(part for value in values for part in (LENGTH.pack(len(value)), value))
