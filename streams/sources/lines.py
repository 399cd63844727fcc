"""Logs of one event a line: a JSON object, a URL that was called, or a time and such a URL.

Law: a line is judged alone. Whatever it is, the system's own file sees an object: members, or query parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import orjson

from streams.sources.adapter import BadRow, Made, Opened, Opener, Options, Row, RowError, ms_of_text, whole

Object = dict[str, Any]
MadeOf = Callable[[Object], Sequence[Made]]
"""What to make of a line."""

URL: Final = "url"
"""Member of a JSON object with a URL: the parameters of its query are members too, unless there are such already."""
TIME: Final = "time"
"""Where the time in front of a URL is put."""
PATH: Final = "path"
"""Where the path of a URL is put."""
RECORDED: Final = ("received_at", "received", TIME, "@timestamp")
"""When a server wrote the line."""
_FLAGS: Final = {"true": True, "1": True, "y": True, "false": False, "0": False, "n": False}
_URLS: Final = ("http://", "https://", "/")


def json_lines(open_rows: Callable[[Options], MadeOf]) -> Opener:
    """Return how files of such lines are opened; `open_rows` says what to make of an object."""

    def open_file(head: Sequence[str], file: str, options: Options) -> Opened:
        made_of = open_rows(options)

        def judge(lines: Iterable[str], first: int) -> Iterator[Row]:
            for number, line in enumerate(lines, first):
                if not line.isspace():
                    try:
                        yield number, made_of(object_of(line))
                    except RowError as error:
                        yield error.at(number)
                    except RecursionError:
                        yield BadRow(number, "not_json", "is nested too deeply")

        return Opened(0, judge)

    return open_file


def object_of(line: str) -> Object:
    """Return the members of a line, all names in lower case. Raises RowError."""
    text = line.strip()
    if text.startswith("{"):
        found = _parsed(text)
        url = found.get(URL)
        return _called(url) | found if isinstance(url, str) else found
    if text.startswith(_URLS):
        return _called(text)
    time, _, url = text.partition(" ")
    if url.startswith(_URLS):
        return {TIME: time} | _called(url)
    raise RowError("not_json", "is neither a JSON object nor a URL")


def _parsed(text: str) -> Object:
    try:
        return dict(_folded(orjson.loads(text)))
    except ValueError:
        raise RowError("not_json", "is no JSON object") from None


def _folded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name.casefold(): _folded(inner) for name, inner in value.items()}
    return value


def _called(url: str) -> Object:
    try:
        parts = urlsplit(url)
        return {PATH: parts.path} | {name.casefold(): text for name, text in parse_qsl(parts.query)}
    except ValueError:
        raise RowError("not_json", "is no URL") from None


def text_of(row: Object, *names: str) -> str:
    """Return the first of these members that is a text or a number, as text; "" without one. `a.b` is b in a."""
    for path in _paths(names):
        value: Any = row
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
            return str(value)
    return ""


@lru_cache(maxsize=1_024)
def _paths(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name.casefold().split(".")) for name in names)


def event_of(row: Object, *names: str) -> str:
    """Return what happened: the first of these members that there is, else the last part of the URL's path."""
    return text_of(row, *names) or text_of(row, PATH).rpartition("/")[2]


def whole_of(row: Object, *names: str) -> int | None:
    """Return a member that is a whole number; None where it is not told."""
    text = text_of(row, *names)
    return whole(text, names[0]) if text else None


def said(row: Object, *names: str) -> bool | None:
    """Return a flag, told as true, 1, "TRUE", "1" and the like; None where it is not told."""
    for name in names:
        value = row.get(name.casefold())
        flag = _FLAGS.get(str(value).casefold())
        if flag is not None:
            return flag
    return None


def times_of(row: Object, options: Options, *own: str) -> tuple[int, int | None]:
    """Return when it happened and when it was recorded (None where that is not told), in ms.

    `own` are the names of the event's own time; where there is none, it happened when it was recorded.
    """
    recorded, happened = text_of(row, *RECORDED), text_of(row, *own)
    recorded_ms = ms_of_text(recorded, RECORDED[0], options.zone) if recorded else None
    if happened:
        return ms_of_text(happened, own[0], options.zone), recorded_ms
    if recorded_ms is None:
        raise RowError("missing_field", f"{own[0]}: there is no time")
    return recorded_ms, recorded_ms
