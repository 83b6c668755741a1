"""The file of the jobs alone: what it keeps, and what it gives up."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarium.core.errors import ScenariumError
from scenarium.gateway.job_file import End, JobFile, New


def new(once=None, body=b"{}"):
    return New("unit", "", "one", "application/json", "en", "", "", 1000.0, None, once, body, body)


@pytest.fixture
def file(tmp_path):
    found = JobFile(tmp_path / "jobs.sqlite", 60.0, 10)
    found.open()
    yield found
    found.close()


def reopened(file):
    file.close()
    return file.open()


def test_a_job_ends_once(file):
    job, fresh = file.add(new())
    assert fresh
    assert file.begin(job.id, True)
    assert file.begin(job.id, True) is None
    assert file.end(job.id, End("application/json", b"first"))
    assert not file.end(job.id, End("application/json", b"second"))
    assert not file.again(job.id, True)
    assert file.cancel(job.id).state == "done"
    assert file.result(job.id) == b"first"


def test_a_job_that_always_ends_its_gateway_is_given_up(file):
    job, _ = file.add(new())
    for _ in range(3):
        assert file.begin(job.id, True)
        left = reopened(file)
    assert left == []
    assert file.get(job.id).state == "failed"
    assert json.loads(file.get(job.id).fault)["zh"]["code"] == "SCN-4125"


def test_a_run_that_no_worker_saw_does_not_count(file):
    job, _ = file.add(new())
    for _ in range(5):
        assert file.begin(job.id, True)
        assert file.again(job.id, False)
    assert reopened(file) == [(job.id, "unit")]


def test_a_job_that_nobody_begins_fails_in_the_end(tmp_path):
    file = JobFile(tmp_path / "jobs.sqlite", 0.05, 10)
    file.open()
    job, _ = file.add(new())
    time.sleep(0.06)
    assert file.sweep() == [(job.id, "unit")]
    assert json.loads(file.get(job.id).fault)["en"]["code"] == "SCN-4130"
    file.close()


def test_a_file_of_a_later_format_is_left_alone(file):
    file.close()
    with contextlib.closing(sqlite3.connect(file.path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(ScenariumError) as caught:
        file.open()
    assert caught.value.code == "SCN-4127"
    with ThreadPoolExecutor(1) as pool, pytest.raises(ScenariumError):  # the lock was let go: another thread gets as far
        pool.submit(file.open).result()
