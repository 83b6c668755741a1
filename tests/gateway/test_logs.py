"""Log lines: one JSON object each, and one a second of what would be thousands."""

from __future__ import annotations

import json
import time

from scenarium.gateway import logs


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_event_is_one_line_of_json(capsys):
    logs.event("info", "worker_ready", scenario="unit", line="两\n行")
    (found,) = lines(capsys.readouterr().err)
    assert (found["level"], found["event"], found["scenario"], found["line"]) == ("info", "worker_ready", "unit", "两\n行")


def test_many_are_one_line_in_a_while_with_the_number_of_the_others(capsys, monkeypatch):
    monkeypatch.setattr(logs, "EVERY_S", 0.05)
    for number in range(100):
        logs.many("warning", "request_failed", "busy unit", number=number)
    logs.many("warning", "request_failed", "busy other", number=0)
    assert [each["number"] for each in lines(capsys.readouterr().err)] == [0, 0]
    time.sleep(0.06)
    logs.many("warning", "request_failed", "busy unit", number=100)
    (found,) = lines(capsys.readouterr().err)
    assert (found["number"], found["unlogged"]) == (100, 99)
