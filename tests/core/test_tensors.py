"""The codec of the v2 protocol, and the forward on tensors: what goes in comes out, whoever runs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from pydantic_core import to_json

from scenarium.core.tensors import BYTES, DATATYPES, Declared, Malformed, declared, read_elements, read_header, write_elements
from scenarium.core.types import TensorSpec
from scenarium.core.workers.tensor_codec import KEPT, SHORT, Headers, Wanted, read, write

DTYPES = [name for name in DATATYPES if name != "bfloat16"]


@st.composite
def tensors(draw, elements_of_json=False):
    """An array with a batch axis, of any type of the protocol."""
    dtype = np.dtype(draw(st.sampled_from([name for name in DTYPES if not (elements_of_json and name == "float16")])))
    shape = draw(arrays_of.array_shapes(min_dims=2, max_dims=4, max_side=4))
    return draw(arrays_of.arrays(dtype, shape))


def body_of(name: str, array: np.ndarray, binary: bool) -> tuple[bytes, int]:
    """A request with one input."""
    tensor = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
    raw = array.tobytes() if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": array.ravel().tolist()}
    head = to_json({"inputs": [tensor]}, inf_nan_mode="constants")
    return head + raw, len(head) if binary else 0


def spec_of(array: np.ndarray) -> Declared:
    return Declared("T", DATATYPES[array.dtype.name], (-1, *array.shape[1:]), array.dtype.name)


@settings(max_examples=200, deadline=None)
@given(tensors(), st.booleans())
def test_arrays_go_through_requests_and_answers(array, binary):
    spec = spec_of(array)
    body, length = body_of("T", array, binary)
    asked = read(memoryview(body), length, [spec], [spec])
    found = asked.inputs["T"]
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert asked.rows == len(array)
    # an answer has the form of a request, so it can be read again
    size, answer = write({"model_name": "m"}, [Wanted("T", binary)], {"T": array})
    assert bool(size) == binary
    header = read_header(answer[: size or len(answer)])
    (output,) = header["outputs"]
    again = to_json({"inputs": [output]}, inf_nan_mode="constants")
    found = read(memoryview(again + answer[size:] if binary else again), len(again) if binary else 0, [spec], [spec]).inputs["T"]
    np.testing.assert_array_equal(found, array)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_elements_of_bytes(values):
    raw = write_elements(values)
    assert read_elements(memoryview(raw), len(values), "T") == values
    for wrong in (raw + b"\0", raw[:-1]):
        if wrong != raw:
            with pytest.raises(Malformed):
                read_elements(memoryview(wrong), len(values), "T")
    with pytest.raises(Malformed):
        read_elements(memoryview(raw), len(values) + 1, "T")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(body, length):
    spec = Declared("T", "FP32", (-1, 2), "float32")
    with pytest.raises(Malformed):
        read(memoryview(body), min(length, len(body)), [spec], [spec])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data", "parameters", "datatype", "inputs"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), VALUES)
def test_any_value_in_a_header_is_read_or_refused(member, value):
    tensor = {"name": "T", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], member: value}
    spec = Declared("T", "FP32", (-1, 2), "float32")
    try:
        body = to_json({"inputs": [tensor]}, inf_nan_mode="constants")
        found = read(memoryview(body), 0, [spec], [spec])
    except Malformed:
        return
    assert found.rows == 1


def test_declared_tensors_have_a_batch_axis():
    specs = (TensorSpec("a", "int64", (-1,)), TensorSpec("b", "float32", ()))
    assert [(each.datatype, each.shape) for each in declared(specs)] == [("INT64", (-1, -1)), ("FP32", (-1, 1))]


def test_the_highest_values_with_their_places():
    array = np.array([[0.1, 0.9, 0.5], [-1, -3, -2]], np.float32)
    _, answer = write({}, [Wanted("T", False, 2)], {"T": array})
    (output,) = read_header(answer)["outputs"]
    assert (output["datatype"], output["shape"]) == (BYTES, [2, 2])
    assert output["data"] == ["0.900000:1", "0.500000:2", "-1.000000:0", "-2.000000:2"]


@settings(max_examples=100, deadline=None)
@given(tensors(), st.data())
def test_a_header_that_came_before_means_the_same(array, data):
    spec, headers = spec_of(array), Headers()
    body, length = body_of("T", array, True)
    head, rest = body[:length], memoryview(body)[length:]
    assert headers.read(head, rest) is None
    first = read(memoryview(body), length, [spec], [spec])
    headers.keep(head, first)
    other = data.draw(arrays_of.arrays(array.dtype, array.shape))
    again = headers.read(head, memoryview(other.tobytes()))
    assert again is not None
    assert again._replace(inputs={}) == first._replace(inputs={})
    np.testing.assert_array_equal(again.inputs["T"], other)
    for wrong in (rest[:-1], bytes(rest) + b"x"):  # told by the reading that says what is wrong
        assert headers.read(head, memoryview(wrong)) is None


def test_only_short_headers_of_binary_inputs_are_kept_and_not_too_many():
    array = np.ones((1, 2), np.float32)
    spec, headers = spec_of(array), Headers()
    body, length = body_of("T", array, True)
    asked = read(memoryview(body), length, [spec], [spec])
    headers.keep(b" " * (SHORT + 1), asked)
    plain, _ = body_of("T", array, False)
    headers.keep(plain, read(memoryview(plain), 0, [spec], [spec]))
    assert headers.read(plain, memoryview(b"")) is None
    assert headers.read(b" " * (SHORT + 1), memoryview(body)[length:]) is None
    for number in range(KEPT + 1):
        headers.keep(b"%d" % number, asked)
    assert headers.read(b"0", memoryview(body)[length:]) is None
    assert headers.read(b"%d" % KEPT, memoryview(body)[length:]) is not None
