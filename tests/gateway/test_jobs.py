"""Jobs on real gateways: each has one result, through cancels, deadlines and limits."""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.gateway.keys import KeyFile
from tests.gateway.job_calls import ENDED, ended, job_of, lines, submit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(shared_lab):
    """A gateway that most tests share."""
    shared_lab.publish("unit")
    gateway = shared_lab.start({"unit": "unit"}, "gateway.jobs_at_once=2", "scenarios.unit.serve.queue_size=8")
    gateway.ready("unit")
    return gateway


def outcomes(gateway) -> dict[str, float]:
    names = ("ok", "client_error", "server_error", "cancelled")
    found = dict(line.rsplit(" ", 1) for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(found[f'scenarium_requests_total{{outcome="{name}",scenario="unit"}}']) for name in names}


def test_what_jobs_ask_for_counts_as_requests(shared_lab, served):
    before = outcomes(served)
    ended(shared_lab, served, submit(served))
    ended(shared_lab, served, submit(served, do="raise"))
    batch = served.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": "a"}, {"wrong": 1}, {"text": "c"}]).json()
    assert ended(shared_lab, served, batch)["state"] == "done"
    job = submit(served, do="sleep", seconds=5)
    shared_lab.until(lambda: job_of(served, job)["state"] == "running")
    served.client.delete(job["url"])
    after = shared_lab.until(lambda: (found := outcomes(served))["cancelled"] > before["cancelled"] and found)
    assert {name: after[name] - before[name] for name in after} == {"ok": 3, "client_error": 1, "server_error": 1, "cancelled": 1}


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_is_accepted_and_answers_later(shared_lab, served):
    job = submit(served, "later", do="sleep", seconds=0.3)
    assert job["state"] == "queued"
    early = served.client.get(job["result"])
    assert (early.status_code, early.json()["code"]) == (409, "SCN-4122")
    found = ended(shared_lab, served, job)
    assert found["state"] == "done"
    assert found["created"] <= found["started"] <= found["ended"] < found["expires"]
    answer = served.client.get(job["result"])
    assert (answer.status_code, answer.json()["text"]) == (200, "later")
    assert answer.headers["x-scenarium-version"] == "1" == str(found["version"])
    assert served.client.get(job["result"]).content == answer.content


def test_bad_input_is_a_failed_job_with_the_answers_own_status(shared_lab, served):
    job = served.client.post("/scenarios/unit/jobs", json={"no": 1}).json()
    found = ended(shared_lab, served, job)
    assert found["state"] == "failed"
    assert (found["error"]["code"], found["error"]["field"]) == ("SCN-4001", "text")
    answer = served.client.get(job["result"])
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (422, "application/problem+json", found["error"])


def test_a_batch_shows_progress_and_errors_in_place(shared_lab, served):
    texts = [{"text": f"t{n}", "do": "sleep", "seconds": 0.02} for n in range(40)]
    texts[7] = {"no": 1}
    job = served.client.post("/scenarios/unit/jobs?batch=1", json=texts).json()
    assert job["progress"] == {"done": 0, "total": 40, "errors": 0}
    middle = shared_lab.until(lambda: 0 < (p := job_of(served, job)["progress"])["done"] < 40 and p)
    assert middle["total"] == 40
    assert ended(shared_lab, served, job)["progress"] == {"done": 40, "total": 40, "errors": 1}
    answer = served.client.get(job["result"])
    assert [each.get("text", each.get("code")) for each in answer.json()] == [f"t{n}" if n != 7 else "SCN-4001" for n in range(40)]
    assert (answer.headers["x-scenarium-items"], answer.headers["x-scenarium-errors"]) == ("40", "1")


def test_json_lines_in_json_lines_out(shared_lab, served):
    body = b'{"text": "a"}\n{"text": "b"}\n'
    job = served.client.post("/scenarios/unit/jobs?batch=1", content=body).json()
    ended(shared_lab, served, job)
    answer = served.client.get(job["result"])
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["text"] for line in answer.text.splitlines()] == ["a", "b"]


def test_a_stream_is_kept_part_by_part(shared_lab, served):
    job = submit(served, "s", "?stream=1", n=4, seconds=0.1)
    shared_lab.until(lambda: 0 < job_of(served, job)["progress"]["done"] < 4)
    assert ended(shared_lab, served, job)["progress"]["done"] == 4
    assert [json.loads(line)["part"] for line in served.client.get(job["result"]).text.splitlines()] == [0, 1, 2, 3]


