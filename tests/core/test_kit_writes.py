"""Watching writes: what a block writes where it should not, seen from a fresh interpreter since an audit hook stays for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, tempfile
from pathlib import Path
from scenarium.core.kit.writes import watch_writes
# Not in the temporary folder, where a file of the test's own folder would be no fault.
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    tempfile.tempdir = None
    place = Path(folder)
    with watch_writes(place / "allowed") as found:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        (place / "elsewhere").write_text("x")
        (place / "allowed").write_text("x")
print([path.name for path in found])
"""


def test_the_first_look_for_the_temporary_folder_may_happen_within() -> None:
    here = Path(__file__).parent
    answer = subprocess.run([sys.executable, "-c", CODE, str(here)], capture_output=True, text=True, timeout=20)
    assert answer.stdout.strip() == "['elsewhere']", answer.stderr
