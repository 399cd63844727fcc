"""Three systems count the same campaigns, on real Kafka: gauges, alert and report say how far they are apart."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from streams.core.reported import REPORTED_COUNTS, ReportedCount
from streams.kafka.broker import EmbeddedBroker
from streams.wire.reported import encode_reported, reported_key
from tests.conftest import create_topics
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
    sizes = {campaign: 1 if campaign == "spring" else 10 for campaign in CAMPAIGNS}
    expected = {
        (campaign, source): count // size for campaign, size in sizes.items() for source, count in COUNTS.items()
    }
    renders = [
        render(n + 10_000 * CAMPAIGNS.index(campaign), ts, campaign, source=source)
        for (campaign, source), count in expected.items()
        for n in range(count)
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
    renders = [render(n, ts, source=source) for source, count in COUNTS.items() for n in range(count // 10)]
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
