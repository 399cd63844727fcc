"""`streams explain`: each event of an impression with what became of it, why, and by which other one."""

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from streams.cli import app
from streams.core.money import NANO
from streams.kafka.backlog import CHUNK
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.reader import Reader
from streams.replay.explain import Finding, Search, Witness
from streams.wire.campaigns import parse_campaigns
from tests import oracle
from tests.conftest import create_topics
from tests.logs import COUNTINGS, MIN, T0, TOPICS, Counting, H, S, batch, click, encoded, logs, render, toml_of, view
from tests.oracle import Logs
from tests.test_report import written

PLACE = {"viewer_id": "v", "slot_id": "s"}


# --- builders ---------------------------------------------------------------------------------------------------------


def explain(impression_id: str, paths: Mapping[str, Path | str], *arguments: str, **environment: str) -> Result:
    flags = [text for topic, path in paths.items() for text in (f"--{topic}", str(path))]
    return CliRunner().invoke(app, ["explain", impression_id, *flags, *arguments], env=environment)


def explained(impression_id: str, paths: Mapping[str, Path], *arguments: str, **environment: str) -> list[Any]:
    result = explain(impression_id, paths, "--json", *arguments, **environment)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["impression_id"] == impression_id
    return list(told["events"])


def outcomes(events: list[Any]) -> list[tuple[str, int, str]]:
    return [(event["topic"], event["line"], event["outcome"]) for event in events]


def witnessed(logs: Logs, counting: Counting, search: Search) -> list[Finding]:
    """What is found in logs, each topic whole and one after another."""
    campaigns = parse_campaigns(toml_of(counting.agreed), counting.rules.billing_source)
    batches = [
        (batch(topic, logs[topic]), [encoded(event) for _, event, _ in logs[topic]]) for topic in TOPICS if logs[topic]
    ]
    for one, values in batches:
        search.look(one.topic, 0, values)
    witness = Witness(search, 0, counting.rules, campaigns)
    for one, values in batches:
        witness.watch(one, values)
    return witness.findings()


# --- what became of each ----------------------------------------------------------------------------------------------


def test_a_counted_render_names_its_window_its_price_and_how_its_viewability_is_judged(tmp_path):
    paths = written(tmp_path, renders=[render("a"), render("x", T0 + MIN, format="video", **PLACE)])
    assert explained("x", paths) == [
        {
            "topic": "renders", "line": 2, "source": "adserver", "ts": T0 + MIN, "kind": None, "outcome": "counted",
            "reason": "viewability as video", "campaign_id": "c", "currency": "USD", "spend": "0.0025",
            "window": T0 + MIN - (T0 + MIN) % MIN, "refers_to": None, "rule": 8,
            "wants": "none of what rules 1 to 7 refuse",
        }
    ]  # fmt: skip


def test_a_refresh_names_the_counted_render_that_is_nearest_and_not_another_refresh(tmp_path):
    paths = written(
        tmp_path,
        renders=[render("a", T0, **PLACE), render("b", T0 + 20 * S, **PLACE), render("x", T0 + 25 * S, **PLACE)],
    )
    [event] = explained("x", paths)
    assert (event["outcome"], event["rule"]) == ("refresh", 6)
    assert event["refers_to"] == {"topic": "renders", "line": 1, "ts": T0, "apart_ms": -25 * S}
    assert event["spend"] is event["window"] is None


def test_a_duplicate_names_the_first_and_views_and_clicks_name_their_render(tmp_path):
    paths = written(
        tmp_path,
        renders=[render("y"), render("x", T0 + S), render("x", T0 + 5 * S), render("x", T0 + 6 * S)],
        viewability=[view("x", T0 + 2 * S, "measurable"), view("x", T0 + 3 * S), view("x", T0 + 4 * S)],
        clicks=[click("x", T0 + 7 * S), click("x", T0 + 8 * S)],
    )
    events = explained("x", paths)
    assert outcomes(events) == [
        ("renders", 2, "counted"), ("viewability", 1, "counted"), ("viewability", 2, "counted"),
        ("viewability", 3, "duplicate"), ("renders", 3, "duplicate"), ("renders", 4, "duplicate"),
        ("clicks", 1, "counted"), ("clicks", 2, "duplicate"),
    ]  # fmt: skip
    assert {event["refers_to"]["line"] for event in events[1:]} == {2}
    assert [event["reason"].partition("; ")[2] for event in events[1:3]] == ["makes it measurable", "makes it viewable"]


def test_a_view_that_waits_says_until_when_and_one_that_waited_too_long_says_for_what(tmp_path):
    waiting = written(tmp_path, renders=[render("y")], viewability=[view("x", T0)])
    [event] = explained("x", waiting)
    assert (event["outcome"], event["rule"]) == ("pending", 7)
    assert event["reason"].endswith("stream time of renders passes 2023-11-14 23:13:30.000")
    given_up = written(tmp_path, renders=[render("y"), render("z", T0 + 3 * H)], viewability=[view("x", T0)])
    [event] = explained("x", given_up)
    assert (event["outcome"], event["refers_to"]) == ("orphan", None)
    assert event["reason"] == "no render between 2023-11-14 21:13:20.000 and 2023-11-14 22:13:30.000 came in time"


