"""Environments are made from locks: with real interpreters and real wheels, without network."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from scenarium.core import environments
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from tests.core.little_environment import FOUND, OWN, declare


def wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel with one module, as the packaging standard wants it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, **values: float) -> None:
        self.done += done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own, and wheels in place of an index."""
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_INDEX_URL", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "wheels").mkdir()
    return tmp_path


def test_nothing_is_installed_by_asking_for_it(home: Path) -> None:
    environment = declare(home / "little", "tiny==1.0\n", FOUND[0])
    with pytest.raises(ScenariumError) as caught:
        environments.require(environment)
    assert caught.value.code == "SCN-6004"
    assert "scenarium env create little" in caught.value.hint("en")
    assert not environments.root().exists()


def test_create_installs_the_lock_into_the_other_interpreter(home: Path) -> None:
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "# a comment\ntiny==1.0  # pinned\n", FOUND[0])
    notes = Notes()
    place = environments.create(environment, notes)
    assert environments.require(environment) == place.python
    code = "import sys, tiny; print('%d.%d' % sys.version_info[:2], tiny.version)"
    assert subprocess.run([place.python, "-I", "-c", code], capture_output=True, text=True).stdout.split() == [FOUND[0], "1.0"]
    assert FOUND[0] in notes.notes[0]
    assert notes.done == 1
    before = place.folder.stat().st_mtime_ns
    assert environments.create(environment) == place
    assert place.folder.stat().st_mtime_ns == before


def test_another_lock_is_another_folder(home: Path) -> None:
    first = environments.create(declare(home / "little", "# one\n", FOUND[0]))
    second = environments.create(declare(home / "little", "# two\n", FOUND[0]))
    assert first.folder != second.folder
    assert first.complete
    assert second.complete


def test_a_failed_making_says_why_and_goes_on_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "SLICE", 1)
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "tiny==1.0\nlate==2.0\n", FOUND[0])
    with pytest.raises(ScenariumError) as caught:
        environments.create(environment)
    assert caught.value.code == "SCN-6006"
    assert "late==2.0" in caught.value.title("en")
    with pytest.raises(ScenariumError, match="SCN-6004"):
        environments.require(environment)
    place = environments.places(environment)[0]
    assert (place.folder / ".installed").read_text() == "1"
    wheel(home / "wheels", "late", "2.0")
    notes = Notes()
    assert environments.create(environment, notes).complete
    assert notes.done == 2


def test_a_folder_that_is_not_as_the_lock_says_is_not_complete(home: Path) -> None:
    wheel(home / "wheels", "tiny", "1.0")
    environment = declare(home / "little", "tiny==1.0\n", FOUND[0])
    place = environments.create(environment)
    (place.folder / environments.COMPLETE).unlink()
    assert place.python.exists()
    next(place.folder.rglob("tiny-1.0.dist-info/METADATA")).write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 0.9\n")
    with pytest.raises(ScenariumError, match="not as the lock says"):
        environments.create(environment)
    assert environments.create(environment).complete


def test_two_processes_make_it_once(home: Path) -> None:
    environment = declare(home / "little", "# nothing\n", FOUND[0])
    code = """
    import sys
    from pathlib import Path
    from scenarium.core import environments
    from scenarium.core.types import Environment
    making = environments._make
    environments._make = lambda *args: (print("made"), making(*args))
    environments.create(Environment("little", (sys.argv[1],), Path(sys.argv[2])))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), FOUND[0], str(environment.folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert "".join(outputs).count("made") == 1
    assert [process.returncode for process in both] == [0, 0]
    assert environments.require(environment).exists()


def test_the_preferred_version_is_taken_and_the_next_where_it_is_missing(home: Path) -> None:
    place = environments.create(declare(home / "little", "# nothing\n", "3.99", OWN))
    assert place.version == OWN
    with pytest.raises(ScenariumError) as caught:
        environments.create(declare(home / "other", "# nothing\n", "3.99"))
    assert caught.value.code == "SCN-6005"
    assert "3.99" in str(caught.value)


def test_an_interpreter_is_found_where_pyenv_keeps_it_and_a_broken_shim_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environments.find_python(FOUND[0])
    assert real
    shims = tmp_path / "shims"
    shims.mkdir()
    shim = shims / f"python{FOUND[0]}"
    shim.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    version = tmp_path / "pyenv" / "versions" / f"{FOUND[0]}.1" / "bin"
    version.mkdir(parents=True)
    (version / "python").symlink_to(real)
    monkeypatch.setenv("PATH", str(shims))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert environments.find_python(FOUND[0]) == (version / "python" if FOUND[0] != OWN else Path(sys.executable))


def test_build_tools_come_first(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1\n# note\nwheel==2\nb==3 # x\nsetuptools==4\n")
    assert environments.packages(lock) == ["wheel==2", "setuptools==4", "a==1", "b==3"]
