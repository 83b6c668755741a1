"""How long work shows itself. The base class is silent; ``scenarium.core.cli`` brings the bar and the plain lines."""

from __future__ import annotations


class Progress:
    """Receives what a training does. Every method may be overridden; the base class ignores all."""

    def note(self, text: str) -> None:
        """Say one thing: a stage begins, a repair was made."""

    def start(self, what: str, total: int | None = None) -> None:
        """A piece of work begins: ``total`` units, None if unknown."""

    def advance(self, done: int, **values: float) -> None:
        """``done`` units of the current piece are finished; ``values`` are the current figures (loss, samples/s)."""

    def finish(self) -> None:
        """The current piece of work ended."""
