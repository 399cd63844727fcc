"""`streams worker`: counts, and serves what it counts."""

import asyncio
import logging
import signal
from importlib.metadata import version
from typing import Annotated

import structlog
import typer
from prometheus_client import CollectorRegistry, Histogram

from streams.cli.shared import BrokerOption, PrefixOption, configure_logging, fail, finish, settings_from
from streams.kafka.app import Worker
from streams.kafka.topics import TopicAdmin, all_topics
from streams.metrics.collector import Collector, Reading
from streams.settings import Settings
from streams.web.server import Site

log = structlog.get_logger(__name__)


def command(
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    http_host: Annotated[str | None, typer.Option(help="Address to serve on (STREAMS_HTTP_HOST).")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port to serve on, 0 = any (STREAMS_HTTP_PORT).")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error (STREAMS_LOG_LEVEL).")] = None,
) -> None:
    """Read events, count them, and serve /, /metrics, /healthz and /readyz.

    Start as many as there is work for: Kafka shares the partitions out among them. SIGTERM commits and exits with 0.
    """
    settings = settings_from(
        broker=broker, topic_prefix=topic_prefix, http_host=http_host, http_port=http_port, log_level=log_level
    )
    configure_logging(settings.log_level)
    finish(_work(settings))