def test_single_requests_are_not_refused_because_of_jobs(shared_lab, served):
    """A queue of 8, 30 jobs and a batch of 100: singles still find room, and none waits behind all of that."""
    jobs = [served.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": "b", "do": "sleep", "seconds": 0.02}] * 100).json()]
    jobs += [submit(served, f"j{n}", do="sleep", seconds=0.02) for n in range(30)]
    answers = [served.ask("unit", f"single{n}") for n in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert any(job_of(served, job)["state"] not in ENDED for job in jobs)
    for job in jobs:
        assert ended(shared_lab, served, job, 60)["state"] == "done"


def test_the_same_idempotency_key_is_the_same_job(served):
    job = submit(served, "once", headers={"Idempotency-Key": "k1"})
    again = submit(served, "once", headers={"Idempotency-Key": "k1"})
    assert again["id"] == job["id"]
    assert submit(served, "once", headers={"Idempotency-Key": "k2"})["id"] != job["id"]
    other = served.client.post("/scenarios/unit/jobs", json={"text": "other"}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (422, "SCN-4128")
    long = served.client.post("/scenarios/unit/jobs", json={"text": "x"}, headers={"Idempotency-Key": "k" * 256})
    assert (long.status_code, long.json()["code"]) == (400, "SCN-4018")


@pytest.mark.parametrize("ident", ["nothing", "0" * 32, "%2e%2e", "a b", "é", "x" * 4000])
def test_bad_ids_are_not_there(served, ident):
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/result")):
        answer = served.client.request(method, f"/jobs/{ident}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/jobs?limit=0", "SCN-4129"),
        ("/jobs?limit=501", "SCN-4129"),
        ("/jobs?limit=²", "SCN-4129"),
        ("/jobs?state=lost", "SCN-4129"),
        ("/jobs?after=nothing", "SCN-4121"),
    ],
)
def test_bad_queries_of_a_list(served, path, code):
    assert served.client.get(path).json()["code"] == code


@pytest.mark.parametrize(
    ("query", "content", "status", "code"),
    [
        ("?batch=2", b"[]", 400, "SCN-4129"),
        ("?batch=1&stream=1", b"[]", 400, "SCN-4129"),
        ("?batch=1", b'[{"text": "a"}', 400, "SCN-4002"),
        ("?batch=1", b"", 400, "SCN-4002"),
    ],
)
def test_a_bad_request_for_a_job(served, query, content, status, code):
    answer = served.client.post(f"/scenarios/unit/jobs{query}", content=content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_lists_are_paged_and_filtered(served):
    made = [submit(served, f"p{n}")["id"] for n in range(5)]
    page = served.client.get("/jobs?scenario=unit&limit=2").json()
    seen = [job["id"] for job in page["jobs"]]
    while len(seen) < 5:
        page = served.client.get(page["next"]).json()
        seen += [job["id"] for job in page["jobs"]]
    assert seen[:5] == made[::-1]
    assert served.client.get("/jobs?scenario=other").json() == {"jobs": [], "next": None}
    assert {job["state"] for job in served.client.get("/jobs?state=failed").json()["jobs"]} <= {"failed"}


# ── ending ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel(shared_lab, served, tmp_path):
    trail = tmp_path / "trail"
    running = [submit(served, f"running{n}", do="sleep", seconds=30, trail=str(trail)) for n in range(2)]
    shared_lab.until(lambda: lines(trail))
    queued = submit(served, "queued", trail=str(trail))
    assert served.client.delete(queued["url"]).json()["state"] == "cancelled"
    began = time.monotonic()
    for job in running:
        assert served.client.delete(job["url"]).json()["state"] == "cancelled"
    after = submit(served, "after", trail=str(trail))
    assert ended(shared_lab, served, after)["state"] == "done"
    assert time.monotonic() - began < 20  # the worker that slept was ended after its grace
    assert "queued" not in lines(trail)
    answer = served.client.get(queued["result"])
    assert (answer.status_code, answer.json()["code"]) == (410, "SCN-4123")
    assert served.client.delete(after["url"]).json()["state"] == "done"  # what has ended stays as it is


def test_a_cancelled_batch_stops_where_it_is(shared_lab, served, tmp_path):
    trail = tmp_path / "trail"
    body = [{"text": "e", "do": "sleep", "seconds": 0.05, "trail": str(trail)}] * 200
    job = served.client.post("/scenarios/unit/jobs?batch=1", json=body).json()
    shared_lab.until(lambda: lines(trail))
    assert served.client.delete(job["url"]).json()["state"] == "cancelled"
    shared_lab.until(lambda: 'scenarium_jobs{scenario="unit",state="running"} 0.0' in served.client.get("/metrics").text)
    time.sleep(0.5)
    count = len(lines(trail))
    time.sleep(0.5)
    assert len(lines(trail)) == count < 100


def test_a_job_has_its_own_deadline(shared_lab, served):
    job = submit(served, "slow", headers={"X-Scenarium-Deadline-Ms": "300"}, do="sleep", seconds=3)
    found = ended(shared_lab, served, job)
    assert (found["state"], found["error"]["code"]) == ("failed", "SCN-4007")
    assert served.client.get(job["result"]).status_code == 504


def test_results_expire_and_are_forgotten(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "gateway.jobs_keep_s=2")
    gateway.ready("unit")
    job = submit(gateway)
    ended(lab, gateway, job)
    assert gateway.client.get(job["result"]).status_code == 200
    gone = lab.until(lambda: (a := gateway.client.get(job["result"])).status_code != 200 and a)
    assert (gone.status_code, gone.json()["code"]) == (410, "SCN-4123")
    assert job_of(gateway, job)["state"] == "done"
    lab.until(lambda: gateway.client.get(job["url"]).status_code == 404)
    lab.until(lambda: sqlite3.connect(lab.folder / "jobs.sqlite").execute("SELECT COUNT(*) FROM jobs").fetchone() == (0,))


def test_too_many_and_too_large(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"}, "gateway.max_jobs=3", "gateway.jobs_at_once=1", "gateway.max_job_bytes=400")
    gateway.ready("unit")
    blocker = submit(gateway, do="sleep", seconds=1)
    submit(gateway)
    submit(gateway)
    refused = gateway.client.post("/scenarios/unit/jobs", json={"text": "x"})
    assert (refused.status_code, refused.json()["code"], "retry-after" in refused.headers) == (503, "SCN-4124", True)
    ended(lab, gateway, blocker)
    large = submit(gateway, "x" * 500)
    found = ended(lab, gateway, large)
    assert (found["state"], found["error"]["code"]) == ("failed", "SCN-4126")
    stream = submit(gateway, "x" * 50, "?stream=1", n=100)
    assert ended(lab, gateway, stream)["error"]["code"] == "SCN-4126"
    batch = gateway.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": "x" * 50}] * 5).json()
    assert ended(lab, gateway, batch)["error"]["code"] == "SCN-4126"
    body = gateway.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": "x" * 50}] * 50)
    assert (body.status_code, body.json()["code"]) == (413, "SCN-4012")


# ── who and where ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_openapi_document_has_the_routes(served):
    paths = served.client.get("/openapi.json").json()["paths"]
    assert set(paths["/scenarios/unit/jobs"]["post"]["responses"]) >= {"202", "422", "503"}
    assert {method for path in ("/jobs", "/jobs/{ident}", "/jobs/{ident}/result") for method in paths[path]} == {"get", "delete"}
    operations = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(operations) == len(set(operations))


def test_a_job_belongs_to_the_key_that_made_it(lab):
    lab.publish("unit")
    keys = KeyFile(lab.folder / "keys.sqlite")
    texts = {"a": keys.create()[1], "b": keys.create()[1], "admin": keys.create(admin=True)[1]}
    bearer = {who: {"Authorization": f"Bearer {text}"} for who, text in texts.items()}
    gateway = lab.start({"unit": "unit"})
    job = submit(gateway, headers=bearer["a"] | {"Idempotency-Key": "k"})
    assert submit(gateway, headers=bearer["b"] | {"Idempotency-Key": "k"})["id"] != job["id"]
    assert gateway.client.get(job["url"]).status_code == 401
    for method, path in (("GET", job["url"]), ("DELETE", job["url"]), ("GET", job["result"]), ("GET", f"/jobs?after={job['id']}")):
        assert gateway.client.request(method, path, headers=bearer["b"]).status_code == 404
    lab.until(lambda: job_of(gateway, job, headers=bearer["a"])["state"] == "done")
    assert gateway.client.get(job["result"], headers=bearer["admin"]).status_code == 200
    counts = {who: len(gateway.client.get("/jobs", headers=header).json()["jobs"]) for who, header in bearer.items()}
    assert counts == {"a": 1, "b": 1, "admin": 2}


def test_a_batch_counts_each_element_for_the_keys_limits(lab):
    from scenarium.gateway.keys import parse_rate

    lab.publish("unit")
    _, text = KeyFile(lab.folder / "keys.sqlite").create(rate=parse_rate("4/2s"), daily=6)
    # Elements over the day's quota are refused where the job ends before the next day (UTC) begins; else they wait for it.
    gateway = lab.start({"unit": "unit"}, "gateway.job_deadline_s=5")
    gateway.wait_event("worker_ready")
    header = {"Authorization": f"Bearer {text}"}
    began = time.monotonic()
    job = gateway.client.post("/scenarios/unit/jobs?batch=1", json=[{"text": f"t{n}"} for n in range(8)], headers=header).json()
    found = lab.until(lambda: (f := job_of(gateway, job, headers=header))["state"] == "done" and f)
    assert time.monotonic() - began > 0.8  # two of them waited half a second each
    answers = gateway.client.get(job["result"], headers=header).json()
    assert [each.get("text", each.get("code")) for each in answers] == [*(f"t{n}" for n in range(6)), "SCN-4106", "SCN-4106"]
    assert found["progress"] == {"done": 8, "total": 8, "errors": 2}


def test_a_job_of_a_scenario_that_is_being_unloaded_waits_without_a_write(lab):
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    with ThreadPoolExecutor(2) as pool:
        last = pool.submit(gateway.ask, "unit", do="sleep", seconds=2.0)
        lab.until(lambda: 'scenarium_requests_open{scenario="unit"} 1.0' in gateway.client.get("/metrics").text)
        unloaded = pool.submit(gateway.client.post, "/v2/repository/models/unit/unload")
        lab.until(lambda: gateway.ask("unit").status_code == 503)
        job = submit(gateway)
        time.sleep(0.2)
        written = [file.stat().st_mtime_ns for file in sorted(lab.folder.glob("jobs.sqlite*"))]
        time.sleep(0.8)
        assert not last.done()
        assert [file.stat().st_mtime_ns for file in sorted(lab.folder.glob("jobs.sqlite*"))] == written
        assert job_of(gateway, job)["state"] == "queued"
        assert (last.result().status_code, unloaded.result().status_code) == (200, 200)
    gateway.client.post("/v2/repository/models/unit/load")
    assert ended(lab, gateway, job)["state"] == "done"


def test_two_gateways_do_not_share_the_file(lab):
    lab.publish("unit")
    first = lab.start({"unit": "unit"})
    first.ready("unit")
    job = submit(first)
    second = lab.start({"unit": "unit"})
    second.ready("unit")
    refused = second.client.get(job["url"], headers={"Accept-Language": "zh"})
    assert (refused.status_code, refused.json()["code"]) == (503, "SCN-4127")
    assert "另一个网关" in refused.json()["title"]
    assert second.ask("unit").status_code == 200
    assert first.stop() == 0
    lab.until(lambda: second.client.get(job["url"]).status_code == 200)  # taken over
    assert oct((lab.folder / "jobs.sqlite").stat().st_mode & 0o777) == "0o600"


def test_an_answer_waits_for_a_file_that_cannot_be_written(lab, tmp_path):
    trail = tmp_path / "trail"
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    job = submit(gateway, "kept", do="sleep", seconds=0.5, trail=str(trail))
    lab.until(lambda: lines(trail))
    with contextlib.closing(sqlite3.connect(lab.folder / "jobs.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        gateway.wait_event("jobs_unusable")  # SQLite waits 1 s for a lock
        refused = gateway.client.post("/scenarios/unit/jobs", json={"text": "x"})
        assert (refused.status_code, refused.json()["code"]) == (503, "SCN-4127")
        assert gateway.ask("unit").status_code == 200
        assert job_of(gateway, job)["state"] == "running"
    assert ended(lab, gateway, job)["state"] == "done"
    assert lines(trail) == ["kept"]


def test_a_full_disk_takes_no_job_in_and_loses_none(lab):
    """The gateway's files may not grow (RLIMIT_FSIZE), as on a full disk, and then may again."""
    lab.publish("unit")
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    job = submit(gateway, "kept", do="sleep", seconds=0.5)
    lab.until(lambda: job_of(gateway, job)["state"] == "running")
    resource.prlimit(gateway.popen.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    refused = gateway.client.post("/scenarios/unit/jobs", json={"text": "x"})
    assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (503, "SCN-4127", "1")
    assert gateway.ask("unit").status_code == 200
    gateway.wait_event("jobs_unusable")
    assert job_of(gateway, job)["state"] == "running"
    resource.prlimit(gateway.popen.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ended(lab, gateway, job)["state"] == "done"
    assert gateway.client.get(f"{job['url']}/result").json()["text"] == "kept"
    assert ended(lab, gateway, submit(gateway, "after"))["state"] == "done"
    assert 'scenarium_jobs_ended_total{scenario="unit",state="done"} 2.0' in gateway.client.get("/metrics").text


def test_a_file_that_is_none_harms_nothing_else(lab):
    lab.publish("unit")
    (lab.folder / "jobs.sqlite").write_text("this is no database, and long enough to be read as the header of one" * 20)
    gateway = lab.start({"unit": "unit"})
    gateway.ready("unit")
    answer = gateway.client.post("/scenarios/unit/jobs", json={"text": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "SCN-4127")
    assert gateway.ask("unit").status_code == 200
    gateway.wait_event("jobs_unusable")
    off = lab.start({"unit": "unit"}, "gateway.jobs=null")
    off.ready("unit")
    assert off.client.post("/scenarios/unit/jobs", json={"text": "x"}).json()["code"] == "SCN-4127"
    assert off.client.get("/jobs").json()["jobs"] == []
