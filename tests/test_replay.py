"""`streams replay` on real Kafka: what live workers counted, counted again beside them, and with other rules."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from streams.core.rules import MINUTE, Rules
from streams.kafka.broker import EmbeddedBroker
from streams.kafka.reader import Reader
from streams.kafka.topics import PARTIALS, WINDOWS
from streams.replay.document import read
from tests import oracle
from tests.loaded import LENGTH_MIN, PARTITIONS, RULES, SETTINGS, Loaded, Place, Sent, a_start, made, records_of
from tests.logs import TOPICS, contract_of
from tests.recount import event_of
from tests.test_crashes import SESSION
from tests.worker import WorkerProcess, read_topic, wait_until


class Live:
    """What live workers counted, with kills and a rebalance; one of them is at rest still."""

    def __init__(self, loaded: Loaded, worker: WorkerProcess, folder: Path) -> None:
        self.loaded = loaded
        self.worker = worker
        self.folder = folder

    def final(self, first: int, last: int) -> dict[Place, dict[str, Any]]:
        since, until = self.loaded.at(first), self.loaded.at(last)
        rows = self.loaded.windows().items()
        return {place: row for place, row in rows if row["final"] and since <= place[2] < until}

    @cached_property
    def logs(self) -> list[oracle.Logs]:
        """What lies on the topics, by partition."""
        logs: list[oracle.Logs] = [{topic: [] for topic in TOPICS} for _ in range(PARTITIONS)]
        for topic in TOPICS:
            records = read_topic(self.loaded.bootstrap, self.loaded.prefix + topic, PARTITIONS)
            for record in sorted(records, key=lambda one: one.offset()):
                entry = (record.offset(), event_of(record.value()), record.timestamp()[1])
                logs[record.partition()][topic].append(entry)
        return logs

    @cached_property
    def counted(self) -> "dict[Place, dict[str, int]]":
        """What the oracle makes of it by the rules of the workers."""
        return windows_of(self.logs, RULES)

    def report(self, name: str, *flags: str, **settings: str) -> Path:
        """The JSON report of all that there is; made once."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            done = self.loaded.replay("--report", str(path), *flags, cache=self.folder, **settings)
            assert done.returncode == 0, done.stderr
        return path

    def diff(self, *names: str) -> tuple[int, Any]:
        done = self.loaded.replay("diff", *names, "--json", cache=self.folder)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def live(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Workers count while the load comes: two are killed, one joins and leaves, one is at work to the end."""
    folder = tmp_path_factory.mktemp("live")
    loaded = Loaded(broker.bootstrap, f"replay-{os.getpid()}-", a_start())
    records = records_of(made(folder, loaded.start, "--seed", "8"), loaded.start)
    parts = [records[at : at + len(records) // 8 + 1] for at in range(0, len(records), len(records) // 8 + 1)]
    settings = SESSION | SETTINGS
    for _ in range(2):
        with WorkerProcess(broker.bootstrap, loaded.prefix, **settings) as doomed:
            loaded.send(parts.pop(0))
            wait_until(lambda w=doomed: w.consumed("renders") > 1_000, "it counts")  # type: ignore[misc]
            loaded.send(parts.pop(0))
            doomed.signal(signal.SIGKILL)
    with WorkerProcess(broker.bootstrap, loaded.prefix, **settings) as heir:
        loaded.send(parts.pop(0))
        heir.ready()
        with WorkerProcess(broker.bootstrap, loaded.prefix, **settings) as guest:
            wait_until(lambda: (guest.metric("streams_partitions_assigned") or 0) > 0, "another one joins")
            loaded.send(parts.pop(0))
            wait_until(lambda: guest.consumed("renders") > 0, "and counts")
            assert guest.terminate()[0] == 0
        loaded.send(record for part in parts for record in part)
        found = Live(loaded, heir, folder)
        _await_rest(heir.ready(), loaded, records)
        yield found


def _await_rest(worker: WorkerProcess, loaded: Loaded, records: list[Sent]) -> None:
    """Wait until the events are counted, and the last windows published: a partial's offset is committed after them."""
    sent = Counter(loaded.prefix + one.topic for one in records)
    before: list[Any] = [None]

    def is_settled() -> bool:
        last, before[0] = before[0], (scraped(worker), loaded.committed(), loaded.windows())
        committed: Counter[str] = Counter()
        for place, offset in loaded.committed().items():
            committed[place.topic] += offset
        partials = loaded.prefix + PARTIALS
        ends = {partials: len(read_topic(loaded.bootstrap, partials, PARTITIONS))}
        return bool(last == before[0]) and committed == sent | ends

    wait_until(is_settled, "all is counted and committed, and the worker at rest")


def scraped(worker: WorkerProcess) -> str:
    """Totals, gauges and outcomes; not the gauges of time and load."""
    page = worker.get("/metrics")[1].splitlines()
    return "\n".join(line for line in page if line.startswith(("ads_", "streams_events", "streams_consumer_lag")))


# --- the same again ---------------------------------------------------------------------------------------------------


def test_a_replay_beside_a_live_worker_gives_its_final_windows_and_touches_nothing(live: Live, tmp_path: Path) -> None:
    loaded, first, last = live.loaded, 22, 32
    final = live.final(first, last)
    assert len(final) == 10 * 20, max(start for _, _, start in final)
    before = scraped(live.worker), loaded.committed(), loaded.windows()
    flags = (*loaded.range(first, last), "--publish", "--run", "again")
    done = loaded.replay(*flags, "--report", str(tmp_path / "a.json"), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (scraped(live.worker), loaded.committed(), loaded.windows()) == before
    assert loaded.windows(f"{WINDOWS}-again") == final
    assert read(tmp_path / "a.json").windows == final
    again = loaded.replay(*loaded.range(first, last), "--report", str(tmp_path / "b.json"), cache=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert live.diff(str(tmp_path / "a.json"), "live") == (0, {"compared": 200, "not_final": 0, "windows": []})
    other = loaded.replay(*flags, cache=tmp_path)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "another run wrote it" in other.stderr


def test_a_range_is_read_from_where_it_matters_and_to_where_it_is_decided(live: Live, tmp_path: Path) -> None:
    done = live.loaded.replay(*live.loaded.range(22, 32), "--dry-run", "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    of_renders = [one for one in plan["partitions"] if one["topic"] == "renders"]
    assert [one["partition"] for one in plan["partitions"]] == [*range(PARTITIONS)] * len(TOPICS)
    ends = [len(read_topic(live.loaded.bootstrap, live.loaded.prefix + "renders", PARTITIONS))]
    assert all(one["from"] > 0 for one in of_renders)
    assert sum(one["to"] for one in of_renders) < ends[0]
    assert plan["events"] == sum(one["to"] - one["from"] for one in plan["partitions"])
    assert plan["seconds"] > 0


def test_all_that_there_is_replayed_is_the_live_topic_as_far_as_it_is_final(live: Live) -> None:
    windows, reported = live.loaded.windows(), read(live.report("all")).windows
    assert {place: row for place, row in reported.items() if row["final"]} == {
        place: row for place, row in windows.items() if row["final"]
    }
    code, told = live.diff(str(live.report("all")), "live")
    assert (code, told["windows"]) == (0, [])
    assert told["compared"] >= 20 * (LENGTH_MIN - 16)


def test_a_replay_that_is_killed_goes_on_where_it_was_and_gives_the_same_bytes(live: Live, tmp_path: Path) -> None:
    loaded = live.loaded
    flags = (*loaded.range(5, 35), "--run", "killed", "--publish", "--report", str(tmp_path / "killed.json"))
    command = [sys.executable, "-m", "streams.cli", "replay", *flags]
    environment = os.environ | {f"STREAMS_{name.upper()}": text for name, text in loaded.settings(tmp_path).items()}
    topic = f"{WINDOWS}-killed"
    for kill in (signal.SIGKILL, signal.SIGINT):
        before = published(loaded, topic)
        process = subprocess.Popen([*command, "--speed", "100x"], env=environment, stderr=subprocess.PIPE, text=True)
        wait_until(lambda least=before: published(loaded, topic) > least, "windows are published")  # type: ignore[misc]
        process.send_signal(kill)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == (130 if kill == signal.SIGINT else -kill)
        assert ("interrupted; the same command goes on with it" in errors) == (kill == signal.SIGINT)
        assert not (tmp_path / "killed.json").exists()
    so_far = published(loaded, topic)
    done = loaded.replay(*flags, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    straight = loaded.replay(*loaded.range(5, 35), "--report", str(tmp_path / "straight.json"), cache=tmp_path)
    assert straight.returncode == 0, straight.stderr
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "straight.json").read_bytes()
    assert loaded.windows(topic) == read(tmp_path / "straight.json").windows
    records = len(read_topic(loaded.bootstrap, loaded.prefix + topic, PARTITIONS))
    assert so_far < records < 2 * 30 * 20, "the last run went on, it did not begin anew"


def published(loaded: Loaded, topic: str) -> int:
    admin = AdminClient({"bootstrap.servers": loaded.bootstrap})
    if loaded.prefix + topic not in admin.list_topics(timeout=10).topics:
        return 0
    return len(read_topic(loaded.bootstrap, loaded.prefix + topic, PARTITIONS))


# --- by other rules ---------------------------------------------------------------------------------------------------


def windows_of(logs: list[oracle.Logs], rules: Rules) -> dict[Place, dict[str, int]]:
    """Counts of each minute by the oracle; spend in nano-units."""
    windows: dict[Place, dict[str, int]] = defaultdict(lambda: dict.fromkeys(oracle.FIGURES, 0))
    for one in logs:
        for (campaign, currency, _, pane), cell in oracle.answer(one, contract_of(rules)).cells.items():
            for name, value in cell.items():
                windows[campaign, currency, pane - pane % MINUTE][name] += value
    return windows


def counts(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in ("served", "measurable", "viewable", "clicks", "revision"))


def assert_differs_as(found: list[dict[str, Any]], before: dict[Place, Any], after: dict[Place, Any]) -> int:
    """A diff names exactly the windows that differ for the oracle, with its numbers; return how many."""
    nothing = dict.fromkeys(oracle.FIGURES, 0)
    expected = {}
    for place in before.keys() | after.keys():
        one, other = before.get(place, nothing), after.get(place, nothing)
        pairs = {name: [one[name], other[name]] for name in ("served", "measurable", "viewable", "clicks")}
        told = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if one["revision"] != other["revision"]:
            told["counted"] = [one["revision"], other["revision"]]
        if told:
            expected[place] = told
    shown = {
        (one["campaign_id"], one["currency"], one["start"]): {n: p for n, p in one["figures"].items() if n != "spend"}
        for one in found
    }
    assert shown == expected
    return len(expected)


def test_with_another_refresh_interval_the_diff_names_exactly_the_windows_that_change(live: Live) -> None:
    before = live.counted
    assert {place: counts(row) for place, row in read(live.report("all")).windows.items()} == {
        place: counts(row) for place, row in before.items() if row["revision"]
    }
    after = windows_of(live.logs, Rules(**RULES.plain() | {"refresh_interval_ms": 0, "datacenters": ()}))
    code, told = live.diff(str(live.report("all")), str(live.report("none", "--set", "refresh_interval=0s")))
    assert code == 3
    changed = assert_differs_as(told["windows"], before, after)
    assert 20 < changed < told["compared"]
    for one in told["windows"]:
        place = one["campaign_id"], one["currency"], one["start"]
        assert -one["outcomes"]["refresh"] == after[place]["served"] - before[place]["served"] > 0


def test_what_is_excluded_is_as_if_it_had_never_been_sent(live: Live) -> None:
    since, until = live.loaded.at(10), live.loaded.at(12)
    times = [f"{name}={value}" for name, value in zip(("from", "to"), live.loaded.range(10, 12)[1::2], strict=True)]
    path = live.report("corrected", "--exclude", ",".join(["source=adserver", *times]))
    kept = windows_of([without(logs, since, until) for logs in live.logs], RULES)
    assert {place: counts(row) for place, row in read(path).windows.items()} == {
        place: counts(row) for place, row in kept.items() if row["revision"]
    }
    assert json.loads(path.read_bytes())["events"]["renders"]["excluded"] > 0
    code, told = live.diff(str(live.report("all")), str(path))
    assert code == 3
    assert assert_differs_as(told["windows"], live.counted, kept) >= 2 * 20


def without(logs: oracle.Logs, since: int, until: int) -> oracle.Logs:
    return {
        topic: [entry for entry in log if entry[1] is None or not since <= entry[1]["ts"] < until]
        for topic, log in logs.items()
    }


# --- what is not there ------------------------------------------------------------------------------------------------


async def test_reading_ends_where_no_topic_is_wanted_any_more(live: Live) -> None:
    for _ in range(6):
        seen: set[tuple[str, int]] = set()
        async with Reader(live.loaded.bootstrap, live.loaded.prefix) as reader:
            is_wanted = lambda topic, partition: (topic, partition) not in seen  # noqa: B023, E731
            async for partition, chunk in reader.interleaved(range(PARTITIONS), {}, is_wanted):
                seen.add((chunk.topic, partition))


def test_what_retention_cut_is_refused_unless_it_is_accepted(broker: EmbeddedBroker, tmp_path: Path) -> None:
    loaded = Loaded(broker.bootstrap, f"cut-{os.getpid()}-", a_start())
    loaded.send(records_of(made(tmp_path, loaded.start, rate=5, minutes=20), loaded.start))
    place = TopicPartition(loaded.prefix + "renders", 1, 900)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.delete_records([place])[place].result(30)
    report = tmp_path / "cut.json"
    flags = (*loaded.range(8, 12), "--report", str(report))
    refused = loaded.replay(*flags, cache=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "renders/1: what lay before offset 900 was deleted (retention)" in refused.stderr
    assert not report.exists()
    accepted = loaded.replay(*flags, "--accept-loss", cache=tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    assert report.exists()
