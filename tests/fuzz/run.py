"""One target under libFuzzer: ``python -m tests.fuzz.run TARGET [libFuzzer's options] [corpus folders]``."""

from __future__ import annotations

import sys

import atheris

if __name__ == "__main__":
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["scenarium", "python_multipart", "PIL", "json"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
