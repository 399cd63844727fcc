"""The words that all adapters of ad systems share.

    file -> lines -> rows            tables.py (CSV), lines.py (JSON, URLs)
      -> what a row becomes          the system's own file: Event | ReportedCount | Skipped, or a BadRow with its line
      -> records, checked            systems.py

Law: a row is judged alone. What it becomes depends on its file's header and on `Options`, not on the rows around it:
so the lines of a file can be judged in pieces, each by another process. Only reports look at all rows in the end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from decimal import Context
from typing import Any, Final, Literal, NamedTuple

from streams.core.money import PriceError, parse_decimal
from streams.core.reported import ReportedCount

BEFORE_2100_MS: Final = 4_102_444_800_000


class Event(NamedTuple):
    """An event as the wire has it (README, events), not yet checked.

    `appended_ms` is when the system's server recorded it, where the file says so apart from the event's own time.
    """

    topic: str
    fields: dict[str, Any]
    appended_ms: int | None = None


class Skipped(NamedTuple):
    """A row that is right and is no event, such as a quartile of a video; `reason` is from a short list a system."""

    reason: str


class BadRow(NamedTuple):
    """A row that cannot be read: its first line, why (a reason of the wire), and words that repeat none of it."""

    line: int
    reason: str
    detail: str


Made = Event | ReportedCount | Skipped
"""What a row becomes; a row may become several."""


class RowError(ValueError):
    """A row that cannot be read; becomes a `BadRow` where its line is known."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def at(self, line: int) -> BadRow:
        """Return the row that is bad."""
        return BadRow(line, self.reason, self.detail)


class HeaderError(ValueError):
    """A file that is not of the system that it is read as; the message says what is missing and what to do."""


PriceIn = Literal["units", "cents", "micros"]
_EXACT: Final = Context(prec=1_000)
_SCALES: Final[dict[PriceIn, str]] = {"units": "", "cents": "0.01", "micros": "0.000001"}


@dataclass(frozen=True)
class Options:
    """What the files do not say of themselves."""

    source: str
    currency: str = "USD"
    """Of money in columns that name none."""
    zone: tzinfo = UTC
    """Of times and days that name none."""
    kind: str | None = None
    """Topic whose events a file holds, where neither its name nor its columns say so."""
    price_in: PriceIn = "units"
    """What prices that are CPMs are counted in."""
    prices: Mapping[str, str] = field(default_factory=dict)
    """Line item -> CPM as decimal text, in `currency`."""

    @property
    def zone_name(self) -> str:
        """The IANA name of the zone."""
        return str(self.zone)


Row = tuple[int, Sequence[Made]] | BadRow
"""The number of a row's first line, and what it became."""

Judge = Callable[[Iterable[str], int], Iterator[Row]]
"""Judges consecutive lines of a file, given the number of the first."""


class Opened(NamedTuple):
    """A file whose beginning was looked at."""

    header: int
    """Lines before the first row."""
    judge: Judge
    over_all: Callable[[Iterator[Row]], Iterator[Row]] | None = None
    """What is made of all its rows together; None where each is judged alone."""


HEADER_WITHIN: Final = 50
"""Reports begin with lines about themselves; a header is looked for in so many."""

Opener = Callable[[Sequence[str], str, Options], Opened]
"""Looks at the first HEADER_WITHIN lines of a file of a name. Raises HeaderError."""


@dataclass(frozen=True)
class System:
    """An ad system whose files can be read. `source` is who counts unless the user says otherwise."""

    name: str
    source: str
    moment: str
    """When it counts an impression."""
    topics: tuple[str, ...]
    """What its files can hold."""
    open: Opener
    knows_viewer: bool = True


# --- texts that rows consist of ---------------------------------------------------------------------------------------


def needed(text: str | None, name: str) -> str:
    """Return a text that has to be there."""
    if not text:
        raise RowError("missing_field", f"{name}: is empty")
    return text


def whole(text: str, name: str) -> int:
    """Return a whole number of plain digits."""
    try:
        return int(text)
    except ValueError:
        raise RowError("wrong_type" if text else "missing_field", f"{name}: is no whole number") from None


def ms_of_us(text: str, name: str) -> int:
    """Return microseconds since the epoch as milliseconds, rounded down."""
    return whole(text, name) // 1_000


def ms_of_text(text: str, name: str, zone: tzinfo) -> int:
    """Return a time in ms. It is seconds, ms or us since the epoch, or ISO 8601, in `zone` where it names none."""
    stripped = text.strip()
    if stripped.isascii() and stripped.isdigit():
        return _scaled(whole(stripped, name), name)
    try:
        moment = datetime.fromisoformat(stripped)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1_000)
    except (ValueError, OverflowError):
        raise RowError("wrong_type" if text else "missing_field", f"{name}: is no time") from None


def _scaled(number: int, name: str) -> int:
    """Tell seconds, ms and us apart by their size: each form is unmistakable from 1976 to 2099."""
    if number < BEFORE_2100_MS // 1_000:
        return number * 1_000
    if number < BEFORE_2100_MS:
        return number
    if number < BEFORE_2100_MS * 1_000:
        return number // 1_000
    raise RowError("out_of_range", f"{name}: is no time before 2100")


def filled(**fields: Any) -> dict[str, Any]:
    """Return the fields that are there: not None, not an empty text."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def cpm(price: str, currency: str, options: Options) -> dict[str, Any]:
    """Return the fields that say a CPM; none where there is no price."""
    if not price:
        return {}
    scale = _SCALES[options.price_in]
    told = times(price, scale) if scale else price
    return {"price": told, "price_unit": "cpm", "currency": currency or options.currency}


def times(price: str, factor: str) -> str:
    """Return the product of two decimal texts, exactly."""
    try:
        return f"{_EXACT.multiply(parse_decimal(price), parse_decimal(factor)):f}"
    except PriceError as error:
        raise RowError("bad_price", f"price: {error}") from None
