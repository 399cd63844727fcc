"""The whole worker, as a process, on real Kafka."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from streams.kafka.backlog import CHUNK
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import all_topics
from tests.conftest import create_topics
from tests.worker import WorkerProcess, read_topic, send, wait_until

PARTITIONS = 2
CPM = 6


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    return topic_prefix


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def render(number: int, ts: int, campaign: str = "spring", **fields: Any) -> tuple[str, dict[str, Any]]:
    viewer = f"viewer-{number % 97}"
    event = {"impression_id": f"imp-{number}", "campaign_id": campaign, "ts": ts, "viewer_id": viewer, "price": CPM}
    return viewer, event | fields


def view(number: int, ts: int, kind: str = "viewable") -> tuple[str, dict[str, Any]]:
    viewer = f"viewer-{number % 97}"
    return viewer, {"impression_id": f"imp-{number}", "ts": ts, "viewer_id": viewer, "kind": kind}


def approx(value: float) -> Any:
    return pytest.approx(value, abs=5e-9)


def test_the_worked_numbers_of_the_field_come_out_on_metrics(broker: EmbeddedBroker, topics: str) -> None:
    served, measurable, viewable = 4_920, 4_610, 3_180
    ts = now_ms()
    with WorkerProcess(broker.bootstrap, topics) as worker:
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(served)))
        kinds = ["viewable"] * viewable + ["not_viewable"] * (measurable - viewable)
        send(broker.bootstrap, topics + "viewability", (view(n, ts + 1_000, kind) for n, kind in enumerate(kinds)))
        wait_until(lambda: worker.totals().get("spring") == (served, measurable, viewable), "all of it is counted")
        assert worker.metric("ads_spend_total", campaign="spring", currency="USD") == approx(29.52)
        for window in ("1m", "5m", "1h"):
            assert worker.metric("ads_cpm", window=window) == CPM
            assert worker.metric("ads_vcpm", window=window) == pytest.approx(9.283019, abs=5e-7)
            assert worker.metric("ads_viewable_rate", window=window) == approx(0.68980477)
            assert worker.metric("ads_viewable_of_served", window=window) == approx(0.64634146)
            assert worker.metric("ads_measured_rate", window=window) == approx(0.93699187)
            assert worker.metric("ads_ctr", window=window) == 0
            assert worker.metric("ads_cpc", window=window) is None, "without a click there is no cost of one"


def test_promtool_finds_nothing_to_say_about_a_scrape(broker: EmbeddedBroker, topics: str) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is needed: apt-get install prometheus"
    ts = now_ms()
    with WorkerProcess(broker.bootstrap, topics) as worker:
        send(broker.bootstrap, topics + "renders", (render(n, ts, f"c{n % 3}") for n in range(30)))
        wait_until(lambda: len(worker.totals()) == 3, "three campaigns are shown")
        page = worker.get("/metrics")[1]
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_sigterm_ends_a_worker_in_order_and_a_new_one_goes_on_where_it_was(broker: EmbeddedBroker, topics: str) -> None:
    ts = now_ms()
    with WorkerProcess(broker.bootstrap, topics) as first:
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(1_000)))
        send(broker.bootstrap, topics + "viewability", (view(n, ts) for n in range(500)))
        wait_until(lambda: first.totals().get("spring") == (1_000, 500, 500), "all of it is counted")
        code, seconds = first.terminate()
        assert code == 0, first.log
        assert seconds < 5
        assert '"worker stopped"' in first.log[-1]
    with WorkerProcess(broker.bootstrap, topics) as second:
        second.ready()
        wait_until(lambda: second.totals().get("spring") == (1_000, 500, 500), "totals are where they were")
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(1_200)))
        wait_until(lambda: second.totals().get("spring") == (1_200, 500, 500), "what came later is added")
        assert second.metric("streams_events_total", topic="renders", outcome="duplicate") == 1_000


def test_a_worker_killed_under_load_counts_what_it_would_have_counted(broker: EmbeddedBroker, topics: str) -> None:
    events, campaigns = 60_000, 5
    ts = now_ms()

    def renders() -> Iterator[tuple[str, dict[str, Any]]]:
        return (render(n, ts + n // 50, f"c{n % campaigns}") for n in range(events))

    def views() -> Iterator[tuple[str, dict[str, Any]]]:
        return (view(n, ts + n // 50 + 500) for n in range(0, events, 2))

    senders = [
        threading.Thread(target=send, args=(broker.bootstrap, topics + "renders", renders())),
        threading.Thread(target=send, args=(broker.bootstrap, topics + "viewability", views())),
    ]
    with WorkerProcess(broker.bootstrap, topics) as doomed:
        doomed.ready()
        for sender in senders:
            sender.start()
        wait_until(lambda: doomed.consumed("renders") > 0, "it is at work")
        counted = doomed.consumed("renders")
        doomed.kill()
    assert 0 < counted < events, "work was left when the kill came"
    with WorkerProcess(broker.bootstrap, topics) as heir:
        for sender in senders:
            sender.join()
        served, viewed = events // campaigns, events // campaigns // 2
        expected = {f"c{n}": (served, viewed, viewed) for n in range(campaigns)}
        wait_until(lambda: heir.totals() == expected, "totals equal the truth")
        assert heir.consumed("renders") == events
        assert heir.consumed("viewability") == events // 2
        assert heir.metric("streams_events_total", topic="renders", outcome="counted") == events
        assert heir.metric("streams_events_total", topic="viewability", outcome="counted") == events // 2


GARBAGE: list[tuple[str, bytes | None]] = [
    ("not_json", b"{"),
    ("not_json", b"\x00\x01\x02"),
    ("not_json", b'{"impression_id":"x","campaign_id":"c","ts":NaN}'),
    ("not_utf8", b'{"impression_id":"\xff\xfe","campaign_id":"c","ts":1}'),
    ("null_value", None),
    ("not_an_object", b"[1,2,3]"),
    ("wrong_type", b'{"impression_id":17,"campaign_id":"c","ts":1}'),
    ("wrong_type", b'{"impression_id":"x","campaign_id":"c","ts":"yesterday"}'),
    ("missing_field", b'{"impression_id":"x","ts":1}'),
    ("out_of_range", b'{"impression_id":"","campaign_id":"c","ts":1}'),
    ("bad_price", b'{"impression_id":"x","campaign_id":"c","ts":1,"price":-1}'),
    ("bad_price", b'{"impression_id":"x","campaign_id":"c","ts":1,"price":"NaN"}'),
    ("not_json", b'{"impression_id":"' + b"x" * 5_000_000),
]


def test_garbage_changes_no_neighbour_and_lies_in_dead_letters_as_it_came(broker: EmbeddedBroker, topics: str) -> None:
    ts, good = now_ms(), 100 * len(GARBAGE)
    records: list[tuple[str, Any]] = []
    for n in range(good):
        records.append(render(n, ts))
        if n % 100 == 50:
            records.append((f"viewer-{n % 97}", GARBAGE[n // 100][1]))
    with WorkerProcess(broker.bootstrap, topics) as worker:
        send(broker.bootstrap, topics + "renders", records)
        wait_until(lambda: worker.totals().get("spring") == (good, 0, 0), "the good ones are counted")
        wait_until(lambda: worker.metric("streams_dead_letters_total") == len(GARBAGE), "the bad ones are refused")
        expected = Counter(reason for reason, _ in GARBAGE)
        for reason, count in expected.items():
            assert worker.metric("streams_dead_letters_total", reason=reason) == count
        assert worker.metric("streams_events_total", topic="renders", outcome="malformed") == len(GARBAGE)
        letters = read_topic(broker.bootstrap, topics + "dead-letters", PARTITIONS)
    sent = {
        (record.partition(), record.offset()): record.value()
        for record in read_topic(broker.bootstrap, topics + "renders", PARTITIONS)
    }
    assert Counter((reason, value) for reason, value in GARBAGE) == Counter(
        (dict(letter.headers())["reason"].decode(), letter.value()) for letter in letters
    )
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers()}
        assert headers["topic"] == "renders"
        assert sent[int(headers["partition"]), int(headers["offset"])] == letter.value(), "its original bytes"
        assert letter.key().decode() == f"renders|{headers['partition']}|{headers['offset']}"


def test_the_last_records_of_campaign_windows_hold_what_was_counted(broker: EmbeddedBroker, topics: str) -> None:
    minute = now_ms() // 60_000 * 60_000 - 5 * 60_000
    with WorkerProcess(broker.bootstrap, topics) as worker:
        send(broker.bootstrap, topics + "renders", (render(n, minute + n * 100) for n in range(1_800)))
        send(broker.bootstrap, topics + "viewability", (view(n, minute + n * 100 + 50) for n in range(0, 1_800, 3)))
        wait_until(lambda: worker.totals().get("spring") == (1_800, 600, 600), "all of it is counted")
        wanted = {f"spring|USD|{minute + m * 60_000}" for m in range(2)}

        def windows() -> dict[str, Any]:
            records = read_topic(broker.bootstrap, topics + "campaign-windows", PARTITIONS)
            return {record.key().decode(): orjson.loads(record.value()) for record in records}

        wait_until(
            lambda: {name: w["revision"] for name, w in windows().items()} == dict.fromkeys(wanted, 800), "two are due"
        )
        first = windows()[f"spring|USD|{minute}"]
    assert first == {
        "campaign_id": "spring", "currency": "USD", "start": minute, "end": minute + 60_000,
        "served": 600, "measurable": 200, "viewable": 200, "clicks": 0, "spend": "3.6", "cpm": 6.0, "vcpm": 18.0,
        "viewable_rate": 1.0, "measured_rate": 1 / 3, "revision": 800, "final": False,
    }  # fmt: skip


def test_a_worker_without_its_topics_says_what_to_do(broker: EmbeddedBroker, topic_prefix: str) -> None:
    with WorkerProcess(broker.bootstrap, topic_prefix) as worker:
        assert worker.wait() == 1
    assert "streams topics create" in worker.log[-1]


def test_more_partitions_than_events_were_counted_in_are_refused_with_what_to_do(
    broker: EmbeddedBroker, topics: str
) -> None:
    with WorkerProcess(broker.bootstrap, topics) as first:
        send(broker.bootstrap, topics + "renders", (render(n, now_ms()) for n in range(100)))
        wait_until(lambda: first.totals().get("spring") == (100, 0, 0), "all of it is counted")
        assert first.terminate()[0] == 0
    names = [topic.name for topic in all_topics(topics, topics + "impression-streams")]
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for altered in admin.create_partitions([NewPartitions(name, PARTITIONS + 1) for name in names]).values():
        altered.result()
    with WorkerProcess(broker.bootstrap, topics) as second:
        assert second.wait() == 1
        told = [line for line in second.log if line.startswith("streams: ")]
        assert len(told) == 1
        assert f"{PARTITIONS} partitions, and now there are {PARTITIONS + 1}" in told[0]
        assert f"streams topics create --partitions {PARTITIONS + 1}" in told[0]


def test_a_worker_that_may_remember_no_more_pauses_says_so_and_evicts_nothing(
    broker: EmbeddedBroker, topics: str
) -> None:
    ts, renders = now_ms(), 30_000
    with WorkerProcess(broker.bootstrap, topics, max_remembered="10000") as small:
        small.ready()
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(renders)))
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(renders)))
        wait_until(lambda: "STREAMS_MAX_REMEMBERED=10000" in small.get("/readyz")[1], "it says that it is full")
        time.sleep(2)
        assert small.get("/readyz")[0] == 503
        assert small.get("/healthz")[0] == 200
        held = small.metric("streams_remembered_impressions")
        assert held is not None
        assert 10_000 <= held < 10_000 + CHUNK, "no further than the chunk that filled it"
        assert small.totals()["spring"] == (held, 0, 0)
        assert small.metric("streams_max_remembered_impressions") == 10_000
        assert small.terminate()[0] == 0
    with WorkerProcess(broker.bootstrap, topics) as large:
        wait_until(lambda: large.totals().get("spring") == (renders, 0, 0), "all of it is counted")
        wait_until(
            lambda: large.metric("streams_events_total", topic="renders", outcome="duplicate") == renders,
            "nothing was forgotten",
        )
        large.ready()


AT_FIRST = {"the broker has not answered yet", "no partitions are assigned", "state is being recovered"}
"""Why a worker that has just been started does no work: one after the other, or two at a time."""


def test_a_worker_is_alive_before_it_is_ready_and_says_why_it_is_not(broker: EmbeddedBroker, topics: str) -> None:
    with WorkerProcess(broker.bootstrap, topics) as worker:
        assert worker.get("/healthz") == (200, "alive\n")
        code, reasons = worker.get("/readyz")
        assert (code, reasons) == (200, "ready\n") or (code == 503 and {*reasons.splitlines()} <= AT_FIRST), reasons
        worker.ready()
        assert worker.get("/readyz") == (200, "ready\n")


def test_workers_that_join_and_leave_lose_nothing_and_count_nothing_twice(broker: EmbeddedBroker, topics: str) -> None:
    events, campaigns = 60_000, 5
    ts = now_ms()
    served, viewed = events // campaigns, events // campaigns // 2
    expected = {f"c{n}": (served, viewed, viewed) for n in range(campaigns)}

    def slowly(records: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, record in enumerate(records):
            if number % 500 == 0:
                time.sleep(0.08)
            yield record

    renders = slowly(render(n, ts + n // 50, f"c{n % campaigns}") for n in range(events))
    views = slowly(view(n, ts + n // 50 + 500) for n in range(0, events, 2))
    senders = [
        threading.Thread(target=send, args=(broker.bootstrap, topics + "renders", renders)),
        threading.Thread(target=send, args=(broker.bootstrap, topics + "viewability", views)),
    ]
    with WorkerProcess(broker.bootstrap, topics) as stays:
        stays.ready()
        for sender in senders:
            sender.start()
        with WorkerProcess(broker.bootstrap, topics) as leaves:
            wait_until(lambda: leaves.metric("streams_partitions_assigned") == PARTITIONS / 2, "it has its share")
            wait_until(lambda: leaves.consumed("renders") > 0, "it is at work")
            code, seconds = leaves.terminate()
            assert code == 0, leaves.log
            assert seconds < 5
        with WorkerProcess(broker.bootstrap, topics) as another:
            wait_until(lambda: another.metric("streams_partitions_assigned") == PARTITIONS / 2, "it has its share")
            for sender in senders:
                sender.join()
            wait_until(lambda: stays.totals() | another.totals() == expected, "together they have all")
            assert not stays.totals().keys() & another.totals().keys(), "each campaign is exported by one worker"
            assert stays.consumed("renders") + another.consumed("renders") == events


def test_a_window_is_final_although_nobody_clicks(broker: EmbeddedBroker, topics: str) -> None:
    minute = now_ms() // 60_000 * 60_000 - 10 * 60_000
    short = {"idle": "1s", "lateness": "10s", "dedup_horizon": "10s", "viewability_horizon": "10s"}

    def last_window(start: int) -> Any:
        records = read_topic(broker.bootstrap, topics + "campaign-windows", PARTITIONS)
        windows = [orjson.loads(record.value()) for record in records if record.key() == f"spring|USD|{start}".encode()]
        return windows[-1] if windows else {}

    with WorkerProcess(broker.bootstrap, topics, **short) as worker:
        send(broker.bootstrap, topics + "renders", (render(n, minute + n) for n in range(200)))
        send(broker.bootstrap, topics + "renders", (render(n, minute + 5 * 60_000) for n in range(200, 400)))
        wait_until(lambda: worker.totals().get("spring") == (400, 0, 0), "all of it is counted")
        wait_until(lambda: last_window(minute).get("final") is True, "its last record says that it is final")
        assert last_window(minute)["served"] == 200
        assert last_window(minute + 5 * 60_000) == {}, "the newest minute is not over"


def test_changed_settings_hold_from_then_on_when_somebody_says_so(broker: EmbeddedBroker, topics: str) -> None:
    ts = now_ms()
    with WorkerProcess(broker.bootstrap, topics) as worker:
        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(10)))
        wait_until(lambda: worker.consumed("renders") == 10, "all of it is counted")
        assert worker.terminate()[0] == 0
    with WorkerProcess(broker.bootstrap, topics, lateness="30m") as refusing:
        assert refusing.wait() == 1
        assert "--accept-settings" in refusing.log[-1]
        assert "lateness_ms was 3600000, is 1800000" in refusing.log[-1]
    with WorkerProcess(broker.bootstrap, topics, "--accept-settings", lateness="30m") as accepting:
        accepting.ready()
        send(broker.bootstrap, topics + "renders", [render(11, ts - 31 * 60_000), render(12, ts)])
        wait_until(lambda: accepting.consumed("renders") == 12, "it goes on")
        assert accepting.metric("streams_events_total", topic="renders", outcome="late") == 1
        assert accepting.terminate()[0] == 0
    with WorkerProcess(broker.bootstrap, topics, lateness="30m") as later:
        later.ready()
        assert later.metric("streams_events_total", topic="renders", outcome="counted") == 11


def test_campaigns_are_read_again_on_sighup_and_an_error_in_them_changes_nothing(
    broker: EmbeddedBroker, topics: str, tmp_path: Path
) -> None:
    ts = now_ms()
    file = tmp_path / "campaigns.toml"
    agreed = "[campaigns.spring]\nviewability_target = {}\n[[campaigns.spring.pricing]]\nmodel = 'cpm'\nprice = 3\n"
    later = "[[campaigns.spring.pricing]]\nfrom = {}\nmodel = 'cpm'\nprice = 5\n"
    file.write_text(agreed.format(0.7))
    with WorkerProcess(broker.bootstrap, topics, campaigns=str(file)) as worker:

        def reload(text: str, answer: str) -> None:
            seen = len(worker.log)
            file.write_text(text)
            worker.signal(signal.SIGHUP)
            wait_until(lambda: any(answer in line for line in worker.log[seen:]), answer)

        send(broker.bootstrap, topics + "renders", (render(n, ts) for n in range(100)))
        wait_until(lambda: worker.metric("ads_window_spend", window="1h") == approx(0.3), "100 impressions at 3")
        assert worker.metric("ads_viewability_target_ratio", campaign="spring") == 0.7
        reload("[campaigns.spring]\nprice = 3", "campaigns.spring: Object contains unknown field `price`")
        reload(agreed.format(0.6) + later.format("2020-01-01T00:00:00Z"), "terms that have begun cannot be changed")
        assert worker.metric("ads_viewability_target_ratio", campaign="spring") == 0.7
        from_then = datetime.fromtimestamp(ts // 1000 + 60, UTC).isoformat()
        reload(agreed.format(0.6) + later.format(from_then), '"campaigns reloaded"')
        assert worker.metric("ads_viewability_target_ratio", campaign="spring") == 0.6
        at = ts // 1000 * 1000 + 60_000
        send(broker.bootstrap, topics + "renders", (render(100 + n, at - 1) for n in range(100)))
        send(broker.bootstrap, topics + "renders", (render(200 + n, at) for n in range(100)))
        wait_until(lambda: worker.metric("ads_window_served", window="1h") == 300, "all of it is shown")
        assert worker.metric("ads_spend_total", campaign="spring") == approx(0.3 + 0.3 + 0.5)
        assert worker.terminate()[0] == 0
    with WorkerProcess(broker.bootstrap, topics) as without:
        assert without.wait() == 1
        assert "counted with other campaigns" in without.log[-1]


def test_an_error_in_the_file_of_campaigns_ends_the_command_with_one_line_that_says_where(tmp_path: Path) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_text("[[campaigns.spring.pricing]]\nmodel = 'flat'\ncost = 1\n")
    environment = os.environ | {"STREAMS_CAMPAIGNS": str(file)}
    command = [sys.executable, "-m", "streams.cli", "worker"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    where = f"{file}: campaigns.spring.pricing[0]: model flat needs cost and booked; wrong: booked"
    assert (ended.returncode, ended.stderr) == (2, f"streams: campaigns: {where}\n")
