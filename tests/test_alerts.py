"""The rules, alerts, routes and inhibition that are shipped, judged by promtool, amtool and the real Alertmanager."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring import GRAFANA, RULES, UNIT_TESTS, Alertmanager, alert_rules, all_rules
from tests.worker import wait_until

README = (GRAFANA.parent / "README.md").read_text()
ALERTMANAGER = GRAFANA / "alertmanager" / "alertmanager.yml"
ALERTS = alert_rules()
BUSINESS = {name for name, rule in ALERTS.items() if rule["labels"]["scope"] == "campaign"}
STREAM = {"StreamStalled", "StreamLagGrowing", "DeadLettersRising", "WorkerDown", "AccountingIdentityBroken"}
"""What makes figures of campaigns doubtful."""

each_alert = pytest.mark.parametrize("alert", ALERTS)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def tool(*command: str) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_nothing_in_rules_and_configuration() -> None:
    tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))
    tool("promtool", "check", "config", str(GRAFANA / "prometheus" / "prometheus.yml"))


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.name)
def test_the_unit_tests_of_the_rules_pass(file: Path) -> None:
    tool("promtool", "test", "rules", str(file))


def test_records_are_named_by_level_metric_and_operation_and_read_raw_series_only() -> None:
    records = [rule for rule in all_rules() if "record" in rule]
    for rule in records:
        assert re.fullmatch(r"[a-z_]+:(ads|streams)_[a-z_]+:[a-z0-9]+", rule["record"])
        assert not re.search(r"\w:\w", rule["expr"]), "a rule on a rule gets nothing when history is filled in"


# --- alerts -----------------------------------------------------------------------------------------------------------


def unit_tests_of(alert: str) -> list[tuple[Path, dict[str, Any]]]:
    """The groups of unit tests that judge an alert, without what they say of others."""
    found = []
    for file in UNIT_TESTS:
        for group in yaml.safe_load(file.read_text())["tests"]:
            mine = [test for test in group.get("alert_rule_test", ()) if test["alertname"] == alert]
            if mine:
                found.append((file, {**group, "alert_rule_test": mine, "promql_expr_test": []}))
    return found


@each_alert
def test_every_alert_is_seen_to_fire_and_to_be_silent(alert: str) -> None:
    tests = [test for _, group in unit_tests_of(alert) for test in group["alert_rule_test"]]
    assert {bool(test["exp_alerts"]) for test in tests} == {True, False}


@each_alert
def test_every_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert re.fullmatch(r"([A-Z][a-z]+)+", alert)
    assert {"for", "keep_firing_for"} <= rule.keys()
    assert rule["labels"] in (
        {"scope": "campaign", "severity": "warning"},
        {"scope": "stream", "severity": "warning"},
        {"scope": "stream", "severity": "critical"},
    )
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"README.md#{alert.lower()}"
    assert f"\n#### {alert}\n" in README


NUMBER = re.compile(r"(?<![\w.:{\"])(?!0\b(?!\.))\d+(?:\.\d+)?(?![\w.\"])")
"""A number that a rule compares or multiplies with: no duration, no part of a name, and not 0."""


def mutants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("for", "keep_firing_for"):
        yield f"no {key}", {name: value for name, value in rule.items() if name != key}
    text = rule["expr"]
    for found in NUMBER.finditer(text):
        for factor in ("0", "100"):
            changed = f"{text[: found.start()]}({factor} * {found[0]}){text[found.end() :]}"
            yield changed, {**rule, "expr": changed}


@each_alert
def test_the_unit_tests_notice_every_wrong_number_and_missing_duration(alert: str, tmp_path: Path) -> None:
    (file,) = {file for file, _ in unit_tests_of(alert)}
    rules = yaml.safe_load(next(one for one in RULES if one.name[:7] == file.name[:7]).read_text())
    (group,) = rules["groups"]
    judged = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [tests for _, tests in unit_tests_of(alert)],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(judged))
    wanted = [rule for rule in group["rules"] if "record" in rule and rule["record"] in ALERTS[alert]["expr"]]

    def passes(rule: dict[str, Any]) -> bool:
        group["rules"] = [*wanted, rule]
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
        done = run("promtool", "test", "rules", str(tmp_path / "test.yml"))
        assert "parse error" not in done.stderr
        return done.returncode == 0

    assert passes(ALERTS[alert])
    assert [what for what, rule in mutants(ALERTS[alert]) if passes(rule)] == []


# --- who is told ------------------------------------------------------------------------------------------------------


def test_the_routes_send_campaigns_to_ad_ops_and_all_else_to_engineers() -> None:
    tool("amtool", "check-config", str(ALERTMANAGER))
    for alert, rule in ALERTS.items():
        labels = [f"{name}={value}" for name, value in {"alertname": alert, **rule["labels"]}.items()]
        receiver = "ad-ops" if alert in BUSINESS else "engineers"
        flags = (f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}")
        tool("amtool", "config", "routes", "test", *flags, *labels)


def labels_of(alert: str, campaign: str = "") -> dict[str, str]:
    return {"alertname": alert, **ALERTS[alert]["labels"]} | ({"campaign": campaign} if campaign else {})


TELLING = {"CampaignMeasuredRateDropped", "CampaignViewabilityDropped"}
"""Alerts of campaigns that hold others back."""


def suppressed(folder: Path, *alerts: tuple[str, str]) -> set[tuple[str, str]]:
    """What the real Alertmanager holds back of these alerts, and of all others of two campaigns, "a" and "b"."""
    others = {(alert, campaign) for alert in BUSINESS - TELLING for campaign in ("a", "b")}
    posted = {*alerts, *others, ("RememberedNearLimit", "")}
    with Alertmanager(folder) as alertmanager:
        alertmanager.post(*(labels_of(*alert) for alert in posted))

        def are_judged() -> bool:
            states = alertmanager.states()
            return states.keys() == posted and "unprocessed" not in states.values()

        wait_until(are_judged, "all alerts were looked at", 20)
        return {alert for alert, state in alertmanager.states().items() if state == "suppressed"}


@pytest.mark.parametrize("alert", sorted(STREAM))
def test_while_the_stream_is_not_well_nothing_is_said_of_campaigns(alert: str, tmp_path: Path) -> None:
    campaigns = {(name, campaign) for name in BUSINESS for campaign in ("a", "b")}
    assert suppressed(tmp_path / "alertmanager", (alert, ""), *campaigns) == campaigns


def test_what_does_not_make_figures_doubtful_holds_nothing_back(tmp_path: Path) -> None:
    assert set(ALERTS) == BUSINESS | STREAM | {"RememberedNearLimit"}
    assert suppressed(tmp_path / "alertmanager") == set()


def test_a_broken_tag_is_told_and_not_what_follows_from_it_for_that_campaign_only(tmp_path: Path) -> None:
    alerts = [(alert, "a") for alert in TELLING]
    held = ("CampaignViewabilityLow", "CampaignViewabilityDropped", "CampaignVcpmSpiked")
    assert suppressed(tmp_path / "alertmanager", *alerts) == {(name, "a") for name in held}


def test_a_drop_of_viewability_is_told_once(tmp_path: Path) -> None:
    found = suppressed(tmp_path / "alertmanager", ("CampaignViewabilityDropped", "a"))
    assert found == {("CampaignViewabilityLow", "a"), ("CampaignVcpmSpiked", "a")}
