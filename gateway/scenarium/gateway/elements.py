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
        if self.array is None:
            data = data.lstrip(_SPACE)
            if not data:
                return []
            self.array = data[:1] == b"["
            data = data[1:] if self.array else data
        self._buffer += data
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
        end = self._buffer.rfind(b"\n", self._at)  # only what is new: a long line may come in many pieces
        lines = bytes(self._buffer[: max(0, end)]).split(b"\n")
        del self._buffer[: end + 1]
        self._at = len(self._buffer)
        return [stripped for line in lines if (stripped := line.strip(_SPACE))]

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
        if self._closed:
            if buffer[start:].strip(_SPACE):
                raise self._broken("something follows the array")
            start = len(buffer)  # blanks without end take no memory
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
