"""What a worker serves: /metrics, /healthz, /readyz, /api/campaigns, and a page at / that shows the campaigns live.

Nothing here knows a viewer, and no campaign name is ever markup: the server escapes it, the script sets it as text.
"""

import asyncio
from collections.abc import Callable
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry

from streams.metrics.collector import Collector
from streams.metrics.exposition import Page
from streams.metrics.reading import Reading
from streams.settings import Settings
from streams.web.access import LIMITS, SENDS_WITHIN_S, Connections, Guard, SiteError, server_context
from streams.web.figures import Row, campaigns, stream

_STATIC: Final = Path(__file__).parent
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
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
        self._read = read
        self._not_ready = not_ready
        self._connections = Connections(settings.http_max_connections)
        application = web.Application(middlewares=[self._connections.note, _with_headers, Guard(settings).check])
        application.add_routes(
            [
                web.get("/", self._page),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/api/campaigns", self._campaigns),
                web.get("/page.css", _file("page.css")),
                web.get("/page.js", _file("page.js")),
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

    async def _metrics(self, request: web.Request) -> web.Response:
        """Write the page of all metrics. Between its parts, events are counted and heartbeats sent."""
        page = Page(request.headers.get("Accept", ""))
        for family in chain(self._collector.collect(), self._registry.collect()):
            if family is None:
                await asyncio.sleep(0)
            else:
                page.write(family)
        return web.Response(body=page.body, headers={"Content-Type": page.content_type})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        reasons = self._not_ready()
        text = "".join(f"{reason}\n" for reason in reasons) or "ready\n"
        return web.Response(text=text, status=503 if reasons else 200)

    def _figures(self) -> dict[str, Any]:
        reading = self._read()
        settings = self._settings
        return {
            "windows": settings.windows,
            "campaigns": campaigns(reading, settings.windows, settings.min_sample, settings.max_campaigns),
            "stream": stream(reading) | {"not_ready": self._not_ready()},
        }

    async def _campaigns(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._figures()), content_type="application/json")

    async def _page(self, request: web.Request) -> web.Response:
        figures = self._figures()
        window = request.query.get("window", self._settings.windows[0])
        rows = "".join(_table_row(row, window) for row in figures["campaigns"])
        page = (_STATIC / "page.html").read_text()
        return web.Response(text=page.replace("<!-- rows -->", rows), content_type="text/html")


def _table_row(row: Row, window: str) -> str:
    figures = row["windows"].get(window) or {}
    cells = [
        row["name"] or row["campaign_id"],
        row["currency"],
        *(_number(figures.get(name)) for name in ("served", "measurable", "viewable")),
        _percent(figures.get("viewable_rate")),
        *(_money(figures.get(name)) for name in ("cpm", "vcpm")),
        *(_percent(figures.get(name)) for name in ("viewable_of_served", "measured_rate")),
        _number(row["total"]["served"]),
        row["total"]["spend"],
    ]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _money(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


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
