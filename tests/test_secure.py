"""Kafka with TLS and logins: who is right is let in by every client, who is wrong is told so in one line, at once."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.broker import HOST, _free_port
from streams.kafka.connection import Connection, RefusedError
from streams.kafka.topics import NoBrokerError, TopicAdmin, TopicsError
from streams.settings import load
from tests.secure import PASSWORD, USER, SecureBroker, secure_broker
from tests.worker import WorkerProcess, send, sockets, wait_until

STREAMS = Path(sys.executable).with_name("streams")
SOON_S = 10.0


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with secure_broker(tmp_path_factory.mktemp("secure")) as broker:
        yield broker


def streams(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([str(STREAMS), *arguments], settings)


def run(command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"STREAMS_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def worker(settings: dict[str, str], prefix: str) -> WorkerProcess:
    others = {name: value for name, value in settings.items() if name != "broker"}
    return WorkerProcess(settings["broker"], prefix, **others)


# --- right ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listener", "others"),
    [
        ("BOTH", {"sasl_mechanism": "SCRAM-SHA-512"}),
        ("LOGIN", {"sasl_mechanism": "PLAIN"}),
        ("MUTUAL", {}),
    ],
    ids=["SCRAM over TLS", "PLAIN", "client certificate"],
)
def test_all_commands_and_a_worker_work_for_who_is_right(secure, listener, others, topic_prefix, tmp_path):
    settings = secure.settings(listener, topic_prefix=topic_prefix, **others)
    assert streams(settings, "topics", "create", "--partitions", "2").returncode == 0
    made = streams(settings, "generate", "--events", "500", "--max", "--json", "--truth", str(tmp_path / "truth.json"))
    sent = json.loads(made.stdout)["sent"]
    with worker(settings, topic_prefix) as running:
        running.wait_consumed(**sent)
        assert running.terminate()[0] == 0
    found = streams(settings, "explain", "nothing")
    assert "no event of impression nothing" in found.stderr


async def test_the_other_mechanisms_and_a_key_with_a_password_in_a_file_of_its_own_open_too(secure, tmp_path):
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        await enter(secure.settings("BOTH", sasl_mechanism=mechanism))
    key = secure.papers.lock(secure.papers.client, "the key's password")
    (tmp_path / "password").write_text("the key's password\n")
    await enter(secure.settings("MUTUAL", ssl_key=key, ssl_key_password_file=tmp_path / "password"))


async def enter(settings: dict[str, str]) -> None:
    async with TopicAdmin(Connection.of(load(**settings))) as admin:
        assert await admin.partition_counts(["none"]) == {}


def test_a_worker_logs_in_again_when_its_broker_was_away(secure, topic_prefix):
    settings = secure.settings("BOTH", topic_prefix=topic_prefix, sasl_mechanism="SCRAM-SHA-256")
    streams(settings, "topics", "create", "--partitions", "2")
    with worker(settings, topic_prefix).__enter__().ready() as running:
        secure.broker.kill()
        secure.broker.start()
        sent = json.loads(streams(settings, "generate", "--events", "300", "--max", "--json").stdout)["sent"]
        running.wait_consumed(**sent)


# --- wrong ones -------------------------------------------------------------------------------------------------------

LOGIN = "look at STREAMS_SASL_USERNAME and STREAMS_SASL_PASSWORD"
SCRAM = "SCRAM-SHA-512"
WRONG = {
    "wrong CA": ("TLS", {"ssl_ca": "other_ca"}, "is not trusted .* STREAMS_SSL_CA"),
    "no CA": ("TLS", {"ssl_ca": None}, "is not trusted .* STREAMS_SSL_CA"),
    "wrong host": ("ELSEWHERE", {}, "is for another host .* connect by a name that it has"),
    "wrong host of a node": ("ASIDE", {}, "is for another host .* connect by a name that it has"),
    "expired": ("EXPIRED", {}, "has expired: renew it there"),
    "wrong password": ("BOTH", {"sasl_password": "no"}, f"refuses the login of '{USER}' by PLAIN: {LOGIN}"),
    "unknown user": ("BOTH", {"sasl_username": "no"}, f"refuses the login of 'no' by PLAIN: {LOGIN}"),
    "wrong password, SCRAM": (
        "BOTH",
        {"sasl_mechanism": SCRAM, "sasl_password": "no"},
        f"'{USER}' by {SCRAM}: {LOGIN}",
    ),
    "unknown user, SCRAM": ("BOTH", {"sasl_mechanism": SCRAM, "sasl_username": "no"}, f"'no' by {SCRAM}: {LOGIN}"),
    "wrong password, no TLS": ("LOGIN", {"sasl_password": "no"}, f"by PLAIN: {LOGIN}"),
    "no client certificate": (
        "MUTUAL",
        {"ssl_certificate": None},
        "refuses the certificate .* STREAMS_SSL_CERTIFICATE",
    ),
    "a stranger's": ("MUTUAL", {"ssl_certificate": "stranger"}, "refuses the certificate .* STREAMS_SSL_CERTIFICATE"),
    "an expired one": ("MUTUAL", {"ssl_certificate": "expired"}, "refuses the certificate .* STREAMS_SSL_CERTIFICATE"),
}
each_wrong = pytest.mark.parametrize(("listener", "others", "words"), WRONG.values(), ids=WRONG)
FOR_WORKERS = ("wrong CA", "wrong host", "expired", "wrong password", "unknown user, SCRAM", "no client certificate")


def wrong(secure: SecureBroker, listener: str, others: dict[str, Any], **more: str) -> dict[str, str]:
    papers = vars(secure.papers)
    return secure.settings(listener, **{name: papers.get(value, value) for name, value in others.items()}, **more)


@each_wrong
async def test_who_is_refused_is_told_why_and_what_to_do(secure, listener, others, words):
    began, before = time.monotonic(), sockets(os.getpid())
    with pytest.raises(TopicsError, match=words) as refused:
        await enter(wrong(secure, listener, others))
    assert sockets(os.getpid()) <= before, "it is closed when that is told: whoever is told may end"
    assert not isinstance(refused.value, NoBrokerError), "that would be tried again"
    assert time.monotonic() - began < SOON_S
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("listener", "others", "words"), [WRONG[name] for name in FOR_WORKERS], ids=FOR_WORKERS)
def test_a_worker_that_is_refused_ends_with_one_line(secure, listener, others, words, topic_prefix):
    with worker(wrong(secure, listener, others), topic_prefix) as running:
        assert running.wait() == 1
    started, told = running.log
    assert json.loads(started)["event"] == "worker started"
    assert told.startswith("streams: ")
    assert PASSWORD not in told


def test_a_worker_waits_for_a_broker_with_tls_that_is_merely_away(secure, topic_prefix):
    settings = secure.settings("BOTH", broker=f"{HOST}:{_free_port()}")
    with worker(settings, topic_prefix) as running:
        wait_until(lambda: sum("trying again" in line for line in running.log) >= 2, "it tries again")
        assert running.terminate()[0] == 0


async def test_who_talks_to_a_port_in_another_way_than_it_wants_is_told_where_to_look(secure):
    for settings in (
        {"broker": secure.settings("TLS")["broker"]},
        {"broker": secure.settings("LOGIN")["broker"]},
        secure.settings("TLS", broker=secure.broker.bootstrap),
    ):
        with pytest.raises(NoBrokerError, match="closes connections: is STREAMS_SECURITY_PROTOCOL what it wants"):
            await enter(settings)


@pytest.mark.parametrize("name", ["ssl_ca", "ssl_certificate"])
def test_a_file_that_is_no_certificate_is_named_before_anything_is_tried(secure, name, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(RefusedError, match=f"STREAMS_{name.upper()}='.*empty.pem' cannot be used"):
        Connection.of(load(**secure.settings("TLS", **{name: tmp_path / "empty.pem"})))


def test_a_wrong_password_of_a_key_is_told_and_nobody_is_asked_for_it(secure):
    key = secure.papers.lock(secure.papers.client, "right")
    for password in ("wrong", None):
        settings = secure.settings("MUTUAL", ssl_key=key, ssl_key_password=password)
        with pytest.raises(RefusedError, match=r"STREAMS_SSL_CERTIFICATE=.* cannot be used"):
            Connection.of(load(**settings))


def test_a_connection_shows_no_password(secure):
    connection = Connection.of(load(**secure.settings("BOTH")))
    assert USER in repr(connection)
    assert PASSWORD not in repr(connection)
    assert PASSWORD not in repr(connection.credentials)


# --- canaries ---------------------------------------------------------------------------------------------------------

TOKEN = "http-canary-token"
CANARIES = {
    "password": PASSWORD, "token": TOKEN, "viewer": "viewer-canary-1", "address": "192.0.2.77",
    "user agent": "CanaryAgent/4.2", "impression": "imp-canary-1", "page view": "page-canary-1",
    "click": "click-canary-1", "broken": "broken-canary-1",
}  # fmt: skip
"""What is to be seen nowhere but in Kafka."""

BUG = """
import streams.kafka.qualify
from streams.core.partition import Partition
def apply(self, batch):
    raise RuntimeError("a bug of our own")
