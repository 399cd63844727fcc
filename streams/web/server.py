"""What a worker serves: /metrics, /healthz, /readyz, /api/campaigns, and a page at / with its live figures at /live.

Nothing here knows a viewer, and the page may load nothing from elsewhere.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self

from aiohttp import web
from prometheus_client import CollectorRegistry

from streams.metrics.collector import Collector
from streams.metrics.exposition import Page
from streams.metrics.reading import Reading
from streams.settings import Settings
from streams.web.access import LIMITS, SENDS_WITHIN_S, Connections, Guard, SiteError, server_context
from streams.web.figures import as_json
from streams.web.live import Live
from streams.web.page import as_html
from streams.web.snapshot import Snapshots
from streams.web.view import View

_TURN_S: Final = 0.005
"""After so long others have their turn. Not sooner: in a worker that is busy each turn of theirs takes as long."""
_STATIC: Final = Path(__file__).parent
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Site:
    """The server. Use as an async context manager; `url` has the real port when 0 was asked for.

    /metrics shows what `collector` reads from the state, and the other metrics of `registry`. `read` gives the state at
    this moment, `not_ready` a line for every reason why this worker does no work.
    """

    def __init__(
        self,
        settings: Settings,
        collector: Collector,
        registry: CollectorRegistry,
        read: Callable[[], Reading],
        not_ready: Callable[[], list[str]],
    ) -> None:
        self._settings = settings
        self._collector = collector
        self._registry = registry
        self._not_ready = not_ready
        self._snapshots = Snapshots(settings, read, not_ready)
        self._live = Live(self._snapshots, settings.windows, _HEADERS)
        self._connections = Connections(settings.http_max_connections)
        application = web.Application(middlewares=[self._connections.note, _with_headers, Guard(settings).check])
        application.on_shutdown.append(self._live.stop)
        application.add_routes(
            [
                web.get("/", self._page),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/api/campaigns", self._campaigns),
                web.get("/page.css", _file("page.css")),
                web.get("/page.js", _file("page.js")),
                web.get("/page.svg", _file("page.svg")),
                web.get("/live", self._live.serve, allow_head=False),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1, **LIMITS)
        self._context = server_context(settings)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        host, port = self._settings.http_host, self._settings.http_port
        assert self._runner.server is not None
        served = self._connections.factory(self._runner.server)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                served, host, port, ssl=self._context, ssl_handshake_timeout=SENDS_WITHIN_S if self._context else None
            )
        except OSError as error:
            await self._runner.cleanup()
            raise SiteError(f"cannot serve on {host}:{port} ({error.strerror}): try another --http-port") from None
        self._watching = asyncio.create_task(self._connections.watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        self._server.close()
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The address of the page."""
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://{self._settings.http_host}:{self._server.sockets[0].getsockname()[1]}"

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """Write the page of all metrics. Where it is long, events are counted and heartbeats sent between its parts."""
        page = Page(request.headers.get("Accept", ""))
        since = monotonic()
        for family in chain(self._collector.collect(), self._registry.collect()):
            if family is not None:
                page.write(family)
            if monotonic() - since > _TURN_S:
                await asyncio.sleep(0)
                since = monotonic()
        return await _sent(request, page.parts(), page.content_type)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        reasons = self._not_ready()
        text = "".join(f"{reason}\n" for reason in reasons) or "ready\n"
        return web.Response(text=text, status=503 if reasons else 200)

    async def _campaigns(self, _: web.Request) -> web.Response:
        body = await self._snapshots.made(as_json, as_json)
        return web.Response(body=body, content_type="application/json")

    async def _page(self, request: web.Request) -> web.Response:
        view = View.of(request.query, self._settings.windows)
        body = await self._snapshots.made((as_html, view), partial(as_html, view=view))
        return web.Response(body=body, content_type="text/html", charset="utf-8")


async def _sent(request: web.Request, parts: list[bytes], content_type: str) -> web.StreamResponse:
    """Send a body in parts: to join those of a long one, and to hand it over at once, would hold up all else."""
    response = web.StreamResponse(headers=_HEADERS | {"Content-Type": content_type})
    response.content_length = sum(map(len, parts))
    await response.prepare(request)
    for part in parts if request.method != "HEAD" else ():
        await response.write(part)
    await response.write_eof()
    return response


def _file(name: str) -> Callable[[web.Request], Any]:
    async def send(_: web.Request) -> web.FileResponse:
        return web.FileResponse(_STATIC / name)

    return send


@web.middleware
async def _with_headers(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        error.headers.update(_HEADERS)
        raise
    response.headers.update(_HEADERS)
    return response
