"""Logs of one event a line: a JSON object, a URL that was called, or a time and such a URL.

Law: a line is judged alone. Whatever it is, the system's own file sees an object: members, or query parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import orjson

from streams.sources.adapter import Made, Options, Reader, Row, RowError

Object = dict[str, Any]
MadeOf = Callable[[Object], Sequence[Made]]
"""What to make of a line."""

URL: Final = "url"
"""Member of a JSON object with a URL: the parameters of its query are members too, unless there are such already."""
TIME: Final = "time"
"""Where the time in front of a URL is put."""
_URLS: Final = ("http://", "https://", "/")


def json_lines(open_rows: Callable[[Options], MadeOf]) -> Reader:
    """Return a reader of lines; `open_rows` says what to make of an object."""

    def read(lines: Iterator[str], file: str, options: Options) -> Iterator[Row]:
        made_of = open_rows(options)
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                try:
                    yield number, made_of(object_of(line))
                except RowError as error:
                    yield error.at(number)

    return read


def object_of(line: str) -> Object:
    """Return the members of a line. Raises RowError."""
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
        return dict(orjson.loads(text))
    except (orjson.JSONDecodeError, ValueError):
        raise RowError("not_json", "is no JSON object") from None


def _called(url: str) -> Object:
    try:
        parts = urlsplit(url)
        return dict(parse_qsl(parts.query, strict_parsing=False)) | {"path": parts.path}
    except ValueError:
        raise RowError("not_json", "is no URL") from None


def text_of(row: Object, *names: str) -> str:
    """Return the first of these members that there is as text; empty where none is. Names may be paths: `user.id`."""
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, str | int | float) and value != "":
            return str(value)
    return ""


def said(row: Object, *names: str) -> bool | None:
    """Return a flag, told as true, 1, "TRUE" or "1" and the like; None where it is not told."""
    for name in names:
        value = row.get(name)
        if isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.casefold() in ("true", "false", "1", "0", "y", "n"):
            return value.casefold() in ("true", "1", "y")
    return None
