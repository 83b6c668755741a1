"""Cutting elements of any number into the bodies of a few batch requests, so that memory stays bounded."""

from __future__ import annotations

from scenarium.client.payloads import Value, to_json

ITEMS = 256
"""Elements of one request at most."""
BYTES = 4 << 20
"""A request is sent when it holds so much."""


class Chunks:
    """Collects elements until they are a request."""

    def __init__(self, items: int) -> None:
        self.most = items
        self.first = 0
        """The number of the first element that is held."""
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, value: Value) -> bool:
        """Hold one more; returns whether it is time to send."""
        line = to_json(value)
        self._lines.append(line)
        self._size += len(line)
        return len(self._lines) >= self.most or self._size >= BYTES

    def take(self) -> tuple[int, list[bytes]]:
        """What is held, as lines of JSON, and the number of its first; it holds nothing afterwards."""
        first, lines = self.first, self._lines
        self.first, self._lines, self._size = first + len(lines), [], 0
        return first, lines
