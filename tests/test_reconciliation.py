"""Three systems count the same campaigns, on real Kafka: gauges, alert and report say how far they are apart."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.core.events import RENDERS
from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.kafka.broker import EmbeddedBroker
from streams.wire.reported import encode_reported, reported_key
from tests.conftest import create_topics
from tests.monitoring import GRAFANA
from tests.test_metrics import WINDOWS, Bench, T
from tests.test_metrics import render as event
from tests.test_worker import PARTITIONS, now_ms, render
from tests.worker import WorkerProcess, send, wait_until

COUNTS = {"dsp": 5_200, "ssp": 5_050, "adserver": 4_920}
"""The worked reconciliation, a thousandth of it."""
CAMPAIGNS = ("spring", "summer", "autumn", "winter")


@pytest.fixture
def topics(broker: EmbeddedBroker, topic_prefix: str) -> str:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, PARTITIONS))
    return topic_prefix


def discrepancies(worker: WorkerProcess, **labels: str) -> dict[tuple[str, str], float]:
    """(Source, of) -> ratio."""
    return {
        (sample.labels["source"], sample.labels["of"]): sample.value
        for sample in worker.samples()
        if sample.name == "ads_discrepancy_ratio" and labels.items() <= sample.labels.items()
    }


def test_a_group_of_workers_shows_each_discrepancy_once_and_exactly(broker: EmbeddedBroker, topics: str) -> None:
    ts = now_ms()
    shares = {campaign: 1 if campaign == "spring" else 10 for campaign in CAMPAIGNS}
    expected = {
        (campaign, source): size // share for campaign, share in shares.items() for source, size in COUNTS.items()
    }
    renders = [
        render(n + 10_000 * CAMPAIGNS.index(campaign), ts, campaign, source=source)
        for (campaign, source), size in expected.items()
        for n in range(size)
    ]
    with WorkerProcess(broker.bootstrap, topics) as one, WorkerProcess(broker.bootstrap, topics) as other:
        for worker in (one, other):
            wait_until(
                lambda worker=worker: worker.metric("streams_partitions_assigned") == 1,  # type: ignore[misc]
                "each owns a partition",
            )
        send(broker.bootstrap, topics + "renders", renders)

        def shown() -> Counter[tuple[str, str]]:
            samples = [sample for worker in (one, other) for sample in worker.samples()]
            totals: Counter[tuple[str, str]] = Counter()
            for sample in samples:
                if sample.name == "ads_source_impressions_total":
                    totals[sample.labels["campaign"], sample.labels["source"]] += int(sample.value)
            return totals

        wait_until(lambda: shown() == expected, "all of it is counted")
        pages = [
            Counter((sample.name, *sorted(sample.labels.items())) for sample in worker.samples()
                    if sample.name in ("ads_source_impressions_total", "ads_discrepancy_ratio"))
            for worker in (one, other)
        ]  # fmt: skip
        assert all(pages), "both export some"
        assert max((pages[0] + pages[1]).values()) == 1, "no series is exported twice"
        (owner,) = [worker for worker in (one, other) if discrepancies(worker, campaign="spring")]
        for window in ("1m", "5m", "1h"):
            assert discrepancies(owner, campaign="spring", window=window) == {
                ("dsp", "source"): 280 / 5_200,
                ("dsp", "billing"): 280 / 4_920,
                ("ssp", "source"): 130 / 5_050,
                ("ssp", "billing"): 130 / 4_920,
            }


def compared(broker: EmbeddedBroker, prefix: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code of `streams report --discrepancy` on the topics, and what it says."""
    environment = {"STREAMS_BROKER": broker.bootstrap, "STREAMS_TOPIC_PREFIX": prefix}
    result = subprocess.run(
        [sys.executable, "-m", "streams.cli", "report", "--discrepancy", "--json", *arguments],
        env=os.environ | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.stderr == b""
    return result.returncode, json.loads(result.stdout)


def test_without_files_the_report_reads_the_topics_events_and_reported_counts(
    broker: EmbeddedBroker, topics: str
) -> None:
    ts = now_ms() // 86_400_000 * 86_400_000
    date = "2026-01-01"
    renders = [render(n, ts, source=source) for source, size in COUNTS.items() for n in range(size // 10)]
    renders += [render(n, ts, source="adserver", invalid="givt") for n in range(492, 500)]
    send(broker.bootstrap, topics + "renders", renders)
    reports = [
        ReportedCount(source=source, campaign_id="spring", date=date, impressions=impressions)
        for source, impressions in (("dsp", 1), ("ssp", 505), ("adserver", 492), ("dsp", 520))
    ]
    records = [(reported_key(count).decode(), encode_reported(count)) for count in reports]
    send(broker.bootstrap, topics + REPORTED_COUNTS, [*records, ("no report", b"{")])
    code, told = compared(broker, topics)
    reported, today = told["days"]
    assert code == 0
    assert [(row["source"], row["origin"], row["impressions"]) for row in reported["sources"]] == [
        ("dsp", "report", 520), ("ssp", "report", 505), ("adserver", "report", 492)
    ]  # fmt: skip
    dsp, ssp, adserver = today["sources"]
    assert (dsp["impressions"], ssp["impressions"], adserver["impressions"]) == (520, 505, 492)
    assert (dsp["explained"]["invalid_traffic"], dsp["only_source"], dsp["only_billing"]) == (8, 20, 0)
    assert dsp["difference"] == 28
    assert told["events"]["renders"]["counted"] == 1_517
    assert told["reported"] == {"lines": 5, "malformed": {"not_json": 1}}


def test_a_fifth_more_than_who_bills_raises_the_alert_and_the_worked_reconciliation_does_not(tmp_path: Path) -> None:
    """Two hours of pages of the program, a minute apart, through the rules that are shipped."""
    each_minute = {"broken": {"dsp": 25, "adserver": 20}, "worked": {"dsp": 130, "adserver": 123}}
    bench, minutes, numbers = Bench(), 120, count()
    pages: list[dict[str, str]] = []
    for minute in range(minutes):
        events = [
            event(next(numbers), T + minute * 60_000, campaign, source=source)
            for campaign, sources in each_minute.items()
            for source, impressions in sources.items()
            for _ in range(impressions)
        ]
        page = bench.feed(RENDERS, *events).page()
        pages.append(dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")))
    names = sorted({name for page in pages for name in page if name.startswith(("ads_discrepancy", "ads_source"))})
    series = [{"series": name, "values": " ".join(page.get(name, "_") for page in pages)} for name in names]
    assert len(series) == 2 * (2 + 2 * len(WINDOWS))
    fired = {"campaign": "broken", "source": "dsp", "severity": "warning", "scope": "campaign"}
    ratios = [pages[-1][name] for name in names if 'window="1h"' in name and '"broken"' in name]
    assert sorted(ratios) == ["0.2", "0.25"]
    test = {
        "rule_files": [str(GRAFANA / "prometheus" / "campaigns.rules.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": 'ALERTS{alertname="CampaignDiscrepancyHigh", alertstate="firing"}',
                        "eval_time": "110m",
                        "exp_samples": [{"labels": labels_of(fired), "value": 1}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def labels_of(fired: dict[str, str]) -> str:
    told = {"alertname": "CampaignDiscrepancyHigh", "alertstate": "firing"} | fired
    return "ALERTS{" + ", ".join(f'{name}="{value}"' for name, value in told.items()) + "}"
