"""Who may read what a worker serves, and what slow clients cannot do: stay for ever, or keep others out."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from prometheus_client import CollectorRegistry

from streams.metrics.collector import Collector
from streams.settings import load
from streams.web.access import Connections
from streams.web.server import Site, SiteError
from tests.test_metrics import Bench

TOKEN = "t0ken-canary"
PASSWORD = "pässword:canary"
PATHS = ("/", "/metrics", "/readyz", "/api/campaigns", "/page.js", "/page.css", "/nothing")
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
MANY = 100


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Site]:
    read = load(http_port=0, **settings)
    collector = Collector(Bench().reading, read.windows, "9.9", max_remembered=77)
    async with Site(read, collector, CollectorRegistry(), Bench().reading, list) as site:
        yield site


async def status(site: Site, path: str, authorization: str | None = None, **options: Any) -> tuple[int, Any]:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with aiohttp.ClientSession() as session, session.get(site.url + path, headers=headers, **options) as answer:
        await answer.read()
        return answer.status, answer.headers


# --- who --------------------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


async def test_without_a_token_or_password_everybody_may_read() -> None:
    async with served() as site:
        assert [(await status(site, path))[0] for path in PATHS] == [200, 200, 200, 200, 200, 200, 404]


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic("ops", PASSWORD)])
async def test_the_token_or_the_password_opens_everything(authorization: str) -> None:
    async with served(http_token=TOKEN, http_username="ops", http_password=PASSWORD) as site:
        assert [(await status(site, path, authorization))[0] for path in PATHS] == [200] * 6 + [404]


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}", basic("ops", TOKEN), basic("ops", ""), basic("", PASSWORD), basic("other", PASSWORD),
        "Basic \xff", "Basic",
    ],
)  # fmt: skip
async def test_nothing_but_healthz_is_told_to_anybody_else(authorization: str | None) -> None:
    async with served(http_token=TOKEN, http_username="ops", http_password=PASSWORD) as site:
        assert [(await status(site, path, authorization))[0] for path in PATHS] == [401] * len(PATHS)
        assert (await status(site, "/healthz", authorization))[0] == 200


async def test_who_is_refused_is_told_what_is_asked_for() -> None:
    async with served(http_token=TOKEN) as site:
        _, headers = await status(site, "/metrics")
        assert headers.getall("WWW-Authenticate") == ["Bearer"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    async with served(http_username="ops", http_password=PASSWORD) as site:
        _, headers = await status(site, "/")
        assert headers["WWW-Authenticate"].startswith("Basic realm=")


async def test_a_token_of_a_file_opens_too(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    async with served(http_token_file=tmp_path / "token") as site:
        assert (await status(site, "/metrics", f"Bearer {TOKEN}"))[0] == 200
        assert (await status(site, "/metrics"))[0] == 401


async def test_with_a_certificate_it_is_https_and_nothing_else(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with served(http_certificate=tmp_path / "own.pem") as site:
        assert site.url.startswith("https://127.0.0.1:")
        assert (await status(site, "/metrics", ssl=trusting))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await status(site, "/metrics")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rsplit(":", 1)[1]))
        writer.write(REQUEST + b"\r\n")
        assert b"200" not in await said(reader)
        writer.close()


async def test_a_certificate_that_cannot_be_served_with_is_one_clear_line() -> None:
    with pytest.raises(SiteError, match=r"STREAMS_HTTP_CERTIFICATE='.*test_access.py' cannot be served with"):
        async with served(http_certificate=__file__):
            pass


# --- how much ---------------------------------------------------------------------------------------------------------


async def connect(site: Site, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rsplit(":", 1)[1]))
    writer.write(sent)
    return reader, writer


async def said(reader: asyncio.StreamReader) -> bytes:
    """Return what came until the connection was closed."""
    content = b""
    with suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(1 << 20), 20):
            content += piece
    return content


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics?" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        REQUEST + b"X: " + b"x" * 9_000 + b"\r\n\r\n",
        REQUEST + b"".join(b"X%d: 1\r\n" % number for number in range(70)) + b"\r\n",
        REQUEST + f"Authorization: Bearer {TOKEN}\x00\r\n\r\n".encode(),
        b"\x16\x03\x01 nonsense\r\n\r\n",
    ],
    ids=["line", "header", "headers", "a bad byte", "no HTTP"],
)
async def test_what_is_too_large_or_no_request_is_refused_and_not_logged(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as site:
        reader, writer = await connect(site, request_)
        assert b" 400 " in (await said(reader)).partition(b"\r\n")[0]
        writer.close()
    assert caplog.records == []


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have so little time that a test need not wait long."""
    monkeypatch.setattr("streams.web.access.SENDS_WITHIN_S", 0.3)
    monkeypatch.setattr("streams.web.access.TAKES_WITHIN_S", 0.5)
    monkeypatch.setattr("streams.web.access._LOOK_S", 0.05)


