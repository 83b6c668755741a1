"""Live connections: real WebSocket clients against real gateways. Lag is bounded, what is dropped is counted, others are unharmed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from scenarium.client import AsyncClient, ScenariumAPIError, ScenariumConnectionError
from scenarium.gateway.keys import KeyFile, Rate

WORK = 0.02


@pytest.fixture(scope="module")
def server(shared_lab):
    shared_lab.publish("unit")
    shared_lab.publish("picture")
    found = shared_lab.start({"unit": "unit", "picture": "picture"}, "scenarios.picture.serve.max_body_bytes=100000", "gateway.body_timeout_s=1")
    found.ready("unit", "picture")
    return found


def ws(server, name="unit", query=""):
    return f"{server.url.replace('http', 'ws')}/scenarios/{name}/live{query}"


def figure(server, name, **labels):
    told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    found = re.search(rf"^{name}{{{re.escape(told)}}} (\S+)$", server.client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def frame(text, **fields):
    return json.dumps({"text": text, **fields})


class Said(BaseModel):
    text: str
    batch: int


# ── lag ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lag", [1, 3])
def test_200_frames_at_three_times_the_capacity(server, lag):
    sent, seen, others = {}, [], []
    before = {outcome: figure(server, "scenarium_live_frames_total", scenario="unit", outcome=outcome) for outcome in ("answered", "dropped", "failed")}

    async def camera(live, done):
        began = time.monotonic()
        for number in range(200):
            await asyncio.sleep(began + number * WORK / 3 - time.monotonic())
            sent[number] = time.monotonic()
            assert await live.send({"text": str(number), "do": "sleep", "seconds": WORK}) == number
        done.set()

    async def neighbour(client, done):
        while not done.is_set():
            began = time.monotonic()
            assert (await client.predict("unit", {"text": "neighbour"}))["text"] == "neighbour"
            others.append(time.monotonic() - began)
            await asyncio.sleep(WORK)

    async def main():
        done = asyncio.Event()
        async with AsyncClient(server.url) as client, client.live("unit", max_lag=lag, into=Said) as live:
            tasks = [asyncio.create_task(each) for each in (camera(live, done), neighbour(client, done))]
            async for one in live:
                seen.append((time.monotonic(), one))
                if one.frame == 199:
                    break
            await asyncio.gather(*tasks)

    asyncio.run(main())
    numbers = [one.frame for _, one in seen]
    assert numbers == sorted(set(numbers))
    assert [one.value().text for _, one in seen] == [str(number) for number in numbers]
    dropped = sum(one.dropped for _, one in seen)
    assert len(seen) + dropped == 200
    assert dropped > 90
    # A frame waits for what is worked on and for those before it in the queue, never for more: counted in answers, whatever the machine does beside.
    waited = [sum(sent[one.frame] < at <= mine for at, _ in seen) for mine, one in seen]
    assert max(waited) <= lag + 3, waited  # two may have been on their way when it was sent
    assert sorted(waited)[len(waited) // 2] <= lag + 1, waited
    assert len(others) >= 3
    assert sorted(others)[len(others) // 2] < 10 * WORK, others
    told = {outcome: figure(server, "scenarium_live_frames_total", scenario="unit", outcome=outcome) - count for outcome, count in before.items()}
    assert told == {"answered": len(seen), "dropped": dropped, "failed": 0}


def test_a_frame_alone_is_not_delayed_and_none_is_dropped(server):
    async def main():
        async with AsyncClient(server.url) as client, client.live("unit") as live:
            answers = aiter(live)
            for number in range(20):
                await live.send({"text": str(number)})
                one = await anext(answers)
                assert (one.frame, one.dropped, one.answer["text"], one.version) == (number, 0, str(number), 1)
                assert one.answer.request_id == f"{live.request_id}.{number}"

    asyncio.run(main())
    assert figure(server, "scenarium_live_connections", scenario="unit") == 0


# ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frame_that_fails_is_an_answer(server):
    async def main():
        async with AsyncClient(server.url, language="zh") as client, client.live("unit") as live:
            answers = aiter(live)
            for sent, code in (({"text": 5}, "SCN-4001"), (b"\xff", "SCN-4002"), ({"text": "x", "do": "raise"}, "SCN-4003"), ({"text": "good"}, None)):
                await live.send(sent)
                one = await anext(answers)
                assert one.error is None or one.error.code == code, one.error
                assert (one.error is None) == (code is None)
            assert one.value()["text"] == "good"
            await live.send({"text": 5})
            with pytest.raises(ScenariumAPIError, match="字段") as caught:
                (await anext(answers)).value()
            assert caught.value.request_id == f"{live.request_id}.4"

    asyncio.run(main())


def test_pictures_and_their_limit(server):
    async def main():
        async with AsyncClient(server.url) as client:
            async with client.live("picture") as live:
                answers = aiter(live)
                await live.send(b"\x89PNG" * 10)
                assert (await anext(answers)).value() == {"size": 40, "top": 1}
                await live.send({"image": b"\x89PNG", "top": 3})
                assert (await anext(answers)).value() == {"size": 4, "top": 3}
                await live.send(bytes(100_000))
                assert (await anext(answers)).value()["size"] == 100_000
                await live.send(bytes(100_001))
                with pytest.raises(ScenariumConnectionError, match="1009"):
                    await anext(answers)
            assert live.code == 1009

    asyncio.run(main())


def test_the_deadline_counts_from_when_the_frame_came(server):
    async def main():
        async with connect(ws(server, query="?deadline_ms=60&max_lag=2")) as live:
            for text in "ab":
                await live.send(frame(text, do="sleep", seconds=0.05))
            first, second = json.loads(await live.recv()), json.loads(await live.recv())
            assert (first["status"], second["status"], second["error"]["code"]) == (200, 504, "SCN-4007")

    asyncio.run(main())


# ── leaving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("politely", [True, False])
def test_a_client_that_leaves_has_its_frame_cancelled(server, lab, tmp_path, politely):
    trail = tmp_path / "trail"
    before = figure(server, "scenarium_requests_total", scenario="unit", outcome="cancelled")

    async def main():
        async with AsyncClient(server.url) as client:
            busy = asyncio.create_task(client.predict("unit", {"text": "busy", "do": "sleep", "seconds": 0.5}))
            await asyncio.sleep(0.1)
            live = await connect(ws(server))
            await live.send(frame("cancelled", trail=str(trail)))
            await live.send(frame("waits", trail=str(trail)))
            await asyncio.sleep(0.1)
            if politely:
                await live.close()
            else:
                live.transport.abort()
            await busy
            await client.predict("unit", {"text": "after", "trail": str(trail)})

    asyncio.run(main())
    assert trail.read_text() == "after\n"
    lab.until(lambda: figure(server, "scenarium_requests_total", scenario="unit", outcome="cancelled") == before + 1)
    lab.until(lambda: figure(server, "scenarium_live_connections", scenario="unit") == 0)


def test_a_text_that_is_none(server):
    async def main():
        async with connect(ws(server)) as live:
            await live.send(b'{"text": "\xff"}', text=True)
            with pytest.raises(ConnectionClosed):
                await live.recv()
            assert live.close_code == 1007

    asyncio.run(main())
    assert not server.noise
    assert not [event for event in server.events if "UTF-8" in str(event)]


def test_a_message_comes_in_few_pieces_and_in_time(server):
    async def pieces(count, pause=0.0):
        for _ in range(count):
            yield b"x"
            await asyncio.sleep(pause)

    async def main():
        async with connect(ws(server, "picture")) as live:
            await live.send(pieces(1000))
            assert json.loads(await live.recv())["answer"]["size"] == 1000
            with pytest.raises(ConnectionClosed):
                await live.send(pieces(3000))
            assert live.close_code == 1009
        async with connect(ws(server, "picture")) as live:
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):
                await live.send(pieces(100, 0.1))
            assert live.close_code == 1008
            assert 1 < time.monotonic() - began < 5
        async with connect(ws(server, "picture")) as live:
            await asyncio.sleep(2.5)  # nothing is owed between messages
            await live.send(b"x")
            assert json.loads(await live.recv())["status"] == 200

    before = figure(server, "scenarium_rejected_total", reason="slow")
    asyncio.run(main())
    assert figure(server, "scenarium_rejected_total", reason="slow") == before + 1


def test_who_reads_no_answers_is_cut_off(server, lab):
    before = figure(server, "scenarium_rejected_total", reason="slow")
    large = frame("x" * 400_000)

    async def main():
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((urlsplit(server.url).hostname, urlsplit(server.url).port))
        raw.setblocking(False)
        live = await connect(ws(server), sock=raw, max_queue=1, close_timeout=0.1)
        live.transport.pause_reading()

        async def flood():
            for _ in range(1000):
                await live.send(large)
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionClosed):
            await flood()

    asyncio.run(main())
    lab.until(lambda: figure(server, "scenarium_rejected_total", reason="slow") == before + 1)
    assert figure(server, "scenarium_live_frames_total", scenario="unit", outcome="dropped") > 20
    assert server.ask("unit").status_code == 200


# ── who may ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def refused(url, **options):
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, **options)
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, json.loads(bytes(response.body))["code"]


def test_what_is_refused_at_the_door(server):
    async def main():
        assert await refused(ws(server, "nothing")) == (404, "SCN-1001")
        assert await refused(ws(server).replace("/scenarios/unit", "/unit")) == (404, "SCN-4015")
        assert await refused(ws(server, query="?max_lag=17")) == (400, "SCN-4129")
        assert await refused(ws(server, query="?deadline_ms=nan")) == (400, "SCN-4129")
        assert await refused(ws(server, query="?api_key=sk-scn-1")) == (400, "SCN-4116")
        assert await refused(ws(server), additional_headers={"x-scenarium-priority": "first"}) == (400, "SCN-4018")
        assert await refused(ws(server), additional_headers={"x-scenarium-deadline-ms": "soon"}) == (400, "SCN-4018")
        assert await refused(ws(server), additional_headers=[(f"x-{n}", "v") for n in range(200)]) == (400, "SCN-4112")
        for origin in ("https://evil.example", "null", f"{server.url}0"):
            assert await refused(ws(server), origin=origin) == (403, "SCN-4115")
        async with connect(ws(server), origin=server.url) as live:
            await live.send(frame("own page"))
            assert json.loads(await live.recv())["status"] == 200
        async with AsyncClient(server.url) as client:
            with pytest.raises(ScenariumAPIError, match="SCN-1001"):
                async with client.live("nothing"):
                    pass

    asyncio.run(main())
    told = server.client.get("/scenarios/unit/live")
    assert (told.status_code, told.json()["code"], told.headers["upgrade"]) == (426, "SCN-4021", "websocket")
    upgrade = {"connection": "upgrade", "upgrade": "websocket"}
    assert server.client.post("/scenarios/unit/live", headers=upgrade).status_code == 426
    assert server.client.get("/scenarios/unit/ready", headers=upgrade).status_code == 200


def test_keys(lab):
    lab.publish("unit")
    server = lab.start({"unit": "unit"}, f"gateway.audit={lab.folder / 'audit.log'}")
    keys = KeyFile(lab.folder / "keys.sqlite")
    good, token = keys.create(scenarios=frozenset(("unit",)))
    _, slow = keys.create(rate=Rate(2, 3600))
    _, other = keys.create(scenarios=frozenset(("other",)))
    lab.until(lambda: server.client.get("/scenarios").status_code == 401)
    server.client.headers["authorization"] = f"Bearer {token}"
    server.ready("unit")

    async def main():
        assert await refused(ws(server)) == (401, "SCN-4101")
        assert await refused(ws(server), subprotocols=["scenarium", "scenarium.key.wrong"]) == (401, "SCN-4102")
        assert await refused(ws(server), additional_headers={"authorization": f"Bearer {other}"}) == (403, "SCN-4103")
        async with AsyncClient(server.url, api_key=slow) as client, client.live("unit") as live:
            answers, statuses = aiter(live), []
            for _ in range(3):
                await live.send({"text": "x"})
                statuses.append(await anext(answers))
            assert [one.error and one.error.code for one in statuses] == [None, None, "SCN-4105"]
            assert statuses[-1].error.retry_after > 60
        page = {"origin": "https://page.example", "subprotocols": ["scenarium", f"scenarium.key.{token}"]}
        async with connect(ws(server), additional_headers={"x-request-id": "mine"}, **page) as live:
            assert live.subprotocol == "scenarium"
            assert token not in str(live.response.headers)
            await live.send(frame("by a browser"))
            assert json.loads(await live.recv())["status"] == 200
            keys.revoke(good.id)
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(live.recv(), 5)
            assert (live.close_code, time.monotonic() - began < 4) == (1008, True)

    asyncio.run(main())
    ended = server.wait_event("live_ended", request_id="mine")
    assert (ended["frames"], ended["code"], ended["key"]) == (1, 1008, good.id)
    lab.until(lambda: "mine.0" in (lab.folder / "audit.log").read_text())
    lines = [json.loads(line) for line in (lab.folder / "audit.log").read_text().splitlines()]
    line = next(line for line in lines if line.get("request_id") == "mine.0")
    assert (line["path"], line["status"], line["version"], line["key"], len(line["body"])) == ("/scenarios/unit/live", 200, 1, good.id, 64)
    assert token not in json.dumps(server.events)


PAGE = """<!doctype html><title>waits</title><body><script>
function ask(protocols, done) {
  const told = [];
  const socket = protocols ? new WebSocket("LIVE", protocols) : new WebSocket("LIVE");
  socket.onopen = () => socket.send(new Blob(["a picture"]));
  socket.onmessage = (event) => { told.push(event.data); socket.close(1000); };
  socket.onclose = (event) => done(`${socket.protocol} ${event.code} ${told}`);
}
ask(null, (without) => ask(["scenarium", "scenarium.key.TOKEN"], (told) => fetch("/told", { method: "POST", body: JSON.stringify([without, told]) })));
</script>"""


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_of_another_origin_in_a_real_browser(lab, tmp_path):
    lab.publish("picture")
    server = lab.start({"picture": "picture"})
    _, token = KeyFile(lab.folder / "keys.sqlite").create()
    lab.until(lambda: server.client.get("/scenarios").status_code == 401)
    server.client.headers["authorization"] = f"Bearer {token}"
    server.ready("picture")
    page = PAGE.replace("LIVE", ws(server, "picture")).replace("TOKEN", token).encode()
    told = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page if self.path == "/" else b"")

        def do_POST(self):
            told.extend(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.do_GET()

        def log_message(self, *arguments):
            pass

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "needs Chromium: make setup-test installs it"
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as pages:
        thread = threading.Thread(target=pages.serve_forever, args=(0.05,))
        thread.start()
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={tmp_path}")
        log = (tmp_path / "chromium.log").open("wb")
        browser = subprocess.Popen([chromium, *options, f"http://127.0.0.1:{pages.server_port}/"], stdout=log, stderr=log)
        try:
            lab.until(lambda: len(told) == 2, 60)
        finally:
            browser.terminate()
            browser.wait(20)
            log.close()
            pages.shutdown()
            thread.join()
    without, answer = told
    assert without == " 1006 "
    assert answer.startswith('scenarium 1000 {"frame": 0, "dropped": 0, "status": 200, "version": 1, "answer": {"size":9,"top":1}}')


# ── the gateway's own end ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_that_ends_answers_the_frame_and_says_so(lab):
    lab.publish("unit")
    server = lab.start({"unit": "unit"})
    server.ready("unit")

    async def main():
        async with connect(ws(server)) as idle, AsyncClient(server.url) as client, client.live("unit") as live:
            await live.send({"text": "last", "do": "sleep", "seconds": 0.5})
            await asyncio.sleep(0.1)
            await live.send({"text": "too late"})
            await asyncio.sleep(0.1)
            server.popen.send_signal(signal.SIGTERM)
            assert [one.value()["text"] async for one in live] == ["last"]
            with pytest.raises(ConnectionClosed):
                await idle.recv()
            return live.code, idle.close_code

    assert asyncio.run(main()) == (1001, 1001)
    assert server.popen.wait(10) == 0


def test_a_scenario_that_is_unloaded_or_removed(lab):
    lab.publish("unit")
    lab.publish("picture")
    (lab.folder / "scenarios.toml").write_text("[scenarios.spare]\nplugin = 'unit'\n")
    lab.publish("spare", "unit")
    server = lab.start({"unit": "unit"})
    server.ready("unit", "spare")

    async def main():
        async with connect(ws(server)) as unit, connect(ws(server, "spare")) as spare:
            for live in (unit, spare):
                await live.send(frame("x"))
                assert json.loads(await live.recv())["status"] == 200
            (lab.folder / "scenarios.toml").write_text("")
            assert server.client.post("/admin/reload", json={}).json()["removed"] == ["spare"]
            assert server.client.post("/v2/repository/models/unit/unload").status_code == 200
            for live in (unit, spare):
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(live.recv(), 5)
            return unit.close_code, spare.close_code

    assert asyncio.run(main()) == (1013, 1001)


def test_a_promoted_version_answers_the_next_frames(lab):
    lab.publish("unit")
    server = lab.start({"unit": "unit"})
    server.ready("unit")

    async def main():
        async with AsyncClient(server.url) as client, client.live("unit") as live:
            await live.send({"text": "x"})
            answers = aiter(live)
            assert (await anext(answers)).version == 1
            lab.publish("unit", settings={"model.answer": "two"})
            began = time.monotonic()
            while time.monotonic() - began < 15:
                await live.send({"text": "x"})
                one = await anext(answers)
                if one.value()["answer"] == "two":
                    return one.version
                await asyncio.sleep(0.05)

    assert asyncio.run(main()) == 2
