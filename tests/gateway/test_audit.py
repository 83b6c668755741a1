"""The audit log: what a line holds, and that no change of it stays unseen."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core.errors import ScenariumError
from scenarium.gateway import audit
from scenarium.gateway.admission import Caller
from scenarium.gateway.audit import START, Audit, Entry, verify
from scenarium.gateway.keys import Key, KeyFile


def entry(n: int, body: bytes = b"body", answer: bytes = b"answer") -> Entry:
    """A finished request."""
    made = Entry("POST", "/scenarios/unit/predict", "unit", Caller(Key(f"key{n}", b"", None, False, 0.0)))
    made.body.add(body, False)
    made.answer.add(answer, False)
    made.status, made.headers = 200, [(b"x-request-id", b"r%d" % n), (b"x-scenarium-version", b"3")]
    return made


def written(path, entries) -> None:
    log = Audit(path)
    for each in entries:
        log.put(each)
    log.close()


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_tells_who_asked_what_and_not_what_was_asked(tmp_path):
    path = tmp_path / "below" / "audit.jsonl"
    written(path, [entry(1, "我的秘密".encode(), b"the answer")])
    (line,) = lines_of(path)
    assert line.pop("at").endswith("+00:00")
    assert line.pop("hash") == verify([path])[1]
    assert line == {
        "n": 1,
        "key": "key1",
        "method": "POST",
        "path": "/scenarios/unit/predict",
        "scenario": "unit",
        "version": 3,
        "request_id": "r1",
        "status": 200,
        "body": hashlib.sha256("我的秘密".encode()).hexdigest(),
        "answer": hashlib.sha256(b"the answer").hexdigest(),
        "prev": START,
    }
    assert path.stat().st_mode & 0o007 == 0


def test_every_change_of_a_line_is_found(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path, [entry(n) for n in range(30)])
    whole = path.read_bytes()
    good = whole.splitlines(keepends=True)
    assert verify([path]) == (30, json.loads(good[-1])["hash"])

    def fault(content: bytes) -> int | None:
        path.write_bytes(content)
        with pytest.raises(ScenariumError, match="SCN-1106") as found:
            verify([path])
        assert found.value.file == str(path)
        return found.value.line

    chance = random.Random(5)
    for _ in range(200):
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        assert fault(bytes(changed)) == whole[:at].count(b"\n") + 1, (at, bit)
    for n in range(29):
        assert fault(b"".join(good[:n] + good[n + 1 :])) == n + 1, "taken out"
        assert fault(b"".join([*good[:n], good[n + 1], good[n], *good[n + 2 :]])) == n + 1, "moved"
        assert fault(b"".join([*good[: n + 1], good[n], *good[n + 1 :]])) == n + 2, "doubled"
    # A line that was written anew with a hash of its own is right in itself, and the next one does not follow it.
    bare = good[9].rpartition(audit.HASH.encode())[0].replace(b'"key9"', b'"key8"')
    forged = bare + f'{audit.HASH}{hashlib.sha256(bare).hexdigest()}"}}\n'.encode()
    assert fault(b"".join([*good[:9], forged, *good[10:]])) == 11


def test_lines_cut_off_at_the_end_are_found_by_a_hash_that_was_kept(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path, [entry(n) for n in range(5)])
    count, head = verify([path])
    assert verify([path], head) == (count, head)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify([path])[0] == 4
    with pytest.raises(ScenariumError, match="SCN-1106"):
        verify([path], head)


def test_the_chain_goes_on_after_a_restart_and_a_cut_line_is_confessed(tmp_path):
    path = tmp_path / "audit.jsonl"
    written(path, [entry(1, b"x" * 300_000)])
    written(path, [entry(2)])
    assert verify([path])[0] == 2
    with open(path, "ab") as file:
        file.write(b'{"n": 3, "at"')
    written(path, [entry(3)])
    assert verify([path])[0] == 4
    assert lines_of(path)[2] | {"event": "cut", "bytes": 13} == lines_of(path)[2]
    path.write_text("something else\n")
    with pytest.raises(ScenariumError, match="SCN-1105"):
        Audit(path)


def test_two_gateways_do_not_write_one_file(tmp_path):
    path = tmp_path / "audit.jsonl"
    first = Audit(path)
    with pytest.raises(ScenariumError, match="SCN-1105"):
        Audit(path)
    first.close()
    Audit(path).close()


def test_a_renamed_file_is_followed_by_a_new_one(tmp_path):
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    log = Audit(path)
    log.put(entry(1))
    until(lambda: log.lines == 1)
    path.rename(old)
    log.put(entry(2))
    until(lambda: log.lines == 2)
    log.close()
    written(path, [entry(3)])
    assert verify([old])[0] == 1
    assert verify([old, path])[0] == 4
    assert lines_of(path)[0]["event"] == "continued"
    with pytest.raises(ScenariumError, match="SCN-1106"):
        verify([path, old])


def test_lines_wait_for_a_full_disk_and_those_beyond_the_bound_are_confessed(tmp_path):
    """The real thing: a file that may not grow beyond a bound (RLIMIT_FSIZE), as on a full disk, and then may again."""
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from scenarium.gateway import audit
from test_audit import entry, until
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
audit.MOST_ENTRIES, audit.RETRY_S = 50, 0.1
path = Path(sys.argv[1])
log = audit.Audit(path)
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
log.put(entry(0)); until(lambda: log.lines == 1)
limit(path.stat().st_size + 700)
for n in range(20): log.put(entry(n))
until(lambda: not log.writable)
limit(resource.RLIM_INFINITY)
until(lambda: log.lines == 21)
assert log.writable and not log.lost
limit(path.stat().st_size)
for n in range(60): log.put(entry(n))
until(lambda: not log.writable)
assert log.lost == 10
limit(resource.RLIM_INFINITY)
until(lambda: log.lines == 71)
limit(path.stat().st_size)
log.put(entry(0))
log.close()
assert log.lost == 11
print(audit.verify([path])[0])
"""
    path = tmp_path / "audit.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path), str(audit.Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "72"
    assert [line["lines"] for line in lines_of(path) if line.get("event") == "lost"] == [10]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events if event["level"] == "error"] == ["audit_unwritable", "audit_lost"]


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "MOST_BYTES", 10_000)
    log = Audit(tmp_path / "audit.jsonl")
    monkeypatch.setattr(log, "_write", lambda entries: (_ for _ in ()).throw(OSError(errno.EIO, "no disk")))
    for _ in range(50):
        log.put(entry(1, b"x" * 1000))
    assert log.lost == 41
    monkeypatch.undo()
    log.close()
    lines = lines_of(tmp_path / "audit.jsonl")
    assert lines[0]["lines"] == 41
    assert len(lines) == 1 + 9


