"""What a reader of the page sees of many campaigns, how it stays live, and what readers may cost."""

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from streams.core.events import RENDERS, VIEWABILITY
from streams.core.panes import PANE_MS, Cell, Rolling
from streams.core.rollup import Rollup
from streams.metrics.collector import Collector
from streams.metrics.reading import Reading
from streams.settings import load
from streams.web import live, snapshot
from streams.web.page import as_event
from streams.web.server import Site
from streams.web.snapshot import Snapshot, Snapshots, Steps
from streams.web.trend import HEIGHT, WIDTH, line, span_of
from streams.web.view import COLUMNS, ROWS, View, select
from tests.test_metrics import WINDOWS, WINDOWS_MS, Bench, T, render, view

SETTINGS = load()


def done(steps: Steps[Any]) -> Any:
    """The result of work in steps, all of it at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def taken(bench: Bench) -> Snapshot:
    shot = done(snapshot.snapshot(bench.reading(), [], SETTINGS))
    assert isinstance(shot, Snapshot)
    return shot


def names(bench: Bench, **query: str) -> list[str]:
    found = done(select(taken(bench), View.of(query, WINDOWS)))
    return [entry.line.series.campaign_id for entry in found.entries]


def event(bench: Bench, **query: str) -> dict[str, Any]:
    told = done(as_event(taken(bench), View.of(query, WINDOWS)))
    values: dict[str, Any] = json.loads(told.removeprefix(b"data: "))
    return values


def some_campaigns() -> Bench:
    """a: 3 served at CPM 1, all viewable. b: 2 at CPM 9, one viewable. c: 1 at CPM 4, none. d: none in the window."""
    bench = Bench(agreed='[campaigns.b]\nname = "Autumn"\nviewability_target = 0.7')
    bench.feed(RENDERS, render(9, T - 100_000, "d"), *(render(n, campaign="a", price="1") for n in range(3)))
    bench.feed(RENDERS, *(render(n, campaign="b", price="9") for n in (3, 4)), render(5, campaign="c", price="4"))
    return bench.feed(VIEWABILITY, view(0), view(1), view(2), view(3), view(4, "not_viewable"), view(5, "not_viewable"))


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_any_column_and_what_is_undefined_comes_last_both_ways() -> None:
    bench = some_campaigns()
    assert names(bench) == ["a", "b", "c", "d"]
    assert names(bench, sort="served", order="asc") == ["d", "c", "b", "a"]
    assert names(bench, sort="vcpm") == ["b", "a", "c", "d"]
    assert names(bench, sort="vcpm", order="asc") == ["a", "b", "c", "d"]
    assert names(bench, sort="viewable_rate", order="asc") == ["c", "b", "a", "d"]
    assert names(bench, sort="campaign") == ["a", "b", "c", "d"], "Autumn lies between a and c"
    assert names(bench, sort="campaign", order="desc") == ["d", "c", "b", "a"]
    assert names(bench, sort="total_spend") == ["b", "d", "c", "a"]


def test_a_search_finds_names_and_ids_whatever_their_case() -> None:
    bench = some_campaigns()
    assert names(bench, find="AUT") == ["b"]
    assert names(bench, find="B") == ["b"]
    assert names(bench, find="nothing like that") == []
    assert event(bench, find="nothing like that")["range"] == "no campaign"


@pytest.mark.parametrize(
    "address",
    [{"page": "0"}, {"page": "x"}, {"page": "-1"}, {"page": "9" * 99}, {"sort": "__class__"}, {"window": "2y"}],
    ids=str,
)
def test_what_an_address_cannot_mean_is_ignored(address: dict[str, str]) -> None:
    assert View.of(address, WINDOWS) == View("1m")


def test_a_page_has_so_many_rows_and_one_beyond_the_end_is_the_last() -> None:
    bench = Bench(max_campaigns=1_000)
    bench.feed(RENDERS, *(render(n, campaign=f"c{n:03}") for n in range(2 * ROWS + 3)))
    assert len(names(bench)) == ROWS
    last = event(bench, page="99")
    assert last["range"] == f"{2 * ROWS + 1} to {2 * ROWS + 3} of {2 * ROWS + 3}"
    assert (last["previous"], last["next"]) == ("?window=1m&sort=served&order=desc&page=2", None)
    first = event(bench)
    assert (first["previous"], first["next"]) == (None, "?window=1m&sort=served&order=desc&page=2")


def test_choosing_a_column_again_turns_the_order_and_keeps_the_search() -> None:
    columns = {column["name"]: column for column in event(some_campaigns(), find="a&b", sort="vcpm")["columns"]}
    assert list(columns) == list(COLUMNS)
    assert columns["vcpm"]["sorted"] == "descending"
    assert columns["vcpm"]["href"] == "?window=1m&sort=vcpm&order=asc&find=a%26b"
    assert columns["cpm"]["sorted"] is None
    assert columns["cpm"]["href"] == "?window=1m&sort=cpm&order=desc&find=a%26b"
    assert columns["campaign"]["href"] == "?window=1m&sort=campaign&order=asc&find=a%26b"


def test_a_rate_below_its_target_says_so() -> None:
    rows = {row["campaign_id"]: row for row in event(some_campaigns())["rows"]}
    assert (rows["b"]["viewable_rate"], rows["b"]["target"], rows["b"]["below"]) == ("50.00%", "below 70%", "below")
    assert (rows["a"]["target"], rows["a"]["below"], rows["a"]["target_line"]) == ("", None, None)
    assert (rows["d"]["viewable_rate"], rows["d"]["served"], rows["d"]["total_served"]) == ("-", "0", "1")


def test_a_worker_that_has_only_some_campaigns_says_so() -> None:
    assert event(some_campaigns())["share"] == ""
    bench = Bench()
    bench.rollup.heads[0] = bench.tell().rollup.heads[0].__class__(0, 1, 4, T, False, 0)
    assert event(bench)["share"].startswith("These are the campaigns of 1 of 4 partitions.")


# --- lines ------------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.integers(0, 400), st.integers(1, 9), max_size=40),
    st.integers(0, 400),
    st.integers(1, 12),
    st.integers(1, 30),
)
def test_slices_are_the_sums_of_their_panes(panes: dict[int, int], now: int, length: int, number: int) -> None:
    rolling = Rolling(WINDOWS_MS)
    for pane, served in panes.items():
        rolling.add(pane * PANE_MS, Cell(served=served))
    end = now // length + 1
    expected = [
        sum(served for pane, served in panes.items() if pane // length == part and pane <= now)
        for part in range(end - number, end)
    ]
    assert [cell.served for cell in rolling.slices(now * PANE_MS, length * PANE_MS, number)] == expected


@pytest.mark.parametrize("longest", [10_000, 60_000, 300_000, 420_000, 3_600_000, 86_400_000])
def test_a_line_spans_up_to_an_hour_of_what_is_held(longest: int) -> None:
    span = span_of(longest)
    assert span.slice_ms % PANE_MS == 0
    assert min(longest, 3_600_000) <= span.slice_ms * span.slices < min(longest, 3_600_000) + span.slice_ms
    assert span.slices <= 60


def test_a_line_has_gaps_where_nothing_is_defined_and_a_dot_for_a_lone_value() -> None:
    assert line([], 1) == line([None, None], 1) == ""
    middle = WIDTH / 2
    assert line([0, 1, None], 1) == f"M2.0 {HEIGHT - 2}.0h0L{middle} 2.0"
    assert line([None, 0.5, None], 1) == f"M{middle} {HEIGHT / 2}h0"
    assert line([5, 5, 5], 0).count("L") == 2, "all 0: a line at the bottom"


def test_lines_are_the_same_after_a_restart() -> None:
    bench = Bench()
    for minute in range(30):
        at = T + minute * 60_000
        bench.feed(RENDERS, *(render(10 * minute + n, at) for n in range(5)))
        kinds = ["viewable" if n < minute % 5 else "not_viewable" for n in range(5)]
        bench.feed(VIEWABILITY, *(view(10 * minute + n, kind, at) for n, kind in enumerate(kinds)))
    before = event(bench)["rows"]
    assert before[0]["rate_line"].count("L") > 10
    rows = [(key, row) for key, row in bench.rollup.changed() if row is not None]
    bench.rollup = Rollup(WINDOWS_MS, bench.campaigns)
    bench.rollup.load(rows)
    assert event(bench)["rows"] == before


# --- live -------------------------------------------------------------------------------------------------------------


class Shop:
    """A site of a bench, and how often its state was read."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        return self.bench.reading()

    def readers(self) -> int:
        return self.site._live._readers

    @asynccontextmanager
    async def open(self) -> AsyncIterator[aiohttp.ClientSession]:
        settings = load(http_port=0)
        collector = Collector(self.read, settings.windows, "9.9", max_remembered=77)
        async with (
            Site(settings, collector, CollectorRegistry(), self.read, list) as self.site,
            aiohttp.ClientSession(self.site.url, connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            yield session


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    while True:
        told = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10)
        if told.startswith(b"data: "):
            values: dict[str, Any] = json.loads(told.removeprefix(b"data: "))
            return values


async def until(is_so: Callable[[], bool], what: str, patience_s: float = 20) -> None:
    deadline = monotonic() + patience_s
    while not is_so():
        assert monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that are taken anew a hundred times a second."""
    monkeypatch.setattr(snapshot, "EVERY_S", 0.01)
    monkeypatch.setattr(snapshot, "_SHARE", 1)


@pytest.mark.usefixtures("fast")
async def test_a_reader_is_told_at_once_and_again_when_something_changes() -> None:
    shop = Shop(some_campaigns())
    async with shop.open() as session, session.get("/live?sort=campaign") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert [row["served"] for row in (await next_event(answer))["rows"]] == ["3", "2", "1", "0"]
        reads = shop.reads
        await until(lambda: shop.reads > reads + 5, "it is looked again")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 0.05)
        shop.bench.feed(RENDERS, render(77, campaign="c"))
        served = ["3", "2", "1", "0"]
        while served == ["3", "2", "1", "0"]:  # figures that were being taken just then may have the old rows
            served = [row["served"] for row in (await next_event(answer))["rows"]]
        assert served == ["3", "2", "2", "0"]


@pytest.mark.usefixtures("fast")
async def test_a_reader_hears_that_the_worker_lives_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_ALIVE_S", 0.05)
    async with Shop(some_campaigns()).open() as session, session.get("/live") as answer:
        await next_event(answer)
        for _ in range(3):
            assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 10) == b"event: alive\ndata: 1\n\n"


async def test_many_readers_share_one_look_at_the_state() -> None:
    shop = Shop(some_campaigns())
    async with shop.open() as session:
        answers = [await session.get("/live") for _ in range(live.MAX_READERS)]
        await asyncio.gather(*(next_event(answer) for answer in answers))
        assert shop.reads <= 3, "one a second"
        async with session.get("/live") as refused:
            assert refused.status == 503
            assert await refused.text() == f"{live.MAX_READERS} pages are open already: close one\n"
        answers.pop().close()
        shop.bench.feed(RENDERS, render(77))
        await asyncio.gather(*(next_event(answer) for answer in answers))

        async def is_let_in() -> bool:
            async with session.get("/live") as answer:
                return answer.status == 200

        deadline = monotonic() + 20
        while not await is_let_in():
            assert monotonic() < deadline, "a place that was left is given to another"
            await asyncio.sleep(0.1)
        for answer in answers:
            answer.close()


async def test_the_more_a_look_costs_the_less_often_it_is_taken() -> None:
    snapshots = Snapshots(SETTINGS, some_campaigns().reading, list)

    def slow(_: Snapshot) -> Iterator[None]:
        deadline = monotonic() + 0.3
        while monotonic() < deadline:
            yield None
        return b"made"  # type: ignore[return-value]

    assert await snapshots.made("a", slow) == b"made"  # type: ignore[arg-type]
    assert 0.3 * 9 < snapshots.holds_for_s() < math.inf
    began = monotonic()
    assert await snapshots.made("a", slow) == b"made"  # type: ignore[arg-type]
    assert monotonic() - began < 0.2, "it is there already"


def deaf_reader(url: Any) -> socket.socket:
    """Somebody who asks for the figures and never reads them."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    deaf.connect((url.host, url.port))
    deaf.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
    return deaf


@pytest.mark.usefixtures("fast")
async def test_a_reader_that_does_not_read_is_let_go_and_holds_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PATIENCE_S", 0.2)
    bench = Bench().feed(RENDERS, *(render(n, campaign=f"c{n:02}") for n in range(ROWS)))
    shop = Shop(bench)
    async with shop.open() as session, session.get("/live") as answer:
        with deaf_reader(answer.url):
            await until(lambda: shop.readers() == 2, "both are served")
            number = 1_000
            while shop.readers() == 2:
                assert number < 2_000, "the deaf one is let go"
                number += 1
                bench.feed(RENDERS, render(number))
                await next_event(answer)
        assert shop.readers() == 1


async def test_readers_do_not_hold_up_the_end_of_a_worker() -> None:
    shop = Shop(some_campaigns())
    async with shop.open() as session:
        reader = deaf_reader(session._base_url)
        await until(lambda: shop.readers() == 1, "it is served")
        began = monotonic()
    assert monotonic() - began < 0.8
    reader.close()
