"""Fault: nothing says how good is good enough."""

from __future__ import annotations

from healthy import *

baseline = None
