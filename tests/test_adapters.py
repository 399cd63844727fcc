"""Adapters of ad systems: identity, units, time, duplicates, columns, and the trap that each system holds ready."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise, permutations
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.events import TOPICS
from streams.core.money import NANO
from streams.core.partition import Partition
from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.core.rules import OUTCOME_NAMES, Rules
from streams.sources.adapter import HEADER_WITHIN, BadRow, HeaderError, Options
from streams.sources.gam import line_item_prices
from streams.sources.systems import SYSTEMS, Piece, Reader
from streams.sources.tables import split
from tests.logs import batch, figures

DATA = Path(__file__).parent / "data" / "ingest"
IMPRESSIONS = "NetworkImpressions_1234_20260131_05"
BACKFILL = "NetworkBackfillImpressions_1234_20260131_05"
VIEWS = "NetworkActiveViews_1234_20260131_05"
CLICKS = "NetworkClicks_1234_20260131_05"
DV360 = "dcm_account_1234_impression_2026013105_20260131_061500_1.csv"
DV360_CLICKS = "dcm_account_1234_click_2026013105_20260131_061500_1.csv"


@dataclass
class Told:
    """What files became."""

    values: dict[str, list[bytes]] = field(default_factory=lambda: {topic: [] for topic in TOPICS})
    reported: list[ReportedCount] = field(default_factory=list)
    appended: dict[str, list[int | None]] = field(default_factory=lambda: {topic: [] for topic in TOPICS})
    skipped: dict[str, int] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)

    def events(self, topic: str) -> list[dict[str, Any]]:
        return [orjson.loads(value) for value in self.values[topic]]

    @property
    def rows(self) -> int:
        """What was made of rows, all in all."""
        return sum(map(len, self.values.values())) + sum(self.skipped.values())

    @property
    def renders(self) -> list[dict[str, Any]]:
        return self.events("renders")

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(view["impression_id"], view["kind"]) for view in self.events("viewability")]

    def counted(self, **rules: Any) -> dict[tuple[str, str], dict[str, int]]:
        """(campaign, currency) -> figures, by the real core."""
        return totals(self.state(**rules))

    def state(self, **rules: Any) -> Partition:
        state = Partition(Rules(**rules))
        for topic, values in self.values.items():
            if values:
                state.apply(batch(topic, [(offset, value, None) for offset, value in enumerate(values)]))
        return state


def totals(state: Partition) -> dict[tuple[str, str], dict[str, int]]:
    found: dict[tuple[str, str], dict[str, int]] = {}
    for (campaign, currency, *_), cell in figures(state.cells()).items():
        sums = found.setdefault((campaign, currency), dict.fromkeys(cell, 0))
        for name, value in cell.items():
            sums[name] += value
    return found


def pieces(system: str, content: bytes, name: str, options: Options) -> Iterator[Piece]:
    all_lines = io.BytesIO(content).readlines()
    reader = Reader(SYSTEMS[system], all_lines[:HEADER_WITHIN], name, options)
    return reader.all_pieces(all_lines[reader.header :])


def told(system: str, *files: str | tuple[str, bytes], **options: Any) -> Told:
    """What an adapter makes of files of tests/data/ingest, or of (name, content)."""
    found = Told()
    made = Options(**{"source": SYSTEMS[system].source or "adserver"} | options)
    for file in files:
        name, content = file if isinstance(file, tuple) else (file, (DATA / file).read_bytes())
        for piece in pieces(system, content, name, made):
            for one in piece.batches:
                if one.topic == REPORTED_COUNTS:
                    found.reported += one.says
                else:
                    found.values[one.topic] += one.values
                    found.appended[one.topic] += one.appended_ms
            for reason, count in piece.skipped.items():
                found.skipped[reason] = found.skipped.get(reason, 0) + count
            found.bad += piece.bad
    return found


def lines(*rows: str) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


def csv_of(rows: Iterable[Iterable[str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def rows_of(file: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO((DATA / file).read_text()), delimiter=delimiter))


def prices() -> dict[str, str]:
    return line_item_prices((DATA / "gam_line_items.csv").read_bytes().splitlines())


def outcomes(state: Partition, topic: str) -> dict[str, int]:
    counts = zip(OUTCOME_NAMES, state.progress[topic].outcomes, strict=True)
    return {outcome: count for outcome, count in counts if count}


# --- Google Ad Manager ------------------------------------------------------------------------------------------------


def test_gam_impressions_are_told_apart_by_key_part_and_request_time_where_impression_id_would_leave_one():
    found = told("gam", IMPRESSIONS, BACKFILL)
    assert {row[rows_of(IMPRESSIONS)[0].index("ImpressionId")] for row in rows_of(IMPRESSIONS)[1:]} == {"1-0"}
    assert len({render["impression_id"] for render in found.renders}) == len(found.renders) == 7
    assert outcomes(found.state(), "renders") == {"counted": 7}


def test_gam_backfill_earns_the_money_of_one_impression_to_the_last_digit():
    found = told("gam", BACKFILL, currency="EUR")
    assert [(render["price"], render["price_unit"]) for render in found.renders] == [
        ("0.00032199999999999997", "impression"), ("2.9e-05", "impression"), ("0", "impression"),
    ]  # fmt: skip
    # As a CPM it would be 322 + 29 nano: a thousandth.
    assert found.counted()["0", "EUR"]["spend"] == 322_000 + 29_000


def test_gam_direct_line_items_cost_the_cpm_of_the_line_item_table_and_those_paid_by_click_nothing():
    found = told("gam", IMPRESSIONS, prices=prices())
    assert [render.get("price") for render in found.renders] == ["2.50", "2.50", "12.345678", None]
    counted = found.counted()
    assert counted["70001", "USD"]["spend"] == 2 * 2_500_000
    assert counted["70002", "USD"]["spend"] == 12_345_678
    assert counted["70002", "none"]["served"] == 1


def test_gam_without_a_table_direct_line_items_have_no_price_and_their_revenue_of_0_is_none():
    assert set(told("gam", IMPRESSIONS).counted()) == {("70001", "none"), ("70002", "none")}


def test_gam_times_are_the_events_own_in_utc_whatever_the_networks_zone():
    (first, *_), _ = told("gam", IMPRESSIONS).renders, None
    assert first["ts"] == 1_769_864_402_800  # 2026-01-31 13:00:02.8 UTC; `Time` says 05:00:01
    assert told("gam", IMPRESSIONS, zone=ZoneInfo("Asia/Tokyo")).values == told("gam", IMPRESSIONS).values


def test_gam_viewers_are_user_ids_and_a_row_without_one_is_nobodys():
    assert [render.get("viewer_id") for render in told("gam", IMPRESSIONS).renders] == [
        "CAESEA1", None, "CAESEA2", "CAESEA1",
    ]  # fmt: skip


def test_gam_viewability_is_the_sum_of_what_impressions_and_active_views_say():
    found = told("gam", IMPRESSIONS, VIEWS, prices=prices())
    assert found.skipped == {"says nothing new of viewability": 1}
    counted = found.counted()
    assert (counted["70001", "USD"]["measurable"], counted["70001", "USD"]["viewable"]) == (2, 1)
    # A video, of which it was found later.
    assert (counted["70002", "USD"]["measurable"], counted["70002", "USD"]["viewable"]) == (1, 1)
    assert (counted["70002", "none"]["measurable"], counted["70002", "none"]["viewable"]) == (1, 0)


def test_gam_active_views_of_before_the_counts_say_y_or_n():
    header = "KeyPart,TimeUsec2,EventTimeUsec2,MeasurableImpression,ViewableImpression"
    text = lines(header, "a,1,2000,Y,Y", "b,1,2000,N,N")
    assert told("gam", (VIEWS, text)).kinds == [("a-1", "viewable"), ("b-1", "undetermined")]


def test_gam_clicks_belong_to_their_impression_and_each_is_one():
    found = told("gam", IMPRESSIONS, CLICKS)
    assert {click["impression_id"] for click in found.events("clicks")} == {"0a1b2c3d-1769864401000000"}
    assert found.counted()["70001", "none"]["clicks"] == 2


def gam_hour(number: int, rows: int, random: Random) -> tuple[str, bytes]:
    """A made file of an hour, its rows out of order by half an hour."""
    start = 1_769_864_400_000_000 + number * 3_600_000_000
    at = [start + 3_600_000_000 * row // rows for row in range(rows)]
    made = [
        [f"k{number}-{row}", str(us), str(us + 1_800_000), "0.001", f"{us + random.randrange(1_800_000_000)}"]
        for row, us in enumerate(at)
    ]
    made.sort(key=lambda row: int(row[-1]))
    header = ["KeyPart", "TimeUsec2", "EventTimeUsec2", "EstimatedBackfillRevenue"]
    return f"NetworkBackfillImpressions_1_20260131_{number:02}", csv_of([header, *(row[:4] for row in made)])


def test_gam_hours_that_are_out_of_order_by_half_an_hour_and_sent_again_count_once():
    hours = [gam_hour(number, 300, Random(number)) for number in range(3)]
    times = [render["ts"] for render in told("gam", hours[0]).renders]
    assert max(early - late for early, late in pairwise(times)) > 1_500_000
    again = told("gam", hours[0], hours[0], hours[1], hours[1], hours[2], hours[0])
    counted = again.counted()
    assert counted["0", "USD"]["served"] == 900
    assert counted["0", "USD"]["spend"] == 900 * 1_000_000
    assert outcomes(again.state(), "renders")["counted"] == 900


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "^", "|", "\x01"])
def test_gam_files_may_have_any_delimiter_and_any_order_of_columns(delimiter):
    expected = told("gam", IMPRESSIONS).values
    rows = rows_of(IMPRESSIONS)
    for order in (range(len(rows[0])), Random(1).sample(range(len(rows[0])), len(rows[0]))):
        turned = csv_of(([row[column] for column in order] for row in rows), delimiter)
        assert told("gam", (IMPRESSIONS, turned)).values == expected


def test_gam_columns_beyond_the_identity_may_be_missing_and_others_there():
    text = lines("KeyPart,Extra,TimeUsec2", "k,x,1769864401000000")
    assert told("gam", (IMPRESSIONS, text)).renders == [
        {"impression_id": "k-1769864401000000", "ts": 1_769_864_401_000, "source": "gam", "campaign_id": "0"}
    ]


@pytest.mark.parametrize("column", ["KeyPart", "TimeUsec2"])
def test_gam_without_a_column_of_the_identity_is_no_file_of_gam(column):
    text = (DATA / IMPRESSIONS).read_bytes().replace(column.encode(), b"Other", 1)
    with pytest.raises(HeaderError, match=column):
        told("gam", (IMPRESSIONS, text))


def test_gam_a_file_whose_name_says_nothing_needs_to_be_told_what_it_holds():
    text = (DATA / CLICKS).read_bytes()
    with pytest.raises(HeaderError, match="--kind"):
        told("gam", ("-", text))
    assert len(told("gam", ("-", text), kind="clicks").events("clicks")) == 2


def test_gam_a_table_of_line_items_with_a_broken_row_is_refused():
    with pytest.raises(HeaderError, match="line 3"):
        line_item_prices(lines("Id,CostPerUnitInNetworkCurrency", "1,2.5", "2").splitlines())


# --- Display & Video 360 ----------------------------------------------------------------------------------------------


def test_dv360_views_are_renders_clicks_clicks_and_conversions_nothing():
    found = told("dv360", DV360, DV360_CLICKS)
    assert [render["impression_id"] for render in found.renders] == ["CID-1", "CID-2", "CID-3", "CID-4"]
    assert found.skipped == {"neither VIEW nor CLICK": 1}
    assert found.counted()["21001", "EUR"]["clicks"] == 1


def test_dv360_times_are_microseconds_and_rows_unsorted():
    assert [render["ts"] for render in told("dv360", DV360).renders][:2] == [1_769_866_200_123, 1_769_864_400_000]


def test_dv360_money_is_nano_of_one_impression_in_the_advertisers_currency():
    counted = told("dv360", DV360).counted()
    assert counted["21001", "EUR"]["spend"] == 3_500_000 + 3_500_001
    assert (counted["21002", "EUR"]["spend"], counted["21002", "none"]["served"]) == (1, 1)


def test_dv360_a_zeroed_user_is_nobody_and_the_same_file_twice_counts_once():
    assert [render.get("viewer_id") for render in told("dv360", DV360).renders[:2]] == ["AMsySZa1", None]
    assert told("dv360", DV360, DV360).counted() == told("dv360", DV360).counted()


def test_dv360_active_view_is_on_the_row():
    assert told("dv360", DV360).kinds == [("CID-1", "viewable"), ("CID-2", "not_viewable"), ("CID-3", "undetermined")]


def test_dv360_a_percent_column_is_not_taken_for_the_count_beside_it():
    header = "Event Type,Event Time,Impression ID,Campaign ID,Active View: % Viewable Impressions"
    text = lines(header, "VIEW,1000,i,c,1")
    assert told("dv360", ("x.csv", text)).kinds == []


# --- Kevel ------------------------------------------------------------------------------------------------------------


def test_kevel_dates_are_ms_and_an_impression_that_was_fired_twice_counts_once():
    found = told("kevel", "kevel.jsonl", currency="EUR")
    assert found.renders[0]["ts"] == 1_769_864_401_500
    state = found.state()
    assert outcomes(state, "renders") == {"counted": 1, "duplicate": 1, "invalid_traffic": 2}
    assert totals(state)["1331048", "EUR"]["spend"] == 2_500_000
    assert totals(state)["1331048", "EUR"]["clicks"] == 1


def test_kevel_data_centres_and_crawlers_are_invalid_by_its_own_word():
    assert [render.get("invalid") for render in told("kevel", "kevel.jsonl").renders] == [
        None, None, "kevel: data centre", "kevel: user agent",
    ]  # fmt: skip


def test_kevel_answers_200_after_24_hours_and_that_is_no_impression():
    found = told("kevel", "kevel_calls.log")
    assert [render["impression_id"] for render in found.renders] == ["imp-1", "imp-2"]
    assert found.skipped == {"called after 24 h: answered with 200, and no impression": 1}
    assert [click["impression_id"] for click in found.events("clicks")] == ["imp-1"]
    assert found.appended["renders"] == [1_769_864_405_000, 1_769_864_400_000 + 24 * 3_600_000]


def test_kevel_a_price_by_click_is_no_price_of_an_impression():
    assert "price" not in told("kevel", "kevel.jsonl").renders[3]


# --- OpenRTB ----------------------------------------------------------------------------------------------------------


def test_openrtb_a_win_is_no_render_and_each_slot_of_a_request_is_one():
    found = told("openrtb", "openrtb.jsonl")
    assert [render["impression_id"] for render in found.renders] == [
        "req-1-1", "req-1-2", "req-3-1", "req-5-1", "req-6-1", "ipinyou-1-1",
    ]  # fmt: skip
    assert found.skipped == {"nurl: a won bid is no impression": 2}


def test_openrtb_a_price_is_a_cpm_in_its_currency_fen_are_hundredths_and_a_multiplier_multiplies():
    counted = told("openrtb", "openrtb.jsonl").counted()
    assert counted["c-1", "EUR"]["spend"] == 2_500_000 + 1_250_000
    assert counted["c-2", "EUR"] == counted["c-2", "EUR"] | {"served": 1, "spend": 56_800_000}  # 4 x 14.2
    assert counted["c-2", "USD"]["spend"] == 900_000 + 1_100_000
    assert counted["c-3", "CNY"]["spend"] == 1_600_000  # 160 fen CPM


@pytest.mark.parametrize(
    ("price_in", "price", "nano"),
    [("units", "2.5", 2_500_000), ("cents", "250", 2_500_000), ("micros", "2500000", 2_500_000), ("micros", "1", 1)],
)
def test_a_cpm_may_be_in_units_cents_or_micros(price_in, price, nano):
    notice = {"type": "burl", "AUCTION_ID": "r", "AUCTION_IMP_ID": "1", "AUCTION_PRICE": price, "cid": "c", "ts": 1000}
    line = orjson.dumps(notice)
    assert told("openrtb", ("x", line), price_in=price_in).counted()["c", "USD"]["spend"] == nano


def test_openrtb_a_macro_that_was_not_filled_in_is_a_bad_row_with_its_line():
    (bad,) = told("openrtb", "openrtb.jsonl").bad
    assert (bad.line, bad.reason) == (5, "out_of_range")
    assert "AUCTION_PRICE" in bad.detail


def test_openrtb_happened_at_the_impressions_time_and_was_recorded_when_the_notice_came():
    found = told("openrtb", "openrtb.jsonl", source="dsp")
    assert (found.renders[0]["ts"], found.appended["renders"][0]) == (1_769_864_401_500, 1_769_864_402_000)
    assert (found.renders[4]["ts"], found.appended["renders"][4]) == (1_769_864_404_500, 1_769_864_405_000)
    assert {render["source"] for render in found.renders} == {"dsp"}


def test_openrtb_a_notice_that_says_neither_is_bad():
    found = told("openrtb", ("x", lines('{"AUCTION_ID":"r","AUCTION_IMP_ID":"1"}')))
    assert [row.reason for row in found.bad] == ["missing_field"]


# --- VAST -------------------------------------------------------------------------------------------------------------


def test_vast_quartiles_are_no_impressions_and_each_ad_of_a_pod_is_one():
    found = told("vast", "vast.log")
    assert [render["impression_id"] for render in found.renders] == ["pod-1-1-a1", "pod-1-2-a2", "ServerName-47ed3bac"]
    assert found.skipped == {"a tracking event that is no impression": 5}
    counted = found.counted()
    assert counted["c-1", "USD"] == counted["c-1", "USD"] | {"served": 2, "viewable": 1, "spend": 25_000_000}
    assert counted["c-2", "none"] == counted["c-2", "none"] | {"measurable": 1, "viewable": 0, "clicks": 1}


def test_vast_a_stitching_server_is_told_and_the_address_is_the_devices():
    first, second, player = told("vast", "vast.log").renders
    assert (first["server_side"], first["ip"]) == (True, "192.0.2.1")
    assert second["server_side"] is True
    assert "server_side" not in player


def test_vast_a_timestamp_has_its_own_zone():
    found = told("vast", "vast.log", zone=ZoneInfo("Asia/Tokyo"))
    assert (found.renders[2]["ts"], found.appended["renders"][2]) == (1_769_864_420_500, 1_769_864_421_000)


def test_vast_an_event_that_is_not_its_own_is_bad():
    found = told("vast", ("x", lines("1769864401000 https://t.example/pixel?sid=1")))
    assert [(row.line, row.reason) for row in found.bad] == [(1, "out_of_range")]


# --- browsers ---------------------------------------------------------------------------------------------------------


def test_prebid_a_won_bid_is_no_render_and_a_stale_render_no_second_one():
    found = told("prebid", "prebid.jsonl")
    assert found.skipped == {
        "bidWon: a won bid is no render": 1,
        "staleRender: a refresh of a bid that was rendered before": 1,
    }
    state = found.state()
    assert outcomes(state, "renders") == {"counted": 2, "duplicate": 1}
    assert totals(state)["c-1", "USD"] == totals(state)["c-1", "USD"] | {"served": 1, "viewable": 1, "spend": 500_000}
    assert totals(state)["rubicon", "EUR"]["spend"] == 1_250_000


def test_gpt_an_empty_slot_rendered_nothing_and_backfill_is_campaign_0():
    found = told("gpt", "gpt.jsonl")
    assert [(render["impression_id"], render["campaign_id"]) for render in found.renders] == [
        ("CJq1-div-1", "70001"), ("pv-1-div-3-1", "0"),
    ]  # fmt: skip
    assert found.skipped == {"isEmpty: nothing was rendered": 1, "an event of a slot that is no render": 1}
    assert found.kinds == [("CJq1-div-1", "viewable")]
    assert found.appended["renders"] == [1_769_864_401_900, None]


# --- measurement ------------------------------------------------------------------------------------------------------


def test_ias_and_doubleverify_measure_what_another_system_counted():
    found = told("ias", "ias.log")
    assert found.kinds == [("x1", "measurable"), ("x1", "viewable"), ("x2", "undetermined")]
    assert {(view["source"], view["vendor"]) for view in found.events("viewability")} == {("adserver", "ias")}
    found = told("doubleverify", "doubleverify.jsonl", source="gam")
    assert found.kinds == [("x1", "not_viewable"), ("x2", "signal")]
    assert {view["source"] for view in found.events("viewability")} == {"gam"}
    assert found.appended["viewability"] == [1_769_864_402_900, None]


# --- reports ----------------------------------------------------------------------------------------------------------


def count(source: str, campaign_id: str, **more: Any) -> ReportedCount:
    return ReportedCount(source=source, campaign_id=campaign_id, date="2026-01-31", **more)


@pytest.mark.parametrize(
    ("system", "file", "expected"),
    [
        ("google-ads", "google_ads.csv", [
            count("google-ads", "21001", impressions=2_000_000, measurable=1_860_000, viewable=1_260_000, clicks=2_000,
                  spend=12_000_000_001_000, currency="EUR"),
            count("google-ads", "21002", impressions=0, measurable=0, viewable=0, clicks=0, spend=0, currency="EUR"),
        ]),
        ("google-ads", "google_ads_export.csv", [
            count("google-ads", "21001", impressions=1_200_000, measurable=1_100_000, viewable=760_000, clicks=900,
                  spend=7_200_500_000_000, currency="EUR"),
        ]),
        ("meta", "meta.jsonl", [
            count("meta", "2385", impressions=2_000_000, clicks=10_000, spend=5_321_080_000_000, currency="EUR"),
        ]),
        ("equativ", "equativ.csv", [
            count("equativ", "501", impressions=4_920_000, measurable=4_610_000, viewable=3_180_000, clicks=4_100,
                  spend=29_520 * NANO, currency="USD"),
        ]),
        ("dsp", "dsp.csv", [
            count("dsp", "shoes", impressions=5_200_000, measurable=4_700_000, viewable=3_290_000, clicks=4_300,
                  spend=31_200 * NANO, currency="USD"),
        ]),
        ("ssp", "ssp.csv", [count("ssp", "shoes", impressions=5_050_000, spend=27_775 * NANO, currency="USD")]),
        ("ias-report", "ias_report.csv", [
            count("ias-report", "shoes", impressions=4_900_000, measurable=4_610_000, viewable=3_180_000),
        ]),
        ("dv-report", "dv_report.csv", [
            count("dv-report", "shoes", impressions=4_880_000, measurable=4_590_000, viewable=3_170_000),
        ]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_reports_become_counts_a_day_and_campaign(system, file, expected):
    found = told(system, file)
    assert found.reported == expected
    assert found.bad == []


def test_reports_have_the_days_of_the_zone_that_was_said():
    (found,) = told("meta", "meta.jsonl", zone=ZoneInfo("America/New_York")).reported
    assert found.time_zone == "America/New_York"


def test_reports_totals_notes_and_days_without_figures_are_no_counts():
    assert told("google-ads", "google_ads_export.csv").skipped == {
        "has no day or no campaign: a total": 1, "has no figures": 1,
    }  # fmt: skip
    assert told("dsp", "dsp.csv").skipped == {"a note under the table": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("31.01.2026,c,1,1.5,USD", "wrong_type"),
        ("2026-02-31,c,1,1.5,USD", "wrong_type"),
        ("2026-01-31,c,one,1.5,USD", "wrong_type"),
        ("2026-01-31,c,1.5,1.5,USD", "out_of_range"),
        ("2026-01-31,c,-1,1.5,USD", "out_of_range"),
        ("2026-01-31,c,1,much,USD", "bad_price"),
        ("2026-01-31,c,1,-1,USD", "out_of_range"),
        ("2026-01-31,c,1,1.5,usd", "out_of_range"),
        ("2026-01-31,c,1,1.5", "wrong_columns"),
    ],
)
def test_reports_a_bad_row_is_told_with_its_line_and_harms_no_other(row, reason):
    text = lines("date,campaign_id,impressions,revenue,currency", "2026-01-31,a,5,1,USD", row, "2026-01-31,b,6,1,USD")
    found = told("ssp", ("x.csv", text))
    assert [(bad.line, bad.reason) for bad in found.bad] == [(3, reason)]
    assert [one.campaign_id for one in found.reported] == ["a", "b"]


# --- every system -----------------------------------------------------------------------------------------------------

FILES = {
    "gam": IMPRESSIONS, "dv360": DV360, "kevel": "kevel.jsonl", "openrtb": "openrtb.jsonl", "vast": "vast.log",
    "prebid": "prebid.jsonl", "gpt": "gpt.jsonl", "ias": "ias.log", "doubleverify": "doubleverify.jsonl",
    "google-ads": "google_ads.csv", "meta": "meta.jsonl", "equativ": "equativ.csv", "dsp": "dsp.csv", "ssp": "ssp.csv",
    "ias-report": "ias_report.csv", "dv-report": "dv_report.csv",
}  # fmt: skip


def test_there_is_a_file_of_every_system():
    assert set(FILES) == set(SYSTEMS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_says_when_it_counts_by_what_and_where_that_is_documented(system):
    module = SYSTEMS[system].name.replace("-", "_").replace("dsp", "dsp_report").replace("ssp", "ssp_report")
    text = __import__(f"streams.sources.{module}", fromlist=["SYSTEM"]).__doc__
    for part in ("Moment:", "Identity:", "Documented:"):
        assert part in text


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "broken", [b"\xff\xfe\x00\n", b"\n", b"{\n", b'{"a":' * 50 + b"\n", b'"\n', b"null\n", b"[1]\n", b"\x00\n"]
)
def test_every_system_survives_a_broken_line_and_reads_all_the_others(system, broken):
    content = (DATA / FILES[system]).read_bytes()
    last = content.splitlines(keepends=True)[-1]
    whole, torn = told(system, FILES[system]), told(system, (FILES[system], content + broken + last))
    assert len(torn.bad) <= len(whole.bad) + 2
    assert torn.rows > whole.rows or torn.reported != whole.reported
    for topic in TOPICS:
        assert torn.values[topic][: len(whole.values[topic])] == whole.values[topic]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_refuses_or_reports_the_files_of_the_others_and_makes_no_event_of_noise(system):
    noise = Random(7).randbytes(20_000).replace(b"\r", b"")
    try:
        found = told(system, (FILES[system], noise))
    except HeaderError:
        return
    assert found.values == {topic: [] for topic in TOPICS} and found.reported == []
    assert found.bad


def names_in(value: Any) -> set[str]:
    """The names of all members of an object and of those in it."""
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(names_in, value.values()))


LINES = [
    line
    for system in ("kevel", "openrtb", "vast", "prebid", "gpt", "doubleverify", "meta")
    for line in (DATA / FILES[system]).read_text().splitlines()
    if line.startswith("{")
]
NAMES = sorted(
    set().union(*(names_in(orjson.loads(line)) for line in LINES))
    | {"path", "url", "e", "time", "in_view_pct", "w", "date_start", "burl"}
)
WORDS = [
    "impression", "viewable", "adRenderSucceeded", "slotRenderEnded", "measured", "signal", "burl", "/Date(1)/", "e30",
    "2026-01-31", "0001-01-01", "9999-12-31T23:59:59", "1" * 5_000, "9" * 30, "\udcff", "bnVsbA", "/i.gif", "${X}",
    "MQ",
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("system", SYSTEMS)
@given(members=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=10))
def test_whatever_a_line_says_it_becomes_events_or_a_bad_row(system, members):
    try:
        told(system, (FILES[system], json.dumps(members).encode() + b"\n"))
    except HeaderError:
        pass


@pytest.mark.parametrize("system", ["gam", "dv360", "google-ads", "meta", "equativ", "dsp", "ssp"])
@given(data=st.data())
def test_whatever_the_cells_of_a_row_are_it_becomes_events_or_a_bad_row(system, data):
    file = {"meta": "google_ads.csv"}.get(system, FILES[system])
    header = (DATA / file).read_text().splitlines()[0]
    delimiter = ";" if system == "equativ" else ","
    names = header.split(delimiter)
    if system == "meta":
        names = ["date_start", "date_stop", "campaign_id", "impressions", "spend"]
    texts = st.text(max_size=5) | st.sampled_from([*WORDS, "0", "VIEW", "CLICK", "Total", "1,200", "-1", "300x250"])
    row = data.draw(st.lists(texts, min_size=len(names), max_size=len(names)))
    told(system, (FILES[system], csv_of([names, row], delimiter)))


@pytest.mark.parametrize("system", ["kevel", "meta", "gpt"])
def test_a_line_that_is_nested_too_deeply_is_a_bad_row(system):
    found = told(system, (FILES[system], b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"))
    assert [row.reason for row in found.bad] == ["not_json"]


def test_a_campaign_whose_name_begins_with_total_is_no_total():
    text = lines("date,campaign_id,impressions", "2026-01-31,total-war,5", "2026-01-31,Totals,5", "Grand Total:,,5")
    found = told("ssp", ("x.csv", text))
    assert [one.campaign_id for one in found.reported] == ["total-war"]
    assert sum(found.skipped.values()) == 2


def test_a_row_of_more_than_a_day_is_no_count_of_a_day():
    text = (DATA / "meta.jsonl").read_bytes().replace(b'"date_stop":"2026-01-31"', b'"date_stop":"2026-02-01"')
    found = told("meta", ("x", text))
    assert ([row.reason for row in found.bad], found.reported) == (["out_of_range"] * 2, [])


# --- rows and their lines ---------------------------------------------------------------------------------------------


def test_a_quote_that_nobody_closes_costs_its_own_row_alone():
    rows = list(split(["1,a\n", '2,"b\n', "3,c\n", '4,"d\n', "5,e\n", "\n", "7\n"], ",", 10, 2))
    assert [(line, made[0]) for line, made in rows if not isinstance(made, BadRow)] == [(10, "1"), (12, "3"), (14, "5")]
    assert [(made.line, made.reason) for _, made in rows if isinstance(made, BadRow)] == [
        (11, "not_csv"), (13, "not_csv"), (16, "wrong_columns"),
    ]  # fmt: skip


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=6)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=30), st.sets(st.integers(0, 29)))
def test_whatever_the_cells_are_and_wherever_quotes_are_torn_the_other_rows_are_read(rows, torn):
    text = []
    for number, row in enumerate(rows):
        good = csv_of([row]).decode().removesuffix("\r\n")
        text.append(('x,"' if number in torn else good) + "\n")
    found = [(line, made[:-1]) for line, made in split(text, ",", 1, 3) if not isinstance(made, BadRow)]
    assert found == [(number, row) for number, row in enumerate(rows, 1) if number - 1 not in torn]


LOGS = sorted(name for name, system in SYSTEMS.items() if system.topics != (REPORTED_COUNTS,))


@pytest.mark.parametrize("system", LOGS)
@given(st.integers(0, 10), st.integers(0, 10))
def test_a_log_that_is_cut_anywhere_becomes_what_it_becomes_whole(system, first, second):
    name, options = FILES[system], Options(SYSTEMS[system].source or "adserver")
    all_lines = [*io.BytesIO((DATA / name).read_bytes()).readlines(), b'"\n', b"\xff\n", b"\n", b'a,"b\n']
    reader = Reader(SYSTEMS[system], all_lines[:HEADER_WITHIN], name, options)
    rows = all_lines[reader.header :]
    cuts = [0, *sorted((min(first, len(rows)), min(second, len(rows)))), len(rows)]
    cut = [piece for a, b in pairwise(cuts) for piece in reader.pieces(rows[a:b], reader.header + 1 + a)]
    assert _summed(cut) == _summed(reader.all_pieces(rows))


def _summed(found: Iterable[Piece]) -> Any:
    values: dict[str, list[bytes]] = {}
    skipped: Counter[str] = Counter()
    bad: list[BadRow] = []
    for piece in found:
        for one in piece.batches:
            values.setdefault(one.topic, []).extend(one.values)
        skipped.update(piece.skipped)
        bad += piece.bad
    return values, skipped, bad


def test_the_order_of_files_does_not_change_what_is_reported():
    for order in permutations(["google_ads.csv", "google_ads_export.csv"]):
        assert len(told("google-ads", *order).reported) == 3


def test_options_are_values():
    assert replace(Options("a"), currency="EUR") == Options("a", "EUR")
