"""Bodies built to hurt: what a client's bytes may cost before they are refused, and what must never get through."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from scenarium.core import bodies
from scenarium.core.errors import ScenariumError
from scenarium.core.schemas import Request

FORM = "multipart/form-data; boundary=x"


class Series(Request):
    text: str = ""
    note: str | None = None
    count: int = 1
    flag: bool = False
    values: list[float] = []
    more: dict[str, list[float]] = {}


class Picture(Request):
    image: bytes
    top: int = 1


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def refused(body: bytes, content_type: str = "application/json", cls: type[Request] = Series) -> ScenariumError:
    with pytest.raises(ScenariumError) as caught:
        bodies.decode(body, content_type, cls)
    assert caught.value.status in (400, 422)
    return caught.value


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309", "1e" + "9" * 1000])
def test_numbers_are_finite(number: str) -> None:
    assert refused(f'{{"values": [1, {number}]}}'.encode()).field == "values.1"
    assert refused(part("values", f"[{number}]".encode()) + b"--x--", FORM).field.startswith("values")
    assert bodies.decode(b'{"values": [1e308]}', "", Series).values == [1e308]


@pytest.mark.parametrize("number", ["1" + "0" * 5000, "1e308", "1.5", "NaN"])
def test_integers_are_integers_of_a_bounded_size(number: str) -> None:
    refused(f'{{"count": {number}}}'.encode())
    refused(part("count", number.encode()) + b"--x--", FORM)


COSTLY = {
    "a list of wrong elements": (b'{"values": [' + b",".join([b'"a"'] * 1_000_000) + b"]}", "values.0"),
    "an object of wrong members": (b'{"more": {' + b",".join(b'"%x": 1' % n for n in range(400_000)) + b"}}", "more.0"),
    "unknown fields": (b"{" + b",".join(b'"x%x": 1' % n for n in range(400_000)) + b"}", "body"),
    "a long unknown name": (b'{"' + b"x" * 4_000_000 + b'": 1}', "x" * bodies.MAX_NAME),
    "nested arrays": (b'{"text": ' + b"[" * 100_000, None),
    "nested objects": (b'{"a":' * 100_000, None),
    "digits": (b'{"count": ' + b"9" * 4_000_000 + b"}", None),
    "blanks": (b" " * 4_000_000, None),
}


@pytest.mark.parametrize("what", COSTLY)
def test_refusing_is_cheap(what: str) -> None:
    body, field = COSTLY[what]
    began = time.process_time()
    error = refused(body)
    assert time.process_time() - began < 1.0  # seconds to minutes, and gigabytes, without the bounds
    assert error.field == field
    tracemalloc.start()
    assert len(str(refused(body).problem("zh"))) < 1000
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "\xff\xfe"}',
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "\\ud800"}',
        b'{"\\udfff": 1}',
        '{"text": "你好"}'.encode("gb18030"),
        '{"text": "你好"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"text": "x"}',
        b'{"text": "a\x00b"}',
        b'{"text": "x"} {"text": "y"}',
        b'{"text": "x",}',
        b"{'text': 'x'}",
    ],
)
def test_text_is_unicode_and_json_is_json(body: bytes) -> None:
    assert refused(body).code == "SCN-4002"


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    assert bodies.decode(b'{"text": "a", "text": "b"}', "", Series).text == "b"
    assert bodies.decode(part("text", b"a") + part("text", b"b") + b"--x--", FORM, Series).text == "b"


def test_a_form_holds_text_as_it_is_and_json_where_a_field_is_no_text() -> None:
    body = part("text", b'["1"]') + part("note", b"{}") + part("count", b"3") + part("flag", b"true") + part("values", b"[1, 2.5]") + b"--x--"
    found = bodies.decode(body, FORM, Series)
    assert (found.text, found.note, found.count, found.flag, found.values) == ('["1"]', "{}", 3, True, [1.0, 2.5])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (part("text", b"\xff\xfe"), "text"),
        (part("text", "你好".encode("gb18030")), "text"),
        (part("values", b"[" * 100_000), "values"),
        (part("more", b'{"a": ["\\ud800"]}'), "more"),
        (part("text", b"x") * (bodies.MAX_PARTS + 1), "body"),
        (part("f", b"x", '; filename="a"') * (bodies.MAX_PARTS + 1), "body"),
        (b"--x\r\n" + b"A: b\r\n" * 100_000, "body"),
        (b"--x\r\nA: " + b"b" * 100_000, "body"),
        (b"--y\r\n", "body"),
        (part("text", b"x").replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: rot13\r\n\r\n"), "body"),
        (part("text", b"%").replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"), "body"),
    ],
)
def test_forms_built_to_hurt(body: bytes, field: str, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    assert refused(body + b"--x--\r\n", FORM).field == field
    assert time.process_time() - began < 0.5
    assert capfd.readouterr().err == ""  # the parser's own warnings would fill the worker's output


def test_an_upload_is_taken_whatever_its_name_says() -> None:
    body = part("file", b"bytes", '; filename="../../etc/passwd"') + part("top", b"2") + b"--x--"
    assert bodies.decode(body, FORM, Picture) == Picture(image=b"bytes", top=2)
    assert refused(b"", "multipart/form-data", Picture).field == "body"
    assert refused(b"--x", "multipart/form-data; boundary=" + "x" * 60_000, Picture).field == "body"