def test_a_view_that_was_read_before_its_render_is_told_of_as_if_it_had_come_after(tmp_path):
    paths = written(tmp_path, renders=[render("x", T0 + 9 * S)], viewability=[view("x", T0)])
    events = explained("x", paths)
    assert outcomes(events) == [("viewability", 1, "counted"), ("renders", 1, "counted")]
    assert events[0]["refers_to"] == {"topic": "renders", "line": 1, "ts": T0 + 9 * S, "apart_ms": 9 * S}


def test_orphans_of_a_render_that_does_not_count_say_what_became_of_that(tmp_path):
    paths = written(
        tmp_path,
        renders=[render("a", **PLACE), render("x", T0 + S, **PLACE), render("x", T0 + S, source="dsp", invalid="sivt")],
        viewability=[view("x", T0 + S), view("x", T0 + S, source="dsp")],
    )
    events = explained("x", paths)
    assert [(event["source"], event["outcome"]) for event in events] == [
        ("adserver", "refresh"), ("adserver", "orphan"), ("dsp", "invalid_traffic"), ("dsp", "orphan"),
    ]  # fmt: skip
    assert events[1]["reason"].endswith("and is a refresh")
    assert events[2]["reason"].startswith("declared;")
    assert events[3]["reason"].endswith("and is invalid traffic")


def test_with_a_source_only_its_identity_is_shown(tmp_path):
    paths = written(tmp_path, renders=[render("x"), render("x", source="dsp"), render("x", T0 + S)])
    assert outcomes(explained("x", paths, "--source", "dsp")) == [("renders", 2, "counted")]
    assert outcomes(explained("x", paths, "--source", "adserver")) == [
        ("renders", 1, "counted"),
        ("renders", 3, "duplicate"),
    ]


def test_a_late_one_says_by_how_much_and_a_broken_one_says_what_is_wrong(tmp_path):
    paths = written(tmp_path, renders=[render("y", T0 + 2 * H), render("x", T0), render("x", campaign_id=3), b'{"x'])
    events = explained("x", paths)
    assert [(event["outcome"], event["rule"], event["reason"]) for event in events] == [
        ("malformed", 1, "wrong_type: campaign_id: Expected `str`, got `int`"),
        ("late", 3, "7,200 s behind the stream time of renders"),
    ]


def test_an_id_is_found_however_its_json_is_written(tmp_path):
    paths = written(tmp_path, renders=[b'{"impression_id":"gr\\u00fcn","campaign_id":"c","ts":1}', render("grün", 2)])
    assert outcomes(explained("grün", paths)) == [("renders", 1, "counted"), ("renders", 2, "duplicate")]


def test_agreed_terms_the_cap_and_the_settings_hold_as_in_the_worker(tmp_path):
    (tmp_path / "agreed.toml").write_text(
        "[campaigns.c]\ncurrency = 'EUR'\nfrequency_cap = { impressions = 1, period = '1h' }\n"
        "[[campaigns.c.pricing]]\nmodel = 'vcpm'\nprice = 4\nfrom = 2020-01-01T00:00:00Z\n"
    )
    paths = written(
        tmp_path,
        renders=[render("a", viewer_id="v"), render("x", T0 + S, viewer_id="v")],
        viewability=[view("x", T0 + 2 * S)],
    )
    first, second = explained("x", paths, "--campaigns", str(tmp_path / "agreed.toml"))
    assert first["reason"].startswith("viewability as display, over the frequency cap, could not be asked")
    assert (first["currency"], first["spend"]) == ("EUR", "0")
    assert (second["currency"], second["spend"]) == ("EUR", "0.004")
    assert explained("x", paths, STREAMS_VIEWABILITY_HORIZON="500ms")[1]["outcome"] == "pending"


# --- against the oracle -----------------------------------------------------------------------------------------------


@given(st.sampled_from(COUNTINGS), logs(), st.sampled_from("xyzuvw"))
def test_every_event_of_an_impression_has_the_outcome_that_the_oracle_gives(
    counting: Counting, given_logs: Logs, impression_id: str
) -> None:
    truth = oracle.answer(given_logs, counting.contract())
    found = {
        (one.place.topic, one.place.offset): one.outcome
        for one in witnessed(given_logs, counting, Search(impression_id))
    }
    assert found == {
        (topic, offset): truth.outcomes[topic][offset]
        for topic in TOPICS
        for offset, event, _ in given_logs[topic]
        if is_of(impression_id, event)
    }


def is_of(impression_id: str, event: Any) -> bool:
    if isinstance(event, dict):
        return bool(event["impression_id"] == impression_id)
    return f'"{impression_id}"'.encode() in (event or b"")


@given(st.sampled_from(COUNTINGS), logs())
def test_what_all_impressions_are_said_to_have_spent_is_what_was_spent(counting: Counting, given_logs: Logs) -> None:
    truth = oracle.answer(given_logs, counting.contract())
    found = [one for name in "xyzuvw" for one in witnessed(given_logs, counting, Search(name))]
    told = sum(Decimal(one.spend) for one in found if one.spend is not None)
    assert told * NANO == sum(cell["spend"] for place, cell in truth.cells.items() if len(place) == 4)