def test_pieces_are_hashed_as_one(tmp_path):
    async def pass_through() -> Entry:
        messages = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"c", "more_body": False}]
        gone = {"type": "http.disconnect"}
        made = Entry("POST", "/p", "unit", Caller(None))
        sent = []

        async def receive():
            return messages.pop(0) if messages else gone

        async def send(message):
            sent.append(message)

        hear, tell = made.receive(receive), made.send(send)
        for _ in range(3):
            await hear()
        await tell({"type": "http.response.start", "status": 200, "headers": []})
        for piece, more in ((b"1", True), (b"2", True), (b"", False)):
            await tell({"type": "http.response.body", "body": piece, "more_body": more})
        return made

    values = asyncio.run(pass_through()).values()
    assert values["body"] == hashlib.sha256(b"abc").hexdigest()
    assert values["answer"] == hashlib.sha256(b"12").hexdigest()
    assert values["key"] is None


def until(condition, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ── a gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_writes_a_line_for_each_request(lab):
    lab.publish("unit")
    key, text = KeyFile(lab.folder / "keys.sqlite").create(admin=True)
    path = lab.folder / "audit.jsonl"
    gateway = lab.start({"unit": "unit"}, f"gateway.audit={path}")
    gateway.client.headers = {"Authorization": f"Bearer {text}"}
    gateway.ready("unit")
    bodies = [json.dumps({"text": f"t{n}"}).encode() for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: gateway.client.post("/scenarios/unit/predict", content=body), bodies))
    stream = gateway.client.post("/scenarios/unit/stream", json={"text": "x", "n": 3})
    batch = gateway.client.post("/scenarios/unit/predict/batch", content=b"\n".join(bodies))
    wrong = gateway.client.post("/scenarios/unit/predict", content=b"{")
    gateway.client.get("/admin/nowhere")
    until(lambda: path.exists() and path.read_text().count("\n") == 204)
    lines = {line["request_id"]: line for line in lines_of(path)}
    for body, answer in (*zip(bodies, answers, strict=True), (b"\n".join(bodies), batch), (b"{", wrong), (stream.request.content, stream)):
        line = lines[answer.headers["X-Request-Id"]]
        assert line["body"] == hashlib.sha256(body).hexdigest()
        assert line["answer"] == hashlib.sha256(answer.content).hexdigest()
        assert (line["key"], line["scenario"], line["status"]) == (key.id, "unit", answer.status_code)
    assert lines[answers[0].headers["X-Request-Id"]]["version"] == 1
    assert [line["path"] for line in lines_of(path) if line["scenario"] is None] == ["/admin/nowhere"]
    metrics = gateway.client.get("/metrics").text
    assert "scenarium_audit_lines_total 204.0" in metrics
    assert "scenarium_audit_lost_total 0.0" in metrics
    gateway.stop(signal.SIGKILL)
    again = lab.start({"unit": "unit"}, f"gateway.audit={path}")
    again.client.headers = {"Authorization": f"Bearer {text}"}
    again.ready("unit")
    assert again.ask("unit").status_code == 200
    assert again.stop() == 0
    head = [event for event in again.events if event["event"] == "audit_head"][-1]
    checked = subprocess.run([sys.executable, "-m", "scenarium.core.cli", "audit", "verify", str(path), "--head", head["hash"], "--json"], capture_output=True)
    assert json.loads(checked.stdout) == {"lines": 205, "head": head["hash"]}
    content = path.read_text().replace('"status": 400', '"status": 200')
    path.write_text(content)
    found = subprocess.run([sys.executable, "-m", "scenarium.core.cli", "audit", "verify", str(path)], capture_output=True, text=True)
    assert found.returncode == 1
    assert f"{path}:{1 + next(n for n, line in enumerate(lines_of(path)) if line['request_id'] == wrong.headers['X-Request-Id'])}" in found.stderr


