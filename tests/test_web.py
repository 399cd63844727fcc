"""The HTTP server: the page, the JSON behind it, health, and what strangers may not do."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from streams.core.events import CLICKS, RENDERS, VIEWABILITY
from streams.metrics.collector import Collector
from streams.settings import load
from streams.web.server import Site, SiteError
from tests.test_metrics import Bench, T, click, render, view

HOSTILE = '"><script>alert(1)</script>'


def approx(value: float | None) -> Any:
    """Money is rounded to a nano-unit in JSON, and to a float on /metrics."""
    return None if value is None else pytest.approx(value, abs=1e-9)


@asynccontextmanager
async def served(bench: Bench, *not_ready: str, **given: Any) -> AsyncIterator[aiohttp.ClientSession]:
    settings = load(http_port=0, **given)
    collector = Collector(bench.reading, settings.windows, "9.9", max_remembered=77)
    async with (
        Site(settings, collector, CollectorRegistry(), bench.reading, lambda: list(not_ready)) as site,
        aiohttp.ClientSession(site.url) as session,
    ):
        yield session


async def text(session: aiohttp.ClientSession, path: str, **headers: str) -> tuple[int, str, Any]:
    async with session.get(path, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def test_a_worker_is_alive_even_when_it_is_not_ready_and_tells_why_it_is_not() -> None:
    async with served(Bench(), "no partitions are assigned", "the broker does not answer") as session:
        assert (await text(session, "/healthz"))[:2] == (200, "alive\n")
        assert (await text(session, "/readyz"))[:2] == (503, "no partitions are assigned\nthe broker does not answer\n")
    async with served(Bench()) as session:
        assert (await text(session, "/readyz"))[:2] == (200, "ready\n")


async def test_metrics_come_in_the_format_that_is_asked_for() -> None:
    async with served(Bench().feed(RENDERS, render(1))) as session:
        status, page, headers = await text(session, "/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        assert 'ads_served_impressions_total{campaign="spring",currency="USD"} 1\n' in page
        _, page, headers = await text(session, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert page.endswith("# EOF\n")


async def test_the_json_has_money_as_decimal_text_and_null_where_nothing_is_defined() -> None:
    bench = Bench().feed(RENDERS, render(1, price="2.5"), render(2, T, "small", price=None))
    bench.feed(VIEWABILITY, view(1, "not_viewable"))
    async with served(bench) as session, session.get("/api/campaigns") as answer:
        figures = await answer.json()
    small, spring = figures["campaigns"]  # as many served, so in order of their names
    assert spring["windows"]["1m"] == {
        "served": 1, "measurable": 1, "viewable": 0, "clicks": 0, "spend": "0.0025", "cpm": "2.5", "vcpm": None,
        "cpc": None, "viewable_rate": 0.0, "viewable_of_served": 0.0, "measured_rate": 1.0, "ctr": 0.0,
    }  # fmt: skip
    assert small["windows"]["1m"]["cpm"] is None
    assert small["currency"] == "none"
    assert figures["windows"] == ["1m", "5m", "1h"]
    assert figures["stream"]["events"]["renders"]["counted"] == 2
    assert figures["stream"]["lag"] == 17


async def test_the_json_says_what_metrics_say() -> None:
    bench = Bench(agreed='[campaigns.spring]\nname = "Spring"\nviewability_target = 0.7')
    bench.feed(RENDERS, *(render(n, price=str(n)) for n in range(7)), render(7, price="4", currency="EUR"))
    bench.feed(RENDERS, render(8, T - 100_000, "early"), render(9, price=None))
    bench.feed(VIEWABILITY, *(view(n, "viewable" if n % 2 else "not_viewable") for n in range(8)))
    bench.feed(CLICKS, click(1))
    async with served(bench) as session, session.get("/api/campaigns") as answer:
        figures = await answer.json()
    rows = {(row["campaign_id"], row["currency"]): row for row in figures["campaigns"]}
    assert set(rows) == {("spring", "USD"), ("spring", "EUR"), ("spring", "none"), ("early", "USD")}
    for (campaign, currency), row in rows.items():
        of_campaign, of_both = {"campaign": campaign}, {"campaign": campaign, "currency": currency}
        assert row["viewability_target"] == bench.value("ads_viewability_target_ratio", **of_campaign)
        assert float(row["total"]["spend"]) == approx(bench.value("ads_spend_total", **of_both))
        for name in ("served", "measurable", "viewable"):
            assert row["total"][name] == bench.value(f"ads_{name}_impressions_total", **of_both)
        for window, shown in row["windows"].items():
            for name in ("viewable_rate", "viewable_of_served", "measured_rate", "ctr"):
                assert shown[name] == bench.value(f"ads_{name}", window=window, **of_campaign)
            for name in ("cpm", "vcpm", "cpc"):
                told = None if shown[name] is None else float(shown[name])
                assert told == approx(bench.value(f"ads_{name}", window=window, **of_both))
            for name in ("served", "measurable", "viewable", "clicks"):
                assert shown[name] == bench.value(f"ads_window_{name}", window=window, **of_both)


async def test_below_the_smallest_sample_money_and_rates_are_null() -> None:
    bench = Bench().feed(RENDERS, render(1), render(2)).feed(VIEWABILITY, view(1))
    async with served(bench, min_sample=2) as session, session.get("/api/campaigns") as answer:
        shown = (await answer.json())["campaigns"][0]["windows"]["1m"]
    assert (shown["cpm"], shown["vcpm"], shown["viewable_rate"], shown["measured_rate"]) == ("6", None, None, 0.5)


async def test_campaigns_beyond_the_largest_number_are_one_row_without_totals() -> None:
    bench = Bench().feed(RENDERS, *(render(n, campaign=f"c{n % 3}") for n in range(9)), render(9, campaign="c0"))
    async with served(bench, max_campaigns=1) as session:
        async with session.get("/api/campaigns") as answer:
            figures = await answer.json()
        page = (await text(session, "/"))[1]
    other = next(row for row in figures["campaigns"] if row["campaign_id"] == "_other")
    assert (other["total"], other["windows"]["1m"]["served"], other["windows"]["1m"]["cpm"]) == (None, 6, "6")
    assert figures["stream"]["overflow_campaigns"] == 2
    assert "2 campaigns beyond STREAMS_MAX_CAMPAIGNS are one, _other." in page


async def test_the_page_is_a_plain_table_without_a_script_and_hostile_names_are_text() -> None:
    event = render(1)
    event.campaign_id = HOSTILE
    bench = Bench(agreed='[campaigns.spring]\nname = \'$x " data-text="state"> <b>\'')
    async with served(bench.feed(RENDERS, event, render(2))) as session:
        status, page, headers = await text(session, "/")
    assert status == 200
    assert '<bdi data-text="campaign">&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;</bdi>' in page
    assert '<bdi data-text="campaign">$x &quot; data-text=&quot;state&quot;&gt; &lt;b&gt;</bdi>' in page
    assert '<bdi data-text="id">spring</bdi>' in page
    assert HOSTILE not in page
    assert page.count('<td data-text="served">1</td>') == 2
    assert "'unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_fetches_nothing_from_elsewhere() -> None:
    async with served(Bench()) as session:
        for path in ("/", "/page.js", "/page.css", "/page.svg"):
            status, body, _ = await text(session, path)
            assert status == 200
            assert re.findall(r"https?:[^\s\"']*", body) in ([], ["http://www.w3.org/2000/svg"])


async def test_only_reading_is_allowed_and_other_paths_do_not_exist() -> None:
    async with served(Bench()) as session:
        async with session.post("/metrics") as answer:
            assert answer.status == 405
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (await text(session, "/../settings.py"))[0] == 404
        assert (await text(session, "/table/"))[0] == 404
        async with session.head("/metrics") as answer:
            assert answer.status == 200


async def test_a_used_port_is_one_clear_line() -> None:
    settings = load(http_port=0)
    collector = Collector(Bench().reading, settings.windows, "9.9", max_remembered=77)
    async with Site(settings, collector, CollectorRegistry(), Bench().reading, list) as site:
        again = load(http_port=int(site.url.rsplit(":", 1)[1]))
        with pytest.raises(SiteError, match="try another --http-port"):
            await Site(again, collector, CollectorRegistry(), Bench().reading, list).__aenter__()
