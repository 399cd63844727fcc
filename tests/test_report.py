"""`streams report`: files give what the oracle gives, however they are packed, cut and read."""

import gzip
import json
import os
import subprocess
import sys
import zoneinfo
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import orjson
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from streams.cli import app
from streams.cli.report import as_json_values, figures, outcomes, safe, slicings
from streams.core.campaigns import Campaigns
from streams.core.money import NANO
from streams.core.panes import Cell, Series
from streams.core.partition import Partition
from streams.core.rollup import Head, Partial, Rollup
from streams.replay import recount as recounting
from streams.replay.files import opened
from streams.replay.recount import Sums, days_of, recount
from streams.wire.records import encode_window
from tests import oracle
from tests.logs import (
    COUNTINGS,
    RULES,
    T0,
    TOPICS,
    Counting,
    H,
    S,
    batch,
    click,
    encoded,
    logs,
    render,
    seeded_logs,
    view,
)
from tests.oracle import PENDING, Logs
from tests.test_properties import THOROUGH

ROW = {
    "campaign_id", "currency", "served", "measurable", "viewable", "clicks", "spend", "cpm", "vcpm", "cpc",
    "viewable_rate", "viewable_of_served", "measured_rate", "ctr",
}  # fmt: skip
DAY_MS = 24 * H

# --- builders ---------------------------------------------------------------------------------------------------------


def gzipped(data: bytes) -> bytes:
    """Return data as a gzip file without its time: processes that share the tests have to agree on their names."""
    return gzip.compress(data, mtime=0)


def text_of(events: Sequence[Any]) -> bytes:
    """Lines of JSON; what is no dict is a line already, and no value at all an empty one."""
    return b"".join((encoded(event) or b"") + b"\n" for event in events)


def written(folder: Path, **events: Sequence[Any]) -> dict[str, Path]:
    """A file of each topic that is named."""
    paths = {topic: folder / f"{topic}.jsonl" for topic in events}
    for topic, path in paths.items():
        path.write_bytes(text_of(events[topic]))
    return paths


def report(paths: Mapping[str, Path | str], *arguments: str | Path, **environment: str) -> Result:
    flags = [text for topic, path in paths.items() for text in (f"--{topic}", str(path))]
    return CliRunner().invoke(app, ["report", *flags, *map(str, arguments)], env=environment)


