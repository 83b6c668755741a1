"""Fault: a thread that never ends keeps the process alive."""

from __future__ import annotations

import threading

from healthy import *


@hookimpl
def processor(state: Mapping[str, Any]) -> Any:
    threading.Thread(target=threading.Event().wait, args=(60,), name="keeper").start()
    return state
