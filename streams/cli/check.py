"""`streams check`: whether settings, broker, topics and senders are such that the numbers will be right."""

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from streams.cli.shared import BrokerOption, JsonOption, PrefixOption, read_campaigns, write_json
from streams.core.events import TOPICS
from streams.kafka.backlog import Chunk
from streams.kafka.connection import Connection, RefusedError
from streams.kafka.reader import Reader
from streams.kafka.topics import Topic, TopicAdmin, TopicsError, all_topics
from streams.replay.sample import CLOCK_MS, Finding, Sample
from streams.settings import FILE, PREFIX, Settings, SettingsError, is_secret, load, origins, variable
from streams.wire.campaigns import CampaignsError

EPILOG: Final = "Examples: [bold]streams check[/bold] | [bold]streams check --sample 20000 --json[/bold]"

_ELSEWHERE_READ: Final = {"STREAMS_CACHE"}
_WORDS: Final = {True: "ok", False: "FOUND", None: "-"}


def command(
    sample: Annotated[int, typer.Option(min=1, help="Newest records of each topic partition to look at.")] = 2_000,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check settings, broker, login, topics, and a sample of events: keys and clocks. Changes nothing.

    Each line says what to do. Exit code 3 if there is anything to be done.
    """
    findings = asyncio.run(_run({"broker": broker, "topic_prefix": topic_prefix}, sample, as_json))
    if as_json:
        write_json([finding._asdict() for finding in findings])
    raise typer.Exit(3 if any(finding.is_fine is False for finding in findings) else 0)


async def _run(flags: dict[str, Any], sample: int, as_json: bool) -> list[Finding]:
    findings = []
    async for finding in _findings(flags, sample):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{_WORDS[finding.is_fine]:5}  {finding.check:8}  {finding.text}")
    return findings


async def _findings(flags: dict[str, Any], sample: int) -> AsyncIterator[Finding]:
    try:
        settings = load(**flags)
        connection = Connection.of(settings)
    except (SettingsError, RefusedError) as error:
        for line in str(error).splitlines():
            yield Finding("settings", False, line)
        return
    for finding in _of_settings(settings, flags):
        yield finding
    try:
        async with TopicAdmin(connection) as admin:
            login = f" as {settings.sasl_username}" if settings.sasl_username else ""
            yield Finding("broker", True, f"{connection.address} answers by {connection.protocol}{login}")
            topics = all_topics(settings.topic_prefix, settings.topic(settings.group))
            for finding in await _of_topics(admin, topics):
                yield finding
    except TopicsError as error:
        yield Finding("broker", False, str(error))
        return
    try:
        for finding in await _of_events(connection, settings, sample):
            yield finding
    except TopicsError as error:
        yield Finding("events", None, f"not looked at: {error}")


# --- settings ---------------------------------------------------------------------------------------------------------


def _of_settings(settings: Settings, flags: dict[str, Any]) -> list[Finding]:
    wrong = [*_unknown_variables(), *_open_doors(settings), *_readable_secrets(settings), *_campaigns(settings)]
    given = len(origins(**flags))
    fine = f"{given} of {len(Settings.model_fields)} are given, the rest have their defaults (streams config)"
    return [Finding("settings", False, text) for text in wrong] or [Finding("settings", True, fine)]


def _unknown_variables() -> Iterator[str]:
    known = {variable(name) for name in Settings.model_fields} | _ELSEWHERE_READ
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = get_close_matches(name, known, 1)
            yield f"{name} is no setting and does nothing: " + (f"did you mean {near[0]}?" if near else "take it away")


def _open_doors(settings: Settings) -> Iterator[str]:
    is_guarded = settings.secret("http_token") or settings.secret("http_password")
    where = f"{settings.http_host}:{settings.http_port}"
    if not _is_of_this_machine(settings.http_host):
        if not is_guarded:
            yield f"everybody who reaches {where} may read it: set STREAMS_HTTP_TOKEN or STREAMS_HTTP_PASSWORD"
        elif settings.http_certificate is None:
            yield f"what opens {where} is sent in the clear: set STREAMS_HTTP_CERTIFICATE, or let a proxy speak TLS"
    if settings.security_protocol == "SASL_PLAINTEXT" and settings.sasl_mechanism == "PLAIN":
        yield "the password for Kafka is sent in the clear: take STREAMS_SECURITY_PROTOCOL=SASL_SSL"


def _is_of_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _readable_secrets(settings: Settings) -> Iterator[str]:
    files = {settings.ssl_key, settings.http_key}
    files |= {file.path for name in Settings.model_fields if (file := getattr(settings, f"{name}_file", None))}
    if any(is_secret(name) for name, origin in origins().items() if origin == FILE):
        files.add(Path(FILE))
    for path in sorted(filter(None, files)):
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
            yield f"{path} holds a secret and is open to every user of this machine: chmod o= {path}"


def _campaigns(settings: Settings) -> Iterator[str]:
    try:
        read_campaigns(settings)
    except CampaignsError as error:
        yield str(error)


# --- topics and events ------------------------------------------------------------------------------------------------


async def _of_topics(admin: TopicAdmin, topics: list[Topic]) -> list[Finding]:
    fine = f"all {len(topics)} exist with equal partition counts; retention, compaction and clock are as they should be"
    return [Finding("topics", False, text) for text in await admin.check(topics)] or [Finding("topics", True, fine)]


async def _of_events(connection: Connection, settings: Settings, count: int) -> list[Finding]:
    sample = Sample(settings.rules)
    for topic in TOPICS:
        async with Reader(connection, settings.topic_prefix, (topic,)) as reader:
            async for _, partition, records in reader.newest(count):
                if records:
                    sample.look(partition, Chunk(topic, records).batch)
    return [*sample.findings(), *_own_clock(sample.newest_ms)]


def _own_clock(newest_ms: int | None) -> Iterator[Finding]:
    ahead_ms = (newest_ms or 0) - time.time() * 1000
    if ahead_ms > CLOCK_MS:
        text = f"Kafka's clock is {ahead_ms / 1000:,.1f} s before this machine's: set one of them"
        yield Finding("clocks", False, text)