def reported(paths: Mapping[str, Path | str], *arguments: str | Path, **environment: str) -> dict[str, Any]:
    result = report(paths, "--json", *arguments, **environment)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def report_process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "streams.cli", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def of(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_report_says_of_each_campaign_and_currency_what_was_served_seen_and_spent(tmp_path):
    paths = written(
        tmp_path,
        renders=[
            render("a"), render("b"), render("c"), render("a"), render("d", price="1", currency="EUR"),
            render("e", price=None), render("f", invalid="givt"), b"{",
        ],
        viewability=[view("a"), view("b", kind="not_viewable"), view("a"), view("nobody")],
        clicks=[click("a"), click("nobody")],
    )  # fmt: skip
    usd = {
        "campaign_id": "c", "currency": "USD", "served": 3, "measurable": 2, "viewable": 1, "clicks": 1,
        "spend": "0.0075", "cpm": "2.5", "vcpm": "7.5", "cpc": "0.0075", "viewable_rate": 1 / 2,
        "viewable_of_served": 1 / 3, "measured_rate": 2 / 3, "ctr": 1 / 3,
    }  # fmt: skip
    unseen = {"measurable": 0, "viewable": 0, "clicks": 0, "vcpm": None, "cpc": None, "viewable_rate": None, "ctr": 0}
    eur = usd | unseen | {
        "currency": "EUR", "served": 1, "spend": "0.001", "cpm": "1", "viewable_of_served": 0, "measured_rate": 0,
    }  # fmt: skip
    none = eur | {"currency": "none", "spend": "0", "cpm": None}
    nothing = dict.fromkeys(oracle.OUTCOMES, 0)
    assert reported(paths) == {
        "campaigns": [eur, usd, none],
        "events": {
            "renders": nothing | {"malformed": 1, "duplicate": 1, "invalid_traffic": 1, "counted": 5},
            "viewability": nothing | {"duplicate": 1, "counted": 2},
            "clicks": nothing | {"counted": 1},
        },
        "pending": {"renders": 0, "viewability": 1, "clicks": 1},
        "malformed": {"not_json": 1},
    }


def test_the_keys_of_the_json_are_always_the_same(tmp_path):
    told = reported(written(tmp_path, renders=[render("a"), render("b", campaign_id="d", price=None)]))
    assert set(told) == {"campaigns", "events", "pending"}
    assert [set(row) for row in told["campaigns"]] == [ROW, ROW]
    assert set(told["events"]) == set(told["pending"]) == set(TOPICS)
    assert all(set(counts) == set(oracle.OUTCOMES) for counts in told["events"].values())
    assert set(reported(written(tmp_path, renders=[]))) == {"campaigns", "events", "pending"}


def test_the_figures_of_the_contract_are_these():
    cell = Cell(served=4_920_000, measurable=4_610_000, viewable=3_180_000, spend=29_520 * NANO)
    row = figures(Series("c", "USD", "adserver"), cell)
    assert (row["spend"], row["cpm"], row["vcpm"]) == ("29520", "6", "9.283018868")
    rates = row["viewable_rate"], row["viewable_of_served"], row["measured_rate"]
    assert [f"{rate:.2%}" for rate in rates] == ["68.98%", "64.63%", "93.70%"]


@pytest.mark.parametrize(
    ("spend", "served", "cpm"),
    [(1, 1, "0.000001"), (1, 1_000, "0.000000001"), (1, 2_000, "0"), (3, 2_000, "0.000000002"), (0, 1, "0")],
)
def test_cpm_is_rounded_once_to_a_nano_unit_half_to_even(spend, served, cpm):
    assert figures(Series("c", "USD", "adserver"), Cell(served=served, spend=spend))["cpm"] == cpm


def test_each_malformed_line_is_counted_with_its_reason_and_its_neighbours_are_unharmed(tmp_path):
    bad = [b"", b"[]", b"\xff", b'{"ts":1}', encoded(render(price="x")), encoded(render(ts=-1))]
    told = reported(written(tmp_path, renders=[render("a"), *bad, render("b")]))
    assert of(told["campaigns"], "served") == [(2,)]
    assert told["events"]["renders"]["malformed"] == len(bad) == sum(told["malformed"].values())
    assert told["malformed"] == {
        "bad_price": 1, "missing_field": 1, "not_an_object": 1, "not_json": 1, "not_utf8": 1, "out_of_range": 1,
    }  # fmt: skip


def test_the_settings_of_counting_hold_here_too(tmp_path):
    paths = written(tmp_path, renders=[render("a", T0 + 2 * S), render("b", T0)], clicks=[click("a", T0 + 2 * S)])
    assert of(reported(paths)["campaigns"], "served", "viewable") == [(2, 0)]
    told = reported(paths, STREAMS_LATENESS="1s", STREAMS_CLICK_MAKES_VIEWABLE="true")
    assert of(told["campaigns"], "served", "viewable") == [(1, 1)]
    assert told["events"]["renders"]["late"] == 1


def test_what_waits_at_the_end_of_the_files_stays_pending_and_what_can_wait_no_longer_is_an_orphan(tmp_path):
    renders = [render("a", T0), render("b", T0 + 2 * H)]
    paths = written(tmp_path, renders=renders, viewability=[view("x", T0), view("y", T0 + 2 * H)])
    told = reported(paths)
    assert (told["events"]["viewability"]["orphan"], told["pending"]["viewability"]) == (1, 1)


# --- what is agreed for campaigns -------------------------------------------------------------------------------------


def test_campaigns_cost_what_is_agreed_and_are_billed_by_whom_it_is_agreed_with(tmp_path):
    agreed = tmp_path / "campaigns.toml"
    agreed.write_text("""
        [campaigns.seen]
        currency = "EUR"
        pricing = [{ model = "vcpm", price = "10" }]
        [campaigns.clicked]
        pricing = [{ model = "cpc", price = "0.25" }]
        [campaigns.theirs]
        billing_source = "dsp"
        [campaigns.capped]
        frequency_cap = { impressions = 1, period = "1d" }
    """)
    rows = [("1", "seen"), ("2", "seen"), ("3", "clicked"), ("4", "theirs"), ("5", "capped"), ("6", "capped")]
    renders = [render(name, campaign_id=campaign, viewer_id="v") for name, campaign in rows]
    renders.append(render("4", campaign_id="theirs", source="dsp", price="7"))
    clicks = [click("3", click_id="a"), click("3", click_id="b")]
    paths = written(tmp_path, renders=renders, viewability=[view("1")], clicks=clicks)
    told = reported(paths, "--campaigns", agreed)
    assert of(told["campaigns"], "campaign_id", "currency", "served", "spend", "cpm") == [
        ("capped", "USD", 2, "0.005", "2.5"), ("clicked", "USD", 1, "0.5", "500"), ("seen", "EUR", 2, "0.01", "5"),
        ("theirs", "USD", 1, "0.007", "7"),
    ]  # fmt: skip
    assert [row.get("over_cap") for row in told["campaigns"]] == [1, None, None, None]
    assert told["sources"] == [
        {"campaign_id": "theirs", "currency": "USD", "source": "adserver", "served": 1, "measurable": 0, "viewable": 0,
         "clicks": 0}
    ]  # fmt: skip
    shown = report(paths, STREAMS_CAMPAIGNS=str(agreed)).stdout
    assert "Over cap" in shown and "Other sources" in shown
    assert "Over cap" not in report(paths).stdout


def test_the_flag_goes_before_the_setting_and_a_file_that_is_wrong_ends_the_command(tmp_path):
    paths = written(tmp_path, renders=[render("a")])
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[campaigns.c]\npricing = [{ model = 'cpm', price = '4' }]")
    bad.write_text("[campaigns.c]\npricing = [{ model = 'cpm', price = '-4' }]")
    assert of(reported(paths, "--campaigns", good, STREAMS_CAMPAIGNS=str(bad))["campaigns"], "cpm") == [("4",)]
    result = report(paths, STREAMS_CAMPAIGNS=str(bad))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and "campaigns.c.pricing" in result.stderr


def test_segments_are_in_no_figure(tmp_path):
    paths = written(tmp_path, renders=[render("a", country="DE"), render("b", country="FR")])
    assert reported(paths, STREAMS_SEGMENTS="country,format") == reported(paths)


# --- against the oracle -----------------------------------------------------------------------------------------------


def as_lines(logs: Logs) -> Logs:
    """Logs as files hold them: numbered lines without a time of their own."""
    return {topic: [(number, event, None) for number, (_, event, _) in enumerate(logs[topic], 1)] for topic in TOPICS}


def recounted(
    folder: Path, logs: Logs, state: Partition, chunk: int, begin: Callable[..., int] = recounting._begin
) -> dict[str, Sums]:
    """Sums by campaign, minute and day, read in pieces and by any other order than that of time."""
    paths = written(folder, **{topic: [event for _, event, _ in logs[topic]] for topic in TOPICS})
    cut = slicings(True, ZoneInfo("Asia/Kolkata"))
    with opened(paths) as files, patch.object(recounting, "_begin", begin):
        return recount(state, files, cut, chunk=chunk)


def added_up(answer: oracle.Answer, start_of: Callable[[int], int]) -> dict[tuple[Any, ...], dict[str, int]]:
    sums: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(oracle.FIGURES, 0))
    for (campaign, currency, source, pane, *segment), cell in answer.cells.items():
        for figure, value in cell.items():
            sums[campaign, currency, source, start_of(pane), *segment][figure] += value
    return dict(sums)


