"""Fault: the hook metric is not there."""

from __future__ import annotations

from healthy import *

metric = None
