"""Local copies of what lies elsewhere: HTTP downloads that continue where they broke off, hub files, any fsspec URL.

Paths of the hubs: huggingface_hub (https://huggingface.co/docs/huggingface_hub) and ModelScope's
``/api/v1/{datasets,models}/<org>/<name>/repo`` as its own client uses them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from scenarium.core.cache import Cache
from scenarium.core.errors import ScenariumError
from scenarium.core.hashes import sha256
from scenarium.core.progress import Progress

if TYPE_CHECKING:
    import httpx

    from scenarium.core.sources import HubDataset, HubFile

TIMEOUT_S = 30.0
ATTEMPTS = 4
MODELSCOPE = "https://www.modelscope.cn"


def unreachable(what: str, tried: str, reason: object, by_hand: str, by_hand_zh: str) -> ScenariumError:
    """The error for what could not be fetched: what was tried, and how to do without the network."""
    return ScenariumError("SCN-2010", what=what, tried=tried, reason=reason, by_hand=by_hand, by_hand_zh=by_hand_zh)


def download(url: str, part: Path, target: Path, progress: Progress, headers: dict[str, str] | None = None) -> None:
    """Fetch ``url`` into ``target``. ``part`` keeps what came before a break, and the next call continues it (HTTP Range).

    The entity tag stands beside ``part``, so that bytes of two editions of a file are never joined.

    Raises:
        ScenariumError: SCN-2010 after four attempts, or at once on a refusal (4xx).
    """
    import httpx

    part.parent.mkdir(parents=True, exist_ok=True)
    tag = part.with_name(part.name + ".tag")
    reason: object = ""
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=headers or {}) as client:
        for _ in range(ATTEMPTS):
            try:
                _attempt(client, url, part, tag, progress)
                os.replace(part, target)
                tag.unlink(missing_ok=True)
                return
            except httpx.HTTPStatusError as fault:
                reason = f"HTTP {fault.response.status_code}"
                if fault.response.status_code < 500:
                    break
            except httpx.HTTPError as fault:
                reason = str(fault) or type(fault).__name__
    raise unreachable(
        url, f"GET {url}", reason, "Download the file elsewhere and name its path with --data.", "请在其他机器上下载该文件，再用 --data 指定其路径。"
    )


def _attempt(client: httpx.Client, url: str, part: Path, tag: Path, progress: Progress) -> None:
    import httpx

    have = part.stat().st_size if part.exists() and tag.exists() else 0
    asked = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    with client.stream("GET", url, headers={"Accept-Encoding": "identity", **asked}) as response:
        if response.status_code == 416:
            part.unlink()
            raise httpx.TransportError("the server does not have the range that was asked for")
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        validator = response.headers.get("etag") or response.headers.get("last-modified")
        if validator and not validator.startswith("W/"):
            tag.write_text(validator)
        else:
            tag.unlink(missing_ok=True)
        length = response.headers.get("content-length")
        total = have + int(length) if length else None
        progress.start(f"fetching {PurePosixPath(urlsplit(url).path).name or url}", total)
        progress.advance(have)
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                progress.advance(len(chunk))
        progress.finish()
    if total is not None and part.stat().st_size != total:
        raise httpx.TransportError(f"{part.stat().st_size} of {total} bytes came")


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def hub_file(file: HubFile, cache: Cache, progress: Progress) -> Path:
    """The local path of one hub file, checked against its hash where it is pinned."""
    return _hf_file(file, progress) if file.hub == "hf" else _ms_file(file, cache, progress)


def _check(path: Path, file: HubFile) -> None:
    if file.sha256 and (found := sha256(path)) != file.sha256:
        raise ScenariumError("SCN-2011", what=f"{file.hub}://{file.repo}/{file.file}", expected=file.sha256, found=found)


def hub_dataset(data: HubDataset, cache: Cache, progress: Progress) -> Path:
    """The local folder with all files of a hub repository that match the pattern."""
    if data.hub == "hf":
        return _hf_dataset(data, progress)
    from scenarium.core.sources import HubFile

    names = [name for name in _ms_list(data) if fnmatch.fnmatch(name, data.pattern) and not PurePosixPath(name).name.startswith(".")]
    if not names:
        raise ScenariumError("SCN-2012", member=data.pattern, package=f"ms://{data.repo}", nearest="-")

    def fill(folder: Path) -> None:
        for name in names:
            source = _ms_file(HubFile("ms", data.repo, name, data.licence, revision=data.revision, kind=data.kind), cache, progress)
            target = folder / safe_path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)

    return cache.get(_key("ms-dataset", data.kind, data.repo, data.revision, *sorted(names)), fill)


def safe_path(name: str) -> PurePosixPath:
    """``name`` as a relative path that stays inside its folder.

    Raises:
        ScenariumError: SCN-2006, an archive or a hub names a path outside.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ScenariumError("SCN-2006", file=name, reason="the path leaves its folder", reason_zh="路径超出了所在文件夹")
    return path