@pytest.mark.parametrize("sent", [b"", b"G", REQUEST], ids=["nothing", "a byte", "half a request"])
async def test_who_does_not_send_a_whole_request_in_time_is_closed(sent: bytes, hasty: None) -> None:
    async with served() as site:
        reader, writer = await connect(site, sent)
        assert await said(reader) == b""
        writer.close()


async def test_who_sends_a_byte_now_and_then_is_closed_all_the_same(hasty: None) -> None:
    async with served() as site:
        reader, writer = await connect(site, REQUEST)
        drip = asyncio.create_task(dripping(writer))
        assert await said(reader) == b""
        drip.cancel()
        writer.close()


async def dripping(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"X: 1\r\n")
        await asyncio.sleep(0.05)


async def test_who_is_idle_between_two_requests_is_not_closed_for_it(hasty: None) -> None:
    async with served() as site, aiohttp.ClientSession(site.url) as session:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        [idle] = site._connections._open
        half, writer = await connect(site)
        assert await said(half) == b""  # so long have both been silent
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        assert [*site._connections._open] == [idle]
        writer.close()


Answer = Callable[[web.Request], Any]


@asynccontextmanager
async def answering(answer: Answer, limit: int) -> AsyncIterator[tuple[Connections, int]]:
    """A server with one answer to everything."""
    connections = Connections(limit)
    application = web.Application(middlewares=[connections.note])
    application.router.add_get("/", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    server = await asyncio.get_running_loop().create_server(connections.factory(runner.server), "127.0.0.1", 0)
    watching = asyncio.create_task(connections.watch())
    try:
        yield connections, server.sockets[0].getsockname()[1]
    finally:
        watching.cancel()
        server.close()
        await runner.cleanup()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_who_does_not_take_its_answer_in_time_is_closed(hasty: None) -> None:
    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * (32 << 20))

    async with answering(large, 8) as (connections, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: any(one.unread_since is not None for one in connections._open.values()))
        await until(lambda: not connections._open)
        assert len(await said(reader)) < 32 << 20
        writer.close()


async def test_beyond_the_limit_the_slow_go_first_then_the_idle_and_never_who_is_being_answered() -> None:
    go_on = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        if "wait" in request.query:
            await go_on.wait()
        return web.Response(text="done")

    async with answering(wait, 3) as (connections, port):

        async def open_one(sent: bytes, answered: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            opened = await asyncio.open_connection("127.0.0.1", port)
            opened[1].write(sent)
            await until(lambda: sum(one.is_answered for one in connections._open.values()) == answered)
            return opened

        ask, half = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT"
        idle, idle_writer = await open_one(ask % b"", 0)
        await idle.readuntil(b"done")
        first, first_writer = await open_one(ask % b"?wait", 1)
        slow, slow_writer = await open_one(half, 1)
        second, second_writer = await open_one(ask % b"?wait", 2)
        assert await said(slow) == b""
        third, third_writer = await open_one(ask % b"?wait", 3)
        assert await said(idle) == b""
        one_too_many, last_writer = await open_one(half, 3)
        assert await said(one_too_many) == b""
        go_on.set()
        for reader in (first, second, third):
            await reader.readuntil(b"done")
        for writer in (idle_writer, first_writer, slow_writer, second_writer, third_writer, last_writer):
            writer.close()


async def test_who_is_taking_its_answer_is_not_closed_for_another_one_unless_it_is_slow(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.web.access.TAKES_WITHIN_S", 20.0)
    monkeypatch.setattr("streams.web.access.TAKES_AT_ONCE_S", 0.5)

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * (32 << 20))

    async with answering(large, 1) as (connections, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: any(one.unread_since is not None for one in connections._open.values()))
        [taking] = connections._open
        second, second_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await said(second) == b""
        assert [*connections._open] == [taking]
        await until(lambda: not connections._open[taking].is_at_work(connections.now()))
        _, third_writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(connections._open) == 1 and taking not in connections._open)
        for one in (writer, second_writer, third_writer):
            one.close()


async def test_a_hundred_half_open_scrapes_keep_nobody_out() -> None:
    async with served(http_max_connections=16) as site:
        halves = [await connect(site, REQUEST) for _ in range(MANY)]
        for _ in range(3):
            assert (await status(site, "/metrics"))[0] == 200
        await until(lambda: len(site._connections._open) <= 16)
        for _, writer in halves:
            writer.close()
