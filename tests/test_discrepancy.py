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

from streams.core.discrepancy import Count, Differences, Parts, Place, Said, band, bounds
from streams.core.panes import Cell, Series
from streams.core.rules import OUTCOME_NAMES
from streams.replay import audit as auditing
from streams.replay.audit import Auditor, Sayings
from streams.replay.discrepancy import Audit
from streams.replay.files import opened
from streams.replay.recount import recount
from tests import oracle
from tests.logs import COUNTINGS, Counting, seeded_logs
from tests.oracle import Logs
from tests.test_properties import THOROUGH
from tests.test_report import as_lines, report, written

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


def by_source(day: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["source"], row["origin"]): row for row in day["sources"]}


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