def plain(sums: Sums) -> dict[tuple[Any, ...], dict[str, int]]:
    return {
        (one.campaign_id, one.currency, one.source, start, *((one.dimension, one.value) if one.dimension else ())): {
            figure: getattr(cell, figure) for figure in oracle.FIGURES
        }
        for (one, start), cell in sums.items()
    }


def minute_of(pane: int) -> int:
    return pane // 60_000 * 60_000


def kolkata(pane: int) -> int:
    """The start of the day, 5:30 ahead of UTC."""
    return (pane + 19_800_000) // DAY_MS * DAY_MS - 19_800_000


def assert_as_the_oracle(sums: dict[str, Sums], state: Partition, answer: oracle.Answer) -> None:
    assert plain(sums["campaigns"]) == added_up(answer, lambda pane: 0)
    assert plain(sums["windows"]) == added_up(answer, minute_of)
    assert plain(sums["days"]) == added_up(answer, kolkata)
    assert_outcomes(outcomes(state), answer)


def assert_outcomes(told: dict[str, Any], answer: oracle.Answer) -> None:
    for topic in TOPICS:
        found = told["events"][topic] | {PENDING: told["pending"][topic]}
        assert {name: count for name, count in found.items() if count} == dict(answer.counts(topic)), topic


@THOROUGH
@given(st.sampled_from(COUNTINGS), logs(), st.integers(1, 12))
def test_any_files_cut_into_any_pieces_give_the_oracles_answer(counting, logs, chunk):
    lines, state = as_lines(logs), counting.partition()
    with TemporaryDirectory() as folder:
        sums = recounted(Path(folder), lines, state, chunk)
    assert_as_the_oracle(sums, state, oracle.answer(lines, counting.contract()))


