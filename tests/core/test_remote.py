"""Downloads and hubs against a server of our own that speaks the hubs' paths; fsspec URLs against the in-memory file system."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest

from scenarium.core import remote
from scenarium.core.cache import Cache
from scenarium.core.errors import ScenariumError
from scenarium.core.progress import Progress
from scenarium.core.sources import HubDataset, HubFile, fetch

COMMIT = "a" * 40
ROWS = b"".join(json.dumps({"text": f"row {i}", "label": i % 2}).encode() + b"\n" for i in range(5000))


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path to bytes) under the paths of both hubs and plainly, with ranges; can break off a download."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"train.jsonl": ROWS, "test/more.jsonl": ROWS[:100], ".gitattributes": b"x", "README.md": b"# card"}
        self.cut_after: int | None = None
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.server.asked.append((self.command + " " + parts.path, self.headers.get("Range")))
        names = self.server.files
        if parts.path.startswith("/api/datasets/org/set/revision/"):
            self.json({"id": "org/set", "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": n} for n in names]})
        elif parts.path.startswith("/api/datasets/org/set/tree/"):
            self.json([{"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in names.items()])
        elif parts.path == "/api/v1/datasets/org/set/repo/tree":
            page = int(query["PageNumber"])
            files = [{"Path": n, "Type": "blob", "Size": len(b)} for n, b in names.items()] + [{"Path": "test", "Type": "tree"}]
            self.json({"Code": 200, "Data": {"Files": files if page == 1 else []}})
        elif parts.path == "/api/v1/datasets/org/set/repo":
            self.bytes(names.get(query["FilePath"]), head)
        elif parts.path.startswith("/datasets/org/set/resolve/"):
            self.bytes(names.get(parts.path.split("/resolve/")[1].partition("/")[2]), head)
        else:
            self.bytes(names.get(parts.path.lstrip("/")), head)

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def bytes(self, body: bytes | None, head: bool) -> None:
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        tag = f'"{hashlib.sha1(body).hexdigest()}"'
        start = 0
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if head:
            return
        cut = self.server.cut_after
        if cut is not None:
            self.server.cut_after = None
            self.wfile.write(body[start : start + cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(1)
            return
        self.wfile.write(body[start:])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "sources")


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return tmp_path / "hub"


class Bytes(Progress):
    def __init__(self) -> None:
        self.total: int | None = 0
        self.done = 0

    def start(self, what: str, total: int | None = None) -> None:
        self.total, self.done = total, 0

    def advance(self, done: int, **values: float) -> None:
        self.done += done


def test_an_interrupted_download_continues_where_it_broke_off(server: Server, cache: Cache) -> None:
    server.cut_after = 100_000
    progress = Bytes()
    path = remote.local_copy(f"{server.url}/train.jsonl", cache, progress)
    assert path.read_bytes() == ROWS
    assert [asked for asked in server.asked if asked[0].startswith("GET")] == [("GET /train.jsonl", None), ("GET /train.jsonl", "bytes=100000-")]
    assert progress.done == progress.total == len(ROWS)


def test_a_download_broken_by_the_process_ending_continues_in_the_next(server: Server, cache: Cache, tmp_path: Path) -> None:
    part = cache.parts / "key"
    part.parent.mkdir(parents=True)
    part.write_bytes(ROWS[:1000])
    part.with_name("key.tag").write_text(f'"{hashlib.sha1(ROWS).hexdigest()}"')
    remote.download(f"{server.url}/train.jsonl", part, tmp_path / "out", Progress())
    assert (tmp_path / "out").read_bytes() == ROWS
    assert server.asked == [("GET /train.jsonl", "bytes=1000-")]


def test_bytes_of_two_editions_are_never_joined(server: Server, cache: Cache, tmp_path: Path) -> None:
    part = cache.parts / "key"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"old edition")
    part.with_name("key.tag").write_text('"the old tag"')
    remote.download(f"{server.url}/train.jsonl", part, tmp_path / "out", Progress())
    assert (tmp_path / "out").read_bytes() == ROWS


def test_a_url_is_fetched_once_and_again_when_it_changes(server: Server, cache: Cache) -> None:
    url = f"{server.url}/train.jsonl"
    first = remote.local_copy(url, cache, Progress())
    assert remote.local_copy(url, cache, Progress()) == first
    assert sum(asked[0] == "GET /train.jsonl" for asked in server.asked) == 1
    server.files["train.jsonl"] = b'{"text": "new"}\n'
    assert remote.local_copy(url, cache, Progress()).read_bytes() == b'{"text": "new"}\n'


def test_what_is_not_there_is_said_at_once(server: Server, cache: Cache) -> None:
    with pytest.raises(ScenariumError, match="HTTP 404") as caught:
        remote.local_copy(f"{server.url}/none.csv", cache, Progress())
    assert caught.value.code == "SCN-2010"
    assert sum(asked[0] == "GET /none.csv" for asked in server.asked) == 1


def test_modelscope_file_and_data_set(server: Server, cache: Cache) -> None:
    digest = hashlib.sha256(ROWS).hexdigest()
    assert fetch(HubFile("ms", "org/set", "train.jsonl", "MIT", digest), cache=cache).read_bytes() == ROWS
    folder = fetch(HubDataset("ms", "org/set", "MIT"), cache=cache)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == ["README.md", "test/more.jsonl", "train.jsonl"]
    assert remote.local_copy("ms://org/set/train.jsonl", cache, Progress()).read_bytes() == ROWS


def test_a_hub_file_that_is_not_the_pinned_one_is_refused_every_time(server: Server, cache: Cache) -> None:
    for _ in range(2):
        with pytest.raises(ScenariumError) as caught:
            fetch(HubFile("ms", "org/set", "train.jsonl", "MIT", "0" * 64), cache=cache)
        assert caught.value.code == "SCN-2011"
    assert fetch(HubFile("ms", "org/set", "train.jsonl", "MIT"), cache=cache).read_bytes() == ROWS


def test_hugging_face_file_and_data_set(server: Server, cache: Cache, hub_cache: Path) -> None:
    path = remote.local_copy("hf://datasets/org/set/train.jsonl", cache, Progress())
    assert path.read_bytes() == ROWS
    assert path.is_relative_to(hub_cache)
    folder = fetch(HubDataset("hf", "org/set", "MIT"), cache=cache)
    assert (folder / "test" / "more.jsonl").read_bytes() == ROWS[:100]
    assert not (folder / ".gitattributes").exists()


def test_a_hub_that_refuses_names_the_mirror_setting(server: Server, cache: Cache, hub_cache: Path) -> None:
    for url in ("hf://org/none/train.jsonl", "hf://org/none"):
        with pytest.raises(ScenariumError, match="HF_ENDPOINT") as caught:
            remote.local_copy(url, cache, Progress())
        assert caught.value.code == "SCN-2010"
        assert server.url in str(caught.value)
    with pytest.raises(ScenariumError, match="MODELSCOPE_ENDPOINT"):
        remote.local_copy("ms://org/none", cache, Progress())


def test_an_fsspec_folder_is_copied_and_copied_again_when_it_changes(cache: Cache) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/bucket/data/train.csv": b"text,label\na,b\n", "/bucket/data/deep/test.csv": b"text,label\nc,d\n"})
    folder = remote.local_copy("memory://bucket/data", cache, Progress())
    assert (folder / "deep" / "test.csv").read_bytes() == b"text,label\nc,d\n"
    assert remote.local_copy("memory://bucket/data", cache, Progress()) == folder
    assert remote.local_copy("memory://bucket/data/train.csv", cache, Progress()).name == "train.csv"
    fs.pipe("/bucket/data/train.csv", b"text,label\nnew,b\n")
    assert (remote.local_copy("memory://bucket/data", cache, Progress()) / "train.csv").read_bytes() == b"text,label\nnew,b\n"
    with pytest.raises(ScenariumError) as caught:
        remote.local_copy("memory://bucket/none", cache, Progress())
    assert caught.value.code == "SCN-2001"


def test_a_file_inside_a_zip(cache: Cache, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner/train.csv", "text,label\na,b\n")
    path = remote.local_copy(f"zip://inner/train.csv::{tmp_path}/a.zip", cache, Progress())
    assert path.read_text() == "text,label\na,b\n"


def test_a_local_path_stays(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_text("x")
    assert remote.local_copy(str(tmp_path / "a b.csv"), cache, Progress()) == tmp_path / "a b.csv"
    assert remote.local_copy((tmp_path / "a b.csv").as_uri(), cache, Progress()) == tmp_path / "a b.csv"
    with pytest.raises(ScenariumError) as caught:
        remote.local_copy(str(tmp_path / "none"), cache, Progress())
    assert caught.value.code == "SCN-2001"


def test_paths_out_of_the_folder_are_refused() -> None:
    for name in ("../x", "/etc/passwd", "a/../../b"):
        with pytest.raises(ScenariumError):
            remote.safe_path(name)
