"""Logs on standard error: lines for people on a terminal, JSON elsewhere; few of a kind, and no error twice."""

import asyncio
import logging
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import structlog
from structlog.typing import Processor

BURST: Final = 10
WINDOW_S: Final = 10.0
"""So many lines of a kind are written in so long; then one says how many were not."""

_KINDS: Final = 1_000


def configure_logging(level: str, told: tuple[type[BaseException], ...] = ()) -> None:
    """Write logs of a level and above. `told` are errors that end a command, which says so in a line of its own."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    people = sys.stderr.isatty()
    renderer: Processor = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    handler.addFilter(Untold((*told, asyncio.CancelledError)))
    handler.addFilter(Limited())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("streams").setLevel(level.upper())
    # Faust names its loggers after our subclasses, and tells of every service that starts: that is for debugging.
    for library in ("streams.kafka", "faust", "mode", "aiokafka"):
        logging.getLogger(library).setLevel(logging.INFO if level == "debug" else logging.WARNING)


class Untold(logging.Filter):
    """Keeps out what is told in a line of its own: every service of Faust that an error passes through logs it."""

    def __init__(self, told: tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._told = told

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written."""
        return not (record.exc_info and isinstance(record.exc_info[1], self._told))


class Limited(logging.Filter):
    """Lets a burst of lines of one kind through, then counts them until its window is over."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[Any, list[float]] = {}
        """Kind -> when its window began, lines in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written; the first one of a new window says how many were not."""
        kind, now = _kind(record), self._clock()
        began, lines = self._kinds.pop(kind, (now, 0.0))
        if now - began >= WINDOW_S:
            _say_missing(record, int(lines) - BURST)
            began, lines = now, 0.0
        self._kinds[kind] = [began, lines + 1]
        if len(self._kinds) > _KINDS:
            del self._kinds[next(iter(self._kinds))]
        return lines < BURST


def _kind(record: logging.LogRecord) -> tuple[str, int, str]:
    """Return what lines of one kind have in common: who writes them, and the text before values are put into it."""
    text = record.msg["event"] if isinstance(record.msg, dict) else record.msg
    return record.name, record.levelno, str(text)


def _say_missing(record: logging.LogRecord, missing: int) -> None:
    if missing <= 0:
        return
    if isinstance(record.msg, dict):
        record.msg = record.msg | {"not_shown": missing}
    else:
        record.msg = f"{record.getMessage()} ({missing} more like it were not shown)"
        record.args = ()