def _hf_library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ScenariumError("SCN-2013", what="hf://", module="huggingface_hub") from None
    return huggingface_hub


def _hf_fault(repo: str, fault: Exception) -> ScenariumError:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    text = str(fault).strip().splitlines()
    return unreachable(
        f"hf://{repo}",
        endpoint,
        text[0] if text else type(fault).__name__,
        "Set HF_ENDPOINT to a mirror you can reach, and HF_TOKEN where the repository asks for consent; or name a downloaded file with --data.",
        "请将 HF_ENDPOINT 设为可访问的镜像（需要授权的仓库请设置 HF_TOKEN），或在其他机器上下载后用 --data 指定其路径。",
    )


def _hf_file(file: HubFile, progress: Progress) -> Path:
    library = _hf_library()
    progress.note(f"fetching {file.file} of hf://{file.repo}")
    # The endpoint is passed since the library reads HF_ENDPOINT only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        path = Path(library.hf_hub_download(file.repo, file.file, repo_type=file.kind, revision=file.revision or None, endpoint=endpoint))
    except Exception as fault:  # the library raises its own, httpx's and OSError's; each means that the file is not here
        raise _hf_fault(file.repo, fault) from fault
    _check(path, file)
    return path


def _hf_dataset(data: HubDataset, progress: Progress) -> Path:
    library = _hf_library()
    progress.note(f"fetching hf://{data.repo}")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        folder = library.snapshot_download(
            data.repo,
            repo_type=data.kind,
            revision=data.revision or None,
            endpoint=endpoint,
            allow_patterns=[data.pattern],
            ignore_patterns=[".*", "README.md"],
        )
    except Exception as fault:
        raise _hf_fault(data.repo, fault) from fault
    return Path(folder)


def _ms_endpoint() -> str:
    return (os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE).rstrip("/")


def _ms_headers() -> dict[str, str]:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    # The older half of the API knows the token as a session cookie, the newer as a bearer.
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


def _ms_file(file: HubFile, cache: Cache, progress: Progress) -> Path:
    revision = file.revision or "master"
    url = f"{_ms_endpoint()}/api/v1/{file.kind}s/{file.repo}/repo?Revision={quote(revision, safe='')}&FilePath={quote(file.file, safe='')}"
    key = _key("ms", file.kind, file.repo, revision, file.file, file.sha256)
    name = safe_path(file.file).name

    def fill(folder: Path) -> None:
        download(url, cache.parts / key, folder / name, progress, _ms_headers())
        _check(folder / name, file)

    return cache.get(key, fill) / name


def _ms_list(data: HubDataset) -> list[str]:
    """Paths of all files of a ModelScope repository; data sets come in pages of 200."""
    import httpx

    suffix = "repo/tree" if data.kind == "dataset" else "repo/files"
    url = f"{_ms_endpoint()}/api/v1/{data.kind}s/{data.repo}/{suffix}"
    names: list[str] = []
    page = 1
    try:
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=_ms_headers()) as client:
            while True:
                query: dict[str, str | int] = {"Revision": data.revision or "master", "Recursive": "True"}
                if data.kind == "dataset":
                    query |= {"PageNumber": page, "PageSize": 200}
                found = client.get(url, params=query).raise_for_status().json()["Data"]
                files = found if isinstance(found, list) else found.get("Files") or []
                names += [str(entry["Path"]) for entry in files if entry.get("Type") != "tree"]
                if data.kind != "dataset" or len(files) < 200:
                    return names
                page += 1
    except (httpx.HTTPError, ValueError, KeyError) as fault:
        by_hand = ("Set MODELSCOPE_ENDPOINT or MODELSCOPE_API_TOKEN, or download the data elsewhere and name its path with --data.",)
        zh = "请设置 MODELSCOPE_ENDPOINT 或 MODELSCOPE_API_TOKEN，或在其他机器上下载后用 --data 指定其路径。"
        raise unreachable(f"ms://{data.repo}", url, fault or type(fault).__name__, *by_hand, zh) from fault


