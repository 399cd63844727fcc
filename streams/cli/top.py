"""`streams top`: the campaigns of one or several workers in the terminal, from their /metrics."""

import asyncio
import os
import re
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import aiohttp
import typer
from rich.console import Console
from rich.live import Live
from yarl import URL

from streams.cli.screen import ORDERS, Said, Screen, stream_lines
from streams.cli.shared import JsonOption, duration, fail, settings_from, write_json
from streams.core.money import NANO, decimal_text
from streams.metrics.fleet import PageError, Row, added, page_of, windows_of

EPILOG: Final = (
    "Examples: [bold]streams top[/bold] | [bold]streams top worker-1:6066 worker-2:6066 --window 1h --sort vcpm[/bold] "
    "| [bold]streams top https://ads.example/metrics --token-file token --json[/bold]"
)
_TIMEOUT_S: Final = 10.0
_WIDE: Final = 250
"""Columns where there is no terminal to say how many."""
_UNAUTHORIZED: Final = (401, 403)
_KEY: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|.", re.DOTALL)
"""A special key, as a terminal sends it, or a character."""

# mypy wants to read the members of an enum; these are what ORDERS has.
Order = StrEnum("Order", list(ORDERS))  # type: ignore[misc]
_BY_SERVED: Final = Order("served")


class FetchError(Exception):
    """A worker that said nothing; the message says why."""


class WindowError(Exception):
    """A window that the workers do not have; the message names those that they have."""


class Look(NamedTuple):
    """The pages of one look, by address; an error where there is none."""

    answers: dict[URL, str | FetchError]
    at_s: float

    @property
    def pages(self) -> list[str]:
        """The pages that came."""
        return [answer for answer in self.answers.values() if isinstance(answer, str)]


