"""Watching writes: what a block writes where it should not, seen from a fresh interpreter since an audit hook stays for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, tempfile
from pathlib import Path
from scenarium.core.kit.writes import watch_writes
Path(sys.argv[1]).mkdir(parents=True)
with watch_writes(Path(sys.argv[1]) / "allowed") as found:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    (Path(sys.argv[1]) / "elsewhere").write_text("x")
    (Path(sys.argv[1]) / "allowed").write_text("x")
print([path.name for path in found])
"""


def test_the_first_look_for_the_temporary_folder_may_happen_within(tmp_path: Path) -> None:
    # The folder that tempfile finds by a first call must not be the one of the test, where everything named tmp is no fault.
    answer = subprocess.run([sys.executable, "-c", CODE, str(Path.cwd() / ".cache" / tmp_path.name)], capture_output=True, text=True, timeout=20)
    assert answer.stdout.strip() == "['elsewhere']", answer.stderr
