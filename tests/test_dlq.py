"""`streams dlq`: every letter with its reason and its own bytes, and a retry that sends each record once."""

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from streams.cli import app
from streams.core.delta import Refused
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.crash import RETRY_POINTS
from streams.wire.letters import Letter, LetterError, Mark, Place, mark_headers, read_letter, retry_headers
from streams.wire.records import letter_headers, letter_key
from tests.conftest import create_topics
from tests.logs import MIN, render
from tests.worker import WorkerProcess, produced, read_topic, send, wait_until

PARTITIONS = 2
PLACE = Place("renders", 1, 17)


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    return topic_prefix


class Desk:
    """`streams dlq` on the topics of a test."""

    def __init__(self, broker: EmbeddedBroker, prefix: str) -> None:
        self.at = ["--broker", broker.bootstrap, "--topic-prefix", prefix]
        self.bootstrap, self.prefix = broker.bootstrap, prefix

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["dlq", *arguments, *self.at])

    def json(self, *arguments: str, code: int = 0) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def write_letter(self, place: Place, value: bytes, timestamp: int, *own: tuple[str, bytes]) -> None:
        """A letter of a worker that did not know such a record yet."""
        refused = Refused(place.topic, place.offset, "wrong_type", "of another version")
        headers = letter_headers(refused, place.partition, timestamp, b"viewer", own)
        produced(self.bootstrap, self.prefix + "dead-letters", letter_key(refused, place.partition), value, headers)

    def copies(self) -> list[Any]:
        """Records of renders that were sent again."""
        records = read_topic(self.bootstrap, self.prefix + "renders", PARTITIONS)
        return [record for record in records if "retry-of" in dict(record.headers() or [])]


@pytest.fixture
def desk(broker: EmbeddedBroker, topics: str) -> Desk:
    return Desk(broker, topics)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def good(number: int = 0, ts: int | None = None) -> bytes:
    return json.dumps(render(f"imp-{number}", now_ms() if ts is None else ts)).encode()


# --- what is written in headers ---------------------------------------------------------------------------------------


def test_a_letter_says_what_its_headers_say_and_carries_what_its_record_had() -> None:
    refused = Refused("renders", 17, "future", "ts lies 700 s ahead")
    own = [("appended", b"5"), ("retries", b"2"), ("retry-of", b"renders|1|3"), ("cookie", b"secret")]
    headers = letter_headers(refused, 1, 99, b"viewer", own)
    assert "cookie" not in dict(headers)
    assert read_letter(b"renders|1|17", b"{}", headers) == Letter(
        PLACE, "future", "ts lies 700 s ahead", 99, 5, 2, "renders|1|3", b"viewer", 2
    )
    assert read_letter(b"renders|1|17", None, letter_headers(refused, 1, 99, None)) == Letter(
        PLACE, "future", "ts lies 700 s ahead", 99, 99, 0, None, None, 0
    )


def test_a_record_that_is_sent_again_keeps_its_time_and_says_how_often_and_from_where() -> None:
    letter = Letter(PLACE, "future", "", 99, 5, 2, None, None, 0)
    assert retry_headers(letter, as_new=False) == [
        ("appended", b"5"), ("retries", b"3"), ("retry-of", b"renders|1|17")
    ]  # fmt: skip
    assert retry_headers(letter, as_new=True) == [("retries", b"3"), ("retry-of", b"renders|1|17")]


@pytest.mark.parametrize("mark", [Mark(PLACE, False, 12), Mark(PLACE, True, 0)])
def test_a_mark_comes_back_as_it_was(mark: Mark) -> None:
    assert read_letter(mark.place.key, None, mark_headers(mark)) == mark


@pytest.mark.parametrize(
    ("key", "headers"),
    [(None, []), (b"x", []), (b"orders|0|1", []), (b"renders|0|1", []), (b"\xff", []), (PLACE.key, [("mark", b"")])],
)
def test_what_is_no_letter_is_refused(key: Any, headers: Any) -> None:
    with pytest.raises(LetterError):
        read_letter(key, b"", headers)


# --- on Kafka ---------------------------------------------------------------------------------------------------------


def test_letters_are_listed_and_shown_as_they_came_and_what_would_be_refused_again_is_kept(desk: Desk) -> None:
    ts = now_ms()
    broken = b'{"impression_id":"\xff\x1b[31m","ts":1}'
    ahead = json.dumps(render("ahead", ts + 15 * MIN)).encode()
    with WorkerProcess(desk.bootstrap, desk.prefix) as worker:
        send(desk.bootstrap, desk.prefix + "renders", [("v", broken), ("v", ahead), ("v", good(1, ts))])
        wait_until(lambda: len(desk.json("ls")["letters"]) == 2, "two are refused, and their letters committed")
        assert worker.metric("streams_dead_letters_total") == 2
        letters = {letter["reason"]: letter for letter in desk.json("ls")["letters"]}
    assert letters.keys() == {"not_utf8", "future"}
    assert letters["not_utf8"] | {"timestamp": 0, "appended": 0} == {
        "letter": letters["not_utf8"]["letter"], "topic": "renders", "partition": letters["future"]["partition"],
        "offset": 0, "reason": "not_utf8", "detail": "byte 18 is not UTF-8", "timestamp": 0, "appended": 0,
        "retries": 0, "retry_of": None, "retried": False, "bytes": len(broken),
    }  # fmt: skip
    assert abs(letters["not_utf8"]["timestamp"] - ts) < MIN
    assert [letter["reason"] for letter in desk.json("ls", "--reason", "future")["letters"]] == ["future"]
    assert desk.json("ls", "--topic", "clicks") == {"letters": []}
    name = letters["not_utf8"]["letter"]
    assert desk.run("show", name, "--raw").stdout_bytes == broken
    shown = desk.run("show", name).stdout
    assert "\\xff" in shown and "\\x1b[31m" in shown and "\x1b" not in shown
    retried = desk.json("retry", "--all", code=3)
    assert retried["sent"] == []
    assert sorted(kept["why"].partition(":")[0] for kept in retried["kept"]) == ["future", "not_utf8"]
    assert desk.copies() == []