def command(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Workers: host:port, or the address of /metrics.", show_default=False),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="One of the workers' windows, such as 5m.", show_default="the first")
    ] = None,
    sort: Annotated[Order, typer.Option(help="Column to order by, largest first.")] = _BY_SERVED,
    reverse: Annotated[bool, typer.Option("--reverse", help="Smallest first.")] = False,
    find: Annotated[str, typer.Option(metavar="TEXT", help="Only campaigns whose id has this in it.")] = "",
    every_ms: Annotated[
        int, typer.Option("--every", parser=duration, metavar="DURATION", help="How often to look.", show_default="1s")
    ] = 1_000,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and end.")] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="STREAMS_HTTP_TOKEN_FILE", metavar="FILE", help="File with the bearer token of /metrics."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the campaigns of workers live: those of several workers added up.

    Without a terminal, or with --json or --once, it looks once. The token for a protected /metrics is in --token-file
    or in STREAMS_HTTP_TOKEN. A worker that does not answer is named, and looked for again. Of --json, money is decimal
    text, rates are numbers, and what is undefined is null. Exit code 1 if one that is looked at once does not answer.
    """
    addresses = list(dict.fromkeys(map(_address, urls or [_own()])))
    token = _token(token_file)
    screen = Screen(str(sort), reverse, find, window or "")
    console = Console()
    try:
        if once or as_json or not (console.is_terminal and sys.stdin.isatty()):
            _print(asyncio.run(_once(addresses, token)), screen, console, as_json)
        else:
            asyncio.run(Watch(addresses, token, screen, every_ms / 1000).run(console))
    except WindowError as error:
        fail(str(error), 2)


def _own() -> str:
    settings = settings_from()
    if settings.http_port == 0:
        fail("STREAMS_HTTP_PORT is 0, any free port: name the worker's address", 2)
    return f"{settings.http_host}:{settings.http_port}"


def _address(text: str) -> URL:
    """Return where the metrics of a worker are."""
    try:
        url = URL(text if "://" in text else f"http://{text}")
        is_right = url.scheme in ("http", "https") and bool(url.host) and bool(url.port)
    except ValueError:
        is_right = False
    if not is_right:
        fail(f"{text}: no address such as 127.0.0.1:6066 or https://ads.example/metrics", 2)
    return url.with_path("/metrics") if url.path in ("", "/") else url


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("STREAMS_HTTP_TOKEN") or None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--token-file {file}: cannot be read: {getattr(error, 'strerror', 'no text')}", 2)
    return token or fail(f"--token-file {file}: the file is empty", 2)


# --- looking ----------------------------------------------------------------------------------------------------------


def _session(token: str | None) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))


async def _look(session: aiohttp.ClientSession, urls: Sequence[URL]) -> Look:
    answers = await asyncio.gather(*(_page(session, url) for url in urls))
    return Look(dict(zip(urls, answers, strict=True)), time.time())


async def _page(session: aiohttp.ClientSession, url: URL) -> str | FetchError:
    try:
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status in _UNAUTHORIZED:
                return FetchError("wants a token: give the worker's by --token-file or STREAMS_HTTP_TOKEN")
            if answer.status != HTTPStatus.OK:
                return FetchError(f"answers {answer.status}: is this the address of a worker?")
            text = await answer.text()
            return text if "streams_build_info" in text else FetchError("is not the /metrics of a worker")
    except TimeoutError:
        return FetchError(f"does not answer within {_TIMEOUT_S:.0f} s")
    except aiohttp.ClientConnectorError as error:
        errno = error.os_error.errno
        return FetchError(f"does not answer ({os.strerror(errno) if errno and errno > 0 else error.os_error})")
    except (aiohttp.ClientError, UnicodeDecodeError) as error:
        return FetchError(f"does not answer ({error or type(error).__name__})")


async def _once(urls: Sequence[URL], token: str | None) -> Look:
    async with _session(token) as session:
        return await _look(session, urls)


def _said(look: Look, screen: Screen, before: tuple[float, int] | None = None) -> Said:
    """Return what workers said, in the screen's window: the workers' first one if it has none.

    `before` is the time in s and the events of an earlier look. Raises WindowError.
    """
    windows = next(filter(None, map(windows_of, look.pages)), ())
    if not screen.window and windows:
        screen.window = windows[0]
    if windows and screen.window not in windows:
        raise WindowError(f"--window {screen.window}: the workers have {', '.join(windows)}")
    pages, problems = [], []
    for url, answer in look.answers.items():
        where = url.with_user(None)
        try:
            if isinstance(answer, FetchError):
                raise answer
            pages.append(page_of(answer, screen.window))
        except (FetchError, PageError) as error:
            problems.append(f"{where} {error}")
    fleet = added(pages)
    rate = None
    if before is not None and not problems:
        rate = max(0.0, (fleet.consumed - before[1]) / max(0.001, look.at_s - before[0]))
    return Said(fleet, problems, rate, windows)


# --- once -------------------------------------------------------------------------------------------------------------


def _print(look: Look, screen: Screen, console: Console, as_json: bool) -> None:
    said = _said(look, screen)
    if as_json:
        write_json(_as_json(said, screen))
    elif said.fleet.workers:
        if not console.is_terminal:
            console = Console(width=_WIDE)
        for line in stream_lines(said.fleet, look.at_s):
            console.print(line, markup=False, highlight=False)
        console.print(f"window {screen.window or '-'}\n", highlight=False)
        console.print(screen.table(screen.rows(said.fleet), console.width, trends=False))
    if said.problems:
        fail("\nstreams: ".join(said.problems))


def _as_json(said: Said, screen: Screen) -> dict[str, Any]:
    fleet = said.fleet
    stream = fleet._asdict()
    rows = stream.pop("rows")
    return {
        "window": screen.window or None,
        "problems": said.problems,
        "stream": stream,
        "campaigns": [_row_as_json(row) for row in screen.rows(fleet._replace(rows=rows))],
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {name: _json_value(name, value) for name, value in row._asdict().items()}


def _json_value(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or name.endswith("rate") or name == "viewable_of_served":
        return value
    if name in ("spend", "cpm", "vcpm", "total_spend"):
        return decimal_text(round(Decimal(repr(value)) * NANO))
    return int(value)


# --- live -------------------------------------------------------------------------------------------------------------


class Watch:
    """Looks again and again, and shows what was said; keys are answered meanwhile."""

    def __init__(self, urls: Sequence[URL], token: str | None, screen: Screen, every_s: float) -> None:
        self._urls = urls
        self._token = token
        self._screen = screen
        self._every_s = every_s
        self._changed = asyncio.Event()
        self._look: Look | None = None
        self._read: tuple[Look, str] | None = None
        """The look that was read last, and in which window."""
        self._said: Said | None = None
        self._before: tuple[float, int] | None = None

    async def run(self, console: Console) -> None:
        """Show until somebody ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        with Live(console=console, screen=True, auto_refresh=False) as live, _keys(self._press):
            looking = asyncio.create_task(self._look_again())
            looking.add_done_callback(lambda _: self._changed.set())
            while not self._screen.is_done:
                await self._changed.wait()
                self._changed.clear()
                if looking.done():
                    looking.result()
                await self._read_newest()
                if self._said and self._look:
                    live.update(self._screen.drawn(self._said, *console.size, self._look.at_s), refresh=True)
            looking.cancel()

    async def _look_again(self) -> None:
        """Look for ever; a look that took long is followed by a pause as long."""
        async with _session(self._token) as session:
            while True:
                began = time.monotonic()
                self._look = await _look(session, self._urls)
                self._changed.set()
                await asyncio.sleep(max(self._every_s, time.monotonic() - began))

    async def _read_newest(self) -> None:
        """Read the newest look, or the same one again if another window is wanted."""
        look = self._look
        if look is None or self._read == (look, self._screen.window):
            return
        if self._read and self._said and look is not self._read[0]:
            self._before = None if self._said.problems else (self._read[0].at_s, self._said.fleet.consumed)
        self._said = await asyncio.to_thread(_said, look, self._screen, self._before)
        self._read = look, self._screen.window
        self._screen.note(self._said.fleet)

    def _press(self, key: str) -> None:
        self._screen.press(key, self._said.windows if self._said else ())
        self._changed.set()

    def _stop(self) -> None:
        self._screen.is_done = True
        self._changed.set()


@contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Call `press` with each key: a character, or the sequence of a special key."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)

    def read() -> None:
        for key in _KEY.findall(os.read(terminal, 1_024).decode(errors="ignore")):
            press(key)

    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
