"""Freed memory is used again without page faults."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys
import numpy as np
from scenarium.core import heap

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(16_000_000)  # 128 MB, written
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults(5)
heap.keep_freed()
faults(1)
print(given_back, faults(5))
"""


def test_a_large_block_is_had_again_without_page_faults() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept * 20 < given_back