def test_a_retry_is_counted_once_and_never_sent_twice(desk: Desk) -> None:
    ts = now_ms()
    places = [Place("renders", number % PARTITIONS, 100 + number) for number in range(5)]
    for number, place in enumerate(places):
        desk.write_letter(place, good(number, ts), ts - 1_000)
    with WorkerProcess(desk.bootstrap, desk.prefix) as worker:
        planned = desk.json("retry", "--reason", "wrong_type", "--dry-run")
        assert planned == {"dry_run": True, "sent": [str(place) for place in sorted(places)], "kept": []}
        assert desk.copies() == [], "a dry run sends nothing"
        assert desk.run("retry", str(places[0])).stdout.endswith("1 sent, 0 kept\n")
        assert len(desk.json("retry", "--all", code=3)["sent"]) == 4
        again = desk.json("retry", "--all", code=3)
        assert again["sent"] == [] and {kept["why"] for kept in again["kept"]} == {"was sent again before"}
        wait_until(lambda: worker.totals().get("c") == (5, 0, 0), "each is counted")
        assert worker.consumed("renders") == 5
    copies = desk.copies()
    assert {(copy.partition(), copy.key()) for copy in copies} == {(0, b"viewer"), (1, b"viewer")}
    assert {dict(copy.headers())["retry-of"].decode() for copy in copies} == {p.key.decode() for p in places}
    for copy in copies:
        assert dict(copy.headers()).items() >= {"appended": str(ts - 1_000).encode(), "retries": b"1"}.items()
    assert all(letter["retried"] for letter in desk.json("ls")["letters"])


@pytest.mark.parametrize("point", RETRY_POINTS)
def test_a_retry_that_dies_is_finished_by_the_next_one(desk: Desk, point: str) -> None:
    for number in range(3):
        desk.write_letter(Place("renders", 0, 100 + number), good(number), now_ms())
    command = [sys.executable, "-m", "streams.cli", "dlq", "retry", "--all", *desk.at]
    died = subprocess.run(command, env=os.environ | {"STREAMS_CRASH_AT": point}, check=False)
    assert died.returncode == -9
    assert "[retry broken off]" in desk.run("ls").stdout
    assert len(desk.copies()) == (0 if point == "retrying" else 3)
    finished = desk.run("retry", "--all")
    assert finished.exit_code == (0 if point == "retrying" else 3), finished.output
    assert sorted(dict(copy.headers())["retry-of"] for copy in desk.copies()) == [
        b"renders|0|100", b"renders|0|101", b"renders|0|102"
    ]  # fmt: skip
    assert desk.run("ls").stdout.count("[retried]") == 3


def test_what_was_refused_again_is_kept_unless_it_is_said(desk: Desk) -> None:
    desk.write_letter(PLACE, good(), now_ms(), ("retries", b"1"), ("retry-of", b"renders|1|3"))
    assert "[refused again, as renders/1/3 was]" in desk.run("ls").stdout
    kept = desk.run("retry", "--all")
    assert (kept.exit_code, kept.stdout) == (
        3, "renders/1/17: kept, is refused again after 1 retries: --again sends it once more\n0 sent, 1 kept\n"
    )  # fmt: skip
    assert desk.json("retry", "--all", "--again")["sent"] == ["renders/1/17"]
    [copy] = desk.copies()
    assert dict(copy.headers())["retries"] == b"2"
    assert desk.json("retry", "--all", "--again", code=3)["sent"] == []


def test_what_was_ahead_of_its_time_can_be_sent_when_its_time_has_come(desk: Desk) -> None:
    desk.write_letter(PLACE, good(0, now_ms() - 5 * MIN), now_ms() - 20 * MIN)
    [kept] = desk.json("retry", "--all", code=3)["kept"]
    assert kept["why"] == "future: its ts lies 900 s after its record's own time"
    assert desk.json("retry", "--all", "--as-new")["sent"] == ["renders/1/17"]
    [copy] = desk.copies()
    assert "appended" not in dict(copy.headers())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["retry"], 2, "say which letters"),
        (["retry", "renders-17"], 2, "such as renders/0/17"),
        (["ls", "--reason", "boredom"], 2, "not one of null_value"),
        (["ls", "--topic", "orders"], 2, "not one of renders"),
        (["show", "renders/0/9"], 1, "no letter renders/0/9"),
        (["retry", "renders/0/9"], 1, "no letter renders/0/9: nothing was sent"),
    ],
)
def test_what_cannot_be_done_is_one_line(desk: Desk, arguments: list[str], code: int, says: str) -> None:
    result = desk.run(*arguments)
    assert result.exit_code == code
    assert says in result.stderr and result.stderr.count("\n") == 1
