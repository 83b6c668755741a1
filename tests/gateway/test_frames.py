"""Frames: what one side writes the other reads, in whatever pieces the socket delivers it."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarium.core.workers import frames
from scenarium.core.workers.frames import Answer, Item

items = st.builds(
    Item,
    rid=st.integers(0, 2**64 - 1),
    body=st.binary(max_size=300),
    content_type=st.sampled_from(["application/json", "", "multipart/form-data; boundary=x"]),
    remaining_ms=st.integers(0, 2**32 - 1),
    mode=st.sampled_from([frames.PREDICT, frames.STREAM]),
    language=st.sampled_from(frames.LANGUAGES),
    trace=st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
    key=st.text(max_size=20).filter(lambda text: text.isprintable()),
)
micro = st.integers(0, 2**32 - 1)
answers = st.builds(
    Answer,
    rid=st.integers(0, 2**64 - 1),
    status=st.just(200) | st.integers(400, 599),
    queue=micro,
    preprocess=micro,
    forward=micro,
    postprocess=micro,
    body=st.binary(max_size=300),
)


def read_all(data: bytes, piece: int):
    """The frames that a reader gets when ``data`` comes in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def write():
            with contextlib.suppress(OSError):  # the reader may have given up on what is no frame
                for start in range(0, len(data), piece):
                    theirs.sendall(data[start : start + piece])
                theirs.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        reader = frames.Reader(ours)
        while received := reader():
            yield received
        writer.join()


@settings(max_examples=100, deadline=None)
@given(batches=st.lists(st.lists(items, min_size=1, max_size=5), max_size=4), piece=st.integers(1, 700))
def test_batches_come_back_as_they_were(batches, piece):
    data = b"".join(frames.batch_frame(batch) for batch in batches)
    found = [(kind, frames.read_batch(body)) for kind, body in read_all(data, piece)]
    assert found == [(frames.BATCH, batch) for batch in batches]


@settings(max_examples=100, deadline=None)
@given(given=st.lists(answers, max_size=6), piece=st.integers(1, 700))
def test_answers_come_back_as_they_were(given, piece):
    data = b"".join(map(frames.answer_frame, given))
    assert [frames.read_answer(body) for _, body in read_all(data, piece)] == given


def test_a_frame_larger_than_the_buffer():
    big = Item(1, b"x" * 3_000_000, "application/octet-stream", 1000)
    data = frames.batch_frame([big]) + frames.rid_frame(frames.CANCEL, 7) + frames.batch_frame([big, big])
    found = [frames.read_batch(body) if kind == frames.BATCH else frames.RID.unpack(body) for kind, body in read_all(data, 65536)]
    assert found == [[big], (7,), [big, big]]


@pytest.mark.parametrize("data", [b"\0\0\0\0", b"\xff\xff\xff\xff\x01"])
def test_a_length_that_no_frame_has(data):
    with pytest.raises(ValueError, match="a frame of"):
        list(read_all(data, 100))


def test_the_end_within_a_frame_is_the_end():
    assert list(read_all(frames.batch_frame([Item(1, b"body", "", 1)])[:-1], 100)) == []
