"""Server-sent events of the page.

Law: a reader gets the newest figures or none. Nothing is kept for one who reads slowly, and one who does not read at
all is let go.
"""

import asyncio
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

from aiohttp import web

from streams.web.page import as_event
from streams.web.snapshot import Snapshots
from streams.web.view import View

MAX_READERS: Final = 50
_ALIVE_S: Final = 5.0
"""A page is told something at least so often, and notices when it is not."""
_SOONEST_S: Final = 0.01
_PATIENCE_S: Final = 10.0
"""For so long a reader may leave what was sent to it."""
_ALIVE: Final = b"event: alive\ndata: 1\n\n"
_HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Live:
    """The readers of /live."""

    def __init__(self, snapshots: Snapshots, windows: tuple[str, ...], headers: dict[str, str]) -> None:
        self._snapshots = snapshots
        self._windows = windows
        self._headers = headers
        self._readers = 0
        self._stopped = asyncio.Event()

    async def stop(self, _: web.Application) -> None:
        """Let all readers go."""
        self._stopped.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send the page's figures, as its address wants them, until the reader or the worker ends it."""
        if self._readers >= MAX_READERS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_READERS} pages are open already: close one\n")
        response = web.StreamResponse(headers=self._headers | _HEADERS)
        self._readers += 1
        try:
            with suppress(ConnectionError, TimeoutError):
                await response.prepare(request)
                await self._send(response, View.of(request.query, self._windows))
        finally:
            self._readers -= 1
            if request.transport is not None and response.prepared and not self._stopped.is_set():
                request.transport.abort()
        return response

    async def _send(self, response: web.StreamResponse, view: View) -> None:
        told, told_at = b"", 0.0
        while not self._stopped.is_set():
            event = await self._snapshots.made((as_event, view), partial(as_event, view=view))
            if event == told and monotonic() - told_at >= _ALIVE_S:
                event = _ALIVE
            if event != told:
                await asyncio.wait_for(response.write(event), _PATIENCE_S)
                told, told_at = told if event == _ALIVE else event, monotonic()
            wait_s = min(max(_SOONEST_S, self._snapshots.holds_for_s()), _ALIVE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait_s)