def local_copy(url: str, cache: Cache, progress: Progress) -> Path:
    """A local path for the user's own data.

    A local path stays what it is (``~`` is resolved). ``hf://`` and ``ms://`` name hub data: ``hf://[datasets/]org/name[@revision][/file]``.
    ``http(s)://`` and every other fsspec URL (``s3://bucket/folder``, ``zip::https://…``) is copied into the cache, again when its
    size, time or entity tag changes.

    Raises:
        ScenariumError: SCN-2001 (nothing there), SCN-2010 (not reachable), SCN-2013 (a package for this protocol is missing).
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if not scheme or scheme == "file":
        path = Path(unquote(urlsplit(url).path) if scheme else url).expanduser()
        if not path.exists():
            raise ScenariumError("SCN-2001", path=url)
        return path
    if scheme in ("hf", "ms"):
        return _hub_url(url, cache, progress)
    if scheme in ("http", "https"):
        return _http_copy(url, cache, progress)
    return _fsspec_copy(url, cache, progress)


def _hub_url(url: str, cache: Cache, progress: Progress) -> Path:
    from scenarium.core.sources import HubDataset, HubFile

    scheme, _, rest = url.partition("://")
    parts = rest.strip("/").split("/")
    if parts[0] in ("datasets", "dataset"):
        parts = parts[1:]
    if len(parts) < 2:
        raise ScenariumError("SCN-2001", path=url)
    name, _, revision = parts[1].partition("@")
    hub, repo, file = ("hf" if scheme == "hf" else "ms"), f"{parts[0]}/{name}", "/".join(parts[2:])
    licence = "the repository's own"
    if file and PurePosixPath(file).suffix:
        return hub_file(HubFile(hub, repo, file, licence, revision=revision), cache, progress)  # type: ignore[arg-type]
    folder = hub_dataset(HubDataset(hub, repo, licence, f"{file}/*" if file else "*", revision), cache, progress)  # type: ignore[arg-type]
    return folder / file if file else folder


def _http_copy(url: str, cache: Cache, progress: Progress) -> Path:
    import httpx

    edition = ""
    try:
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S) as client:
            head = client.head(url)
        edition = "\0".join(head.headers.get(name, "") for name in ("etag", "last-modified", "content-length")) if head.is_success else ""
    except httpx.HTTPError:
        pass  # some servers refuse HEAD; the download itself tells what is wrong
    key = _key("http", url, edition)
    if not edition.strip("\0"):
        cache.drop(key)  # nothing tells one edition from the next, so it is fetched anew
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "data"
    entry = cache.get(key, lambda folder: download(url, cache.parts / key, folder / name, progress))
    return entry / name


def _fsspec_copy(url: str, cache: Cache, progress: Progress) -> Path:
    import fsspec

    try:
        fs, path = fsspec.url_to_fs(url)
        if not fs.exists(path):
            raise ScenariumError("SCN-2001", path=url)
        files = {path: fs.info(path)} if fs.isfile(path) else fs.find(path, detail=True)
    except ImportError as fault:
        raise ScenariumError("SCN-2013", what=url.partition("://")[0] + "://", module=str(fault)) from None
    except (OSError, ValueError) as fault:
        raise unreachable(url, url, fault, "Check the address and your credentials for it.", "请检查该地址及访问凭据。") from fault
    state = {name: [str(info.get(k)) for k in ("size", "ETag", "etag", "mtime", "LastModified", "created")] for name, info in files.items()}
    single = list(files) == [path]
    name = PurePosixPath(path.rstrip("/") or "data").name or "data"

    def fill(folder: Path) -> None:
        progress.start(f"fetching {url}", sum(int(info.get("size") or 0) for info in files.values()))
        for remote, info in files.items():
            relative = name if single else remote[len(path.rstrip("/")) :].lstrip("/") if path.strip("/") else remote
            target = folder / safe_path(relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(remote, str(target))
            progress.advance(int(info.get("size") or 0))
        progress.finish()

    entry = cache.get(_key("fsspec", url, json.dumps(state, sort_keys=True)), fill)
    return entry / name if single else entry
