"""Real Prometheus and Alertmanager watch a real worker on real Kafka, with what grafana/ ships and minutes as seconds.

 0 s     all campaigns are well
32 s     campaign-1 is seen less; campaign-2 as well, but there a broken tag is why
52 s     all are well again; when everybody was told so, the worker ends
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from streams.kafka.broker import EmbeddedBroker
from tests.conftest import create_topics
from tests.dashboards import Query, filled_in, queries
from tests.monitoring import Alertmanager, Inbox, Prometheus, webhook
from tests.test_dashboards import EXPORTED
from tests.worker import WorkerProcess, send, wait_until

TRAFFIC = [
    *("--rate", "1500", "--campaigns", "4", "--skew", "0", "--viewable", "0.7", "--ctr", "0.05"),
    *("--drop", "campaign-1:32s:52s:0.3", "--drop", "campaign-2:32s:52s:0.3"),
    *("--break-tag", "campaign-2:32s:52s:0.3"),
]
DROPPED = ("CampaignViewabilityDropped", "campaign-1")
BROKEN_TAG = ("CampaignMeasuredRateDropped", "campaign-2")
DOWN = ("WorkerDown", "")


class Seen(NamedTuple):
    """What was seen of the whole run."""

    told: list[tuple[str, str, str, str]]
    """By webhooks, in order: receiver, status, alert, campaign."""
    firing: set[tuple[str, str]]
    """In Prometheus during the drop: alert, campaign."""
    of_the_stream: set[str]
    """Alerts of the stream that fired in the last minute of the worker."""
    series: dict[Query, int]
    """How many each query of the dashboards gave at the drop; of alerts of the stream, when the worker had ended."""
    exported: set[str]
    """Names on the worker's page."""


@contextmanager
def traffic(bootstrap: str, prefix: str) -> Iterator[None]:
    command = [sys.executable, "-m", "streams.cli", "generate", "--broker", bootstrap, "--topic-prefix", prefix]
    with subprocess.Popen([*command, *TRAFFIC], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(20) == 0


def send_twice_counted(bootstrap: str, prefix: str) -> None:
    """Let another system count a campaign as well."""
    now = int(time.time() * 1000)
    impressions = [
        {"impression_id": f"twice-{number}", "campaign_id": "twice", "ts": now, "price": "2", "source": source}
        for number in range(20)
        for source in ("adserver", "dsp")
    ]
    send(bootstrap, prefix + "renders", [(str(one["impression_id"]), one) for one in impressions])


def statuses(inbox: Inbox, alert: tuple[str, str]) -> list[str]:
    return [status for _, status, *name in inbox.told if tuple(name) == alert]


@pytest.fixture(scope="module")
def seen(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder, prefix = tmp_path_factory.mktemp("monitoring"), "monitoring-"
    asyncio.run(create_topics(broker.bootstrap, prefix, 4))
    agreed = folder / "campaigns.toml"
    agreed.write_text("[campaigns.campaign-3]\nviewability_target = 0.5\n")
    settings = {"segments": "device", "campaigns": str(agreed)}
    with (
        webhook() as inbox,
        WorkerProcess(broker.bootstrap, prefix, **settings) as worker,
        Alertmanager(folder / "alertmanager", inbox.url) as alertmanager,
        Prometheus(folder / "prometheus", worker.ready().url, alertmanager.url) as prometheus,
        traffic(broker.bootstrap, prefix),
    ):
        send_twice_counted(broker.bootstrap, prefix)
        return watch(worker, prometheus, inbox)


def watch(worker: WorkerProcess, prometheus: Prometheus, inbox: Inbox) -> Seen:
    for alert in (DROPPED, BROKEN_TAG):
        wait_until(lambda alert=alert: statuses(inbox, alert) == ["firing"], f"{alert} is told", 90)
    wait_until(lambda: (DROPPED[0], "campaign-2") in prometheus.firing(), "what is not told fires as well")
    firing = prometheus.firing()
    series = {query: len(prometheus.query(filled_in(query.text))) for query in queries()}
    for alert in (DROPPED, BROKEN_TAG):
        wait_until(lambda alert=alert: "resolved" in statuses(inbox, alert), f"{alert} is over", 90)
    # Not longer: Prometheus takes seconds to find its targets, and seconds are minutes here, so at first none is there.
    fired = prometheus.query('count_over_time(ALERTS{scope="stream", alertstate="firing"}[1m])')
    of_the_stream = {one["metric"]["alertname"] for one in fired}
    exported = {sample.name for sample in worker.samples()}
    assert worker.terminate()[0] == 0
    wait_until(lambda: statuses(inbox, DOWN) == ["firing"], "the end of the worker is told", 30)
    series |= {query: len(prometheus.query(query.text)) for query in queries() if 'ALERTS{scope="stream"' in query.text}
    return Seen(inbox.told, firing, of_the_stream, series, exported)


def test_a_drop_of_one_campaign_reaches_ad_ops_and_its_end_too_and_no_other_alert_does(seen: Seen) -> None:
    told = [one for one in seen.told if one[2:] != DOWN]
    assert {(receiver, *name) for receiver, _, *name in told} == {("ad-ops", *DROPPED), ("ad-ops", *BROKEN_TAG)}
    for alert in (DROPPED, BROKEN_TAG):
        assert {status for _, status, *name in told if tuple(name) == alert} == {"firing", "resolved"}


def test_a_broken_tag_is_told_and_the_drop_of_viewability_that_it_shows_is_not(seen: Seen) -> None:
    assert {(DROPPED[0], "campaign-2"), BROKEN_TAG, DROPPED} <= seen.firing
    assert {campaign for _, campaign in seen.firing} == {"campaign-1", "campaign-2"}


def test_nothing_is_said_of_a_stream_that_is_well_and_its_end_reaches_engineers(seen: Seen) -> None:
    assert seen.of_the_stream == set()
    assert ("engineers", "firing", *DOWN) in seen.told


@pytest.mark.parametrize("query", queries(), ids=str)
def test_every_query_of_the_dashboards_has_an_answer(seen: Seen, query: Query) -> None:
    assert seen.series[query] > 0


def test_the_names_that_dashboards_and_rules_are_held_against_are_those_of_the_page(seen: Seen) -> None:
    assert seen.exported == EXPORTED