@THOROUGH
@given(st.sampled_from(COUNTINGS), st.integers(0, 2**32), st.integers(1, 7), st.randoms(use_true_random=False))
def test_whichever_file_is_read_ahead_of_the_others_what_is_forgotten_meanwhile_is_missed_nowhere(
    counting, seed, chunk, random
):
    lines, state = as_lines(seeded_logs(seed, 120)), counting.partition()
    with TemporaryDirectory() as folder, patch.object(recounting, "_FORGET_EVERY", 2):
        sums = recounted(Path(folder), lines, state, chunk, lambda batch: random.randrange(9))
    assert_as_the_oracle(sums, state, oracle.answer(lines, counting.contract()))


def test_memory_does_not_grow_with_the_files(tmp_path):
    renders = [render(str(number), T0 + number * 60 * S) for number in range(20_000)]
    views = [view(str(number), T0 + number * 60 * S + S) for number in range(20_000)]
    state = Partition(COUNTINGS[0].rules)
    with opened(written(tmp_path, renders=renders, viewability=views)) as files:
        sums = recount(state, files, slicings(False, None), chunk=50)
    ((_, cell),) = sums["campaigns"].items()
    assert (cell.served, cell.viewable) == (20_000, 20_000)
    assert len(state.impressions) < 2_500
    assert len(state.cells()) < 2_500


def test_the_whole_command_gives_the_oracles_answer(tmp_path):
    lines = as_lines(seeded_logs(7, 150))
    paths = written(tmp_path, **{topic: [event for _, event, _ in lines[topic]] for topic in TOPICS})
    settings = {"LATENESS": "40s", "DEDUP_HORIZON": "10s", "VIEWABILITY_HORIZON": "1m", "REFRESH_INTERVAL": "10s",
                "REFRESH_SLACK": "20s", "CLICK_MAKES_VIEWABLE": "true"}  # fmt: skip
    told = reported(paths, "--windows", **{f"STREAMS_{name}": value for name, value in settings.items()})
    answer = oracle.answer(lines, Counting(RULES[2]).contract())
    assert shown(told["windows"]) == billed(added_up(answer, minute_of))
    assert shown(told["campaigns"]) == billed(added_up(answer, lambda pane: 0))
    assert_outcomes(told, answer)


def shown(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[int]]:
    return {
        (row["campaign_id"], row["currency"], row.get("start", 0)): [
            *(row[name] for name in ("served", "measurable", "viewable", "clicks")), int(Decimal(row["spend"]) * NANO)
        ]
        for row in rows
    }  # fmt: skip


def billed(cells: dict[tuple[Any, ...], dict[str, int]]) -> dict[tuple[Any, ...], list[int]]:
    names = ("served", "measurable", "viewable", "clicks", "spend")
    return {
        (campaign, currency, start): [cell[name] for name in names]
        for (campaign, currency, source, start), cell in cells.items()
        if source == "adserver"
    }


# --- windows and days -------------------------------------------------------------------------------------------------


def published(logs: Logs, counting: Counting) -> list[dict[str, Any]]:
    """What a worker says of the same records on campaign-windows, when stream time has passed all of them."""
    state, rollup = counting.partition(), Rollup((60_000,))
    for topic in TOPICS:
        state.apply(batch(topic, logs[topic]))
    rollup.apply(Partial(0, Head(0, 0, 1, 10**12, False, 0), state.cells()))
    return [orjson.loads(encode_window(window)) for window in rollup.windows()]


@pytest.mark.parametrize("seed", range(10))
def test_a_line_of_the_windows_is_the_workers_record_of_that_minute(tmp_path, seed):
    counting = COUNTINGS[seed]
    lines, state = as_lines(seeded_logs(seed, 60)), counting.partition()
    rows = as_json_values(recounted(tmp_path, lines, state, 7), Campaigns(), None)["windows"]
    records = published(lines, counting)
    assert len(rows) == len(records) > 3
    records.sort(key=lambda record: (record["campaign_id"], record["currency"], record["start"]))
    for row, record in zip(rows, records, strict=True):
        assert row.keys() - {"cpc", "ctr"} == record.keys() - {"final"}
        for name in ("cpm", "vcpm"):
            if row["currency"] != "none":
                told = row[name] and float(row[name])
                assert told == pytest.approx(record[name], abs=1e-9)
        same = row.keys() - {"cpm", "vcpm", "cpc", "ctr"}
        assert {name: row[name] for name in same} == {name: record[name] for name in same}


