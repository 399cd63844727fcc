"""Logs: JSON without a terminal, few of a kind, and no traceback of what is told in a line of its own."""

import json
import logging
import subprocess
import sys
from typing import Any

from streams.cli.logs import BURST, WINDOW_S, Limited


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(message: Any, *values: Any, name: str = "aiokafka", level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord(name, level, "file", 1, message, values, None)


def test_of_one_kind_a_burst_is_shown_and_then_how_many_were_not() -> None:
    clock = Clock()
    limited = Limited(clock)
    shown = [limited.filter(record("no answer from %s", number)) for number in range(BURST + 25)]
    assert shown == [True] * BURST + [False] * 25
    clock.now = WINDOW_S
    late = record("no answer from %s", "node 7")
    assert limited.filter(late)
    assert late.getMessage() == "no answer from node 7 (25 more like it were not shown)"
    again = record("no answer from %s", "node 8")
    assert limited.filter(again)
    assert again.getMessage() == "no answer from node 8"


def test_kinds_are_told_apart_by_who_writes_them_how_grave_they_are_and_their_text() -> None:
    limited = Limited(Clock())
    others = [record("a"), record("b"), record("a", name="faust"), record("a", level=logging.ERROR)]
    for _ in range(BURST):
        assert all(limited.filter(one) for one in others)
    assert not any(limited.filter(one) for one in others)


def test_of_our_own_lines_the_event_is_the_kind_and_the_values_are_kept() -> None:
    clock = Clock()
    limited = Limited(clock)
    for number in range(BURST + 3):
        limited.filter(record({"event": "trying again", "after_s": number}))
    clock.now = WINDOW_S + 1
    late = record({"event": "trying again", "after_s": 7})
    assert limited.filter(late)
    assert late.msg == {"event": "trying again", "after_s": 7, "not_shown": 3}


def test_very_many_kinds_take_little_memory() -> None:
    limited = Limited(Clock())
    for number in range(5_000):
        limited.filter(record(f"kind {number}"))
    assert len(limited._kinds) <= 1_000


# --- as a program writes them -----------------------------------------------------------------------------------------

CRASH = """
import asyncio, logging, structlog
from streams.cli.logs import configure_logging
from streams.kafka.topics import TopicsError
configure_logging("info", (TopicsError,))

def crash(error):
    try:
        raise error
    except type(error):
        logging.getLogger("mode").error("Crashed reason=%r", error, exc_info=True)
"""


def written(program: str) -> list[Any]:
    """The lines that a program writes to standard error, which is no terminal."""
    done = subprocess.run([sys.executable, "-c", CRASH + program], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_an_error_that_is_told_in_a_line_of_its_own_is_not_told_by_every_service_it_passes() -> None:
    assert written("crash(TopicsError('gone')); crash(asyncio.CancelledError())") == []
    [line] = written("crash(ValueError('our own bug'))")
    assert "ValueError: our own bug" in line["exception"]
    assert (line["level"], line["event"]) == ("error", "Crashed reason=ValueError('our own bug')")


def test_lines_are_json_and_rate_limited_through_and_through() -> None:
    log = 'structlog.get_logger("streams.cli.worker").warning("trying again", after_s=number)'
    lines = written(f"for number in range({BURST + 5}): {log}")
    assert [line["after_s"] for line in lines] == list(range(BURST))
    assert lines[0].keys() == {"event", "after_s", "level", "timestamp"}
