"""Cutting arrays and lines: whatever the chunks, the elements are those that a JSON parser finds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarium.core.errors import ScenariumError
from scenarium.gateway.elements import Elements

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\[]{},:\n 你'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('k"\\]}'), max_size=3), inner, max_size=3),
    max_leaves=8,
)


def cut(body: bytes, size: int) -> list[bytes]:
    elements = Elements(1 << 20, "x")
    found = []
    for start in range(0, len(body), size):
        found += elements.feed(body[start : start + size])
    return found + elements.close()


@settings(max_examples=300, deadline=None)
@given(items=st.lists(values, max_size=6), size=st.integers(1, 40), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_an_array_is_cut_as_a_parser_would(items, size, indent, ascii_only):
    body = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(element) for element in cut(b" \n" + body + b"\n ", size)] == items


@settings(max_examples=100, deadline=None)
@given(
    items=st.lists(values.filter(lambda value: not isinstance(value, list)), min_size=1, max_size=6),
    size=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lines_are_cut_at_their_ends(items, size, end):
    assert [json.loads(line) for line in cut(end.join(map(json.dumps, items)).encode(), size)] == items


@pytest.mark.parametrize("body", [b"", b"  ", b"[", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1] 2", b"[}", b'["a', b"[[1]"])
def test_what_is_no_array_is_refused(body):
    for size in (1, 100):
        with pytest.raises(ScenariumError) as caught:
            cut(body, size)
        assert caught.value.code == "SCN-4002"


def test_memory_is_bounded_by_the_largest_element():
    elements = Elements(1000, "x")
    for _ in range(100):
        assert elements.feed(b"[" if elements.array is None else b"") == []
        elements.feed(b'{"a": "' + b"x" * 500 + b'"},')
        assert len(elements._buffer) <= 1000
    with pytest.raises(ScenariumError) as caught:
        elements.feed(b'{"a": "' + b"x" * 1500)
    assert caught.value.code == "SCN-4012"