def test_windows_come_by_campaign_and_time_and_only_if_asked_for(tmp_path):
    minute = T0 - T0 % 60_000
    renders = [render("a", minute + 59_999), render("b", minute + 60_000), render("c", minute, campaign_id="b")]
    paths = written(tmp_path, renders=renders)
    told = reported(paths, "--windows")
    assert of(told["windows"], "campaign_id", "start", "end", "served", "revision") == [
        ("b", minute, minute + 60_000, 1, 1), ("c", minute, minute + 60_000, 1, 1),
        ("c", minute + 60_000, minute + 120_000, 1, 1),
    ]  # fmt: skip
    assert "windows" not in reported(paths)
    assert "2023-11-14 22:14" in report(paths, "--windows").stdout


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_billing_day_of_berlin_is_as_long_as_the_clocks_make_it(tmp_path, day, hours):
    start = int(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)
    end = start + hours * H
    at = (start - 1, start, *range(start + H, end, H), end - 1, end)
    paths = written(tmp_path, renders=[render(str(ts), ts) for ts in at])
    told = reported(paths, "--by", "day", "--tz", "Europe/Berlin")
    assert [row["served"] for row in told["days"]] == [1, hours + 1, 1]
    middle = told["days"][1]
    assert (middle["day"], middle["start"], middle["end"]) == (day, start, end)
    assert middle.keys() == ROW | {"day", "start", "end"}
    assert (told["days"][0]["end"], told["days"][2]["start"]) == (start, end)


def test_without_a_zone_days_are_those_of_utc_and_a_view_belongs_to_the_day_of_its_render(tmp_path):
    midnight = T0 - T0 % DAY_MS + DAY_MS
    paths = written(tmp_path, renders=[render("a", midnight - 1)], viewability=[view("a", midnight + S)])
    told = reported(paths, "--by", "day")
    assert of(told["days"], "day", "start", "end", "viewable") == [("2023-11-14", midnight - DAY_MS, midnight, 1)]
    assert "2023-11-14" in report(paths, "--by", "day").stdout


def test_where_clocks_change_at_midnight_days_still_lie_end_to_start():
    zone = ZoneInfo("America/Sao_Paulo")
    panes = range(1_541_214_000_000 - 2 * DAY_MS, 1_541_214_000_000 + 2 * DAY_MS, 600_000)
    start_of = days_of(zone)
    for start, inside in groupby(panes, start_of):
        inside_day = list(inside)
        assert all(pane >= start for pane in inside_day)
        assert len({datetime.fromtimestamp(pane / 1000, zone).date() for pane in (start, *inside_day)}) == 1


def test_midnight_lies_on_the_boundary_of_a_pane_in_every_zone():
    for name in zoneinfo.available_timezones():
        zone = ZoneInfo(name)
        for ts in range(0, 4_102_444_800, 91 * 86_400):
            offset = datetime.fromtimestamp(ts, zone).utcoffset()
            assert offset is not None and offset.total_seconds() % 10 == 0, name


# --- how files are packed ---------------------------------------------------------------------------------------------

EVENTS = [render("a"), render("b"), b"{", render("c")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.jsonl.gz", gzipped(text_of(EVENTS))),
        ("no-suffix", gzipped(text_of(EVENTS))),
        ("two-members.gz", gzipped(text_of(EVENTS[:1])) + gzipped(text_of(EVENTS[1:]))),
        ("cut-within-a-line.gz", gzipped(text_of(EVENTS)[:70]) + gzipped(text_of(EVENTS)[70:])),
        ("no-newline-at-the-end", text_of(EVENTS).rstrip()),
        ("byte-order-mark", b"\xef\xbb\xbf" + text_of(EVENTS)),
        ("carriage-returns", text_of(EVENTS).replace(b"\n", b"\r\n")),
    ],
)
def test_packed_or_not_the_same_lines_are_the_same_report(tmp_path, name, data):
    paths = written(tmp_path, renders=EVENTS)
    (tmp_path / name).write_bytes(data)
    expected = reported(paths)
    assert expected["events"]["renders"]["counted"] == 3
    assert reported({"renders": tmp_path / name}) == expected


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_a_file_can_come_on_standard_input(tmp_path, pack):
    paths = written(tmp_path, renders=EVENTS, viewability=[view("a")])
    result = report_process(
        "--viewability", paths["viewability"], "--renders", "-", "--json", input=pack(text_of(EVENTS))
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout) == reported(paths)


