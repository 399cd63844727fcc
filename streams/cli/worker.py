"""`streams worker`: counts, and serves what it counts."""

import asyncio
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from itertools import chain, repeat
from typing import Annotated, Final

import structlog
import typer
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector

from streams.cli.logs import configure_logging
from streams.cli.shared import (
    TOLD,
    BrokerOption,
    HostOption,
    LevelOption,
    PortOption,
    PrefixOption,
    campaigns_from,
    collect_seldom,
    connection_from,
    finish,
    read_campaigns,
    settings_from,
)
from streams.core.campaigns import Campaigns
from streams.kafka.app import StopError, Worker
from streams.kafka.topics import NoBrokerError, TopicAdmin, all_topics
from streams.metrics.collector import Collector
from streams.metrics.reading import Reading
from streams.settings import Settings
from streams.web.server import Site
from streams.wire.campaigns import CampaignsError

_WAITS_S: Final = (0.5, 1, 2, 4)
"""Between one look for the broker at the start and the next; the last one for ever."""

log = structlog.get_logger(__name__)

_SWITCH_S: Final = 0.0005
"""The thread that fetches waits this long for Python's lock whenever it comes back from the network, many times a
fetch. With Python's own 5 ms what is fetched comes too late for who applies it."""


def command(
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    http_host: HostOption = None,
    http_port: PortOption = None,
    log_level: LevelOption = None,
    accept_settings: Annotated[
        bool, typer.Option("--accept-settings", help="Let changed rules hold from now on; horizons only get smaller.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without events that Kafka deleted before they were counted.")
    ] = False,
) -> None:
    """Read events, count them, and serve /, /metrics, /healthz and /readyz.

    Start as many as there is work for: Kafka shares the partitions out among them. SIGTERM commits and exits with 0.
    SIGHUP reads the file of STREAMS_CAMPAIGNS again; with an error in it the old one holds, and the log says why.
    """
    settings = settings_from(
        broker=broker, topic_prefix=topic_prefix, http_host=http_host, http_port=http_port, log_level=log_level
    )
    configure_logging(settings.log_level, TOLD)
    collect_seldom()
    sys.setswitchinterval(_SWITCH_S)
    try:
        finish(_work(settings, campaigns_from(settings), accept_settings, accept_loss))
    except typer.Exit as end:
        _end_now(end.exit_code)
    except Exception:  # our own bug: all that is known of it is shown, and it is not gone on with
        with suppress(OSError):
            traceback.print_exc()
        _end_now(1)


def _end_now(code: int) -> None:
    """End without waiting for Faust's threads: after an error they may wait for a broker for ever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


async def _work(settings: Settings, campaigns: Campaigns, accept_settings: bool, accept_loss: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    commits = Histogram(
        "streams_commit_duration_seconds", "How long a commit took until all of it was confirmed", registry=registry
    )
    worker: Worker | None = None

    def read() -> Reading:
        return _reading(worker) if worker else Reading.nothing(campaigns)

    def not_ready() -> list[str]:
        return worker.not_ready() if worker else ["the broker has not answered yet"]

    def reload() -> None:
        if worker:
            _reload(worker, settings)
        else:
            log.error("campaigns not reloaded: the broker has not answered yet; try again when /readyz is 200")

    loop.add_signal_handler(signal.SIGHUP, reload)
    collector = Collector(
        read,
        settings.windows,
        version("impression-streams"),
        settings.min_sample,
        settings.max_campaigns,
        max_remembered=settings.max_remembered,
    )
    async with Site(settings, collector, registry, read, not_ready) as site:
        log.info("worker started", url=site.url, broker=settings.broker)
        partitions = await _partitions(settings, stop)
        if partitions is not None:
            worker = Worker(settings, campaigns, partitions, commits.observe, accept_settings, accept_loss)
            try:
                await worker.run(stop)
            except StopError as error:
                log.error("stopped without a last commit: it will be read again", reason=str(error))
                _end_now(1)
    log.info("worker stopped")


def _reading(worker: Worker) -> Reading:
    return Reading(
        partitions={number: owned.state for number, owned in worker.qualify.owned.items()},
        rollups=worker.rollup.owned,
        lag=worker.lag(),
        quiet_ms=worker.quiet_ms(),
        recovery_seconds=worker.recovery_seconds,
        up_to_date=worker.up_to_date(),
        campaigns=worker.rollup.campaigns,
        partition_count=worker.qualify.partitions,
    )


async def _partitions(settings: Settings, stop: asyncio.Event) -> int | None:
    """Return how many partitions the topics have, however long the broker is away; None when told to stop before."""
    look, stopped = asyncio.create_task(_look(settings)), asyncio.create_task(stop.wait())
    await asyncio.wait({look, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if look.done():
        return look.result()
    look.cancel()
    await asyncio.wait({look})
    return None


async def _look(settings: Settings) -> int:
    topics = all_topics(settings.topic_prefix, settings.topic(settings.group))
    for wait_s in chain(_WAITS_S, repeat(_WAITS_S[-1])):
        try:
            async with TopicAdmin(connection_from(settings)) as admin:
                return await admin.agreed_partitions(topics)
        except NoBrokerError as error:
            log.warning("trying again", after_s=wait_s, error=str(error))
            await asyncio.sleep(wait_s)
    raise AssertionError("unreachable: it is tried for ever")


def _reload(worker: Worker, settings: Settings) -> None:
    """Read the campaigns again. What cannot be used, or would change what has been counted, changes nothing."""
    try:
        campaigns = read_campaigns(settings)
    except CampaignsError as error:
        log.error("campaigns not reloaded, the old ones hold", error=str(error))
        return
    if rewritten := worker.change_campaigns(campaigns):
        reason = "terms that have begun cannot be changed: let new ones begin later (from)"
        log.error("campaigns not reloaded, the old ones hold", error=reason, campaigns=rewritten)
        return
    log.info("campaigns reloaded", campaigns=len(campaigns.by_id))