# --- how it is asked and told -----------------------------------------------------------------------------------------


def test_an_impression_that_is_nowhere_is_one_line_and_exit_code_1(tmp_path):
    paths = written(tmp_path, renders=[render("x")])
    result = explain("nobody", paths, "--source", "dsp")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "streams: no event of impression nobody of source dsp is in these files\n"


def test_for_people_each_event_is_told_with_its_place_its_rule_and_its_reason(tmp_path):
    paths = written(tmp_path, renders=[render("a", **PLACE), render("x", T0 + S, **PLACE)])
    assert explain("x", paths).stdout.splitlines() == [
        "impression x of source adserver",
        "  2023-11-14 22:13:21.000  renders line 2: refresh",
        "      rule 6 wants it to be STREAMS_REFRESH_INTERVAL or more from the counted ones of its slot and viewer",
        "      the same ad was counted in this slot before this viewer 1 s before (renders line 1)",
        "",
    ]


def test_hostile_text_of_a_sender_is_shown_and_not_obeyed(tmp_path):
    paths = written(tmp_path, renders=[render("x", campaign_id="\x1b[31mred", source="\x07")])
    told = explain("x", paths).stdout
    assert "\x1b" not in told
    assert "\x07" not in told
    assert r"campaign \x1b[31mred" in told


def test_standard_input_is_refused_as_it_cannot_be_read_twice(tmp_path):
    result = explain("x", {"renders": "-"})
    assert (result.exit_code, result.stderr) == (2, "streams: - cannot be standard input here: files are read twice\n")


def test_without_a_broker_it_is_one_clear_line():
    result = explain("x", {}, "--broker", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("streams: no answer from Kafka at 127.0.0.1:1")


# --- on topics --------------------------------------------------------------------------------------------------------


async def fill(broker: EmbeddedBroker, prefix: str, events: dict[str, list[tuple[int, Any]]]) -> None:
    await create_topics(broker.bootstrap, prefix, 2)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for topic, records in events.items():
            for partition, event in records:
                await producer.send(prefix + topic, encoded(event), partition=partition)


def test_on_topics_it_finds_the_partition_and_names_what_was_duplicated_and_what_came_from_the_future(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    ahead = 4_000_000_000_000
    asyncio.run(
        fill(
            broker,
            topic_prefix,
            {
                "renders": [(0, render("a")), (1, render("x")), (1, render("x")), (1, render("x", ahead))],
                "viewability": [(0, view("a")), (1, view("x")), (1, view("b"))],
                "clicks": [(0, click("x"))],
            },
        )
    )
    result = explain("x", {}, "--broker", broker.bootstrap, "--topic-prefix", topic_prefix, "--json")
    assert result.exit_code == 0, result.output
    events = json.loads(result.stdout)["events"]
    assert [(event["topic"], event["partition"], event["offset"], event["outcome"]) for event in events] == [
        ("clicks", 0, 0, "pending"), ("renders", 1, 0, "counted"), ("renders", 1, 1, "duplicate"),
        ("viewability", 1, 0, "counted"), ("renders", 1, 2, "future"),
    ]  # fmt: skip
    assert events[3]["refers_to"] == {"topic": "renders", "partition": 1, "offset": 0, "ts": T0, "apart_ms": 0}
    told = explain("x", {}, "--broker", broker.bootstrap, "--topic-prefix", topic_prefix).stdout
    assert told.startswith("Its events lie in partitions 0, 1.")


def test_a_partition_is_read_whole_up_to_where_it_ended_and_nearly_in_order_of_event_time(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    count = 20_000
    renders = [(0, render(f"i{number}", T0 + 10 * number)) for number in range(count)]
    views = [(0, view(f"i{number}", T0 + 10 * number)) for number in range(count)]
    asyncio.run(fill(broker, topic_prefix, {"viewability": views, "renders": renders}))

    async def read() -> list[tuple[str, int, int]]:
        places = []
        async with Reader(broker.bootstrap, topic_prefix) as reader:
            assert await reader.sizes() == {0: 2 * count, 1: 0}
            await fill_more(broker, topic_prefix, render("later", T0))
            async for chunk in reader.chunks(0):
                places += [(chunk.topic, chunk.records[0].offset, chunk.records[-1].offset)]
            assert [chunk async for chunk in reader.chunks(1)] == []
        return places

    places = asyncio.run(read())
    ahead = reached = 0
    for topic in ("renders", "viewability"):
        mine = [(first, last) for one, first, last in places if one == topic]
        assert [offset for first, last in mine for offset in range(first, last + 1)] == list(range(count))
    for topic, _, last in places:
        reached = max(reached, last) if topic == "renders" else reached
        ahead = max(ahead, last - reached) if topic == "viewability" else ahead
    assert ahead <= 2 * CHUNK, "views are read far ahead of their renders"


async def fill_more(broker: EmbeddedBroker, prefix: str, event: Any) -> None:
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        await producer.send_and_wait(prefix + "renders", encoded(event), partition=0)
