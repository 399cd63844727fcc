"""Real Prometheus, Alertmanager and a webhook on loopback, run with what grafana/ ships."""

import json
import re
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode

import yaml

from tests.worker import wait_until

GRAFANA = Path(__file__).parents[1] / "grafana"
RULES = sorted((GRAFANA / "prometheus").glob("*.rules.yml"))
UNIT_TESTS = sorted((GRAFANA / "prometheus").glob("*.test.yml"))

_DURATION = re.compile(r'(?<!")\b(\d+)([smhd])\b')
_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def minutes_as_seconds(text: str) -> str:
    """Make every duration of rules or routes a sixtieth. Windows of gauges are names, in quotes, and stay."""
    return _DURATION.sub(lambda found: f"{int(found[1]) * _MS[found[2]] // 60}ms", text)


def alert_rules() -> dict[str, dict[str, Any]]:
    """Return the rule of every alert by its name."""
    return {rule["alert"]: rule for rule in all_rules() if "alert" in rule}


def all_rules() -> list[dict[str, Any]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Server:
    """A server of Prometheus' family as a process; it is asked over HTTP."""

    def __init__(self, *command: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=output, stderr=output
            )

    def __enter__(self) -> Self:
        try:
            wait_until(self._is_ready, "the server is ready", 20)
        except AssertionError as error:
            self.__exit__()
            raise AssertionError(self._log.read_text()) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            self.get("/-/ready")
        except URLError:
            return False
        return True

    def get(self, path: str, **query: Any) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}?{urlencode(query)}", timeout=20) as answer:
            body: bytes = answer.read()
            return body


class Prometheus(Server):
    """Prometheus of the shipped configuration: workers and Alertmanager at these addresses, and minutes as seconds."""

    def __init__(self, folder: Path, worker_url: str, alertmanager_url: str) -> None:
        folder.mkdir()
        for file in RULES:
            (folder / file.name).write_text(minutes_as_seconds(file.read_text()))
        shipped = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text())
        shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        shipped["alerting"]["alertmanagers"] = _static(alertmanager_url)
        (job,) = shipped["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = _static(worker_url)[0]["static_configs"]
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(shipped))
        super().__init__(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--log.level=warn",
            log=folder / "log",
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query: {"metric": labels, "value": [time, text]} each."""
        answer = json.loads(self.get("/api/v1/query", query=expression))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def firing(self) -> set[tuple[str, str]]:
        """Return (alert, campaign) of all that fires now."""
        alerts = json.loads(self.get("/api/v1/alerts"))["data"]["alerts"]
        return {_name(alert["labels"]) for alert in alerts if alert["state"] == "firing"}


def _static(url: str) -> list[dict[str, Any]]:
    return [{"static_configs": [{"targets": [url.removeprefix("http://")]}]}]


def _name(labels: dict[str, str]) -> tuple[str, str]:
    return labels["alertname"], labels.get("campaign", "")


class Alertmanager(Server):
    """Alertmanager of the shipped configuration, with minutes as seconds; `webhook` is told what each receiver is."""

    def __init__(self, folder: Path, webhook: str = "") -> None:
        folder.mkdir()
        shipped = yaml.safe_load(minutes_as_seconds((GRAFANA / "alertmanager" / "alertmanager.yml").read_text()))
        for receiver in shipped["receivers"] if webhook else ():
            receiver["webhook_configs"] = [{"url": f"{webhook}/{receiver['name']}"}]
        config = folder / "alertmanager.yml"
        config.write_text(yaml.safe_dump(shipped))
        super().__init__(
            "prometheus-alertmanager",
            f"--config.file={config}",
            f"--storage.path={folder / 'data'}",
            "--cluster.listen-address=",
            "--log.level=warn",
            log=folder / "log",
        )

    def post(self, *alerts: dict[str, str]) -> None:
        """Let alerts with these labels fire."""
        body = json.dumps([{"labels": labels} for labels in alerts]).encode()
        request = urllib.request.Request(f"{self.url}/api/v2/alerts", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def states(self) -> dict[tuple[str, str], str]:
        """Return "active", "suppressed" or "unprocessed" of each (alert, campaign)."""
        alerts = json.loads(self.get("/api/v2/alerts"))
        return {_name(alert["labels"]): alert["status"]["state"] for alert in alerts}


class Inbox:
    """What webhooks were told: (receiver, status, alert, campaign), in order."""

    def __init__(self) -> None:
        self.url = ""
        self.told: list[tuple[str, str, str, str]] = []

    def take(self, receiver: str, message: dict[str, Any]) -> None:
        self.told += [(receiver, alert["status"], *_name(alert["labels"])) for alert in message["alerts"]]


@contextmanager
def webhook() -> Iterator[Inbox]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            inbox.take(self.path.strip("/"), json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        inbox.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield inbox
        finally:
            server.shutdown()
