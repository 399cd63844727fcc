"""Why sources differ: the parts add up to the difference, and nothing is told that nobody said."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.campaigns import Campaigns
from streams.core.discrepancy import REASONS, Count, Differences, Parts, Place, Said, band, bounds
from streams.core.panes import Cell, Series
from streams.core.rules import OUTCOME_NAMES, Outcome, Rules
from streams.replay import audit as auditing
from streams.replay.audit import Auditor, Sayings
from streams.replay.discrepancy import Audit
from streams.replay.files import opened
from streams.replay.recount import recount
from tests import oracle
from tests.logs import COUNTINGS, T0, Counting, H, S, batch, click, render, seeded_logs, view
from tests.oracle import Logs
from tests.test_properties import THOROUGH
from tests.test_report import DAY_MS, as_lines, one_line, report, written

SOURCES = ("adserver", "dsp", "ssp")
DAY = "2023-11-14"
"""The day of T0, in UTC."""


def days(pane: int) -> int:
    """Days of half a minute: small logs have several."""
    return pane // 30_000 * 30_000


# --- one impression ---------------------------------------------------------------------------------------------------


def parts_of(*impressions: dict[str, Sequence[tuple[int, str]]]) -> dict[int, Parts]:
    """By day, the parts of dsp less adserver: of each impression, by source, (day, outcome) of its renders."""
    differences = Differences(lambda campaign_id: "adserver")
    for said in impressions:
        counts = Counter((source, *one) for source, all_said in said.items() for one in all_said)
        differences.add(
            [
                Said(Place("c", source, day), OUTCOME_NAMES.index(outcome), times)
                for (source, day, outcome), times in counts.items()
            ],
            1,
        )
    found = {day: differences.of(Place("c", "dsp", day)) for day in (1, 2)}
    return {day: parts for day, parts in found.items() if parts is not None}


def told(parts: Parts) -> dict[str, int]:
    """What is not 0 of it."""
    sides = {"only_source": parts.only_source, "only_billing": parts.only_billing}
    return {name: count for name, count in (parts.explained | sides).items() if count}


COUNTED, REFRESH, INVALID, LATE, DUPLICATE = (
    (1, name) for name in ("counted", "refresh", "invalid_traffic", "late", "duplicate")
)


@pytest.mark.parametrize(
    ("adserver", "dsp", "expected"),
    [
        ([COUNTED], [COUNTED], {}),
        ([REFRESH], [COUNTED], {"refresh": 1}),
        ([INVALID], [COUNTED], {"invalid_traffic": 1}),
        ([LATE], [COUNTED], {"late": 1}),
        ([COUNTED], [LATE], {"late": -1}),
        ([COUNTED, DUPLICATE], [COUNTED, COUNTED], {"duplicate": 1}),
        ([COUNTED], [COUNTED, COUNTED], {"only_source": 1}),
        ([LATE, REFRESH], [COUNTED], {"late": 1}),
        ([REFRESH], [INVALID], {}),
    ],
)
def test_what_the_other_side_says_of_an_impression_explains_it(adserver, dsp, expected):
    assert told(parts_of({"adserver": adserver, "dsp": dsp})[1]) == expected


def test_an_impression_that_both_count_on_different_days_moves_from_one_to_the_other():
    found = parts_of({"adserver": [(1, "counted")], "dsp": [(2, "counted")]})
    assert [told(found[day]) for day in (1, 2)] == [{"other_day": -1}, {"other_day": 1}]


def test_an_impression_that_only_one_side_knows_is_told_of_that_side():
    both = {"adserver": [COUNTED], "dsp": [COUNTED]}
    found = parts_of(both, {"dsp": [COUNTED]}, {"adserver": [COUNTED]}, {"adserver": [COUNTED]})[1]
    assert told(found) == {"only_source": 1, "only_billing": 2}
    assert found.unexplained == found.difference == -1


def test_without_any_id_in_common_nothing_is_measured():
    assert parts_of({"dsp": [COUNTED]}, {"adserver": [COUNTED]}) == {}


# --- all of them, against plain dicts ---------------------------------------------------------------------------------


def mixed(seed: int, length: int) -> Logs:
    """A log in which three sources say much of the same impressions."""
    lines, pick = as_lines(seeded_logs(seed, length)), Random(seed).choice
    for _, event, _ in lines["renders"]:
        if isinstance(event, dict):
            event["source"] = pick(SOURCES)
    return lines


def audited(
    lines: Logs, counting: Counting, chunk: int, files: Path, biller: str = "adserver"
) -> tuple[Audit, dict[tuple[Series, int], Cell]]:
    with ExitStack() as stack:
        paths = written(files, **{topic: [event for _, event, _ in lines[topic]] for topic in lines})
        sayings = stack.enter_context(Sayings())
        state = Auditor(counting.rules, counting.partition().campaigns, [(sayings, days)])
        sums = recount(state, stack.enter_context(opened(paths)), {"days": days}, chunk=chunk)["days"]
        return Audit(sums, sayings, lambda campaign_id: biller), sums


Expected = dict[tuple[str, str, int], Counter[str]]


def expected_parts(lines: Logs, answer: oracle.Answer) -> Expected:
    """By campaign, source and day, one unit after the other; what only one side knows is under its name."""
    said: dict[tuple[str, str], dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    for offset, event, _ in lines["renders"]:
        outcome = answer.outcomes["renders"][offset]
        if outcome != "malformed":
            of_impression = said[event["campaign_id"], event["impression_id"]]
            of_impression[event["source"]].append((days(event["ts"]), outcome))
    found: Expected = defaultdict(Counter)
    for (campaign, _), by_source in said.items():
        for source in SOURCES[1:]:
            for day, name, sign in units(by_source[source], by_source["adserver"], source):
                found[campaign, source, day][name] += sign
    return found


def units(mine: list[tuple[int, str]], theirs: list[tuple[int, str]], source: str) -> Iterable[tuple[int, str, int]]:
    my_days, their_days = (Counter(day for day, said in one if said == "counted") for one in (mine, theirs))
    plus, minus = sorted((my_days - their_days).elements()), sorted((their_days - my_days).elements())
    moved = ["other_day"] * min(len(plus), len(minus))
    for surplus, other, name, sign in ((plus, theirs, f"only {source}", 1), (minus, mine, "only adserver", -1)):
        order = ("late", "duplicate", "invalid_traffic", "refresh")
        reasons = moved + [one for one in order for _, said in other if said == one]
        for number, day in enumerate(surplus):
            yield day, reasons[number] if number < len(reasons) else name, sign


@THOROUGH
@given(st.sampled_from(COUNTINGS), st.integers(0, 2**32), st.integers(1, 40), st.sampled_from((1, 7, 1 << 16)))
def test_the_parts_are_those_of_plain_dicts_and_add_up_to_the_difference(
    tmp_path_factory, counting, seed, chunk, at_once
):
    lines = mixed(seed, 80)
    with patch.object(auditing, "_AT_ONCE", at_once):
        audit, sums = audited(lines, counting, chunk, tmp_path_factory.mktemp("logs"))
    answer = oracle.answer(lines, counting.contract())
    expected = expected_parts(lines, answer)
    served: Counter[Any] = Counter()
    for (series, day), cell in sums.items():
        served[series.campaign_id, series.source, day] += cell.served
    for campaign, day in audit.days():
        for source in SOURCES[1:]:
            parts = audit.differences.of(Place(campaign, source, day))
            if parts is None:
                continue
            assert parts.difference == served[campaign, source, day] - served[campaign, "adserver", day]
            sides = {f"only {source}": parts.only_source, "only adserver": -parts.only_billing}
            found = Counter(parts.explained | sides)
            assert found == expected[campaign, source, day]


@THOROUGH
@given(st.integers(0, 2**32), st.permutations(SOURCES))
def test_what_sources_are_called_changes_no_part_of_their_difference(tmp_path_factory, seed, names):
    lines, renamed, called = mixed(seed, 60), mixed(seed, 60), dict(zip(SOURCES, names, strict=True))
    for _, event, _ in renamed["renders"]:
        if isinstance(event, dict):
            event["source"] = called[event["source"]]
    counting, folder = Counting(COUNTINGS[0].rules), tmp_path_factory.mktemp("logs")
    one, _ = audited(lines, counting, 10, folder)
    with patch.object(auditing, "_FILES", 3):
        other, _ = audited(renamed, counting, 10, folder, called["adserver"])
    assert one.days() == other.days()
    for campaign, day in one.days():
        for source in SOURCES[1:]:
            place = Place(campaign, source, day)
            assert one.differences.of(place) == other.differences.of(place._replace(source=called[source]))


@THOROUGH
@given(st.integers(0, 2**32))
def test_seen_from_the_other_side_every_part_has_the_other_sign(tmp_path_factory, seed):
    lines, counting = mixed(seed, 60), Counting(COUNTINGS[0].rules)
    folder = tmp_path_factory.mktemp("logs")
    one, _ = audited(lines, counting, 10, folder)
    other, _ = audited(lines, counting, 10, folder, "dsp")
    for campaign, day in one.days():
        there, back = (
            audit.differences.of(Place(campaign, source, day)) for audit, source in ((one, "dsp"), (other, "adserver"))
        )
        assert (there is None) == (back is None)
        if there is not None and back is not None:
            assert back.explained == {reason: -count for reason, count in there.explained.items()}
            assert (back.only_source, back.only_billing) == (there.only_billing, there.only_source)


def test_a_render_with_a_wrong_clock_is_told_as_future():
    log = [(0, render("x"), T0), (1, render("x", source="dsp"), T0), (2, render("y"), T0 - H), (3, render("z"), T0)]
    with Sayings() as sayings:
        Auditor(Rules(), Campaigns(), [(sayings, days)]).apply(batch("renders", log))
        said = sorted(tuple((one.place.source, one.outcome) for one in said) for said, _ in sayings.distinct())
    counted, future = ("adserver", Outcome.COUNTED), ("adserver", Outcome.FUTURE)
    assert said == [(future,), (counted,), (counted, ("dsp", Outcome.COUNTED))]


# --- bands and bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1_000, "below"), (1_049, "below"), (1_050, "normal"), (1_150, "normal"), (1_151, "above"), (953, "below"),
     (952, "normal"), (870, "normal"), (869, "above"), (0, "above")],
)  # fmt: skip
def test_5_and_15_percent_themselves_are_normal_and_the_larger_of_the_two_shares_decides(count, expected):
    assert band(count, 1_000) == expected
    assert band(1_000, count) == expected


def test_a_count_below_the_smallest_sample_is_no_denominator():
    assert band(0, 0) is None
    assert band(99, 80, 100) is None
    assert band(100, 99, 100) == "below"
    assert band(1_000, 900, 950) == "normal"


def test_what_nobody_says_bounds_nothing():
    mine, theirs = Count(impressions=120), Count(impressions=100)
    assert bounds(mine, theirs, None) == {"moment": 20}
    assert bounds(mine, theirs, Parts(only_source=25, only_billing=5)) == {"moment": 20}
    assert bounds(theirs, theirs, None) == {}


def test_what_the_side_with_less_refused_and_what_was_not_seen_bound_what_is_not_explained():
    billing = Count(impressions=100, measurable=90, viewable=95, refused={"refresh": 12, "late": 500})
    assert bounds(Count(impressions=120), billing, None) == {"moment": 20, "refresh": 12, "late": 20}
    assert bounds(Count(impressions=80), billing, None) == {"moment": 20, "viewability": 5}
    assert bounds(Count(impressions=80, refused={"duplicate": 3}), billing, None) == {
        "moment": 20, "viewability": 5, "duplicate": 3
    }  # fmt: skip
    measured = Parts(only_source=0, only_billing=20)
    assert bounds(Count(impressions=80, refused={"duplicate": 3}), billing, measured) == {
        "moment": 20, "viewability": 5
    }  # fmt: skip


# --- the command ------------------------------------------------------------------------------------------------------


def line(source: str, impressions: int | None, date: str = DAY, **more: Any) -> dict[str, Any]:
    return {"source": source, "campaign_id": "c", "date": date, "impressions": impressions, **more}


def compare(folder: Path, *arguments: str, **lines: Sequence[Any]) -> dict[str, Any]:
    """The report as JSON, of files with these lines."""
    result = report({name.replace("_", "-"): path for name, path in written(folder, **lines).items()},
                    "--discrepancy", "--json", *arguments)  # fmt: skip
    assert result.exit_code in (0, 3), result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_the_worked_reconciliation_comes_out(tmp_path):
    lines = [
        line("dsp", 5_200_000),
        line("ssp", 5_050_000),
        line("adserver", 4_920_000, measurable=4_610_000, viewable=3_180_000, spend="29520", currency="USD"),
    ]
    (day,) = compare(tmp_path, reported=lines)["days"]
    assert (day["campaign_id"], day["day"], day["tz"], day["billing_source"]) == ("c", DAY, "UTC", "adserver")
    dsp, ssp, adserver = day["sources"]
    assert [row["source"] for row in day["sources"]] == ["dsp", "ssp", "adserver"]
    assert (dsp["difference"], ssp["difference"], adserver["difference"]) == (280_000, 130_000, None)
    assert f"{dsp['of_source']:.6%} {dsp['of_billing']:.6%}" == "5.384615% 5.691057%"
    assert f"{ssp['less_than_above']:.6%} {adserver['less_than_above']:.6%}" == "2.884615% 2.574257%"
    assert f"{ssp['of_source']:.6%}" == "2.574257%"
    assert (dsp["band"], ssp["band"], adserver["band"]) == ("normal", "below", None)
    (money,) = adserver["money"]
    assert (money["cpm"], f"{float(money['vcpm']):.6f}", money["cpc"]) == ("6", "9.283019", None)
    assert f"{adserver['viewable_rate']:.6%}" == "68.980477%"
    shown = report({"reported": tmp_path / "reported.jsonl"}, "--discrepancy")
    assert shown.exit_code == 0
    assert "5.384615%   5.691057%" in shown.stdout and "9.283019" in shown.stdout


def test_above_15_percent_something_is_broken_and_the_exit_code_says_so(tmp_path):
    for dsp, code in ((1_150, 0), (1_151, 3), (1_200, 3), (869, 3), (870, 0)):
        paths = written(tmp_path, reported=[line("dsp", dsp), line("adserver", 1_000)])
        result = report(paths, "--discrepancy")
        assert result.exit_code == code
        assert ("OVER 15 %" in result.stdout) == (code == 3)


def test_each_impression_of_events_explains_its_share(tmp_path):
    both = [render(str(number), T0 + number, source=source) for source in ("dsp", "adserver") for number in range(100)]
    lost = [render(f"lost {number}", T0, source="dsp") for number in range(6)]
    bots = [render(f"bot {n}", T0, source=source, invalid=invalid) for n in range(4)
            for source, invalid in (("dsp", None), ("adserver", "givt"))]  # fmt: skip
    views = [view(str(number), T0 + number + S) for number in range(60)]
    told = compare(tmp_path, renders=[*both, *lost, *bots], viewability=views, clicks=[click("0", T0 + S)])
    dsp, adserver = told["days"][0]["sources"]
    assert (dsp["impressions"], adserver["impressions"], dsp["difference"]) == (110, 100, 10)
    assert dsp["explained"] == dict.fromkeys(REASONS, 0) | {"invalid_traffic": 4}
    assert (dsp["only_source"], dsp["only_billing"], dsp["unexplained"]) == (6, 0, 6)
    assert (dsp["at_most"], adserver["refused"]) == ({"moment": 6}, {"invalid_traffic": 4})
    assert (adserver["bills"], adserver["explained"], adserver["band"]) == (True, None, None)
    assert (adserver["measurable"], adserver["viewable"], adserver["clicks"], adserver["ctr"]) == (60, 60, 1, 0.01)
    assert adserver["money"] == [
        {"currency": "USD", "spend": "0.25", "cpm": "2.5", "vcpm": "4.166666667", "cpc": "0.25"}
    ]
    shown = report({"renders": tmp_path / "renders.jsonl"}, "--discrepancy").stdout
    assert "c 2023-11-14 dsp events: +10 = +4 invalid traffic +6 only dsp (at most: 6 moment)" in shown


def test_a_report_beside_events_is_bounded_by_what_they_refused_and_by_what_was_not_seen(tmp_path):
    renders = [*(render(str(number)) for number in range(100)), *(render("0") for _ in range(3))]
    views = [view(str(number), kind="viewable" if number < 70 else "not_viewable") for number in range(95)]
    for reported, expected in (
        (110, {"moment": 10, "duplicate": 3}),
        (80, {"moment": 20, "viewability": 20}),
        (100, {}),
    ):
        told = compare(tmp_path, renders=renders, viewability=views, reported=[line("meta", reported)])
        meta = {row["source"]: row for row in told["days"][0]["sources"]}["meta"]
        assert (meta["unexplained"], meta["at_most"]) == (reported - 100, expected)
        assert (meta["explained"], meta["only_source"], meta["refused"]) == (None, None, None)


def rows(told: dict[str, Any]) -> dict[tuple[str, str], dict[tuple[str, str], tuple[int | None, int | None]]]:
    """(Day, zone) -> (source, where from) -> (impressions, difference)."""
    return {
        (day["day"], day["tz"]): {
            (row["source"], row["origin"]): (row["impressions"], row["difference"]) for row in day["sources"]
        }
        for day in told["days"]
    }


def test_a_report_is_compared_with_the_same_day_of_its_own_time_zone(tmp_path):
    midnight = T0 - T0 % DAY_MS  # in New York it is 7 p.m. of the day before
    renders = [render(str(hour), midnight + hour * H) for hour in range(-24, 24)]
    reported = [line("dsp", 20, "2023-11-13", time_zone="America/New_York"), line("ssp", 23)]
    found = rows(compare(tmp_path, renders=renders, reported=reported))
    assert found["2023-11-13", "America/New_York"] == {("adserver", "events"): (24, None), ("dsp", "report"): (20, -4)}
    assert found["2023-11-14", "UTC"] == {("adserver", "events"): (24, None), ("ssp", "report"): (23, -1)}
    reports = {(day, zone, *who) for (day, zone), counts in found.items() for who in counts if "report" in who}
    assert reports == {
        ("2023-11-13", "America/New_York", "dsp", "report"), ("2023-11-14", "UTC", "ssp", "report")
    }  # fmt: skip
    only_utc = rows(compare(tmp_path, renders=renders, reported=reported[1:]))
    assert {zone for _, zone in only_utc} == {"UTC"}
    asked = rows(compare(tmp_path, "--tz", "Asia/Kolkata", renders=renders))
    assert [(day, counts["adserver", "events"][0]) for (day, _), counts in asked.items()] == [
        ("2023-11-13", 19), ("2023-11-14", 24), ("2023-11-15", 5)
    ]  # fmt: skip


def test_a_report_that_is_exported_again_replaces_itself_and_currencies_are_counted_together(tmp_path):
    money = [line("meta", 60, spend="6", currency="USD"), line("meta", 50, spend="4", currency="EUR")]
    found = rows(compare(tmp_path, reported=[line("meta", 90), *money, line("meta", 40, spend="3", currency="EUR")]))
    assert found[DAY, "UTC"]["meta", "report"] == (100, None)
    found = rows(compare(tmp_path, reported=[*money, line("meta", 95)]))
    assert found[DAY, "UTC"]["meta", "report"] == (95, None)


def test_who_bills_by_events_is_compared_with_its_own_report(tmp_path):
    renders = [render(str(number)) for number in range(10)]
    told = compare(tmp_path, renders=renders, reported=[line("adserver", 11), line("ssp", None, viewable=5)])
    assert rows(told)[DAY, "UTC"] == {
        ("adserver", "report"): (11, 1), ("adserver", "events"): (10, None), ("ssp", "report"): (None, None)
    }  # fmt: skip


def test_silence_between_two_days_of_a_source_is_a_count_of_0_and_outside_of_them_nothing(tmp_path):
    day = {number: T0 + number * DAY_MS for number in range(4)}
    renders = [render(f"a{number}", ts) for number, ts in day.items()]
    renders += [render("d1", day[1], source="dsp"), render("d3", day[3], source="dsp", campaign_id="other")]
    renders += [render("o0", day[0], campaign_id="other"), render("o3", day[3], campaign_id="other")]
    told = {
        (row["campaign_id"], row["day"][-2:]): source["impressions"]
        for row in compare(tmp_path, renders=sorted(renders, key=lambda event: event["ts"]))["days"]
        for source in row["sources"]
        if source["source"] == "dsp"
    }
    assert told == {("c", "15"): 1, ("c", "16"): 0, ("c", "17"): 0, ("other", "17"): 1}


def test_without_a_count_of_who_bills_there_is_nothing_to_compare_with(tmp_path):
    result = report(written(tmp_path, reported=[line("dsp", 5), line("ssp", 50)]), "--discrepancy")
    assert (result.exit_code, "bills" in result.stdout, "OVER" in result.stdout) == (0, False, False)


def test_who_bills_is_said_by_the_file_of_campaigns(tmp_path):
    agreed = tmp_path / "campaigns.toml"
    agreed.write_text('[campaigns.c]\nbilling_source = "dsp"\n')
    told = compare(tmp_path, "--campaigns", str(agreed), reported=[line("dsp", 100), line("adserver", 90)])
    assert rows(told)[DAY, "UTC"] == {("dsp", "report"): (100, None), ("adserver", "report"): (90, -10)}


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_lines_that_are_no_counts_are_counted_by_reason_and_stop_nothing(tmp_path):
    bad = [b"{", line("dsp", -1), line("dsp", 1, "2023-02-30"), line("dsp", 1, spend="1"), {"source": "x"}]
    told = compare(tmp_path, reported=[*bad, line("dsp", 7)])
    assert told["reported"]["lines"] == 6
    assert sum(told["reported"]["malformed"].values()) == 5
    assert rows(told)[DAY, "UTC"] == {("dsp", "report"): (7, None)}
    assert "malformed reported counts" in report({"reported": tmp_path / "reported.jsonl"}, "--discrepancy").stdout


def test_a_terminal_obeys_nothing_in_what_sources_are_called(tmp_path):
    evil = "\x1b[2J\u202e"
    shown = report(written(tmp_path, renders=[render(source=evil), render()]), "--discrepancy").stdout
    assert all(mark.isprintable() or mark == "\n" for mark in shown)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--reported", "r"), "--discrepancy"),
        (("--discrepancy", "--reported", "r", "--windows"), "by itself"),
        (("--discrepancy", "--reported", "r", "--by", "day"), "by itself"),
        (("--discrepancy", "--reported", "r", "--tz", "Europe/Atlantis"), "no such time zone"),
        (("--discrepancy", "--reported", "-", "--renders", "-"), "one topic only"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(arguments, why):
    assert why in one_line(report({}, *arguments), 2)


def test_a_disk_without_room_for_temporary_files_is_one_line(tmp_path, monkeypatch):
    paths = written(tmp_path, renders=[render(str(number)) for number in range(1_000)])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(auditing, "_IN_MEMORY", 8)
    assert "TMPDIR" in one_line(report(paths, "--discrepancy"), 1)
