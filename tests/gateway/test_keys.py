"""API keys: the file, the commands, and what a gateway lets in."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scenarium.core.config import GatewayConfig
from scenarium.core.errors import ScenariumError
from scenarium.core.settings import Settings
from scenarium.gateway.admission import Admission, Rejected, is_local, is_local_name
from scenarium.gateway.keys import KeyFile, Keyring, Rate, parse_expiry, parse_rate
from scenarium.gateway.predict import Call


def command(home: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``scenarium …`` whose keys lie in ``home``."""
    environ = os.environ | {"SCENARIUM_GATEWAY__KEYS": str(home / "keys.sqlite"), "SCENARIUM_LANG": "en"}
    done = subprocess.run([sys.executable, "-m", "scenarium.core.cli", *arguments], capture_output=True, text=True, env=environ, cwd=home)
    assert done.returncode == status, done.stderr
    return done


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_holds_a_hash_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "below" / "keys.sqlite"
    file = KeyFile(path)
    key, text = file.create(scenarios=frozenset({"unit"}), rate=Rate(5, 60), daily=7, expires=time.time() + 60, note="商店")
    assert text.startswith(f"sk-scn-{key.id}-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = text.rpartition("-")[2]
    assert len(bytes.fromhex(secret)) == 32
    assert not [p for p in path.parent.iterdir() if secret.encode() in p.read_bytes()]
    assert file.read() == [key]
    ring = Keyring(file)
    ring.refresh()
    assert ring.find(text) == key
    for wrong in (
        text[:-1] + ("0" if text[-1] != "0" else "1"),
        text[:-1],
        text + "0",
        f"sk-scn-00000000-{secret}",
        secret,
        text.removeprefix("sk-scn-"),
        "",
        "é",
    ):
        assert ring.find(wrong) is None, wrong


def test_each_change_is_seen_and_nothing_opens_a_gateway_again(tmp_path, monkeypatch):
    file = KeyFile(tmp_path / "keys.sqlite")
    ring = Keyring(file)
    assert not ring.refresh()
    assert not ring.asked
    one, text = file.create()
    assert ring.refresh()
    assert not ring.refresh()
    assert ring.find(text) == one
    file.revoke(one.id)
    file.revoke(one.id)
    assert ring.refresh()
    assert ring.find(text) is None
    assert ring.asked, "revoking the last key must not open the gateway"
    file.path.unlink()
    ring.refresh()
    assert ring.asked, "nor does losing the file"
    again = Keyring(KeyFile(tmp_path / "other.sqlite"))
    short, text = again.file.create(expires=time.time() + 60)
    again.refresh()
    assert again.find(text) == short
    monkeypatch.setattr(time, "time", lambda at=time.time() + 61: at)
    assert again.find(text) is None
    assert short.state == "expired"
    assert again.asked
    with pytest.raises(ScenariumError, match="SCN-1104"):
        file.revoke("00000000")


def test_many_writers_lose_nothing(tmp_path):
    file = KeyFile(tmp_path / "keys.sqlite")
    with ThreadPoolExecutor(8) as pool:
        made = [key for key, _ in pool.map(lambda _: KeyFile(file.path).create(), range(40))]
        list(pool.map(lambda _: KeyFile(file.path).add_usage("2026-11-24", {made[0].id: 2}), range(40)))
    assert {key.id for key in file.read()} == {key.id for key in made}
    assert file.usage("2026-11-24") == {made[0].id: 80}
    file.add_usage("2026-11-25", {})
    assert file.usage("2026-11-24") == {}, "older days are forgotten"


def test_a_file_that_cannot_be_used_is_told(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("hello, this is a text and not a database" * 100)
    with pytest.raises(ScenariumError, match="SCN-1102"):
        KeyFile(text).read()
    later = KeyFile(tmp_path / "later.sqlite")
    later.create()
    with sqlite3.connect(later.path) as connection:
        connection.execute("PRAGMA user_version = 258")
    connection.close()
    with pytest.raises(ScenariumError, match="SCN-1102"):
        later.read()


def test_a_mounted_file_without_write_access_is_read(tmp_path, monkeypatch):
    file = KeyFile(tmp_path / "keys.sqlite")
    key, _ = file.create()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, to whom every folder is writable
    assert file.read() == [key]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys.sqlite"]


@pytest.mark.parametrize(("text", "rate"), [("100/minute", (100, 60)), ("5/s", (5, 1)), ("20/10s", (20, 10)), ("3 / 2 hours", (3, 7200)), ("1/d", (1, 86400))])
def test_rates(text, rate):
    assert parse_rate(text) == Rate(*rate)


@pytest.mark.parametrize("text", ["", "5", "0/s", "5/x", "-1/s", "1.5/s", "5/0s", "5 minutes"])
def test_wrong_rates(text):
    with pytest.raises(ScenariumError, match="SCN-1103"):
        parse_rate(text)


def test_expiry():
    now = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
    assert parse_expiry("30d", now) == now + 30 * 86400
    assert parse_expiry("12 hours", now) == now + 12 * 3600
    assert parse_expiry("2026-11-24", now) == now + 12 * 3600, "to the end of the day"
    for wrong in ("2026-11-23", "2026-02-30", "0d", "3y", "soon", ""):
        with pytest.raises(ScenariumError, match="SCN-1103"):
            parse_expiry(wrong, now)


def test_names_and_addresses_of_this_machine():
    assert [is_local(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "", "192.0.2.1", "no-such-host.invalid")] == [False] * 5
    assert all(is_local_name(host) for host in ("localhost:8080", "127.0.0.1", "[::1]:80", "LOCALHOST"))
    assert not any(
        is_local_name(host) for host in ("", "evil.example:8080", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]:80", "127.0.0.1.evil.example")
    )


def test_administration_without_keys(tmp_path):
    def call(**headers: str) -> Call:
        return Call([(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])

    settings = Settings.read(environ={}, sets=[f"gateway.keys={tmp_path / 'keys.sqlite'}"])

    def admission(**config: object) -> Admission:
        return Admission(GatewayConfig.model_validate({"keys": str(tmp_path / "keys.sqlite"), **config}), settings)

    local = admission()
    assert local.check(call(host="localhost:1"), "GET", "/admin/status").id == ""
    assert local.check(call(host="localhost:1", content_type="application/json; charset=utf-8"), "POST", "/admin/reload").id == ""
    for headers, code in (
        ({"host": "localhost", "content_type": "text/plain"}, "SCN-4107"),  # a form of a foreign page
        ({"host": "localhost"}, "SCN-4107"),
        ({"host": "evil.example", "content_type": "application/json"}, "SCN-4108"),  # a foreign page under a bent name
        ({"content_type": "application/json"}, "SCN-4108"),
    ):
        with pytest.raises(Rejected, match=code):
            local.check(call(**headers), "POST", "/admin/reload")
    behind = admission(host="0.0.0.0", allow_anonymous=True)
    behind.open()
    assert behind.check(call(), "GET", "/scenarios").id == ""
    with pytest.raises(Rejected, match="SCN-4101"):
        behind.check(call(host="localhost", content_type="application/json"), "POST", "/admin/reload")
    with pytest.raises(ScenariumError, match="SCN-1101"):
        admission(host="0.0.0.0").open()


def test_finding_a_key_is_cheap(tmp_path):
    file = KeyFile(tmp_path / "keys.sqlite")
    text = [file.create() for _ in range(20)][-1][1]
    ring = Keyring(file)
    ring.refresh()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(200):
            ring.find(text)
        took.append((time.perf_counter() - began) / 200)
    assert min(took) < 10e-6


# ── the commands ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands(tmp_path):
    made = command(tmp_path, "keys", "create", "--rate", "100/minute", "--daily", "1000", "--expires", "90d", "--note", "shop")
    text = made.stdout.strip()
    assert text.startswith("sk-scn-")
    ident = text.split("-")[2]
    other = json.loads(command(tmp_path, "keys", "create", "--admin", "--json").stdout)
    assert other["secret"].split("-")[2] == other["id"]
    rows = json.loads(command(tmp_path, "keys", "list", "--json").stdout)
    assert [row["id"] for row in rows] == [ident, other["id"]]
    assert rows[0] | {"rate": "100/minute", "daily": 1000, "today": 0, "admin": False, "note": "shop", "state": "active"} == rows[0]
    listed = command(tmp_path, "keys", "list").stdout
    assert ident in listed
    assert text not in listed
    command(tmp_path, "keys", "revoke", text)  # who finds a leaked key has its whole text
    assert json.loads(command(tmp_path, "keys", "list", "--json").stdout)[0]["state"] == "revoked"
    assert "SCN-1104" in command(tmp_path, "keys", "revoke", "ffffffff", status=1).stderr
    assert "SCN-1001" in command(tmp_path, "keys", "create", "--scenario", "no_such_scenario", status=1).stderr


def test_other_machines_are_not_served_without_keys(tmp_path):
    refused = command(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", status=1)
    assert "SCN-1101" in refused.stderr
    for word in ("scenarium keys create", "allow_anonymous = true", "0.0.0.0"):
        assert word in refused.stderr


# ── a gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def gateway(shared_lab):
    shared_lab.publish("unit")
    shared_lab.publish("other", "unit")
    found = shared_lab.start({"unit": "unit"}, "scenarios.other.plugin=unit", "gateway.host=0.0.0.0", "gateway.allow_anonymous=true")
    found.client.base_url = found.url.replace("0.0.0.0", "127.0.0.1")
    found.ready("unit", "other")
    assert found.ask("unit").status_code == 200, "no key, and a proxy answers for the callers"
    return found


@pytest.fixture(scope="module")
def file(shared_lab):
    return KeyFile(shared_lab.folder / "keys.sqlite")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_running_gateway_sees_keys_come_and_go(gateway, file, shared_lab):
    key, text = file.create()
    began = time.monotonic()
    shared_lab.until(lambda: gateway.ask("unit").status_code == 401)
    assert time.monotonic() - began < 2
    assert gateway.ask("unit", headers=bearer(text)).status_code == 200
    assert gateway.ask("unit", headers={"X-API-Key": text}).status_code == 200
    file.revoke(key.id)
    began = time.monotonic()
    shared_lab.until(lambda: gateway.ask("unit", headers=bearer(text)).status_code == 401)
    assert time.monotonic() - began < 2


def test_who_may_do_what(gateway, file, shared_lab):
    _, user = file.create(scenarios=frozenset({"unit"}))
    _, admin = file.create(admin=True)
    shared_lab.until(lambda: gateway.ask("unit", headers=bearer(admin)).status_code == 200)
    known = ("/scenarios", "/scenarios/unit", "/scenarios/unit/ready", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/metrics")
    for path in (*known, "/nowhere", "/admin/nowhere"):
        answer = gateway.client.get(path)
        assert (answer.status_code, answer.json()["code"], answer.headers["WWW-Authenticate"]) == (401, "SCN-4101", "Bearer"), path
        answer = gateway.client.get(path, headers=bearer(user[:-3] + "000"))
        assert (answer.status_code, answer.json()["code"]) == (401, "SCN-4102")
    for path in known:
        assert gateway.client.get(path, headers=bearer(user)).status_code == 200, path
    assert gateway.client.get("/openapi.json", headers=bearer(user)).json()["security"] == [{"key": []}]
    for path in ("/healthz", "/readyz"):
        assert gateway.client.get(path).status_code == 200
    for path in ("predict", "predict/batch", "stream"):
        assert gateway.client.post(f"/scenarios/unit/{path}", json={"text": "x"}).status_code == 401
        refused = gateway.client.post(f"/scenarios/other/{path}", json={"text": "x"}, headers=bearer(user))
        assert (refused.status_code, refused.json()["code"]) == (403, "SCN-4103")
        unknown = gateway.client.post(f"/scenarios/no_such/{path}", json={"text": "x"}, headers=bearer(user))
        assert unknown.json()["code"] == "SCN-4103", "a key for one scenario does not find out what others there are"
    assert gateway.ask("other", headers=bearer(admin)).status_code == 200
    assert gateway.client.get("/admin/nowhere", headers=bearer(user)).json()["code"] == "SCN-4104"
    assert gateway.client.get("/admin/nowhere", headers=bearer(admin)).status_code == 404
    assert gateway.client.post("/admin/nowhere", headers=bearer(admin), data={"a": "b"}).json()["code"] == "SCN-4107"
    assert gateway.client.post("/admin/nowhere", headers=bearer(admin), json={}).status_code == 404
    assert "密钥" in gateway.client.get("/scenarios", headers={"Accept-Language": "zh"}).json()["title"]
    metrics = gateway.client.get("/metrics", headers=bearer(user)).text
    for reason in ("no_key", "bad_key", "scope", "admin"):
        assert f'scenarium_rejected_total{{reason="{reason}"}} 0.0' not in metrics
        assert f'scenarium_rejected_total{{reason="{reason}"}}' in metrics


def test_a_large_body_of_a_stranger_is_not_read(gateway):
    answer = gateway.client.post("/scenarios/unit/predict", content=b"x" * 1_000_000)
    assert (answer.status_code, answer.headers["Connection"]) == (401, "close")


def test_metrics_answer_this_machine_without_a_key(lab):
    lab.publish("unit")
    KeyFile(lab.folder / "keys.sqlite").create()
    gateway = lab.start({"unit": "unit"})
    assert gateway.client.get("/metrics").status_code == 200
    assert gateway.client.get("/scenarios").status_code == 401
