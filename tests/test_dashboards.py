"""The dashboards: Grafana's own types know every key, every query parses, and every metric is one of the program."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.dashboards import FILES, expressions, is_recorded, load, metrics, panels, selectors
from tests.monitoring import all_rules
from tests.test_metrics import BUSINESS, PIPELINE

each_dashboard = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)

register_default_plugins()

PROMETHEUS_OWN = {"up", "ALERTS"}
COMMITS = {f"streams_commit_duration_seconds_{part}" for part in ("bucket", "count", "sum")}
PROCESS = {
    f"process_{name}"
    for name in (
        *("cpu_seconds_total", "open_fds", "max_fds"),
        *("resident_memory_bytes", "virtual_memory_bytes", "start_time_seconds"),
    )
}
EXPORTED = BUSINESS.keys() | PIPELINE.keys() | COMMITS | PROCESS
"""tests/test_monitoring.py holds this against the page of a real worker."""

UNUSED = {
    "ads_clicks_total": "clicks are shown of windows; for those who keep lifetime totals elsewhere",
    "ads_segment_served": "one panel of segments is enough for all; for those who look into one",
    "ads_segment_clicks": "the same",
    "ads_segment_viewable_rate": "the panel of segments adds up campaigns, so it divides sums",
    "process_virtual_memory_bytes": "says nothing of what is used",
}
"""What no panel and no rule asks for, and why."""


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """What of a JSON value is not the same, or not there at all, in another one that may have more keys."""
    if isinstance(before, dict) and isinstance(after, dict):
        there = {key: after.get(key, "nothing") for key in before}
        return [line for key in before for line in lost(before[key], there[key], f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, pair in pairs for line in lost(*pair, f"{path}[{number}]")]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


def round_trip(dashboard: dict[str, Any]) -> dict[str, Any]:
    again: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return again


@each_dashboard
def test_grafanas_own_types_know_every_key(file: Path) -> None:
    assert lost(load(file), round_trip(load(file))) == []


@each_dashboard
def test_a_key_that_grafana_does_not_know_would_be_noticed(file: Path) -> None:
    dashboard = load(file)
    panel = panels(dashboard)[0]
    panel["fieldConfig"]["defaults"]["units"] = "short"
    panel["options"]["displayMod"] = "basic"
    found = lost(dashboard, round_trip(dashboard))
    assert [line.split(":")[0].rsplit(".")[-1] for line in found] == ["units", "displayMod"]


@each_dashboard
def test_every_panel_says_what_it_shows_and_in_what_unit(file: Path) -> None:
    for panel in panels(load(file)):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] not in ("", "cpm"), "cpm is counts per minute to Grafana"
        assert panel["targets"], panel["title"]


@each_dashboard
def test_dashboards_can_be_moved_to_another_grafana(file: Path) -> None:
    dashboard = load(file)
    assert re.fullmatch("[a-z-]{1,40}", dashboard["uid"])
    assert "id" not in dashboard
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables >= {"datasource"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) <= variables | {"__rate_interval", "__range", "__all"}
    sources = re.findall(r'"datasource": ({.*?"})', json.dumps(dashboard))
    assert set(sources) == {'{"type": "prometheus", "uid": "${datasource}"}'}


@each_dashboard
def test_no_panel_lies_on_another(file: Path) -> None:
    places = [panel["gridPos"] for panel in load(file)["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    identities = [panel["id"] for panel in load(file)["panels"]]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_parses_and_names_its_metrics(expression: str) -> None:
    promql_parser.parse(expression)
    assert all(selector.name for selector in selectors(expression))


def test_every_metric_that_is_asked_for_is_exported_and_the_other_way_round() -> None:
    asked = metrics(expressions())
    recorded = {rule["record"] for rule in all_rules() if "record" in rule}
    assert {name for name in asked if is_recorded(name)} <= recorded
    assert {name for name in asked if not is_recorded(name)} - PROMETHEUS_OWN - EXPORTED == set()
    assert EXPORTED - asked == set(UNUSED)
