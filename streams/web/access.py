"""Who may read what a worker serves, and how much of it a client may use up: connections, and time.

Laws: nothing but /healthz is told without what the settings ask for. A client that sends or takes its bytes too slowly
is closed after a bounded time, and at once if it keeps another one out.
"""

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final, NoReturn

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from streams.settings import Settings, variable

OPEN_PATH: Final = "/healthz"

SENDS_WITHIN_S: Final = 5.0
"""How long a client may take for a request, its first byte and a TLS handshake included."""
TAKES_WITHIN_S: Final = 30.0
"""How long it may take to read what was written to it: a page of 5,000 campaigns has 15 MB."""
TAKES_AT_ONCE_S: Final = 2.0
"""A client that takes so long is slow: it is closed if that lets another one in."""
_LOOK_S: Final = 0.25

LIMITS: Final[dict[str, Any]] = {
    "keepalive_timeout": 75.0,
    "lingering_time": 1.0,
    "max_line_size": 4_096,
    "max_field_size": 8_190,
    "max_headers": 64,
}
"""Of aiohttp's server: seconds for which an idle connection is kept, and a body is read that nobody wants; bytes of the
first line and of a header, and how many of these."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


# A request that cannot be read is its sender's business: it is answered, and would else be logged with its bytes.
logging.getLogger("aiohttp.server").addFilter(_is_ours)


class SiteError(Exception):
    """What cannot be served as the settings say; the message says what to do."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what HTTPS is served with; None if it is not asked for. Raises SiteError."""
    if settings.http_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.http_certificate, settings.http_key, _no_password)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        name = variable("http_certificate")
        raise SiteError(f"{name}={str(settings.http_certificate)!r} cannot be served with: {why}") from None
    return context


def _no_password() -> NoReturn:
    raise ValueError("its key has a password: give one without")


# --- who --------------------------------------------------------------------------------------------------------------


class Guard:
    """Asks for the bearer token or the password of the settings; either opens. Without both, everybody may read."""

    def __init__(self, settings: Settings) -> None:
        accepted, self._ask = [], []
        if token := settings.secret("http_token"):
            accepted.append(("bearer", token))
            self._ask.append("Bearer")
        if password := settings.secret("http_password"):
            accepted.append(("basic", b64encode(f"{settings.http_username}:{password}".encode()).decode()))
            self._ask.append('Basic realm="impression-streams", charset="UTF-8"')
        self._accepted = [_digest(scheme, value) for scheme, value in accepted]

    def _admits(self, header: str) -> bool:
        scheme, _, value = header.partition(" ")
        given = _digest(scheme.lower(), value.strip())
        return any([compare_digest(given, known) for known in self._accepted])  # all, so that time tells nothing

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 401 to who does not say what is asked for."""
        if not self._accepted or request.path == OPEN_PATH or self._admits(request.headers.get("Authorization", "")):
            return await handler(request)
        refusal = web.HTTPUnauthorized(text="a token or password is needed\n")
        for challenge in self._ask:
            refusal.headers.add("WWW-Authenticate", challenge)
        raise refusal


def _digest(scheme: str, value: str) -> bytes:
    """Return what tells two apart and is always as long, so that comparing takes as long."""
    return sha256(f"{scheme} {value}".encode(errors="surrogateescape")).digest()


# --- how much ---------------------------------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """What aiohttp makes of a connection, and since when others wait for its client."""

    def __init__(self, server: asyncio.Protocol, open_ones: "Connections") -> None:
        self._server = server
        self._open = open_ones
        self.since = 0.0
        """When it became what it is now: idle, sending or being answered."""
        self.is_sending = True
        self.is_answered = False
        self.unread_since: float | None = None
        """Since when there is something that was written and is not taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.since = self._open.now()
        self._server.connection_made(transport)
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if not (self.is_sending or self.is_answered):
            self.is_sending, self.since = True, self._open.now()
        self._server.data_received(data)

    def eof_received(self) -> bool | None:
        return self._server.eof_received()

    def pause_writing(self) -> None:
        self._server.pause_writing()

    def resume_writing(self) -> None:
        self._server.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.remove(self)
        self._server.connection_lost(exc)

    def turn(self, is_answered: bool) -> None:
        """Note that its request is being answered, or that its answer is written."""
        self.is_sending, self.is_answered, self.since = False, is_answered, self._open.now()

    def look(self, now: float) -> None:
        """Close it if its client is too slow."""
        if not self.is_unread:
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = now
        sends_too_slowly = self.is_sending and now - self.since > SENDS_WITHIN_S
        if sends_too_slowly or (self.unread_since is not None and now - self.unread_since > TAKES_WITHIN_S):
            self.transport.abort()

    @property
    def is_unread(self) -> bool:
        """Whether something that was written is not taken."""
        return self.transport.get_write_buffer_size() > 0

    def is_at_work(self, now: float) -> bool:
        """Say whether it is answered, or takes its answer, and is not slow at that."""
        is_slow = self.unread_since is not None and now - self.unread_since > TAKES_AT_ONCE_S
        return self.is_answered or (self.is_unread and not is_slow)

    @property
    def keeps_waiting_since(self) -> tuple[bool, float]:
        """Smallest for the one to be closed first: the one that is slow the longest, then the longest idle one."""
        if self.is_unread and self.unread_since is not None:
            return False, self.unread_since
        return not self.is_sending, self.since


class Connections:
    """The open connections of a server, at most `limit`. Beyond, the one that is slow or idle the longest is closed."""

    def __init__(self, limit: int) -> None:
        self.now = asyncio.get_running_loop().time
        self._limit = limit
        self._open: dict[asyncio.Transport, _Connection] = {}

    def factory(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Return what makes a protocol for a connection that is counted and watched."""
        return lambda: _Connection(make(), self)

    def add(self, connection: _Connection) -> None:
        """Take a connection in, and close another one if there is no room for it; it itself if all are at work."""
        others = [one for one in self._open.values() if not one.transport.is_closing()]
        self._open[connection.transport] = connection
        if len(others) >= self._limit:
            now = self.now()
            closable = [one for one in others if not one.is_at_work(now)]
            min(closable, key=lambda one: one.keeps_waiting_since, default=connection).transport.abort()

    def remove(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._open.pop(connection.transport, None)

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note while a request is being answered: its client is then not what is waited for."""
        connection = self._open.get(request.transport) if request.transport is not None else None
        if connection is None:
            return await handler(request)
        connection.turn(is_answered=True)
        try:
            return await handler(request)
        finally:
            connection.turn(is_answered=False)

    async def watch(self) -> NoReturn:
        """Close those that are too slow, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self.now()
            for connection in list(self._open.values()):
                connection.look(now)
