"""Cutting a JSON array or JSON lines into their elements as the bytes come, without parsing them."""

from __future__ import annotations

import re

from scenarium.core.errors import ScenariumError

_SPACE = b" \t\r\n"
_MARK = re.compile(rb'["\[\]{},]')
_QUOTE = re.compile(rb'["\\]')


class Elements:
    """Feed it bytes; it gives back the elements that are complete. Memory is bounded by the largest element."""

    def __init__(self, limit: int, name: str) -> None:
        self.limit = limit
        self.name = name
        self.array: bool | None = None
        """Whether the body is a JSON array; else it is JSON lines. None before the first byte."""
        self._buffer = bytearray()
        self._at = 0
        self._depth = 0
        self._string = False
        self._closed = False
        self._comma = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in.

        Raises:
            ScenariumError: SCN-4002 (neither an array nor lines), SCN-4012 (an element is too large).
        """
        self._buffer += data
        if self.array is None:
            start = bytes(self._buffer.lstrip(_SPACE)[:1])
            if not start:
                return []
            self.array = start == b"["
            if self.array:
                del self._buffer[: self._buffer.index(b"[") + 1]
        found = self._elements() if self.array else self._lines()
        if len(self._buffer) > self.limit:
            raise ScenariumError("SCN-4012", limit=self.limit, name=self.name)
        return found

    def close(self) -> list[bytes]:
        """The end of the body: what is left.

        Raises:
            ScenariumError: SCN-4002 (the array is cut off).
        """
        if self.array and not self._closed:
            raise self._broken("the array is cut off")
        if self.array is None:
            raise self._broken("the body is empty")
        rest = bytes(self._buffer.strip(_SPACE))
        return [rest] if rest and not self.array else []

    def _lines(self) -> list[bytes]:
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        return [bytes(line.strip(_SPACE)) for line in lines if line.strip(_SPACE)]

    def _elements(self) -> list[bytes]:
        found: list[bytes] = []
        start = 0
        buffer = self._buffer
        while not self._closed:
            match = (_QUOTE if self._string else _MARK).search(buffer, self._at)
            if not match:
                self._at = len(buffer)
                break
            mark, at = match[0], match.start()
            self._at = at + 1
            if self._string:
                if mark == b"\\":
                    if at + 1 >= len(buffer):
                        self._at = at
                        break
                    self._at = at + 2
                else:
                    self._string = False
            elif mark == b'"':
                self._string = True
            elif mark in (b"[", b"{"):
                self._depth += 1
            elif mark != b"," and self._depth:
                self._depth -= 1
            elif not self._depth:
                self._take(bytes(buffer[start:at].strip(_SPACE)), mark, found)
                start = at + 1
        if self._closed and buffer[start:].strip(_SPACE):
            raise self._broken("something follows the array")
        del buffer[:start]
        self._at -= start
        return found

    def _take(self, element: bytes, mark: bytes, found: list[bytes]) -> None:
        """One element ended with a comma or with the array's bracket."""
        if mark == b"}":
            raise self._broken("a brace closes nothing")
        self._closed = mark == b"]"
        if element:
            found.append(element)
        elif mark == b"," or self._comma:
            raise self._broken("an element is empty")
        self._comma = mark == b","

    def _broken(self, reason: str) -> ScenariumError:
        return ScenariumError("SCN-4002", reason=reason, sample="[{...}, {...}]")
