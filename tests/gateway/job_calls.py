"""Calls of the routes of jobs, for their tests."""

from __future__ import annotations

ENDED = ("done", "failed", "cancelled")


def submit(gateway, text="x", query="", headers=None, name="unit", **fields):
    answer = gateway.client.post(f"/scenarios/{name}/jobs{query}", json={"text": text, **fields}, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["url"] == f"/jobs/{answer.json()['id']}"
    return answer.json()


def job_of(gateway, job, **options):
    return gateway.client.get(job["url"], **options).json()


def ended(lab, gateway, job, timeout=20.0):
    return lab.until(lambda: (found := job_of(gateway, job))["state"] in ENDED and found, timeout)


def lines(path):
    return path.read_text().split() if path.exists() else []
