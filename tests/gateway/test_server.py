"""The gateway's routes, over one gateway that all tests of this file share."""

from __future__ import annotations
