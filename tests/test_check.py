"""`streams check`: each thing that would spoil the numbers is found, with what to do, and nobody is named."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner, Result

from streams.cli import app
from streams.core.delta import Batch
from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Click, Event, Malformed, Render, Viewability
from streams.core.rules import HOUR, Key, Rules
from streams.kafka.broker import HOST, EmbeddedBroker
from streams.kafka.topics import all_topics
from streams.replay.sample import Finding, Sample
from tests.conftest import create_topics

T = 1_700_000_000_000
VIEWER = "viewer-canary"
NOBODY = f"{HOST}:1"


def render(number: int, viewer: str | None = VIEWER, ts: int = T) -> Render:
    return Render(impression_id=f"imp-{number}", campaign_id="spring", ts=ts, viewer_id=viewer)


def view(number: int, ts: int = T) -> Viewability:
    return Viewability(impression_id=f"imp-{number}", ts=ts, kind="viewable")


def sampled(*records: tuple[int, str, Event | Malformed], appended: int = T, key: Key = "viewer") -> dict[str, Finding]:
    """Look at (partition, topic, event) records; return what was found by its check and first words."""
    sample = Sample(Rules(key=key))
    for offset, (partition, topic, event) in enumerate(records):
        sample.look(partition, Batch(topic, [offset], [event], offset + 1, [appended]))
    return {f"{finding.check}: {finding.text}": finding for finding in sample.findings()}


def wrong(found: dict[str, Finding]) -> list[str]:
    return [text for text, finding in found.items() if finding.is_fine is False]


def test_an_impression_whose_view_lies_in_another_partition_is_found_with_both_places() -> None:
    [text] = wrong(sampled((0, RENDERS, render(1)), (1, VIEWABILITY, view(1)), (0, VIEWABILITY, view(1))))
    assert "a view and its render lie in different partitions in 1 of 2 cases" in text
    assert "such as viewability 1/1 and renders 0/0" in text
    assert "STREAMS_KEY=impression" in text


def test_a_click_elsewhere_is_found_and_views_are_none_of_its_business() -> None:
    [text] = wrong(sampled((0, RENDERS, render(1)), (3, CLICKS, Click(impression_id="imp-1", ts=T))))
    assert text.startswith("keys: a click and its render lie in different partitions in 1 of 1 cases")


def test_a_viewer_in_two_partitions_is_found_unless_everything_is_keyed_by_impression() -> None:
    records = (0, RENDERS, render(1)), (1, RENDERS, render(2))
    [text] = wrong(sampled(*records))
    assert text.startswith("keys: renders of one viewer lie in different partitions in 1 of 1 cases")
    assert wrong(sampled(*records, key="impression")) == []


@pytest.mark.parametrize("viewer", [None, ""])
def test_anonymous_renders_are_not_one_viewer(viewer: str | None) -> None:
    assert wrong(sampled((0, RENDERS, render(1, viewer)), (1, RENDERS, render(2, viewer)))) == []


def test_an_impression_of_another_source_is_another_impression() -> None:
    other = Viewability(impression_id="imp-1", ts=T, kind="viewable", source="other")
    assert wrong(sampled((0, RENDERS, render(1)), (1, VIEWABILITY, other))) == []


def test_what_nothing_was_compared_for_is_neither_fine_nor_wrong() -> None:
    found = sampled((0, RENDERS, render(1)))
    assert {finding.is_fine for text, finding in found.items() if text.startswith("keys")} == {None}
    assert [finding.is_fine for finding in sampled().values()] == [None]


@pytest.mark.parametrize(("ahead", "count"), [(1_000, 0), (1_001, 1), (700_000, 1)])
def test_events_ahead_of_kafkas_clock_are_found(ahead: int, count: int) -> None:
    found = wrong(sampled((0, RENDERS, render(1, ts=T + ahead))))
    assert len(found) == count
    assert all("1 of 1 events are ahead of Kafka's clock" in text for text in found)


@pytest.mark.parametrize(("behind", "count"), [(HOUR, 0), (HOUR + 1, 1)])
def test_events_that_come_later_than_lateness_allows_are_found(behind: int, count: int) -> None:
    assert len(wrong(sampled((0, RENDERS, render(1, ts=T - behind))))) == count


def test_records_that_are_no_events_are_found_with_their_place_and_reason() -> None:
    [text] = wrong(sampled((0, RENDERS, render(1)), (2, RENDERS, Malformed("not_json", "at byte 1"))))
    assert text.startswith("events: 1 of 2 records are no events, such as renders 2/1 (not_json)")


def test_nobody_is_named() -> None:
    found = sampled((0, RENDERS, render(1, ts=T * 2)), (1, RENDERS, render(2)), (2, VIEWABILITY, view(1)))
    assert len(wrong(found)) == 3
    assert not any(VIEWER in text or "imp-" in text for text in found)


@pytest.fixture(autouse=True)
def nothing_else_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without streams.toml, and an environment without STREAMS_*."""
    for name in [name for name in os.environ if name.startswith("STREAMS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def check(*arguments: str, **settings: str) -> Result:
    environment = {f"STREAMS_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(app, ["check", *arguments], env=environment)


def settings_lines(**settings: str) -> list[str]:
    """What is found of settings, with no broker behind them."""
    result = check("--json", broker=NOBODY, **settings)
    assert result.exit_code == 3
    lines = orjson.loads(result.stdout)
    assert lines[-1]["check"] == "broker"
    return [line["text"] for line in lines if line["check"] == "settings" and line["is_fine"] is False]


def secret_file(folder: Path, mode: int) -> str:
    (folder / "token").write_text("t0ken-canary")
    (folder / "token").chmod(mode)
    return str(folder / "token")


def test_settings_that_are_wrong_are_all_found() -> None:
    result = check(idle="soon", http_port="-1")
    assert result.exit_code == 3
    assert result.stdout.count("FOUND  settings  STREAMS_") == 2


def test_settings_that_are_fine_are_said_to_be(tmp_path: Path) -> None:
    assert settings_lines(http_token_file=secret_file(tmp_path, 0o640)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latenes": "1h"}, "STREAMS_LATENES is no setting and does nothing: did you mean STREAMS_LATENESS?"),
        ({"http_host": "0.0.0.0"}, "everybody who reaches 0.0.0.0:6066 may read it: set STREAMS_HTTP_TOKEN"),
        ({"http_host": "::", "http_token": "canary"}, "is sent in the clear: set STREAMS_HTTP_CERTIFICATE"),
        (
            {
                "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "me",
                "sasl_password": "canary",
            },
            "the password for Kafka is sent in the clear",
        ),
        ({"campaigns": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)  # fmt: skip
def test_settings_that_are_unwise_are_found_with_what_to_do(settings: dict[str, str], words: str) -> None:
    [line] = settings_lines(**settings)
    assert words in line
    assert "canary" not in line


def test_a_secret_that_every_user_of_the_machine_can_read_is_found(tmp_path: Path) -> None:
    [line] = settings_lines(http_token_file=secret_file(tmp_path, 0o644))
    assert line.endswith(f"chmod o= {tmp_path / 'token'}")


def test_a_broker_that_is_away_is_one_line_and_nothing_else_is_looked_at() -> None:
    result = check(broker=NOBODY)
    assert result.exit_code == 3
    found, broker = result.stdout.splitlines()
    assert found.startswith("ok     settings")
    assert broker.startswith(f"FOUND  broker    no answer from Kafka at {NOBODY}")


def put(broker: EmbeddedBroker, records: list[tuple[str, int, Any]]) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for topic, partition, event in records:
        producer.produce(topic, orjson.dumps(event), partition=partition)
    assert producer.flush(20) == 0


async def test_topics_and_events_that_are_fine_end_with_0_and_wrong_ones_with_3(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    await create_topics(broker.bootstrap, topic_prefix, 2)
    now = int(time.time() * 1000)
    event = {"impression_id": "imp-1", "ts": now, "viewer_id": VIEWER}
    renders, views = f"{topic_prefix}renders", f"{topic_prefix}viewability"
    put(broker, [(renders, 1, event | {"campaign_id": "spring"}), (views, 1, event | {"kind": "viewable"})])
    result = await asyncio.to_thread(check, broker=broker.bootstrap, topic_prefix=topic_prefix)
    assert result.exit_code == 0, result.stdout
    assert "ok     topics" in result.stdout
    assert "ok     keys      a view and its render lie in one partition, in all of 1 cases" in result.stdout

    put(broker, [(views, 0, event | {"kind": "viewable", "ts": now + 60_000}), (views, 0, "no event")])
    result = await asyncio.to_thread(check, "--json", broker=broker.bootstrap, topic_prefix=topic_prefix)
    assert result.exit_code == 3
    found = [line["check"] for line in orjson.loads(result.stdout) if line["is_fine"] is False]
    assert found == ["events", "keys", "clocks"]
    assert VIEWER not in result.stdout

    result = await asyncio.to_thread(check, "--sample", "1", broker=broker.bootstrap, topic_prefix=topic_prefix)
    assert "1 of 3 records are no events" in result.stdout  # the newest of each partition that has any


async def test_topics_that_are_missing_are_found_and_events_are_not_looked_at(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    result = await asyncio.to_thread(check, broker=broker.bootstrap, topic_prefix=topic_prefix)
    assert result.exit_code == 3
    assert result.stdout.count("does not exist; run `streams topics create") == len(all_topics("", ""))
    assert "-      events    not looked at" in result.stdout