@pytest.mark.parametrize("required", [False, True])
def test_a_gateway_whose_audit_log_cannot_be_written(lab, required):
    lab.publish("unit")
    path = lab.folder / "audit.jsonl"
    gateway = lab.start({"unit": "unit"}, f"gateway.audit={path}", f"gateway.audit_required={str(required).lower()}")
    gateway.ready("unit")
    answers = [gateway.ask("unit", "before")]
    until(lambda: len(lines_of(path)) == 1)
    pid = gateway.popen.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
    answers.append(gateway.ask("unit", "this one shows that the disk is full"))
    assert gateway.wait_event("audit_unwritable")["reason"] == "File too large"
    during = [gateway.ask("unit", "during") for _ in range(20)]
    if required:
        assert {answer.status_code for answer in during} == {503}
        assert (during[0].json()["code"], during[0].headers["Retry-After"]) == ("SCN-4114", "1")
        assert gateway.client.get("/admin/status").json()["code"] == "SCN-4114"
        assert gateway.client.post("/v2/repository/models/unit/unload", json={}).status_code == 503
        assert gateway.client.get("/readyz").status_code == 503
        assert gateway.client.get("/healthz").status_code == 200
    else:
        assert {answer.status_code for answer in during} == {200}
        assert gateway.client.get("/readyz").status_code == 200
        answers += during
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: len(lines_of(path)) == len(answers))
    answers.append(lab.until(lambda: (answer := gateway.ask("unit", "after")).status_code == 200 and answer))
    until(lambda: len(lines_of(path)) == len(answers))
    assert {line["request_id"] for line in lines_of(path)} == {answer.headers["X-Request-Id"] for answer in answers}
    assert "scenarium_audit_lost_total 0.0" in gateway.client.get("/metrics").text
    assert verify([path])[0] == len(answers)