# --- what cannot be done ----------------------------------------------------------------------------------------------


def one_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("cut.gz", gzipped(text_of(EVENTS))[:-9], "cut off"),
        ("empty.gz", b"", "cut off"),
        ("damaged.gz", gzipped(text_of(EVENTS * 9))[:20] + b"\0" * 40, "damaged"),
        ("checksum.gz", gzipped(text_of(EVENTS))[:-8] + b"\0" * 8, "damaged"),
        ("text.gz", text_of(EVENTS), "is not gzip"),
        ("utf-16", text_of(EVENTS).decode().encode("utf-16"), "is not UTF-8"),
        ("utf-16-be", text_of(EVENTS).decode().encode("utf-16-be"), "is not UTF-8"),
        ("utf-32.gz", gzipped(text_of(EVENTS).decode().encode("utf-32")), "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_one_line_and_no_figures(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    line = one_line(report({"renders": tmp_path / name}), 1)
    assert name in line and why in line


def test_a_missing_file_a_folder_and_a_file_that_may_not_be_read_are_one_line(tmp_path):
    good = written(tmp_path, renders=EVENTS)
    assert "No such file" in one_line(report(good | {"clicks": tmp_path / "missing"}), 1)
    assert "Is a directory" in one_line(report(good | {"clicks": tmp_path}), 1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "at least one"),
        (("--renders", "-", "--clicks", "-"), "one topic only"),
        (("--renders", "r", "--by", "day", "--tz", "Europe/Atlantis"), "no such time zone"),
        (("--renders", "r", "--by", "day", "--tz", "Europe"), "no such time zone"),
        (("--renders", "r", "--by", "day", "--tz", "../etc"), "no such time zone"),
        (("--renders", "r", "--by", "day", "--tz", ""), "no such time zone"),
        (("--renders", "r", "--tz", "Europe/Berlin"), "--by day"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(arguments, why):
    assert why in one_line(report({}, *arguments), 2)


def test_days_are_the_only_slices_there_are():
    assert report({"renders": "r"}, "--by", "week").exit_code == 2


# --- what people see --------------------------------------------------------------------------------------------------


def test_people_see_tables_and_what_became_of_every_line(tmp_path):
    renders = [render(str(number), price="2500") for number in range(1_200)]
    paths = written(tmp_path, renders=[*renders, b"{", render("0")], viewability=[view("0"), view("x")])
    lines = report(paths).stdout.splitlines()
    assert lines[0] == "Campaigns"
    assert lines[1].split("  ")[1] == "Campaign"
    assert lines[2].split() == [
        "c", "USD", "1,200", "1", "1", "0", "3,000", "2,500.000000", "3,000,000.000000", "-", "100.00%", "0.08%",
        "0.08%", "0.00%",
    ]  # fmt: skip
    assert len(lines[1]) == len(lines[2])
    assert lines[4:] == [
        "renders: 1,202 lines = 1 malformed, 1 duplicate, 1,200 counted",
        "viewability: 2 lines = 1 counted, 1 pending",
        "clicks: 0 lines = none",
        "malformed: 1 not_json",
    ]


def test_a_terminal_obeys_nothing_in_a_campaigns_name(tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202egnp.exe\r\n[red]über 広告"
    shown = report(written(tmp_path, renders=[render(campaign_id=evil)])).stdout
    assert safe(evil) in shown
    assert safe(evil).endswith("[red]über 広告")
    assert all(mark.isprintable() or mark == "\n" for mark in shown)
    assert "\n[red]" not in shown


def test_progress_is_shown_on_a_terminal_and_nothing_elsewhere(tmp_path):
    paths = written(tmp_path, renders=[render(str(number)) for number in range(5_000)])
    terminal, other_end = os.openpty()
    command = [sys.executable, "-m", "streams.cli", "report", "--renders", str(paths["renders"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=other_end) as process:
        os.close(other_end)
        seen = b""
        with suppress(OSError):  # the way in which the end of a terminal shows
            while more := os.read(terminal, 4_096):
                seen += more
        assert process.stdout is not None and b"5,000" in process.stdout.read()
    os.close(terminal)
    assert b"Counting" in seen and b"lines" in seen
    assert report_process("--renders", paths["renders"]).stderr == b""