Partition.apply = apply
"""


def canary_events() -> dict[str, list[tuple[str, Any]]]:
    """Events of every outcome that looks at a viewer, and records that are no events."""
    now = int(time.time() * 1000)
    person = {
        "viewer_id": CANARIES["viewer"], "ip": CANARIES["address"], "user_agent": CANARIES["user agent"],
        "page_view_id": CANARIES["page view"], "slot_id": "top", "ts": now, "campaign_id": "spring",
    }  # fmt: skip
    bot = person["user_agent"] + " Googlebot/2.1"
    renders = [person | {"impression_id": CANARIES["impression"], **more} for more in (
        {}, {}, {"impression_id": "imp-canary-10"}, {"impression_id": "imp-canary-11", "user_agent": bot},
        {"impression_id": "imp-canary-12", "ts": now + 10**9}, {"impression_id": "imp-canary-13", "ts": now - 10**9},
        {"impression_id": "imp-canary-14", "viewer_id": 7},
        {"impression_id": "imp-canary-15", "price": "broken-canary-1"},
        {"impression_id": "imp-canary-16", "format": "broken-canary-1"},
    )]  # fmt: skip
    view = {"impression_id": CANARIES["impression"], "viewer_id": CANARIES["viewer"], "ts": now, "kind": "viewable"}
    click = {name: view[name] for name in ("impression_id", "viewer_id", "ts")} | {"click_id": CANARIES["click"]}
    values = {
        "renders": [*renders, b'{"viewer_id": "viewer-canary-1", broken-canary-1', b"\xffbroken-canary-1"],
        "viewability": [view, view, view | {"impression_id": "imp-canary-99"}, view | {"kind": "broken-canary-1"}],
        "clicks": [click, click],
    }
    return {topic: [(CANARIES["viewer"], value) for value in found] for topic, found in values.items()}


def seen(words: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in words or canary.removesuffix("-1") in words]


def pages(running: WorkerProcess) -> str:
    return "".join(running.get(path)[1] for path in ("/", "/metrics", "/readyz", "/api/campaigns", "/healthz"))


def test_secrets_and_people_are_in_no_log_page_metric_or_traceback(secure, topic_prefix, tmp_path, monkeypatch):
    settings = secure.settings("BOTH", topic_prefix=topic_prefix, log_level="debug", http_token=TOKEN)
    assert streams(settings, "topics", "create", "--partitions", "2").returncode == 0
    events = canary_events()
    for topic, records in events.items():
        send(secure.broker.bootstrap, topic_prefix + topic, records)
    with worker(settings, topic_prefix) as running:
        running.wait_consumed(**{topic: len(records) for topic, records in events.items()})
        outcomes = ("counted", "duplicate", "refresh", "invalid_traffic", "future", "late", "malformed")
        assert all(running.metric("streams_events_total", outcome=name) for name in outcomes)
        shown = pages(running)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(running.url + "/metrics?token=" + TOKEN, timeout=10)
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as broken:
            broken.sendall(f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\x00\r\n\r\n".encode())
            assert b" 400 " in broken.recv(1_000).partition(b"\r\n")[0]
        secure.broker.kill()
        wait_until(lambda: running.get("/readyz")[0] == 503, "it is not ready without its broker")
        shown += pages(running)
        secure.broker.start()
        running.ready()
        assert running.terminate()[0] == 0
    assert seen(shown) == []
    assert seen("\n".join(running.log)) == []

    (tmp_path / "sitecustomize.py").write_text(BUG)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    with worker(settings, topic_prefix) as crashing:
        send(secure.broker.bootstrap, topic_prefix + "renders", events["renders"])
        assert crashing.wait() == 1
    assert any("a bug of our own" in line for line in crashing.log)
    assert seen("\n".join(crashing.log)) == []

    refused = streams(settings | {"sasl_password": f"{PASSWORD}x"}, "worker", "--http-port", "0")
    assert refused.returncode == 1
    assert seen(refused.stdout + refused.stderr) == []


def test_a_login_that_is_debugged_tells_no_password(secure):
    """aiokafka would tell all of a request that it sends, and that of PLAIN is the password."""
    code = (
        "import asyncio, logging; logging.basicConfig(level=0); from streams.kafka.topics import TopicAdmin;"
        "from streams.kafka.connection import Connection; from streams.settings import load\n"
        "async def main():\n async with TopicAdmin(Connection.of(load())) as admin: await admin.partition_counts('x')\n"
        "asyncio.run(main())"
    )
    found = run([sys.executable, "-c", code], secure.settings("BOTH"))
    assert found.returncode == 0
    assert "DEBUG:aiokafka" in found.stderr
    assert PASSWORD not in found.stderr


def test_only_one_place_says_how_clients_connect():
    package = Path(__file__).parents[1] / "streams"
    elsewhere = [path for path in package.rglob("*.py") if path.name != "connection.py"]
    for words in ("bootstrap_servers", "sasl_plain", r"(?<!asyncapi)\(settings\.broker", r"broker\.split"):
        assert [path.name for path in elsewhere if re.search(words, path.read_text())] == [], words
