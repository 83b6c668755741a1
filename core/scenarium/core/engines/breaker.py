"""A circuit breaker: while a server is away, who asks is told so at once, and one thread of its own looks whether it is back.

Source: M. Nygard, "Release It!", 2nd ed., "Circuit Breaker"; here the trial call of the half-open state is made by the thread, so no request is risked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

from scenarium.core.errors import ScenariumError

State = Literal["closed", "open", "reloading"]
STATES: tuple[State, ...] = ("closed", "open", "reloading")
FIRST_S, LONGEST_S = 0.1, 1.0

log = logging.getLogger("scenarium.breaker")


class Breaker:
    """``mend`` returns when the server can be asked again and raises ``ScenariumError`` as long as it cannot."""

    def __init__(self, mend: Callable[[State], None]) -> None:
        self._mend = mend
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._fault: ScenariumError | None = None
        self.state: State = "closed"

    def check(self) -> None:
        """Raise why the server cannot be asked now, if so."""
        fault = self._fault
        if fault is not None:
            raise ScenariumError(fault.code, **fault.values)

    def trip(self, state: State, fault: ScenariumError) -> None:
        """Let nobody ask until ``mend`` has returned."""
        with self._lock:
            if self._fault is not None or self._closed.is_set():
                return
            self._fault, self.state = fault, state
        log.warning("%s", fault)
        threading.Thread(target=self._watch, args=(state,), daemon=True, name="breaker").start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _watch(self, state: State) -> None:
        delay = FIRST_S
        while not self._closed.wait(delay):
            try:
                self._mend(state)
            except Exception as fault:  # whatever it is, to look no more would keep everyone out for ever
                if isinstance(fault, ScenariumError):
                    self._fault = fault
                else:
                    log.exception("looking whether it is back")
                delay = min(2 * delay, LONGEST_S)
                continue
            with self._lock:
                self._fault, self.state = None, "closed"
            log.warning("it answers again")
            return
