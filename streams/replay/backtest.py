"""Which alerts would have fired when: rule files on the series of a run, by a real Prometheus.

Law: Prometheus answers every expression; it never evaluates rules for the past, so what it does with the answers over
time (`for`, `keep_firing_for`) is done here, step by step, as its rule manager does it.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

_PATIENCE_S: Final = 60.0
_POINTS: Final = 10_000
"""Prometheus answers 11,000 a query."""
_DAY_S: Final = 86_400


Labels = dict[str, str]
Answers = dict[float, float]
"""Time in seconds -> value."""


class BacktestError(Exception):
    """A back-test that cannot be made; the message says why."""


class Alert(NamedTuple):
    """An alerting rule, as Prometheus has read it; durations in seconds."""

    name: str
    query: str
    wait_s: float
    """`for`"""
    keep_s: float
    """`keep_firing_for`"""


class Firing(NamedTuple):
    """A time in which an alert would have fired, in seconds since the epoch."""

    alert: str
    labels: Labels
    since: float
    until: float | None
    """None if it still fires at the end."""
    value: float
    """What its expression gave when it began to fire."""


def firings(alert: Alert, labels: Labels, answers: Answers, times: Iterable[float]) -> Iterator[Firing]:
    """Yield when an alert fires, from the answers of its expression at some of the times at which it is asked."""
    active_since = absent_since = fired_since = None
    value = 0.0
    for now in times:
        if now in answers:
            absent_since = None
            active_since = now if active_since is None else active_since
            if fired_since is None and now - active_since >= alert.wait_s:
                fired_since, value = now, answers[now]
        elif active_since is not None:
            absent_since = now if absent_since is None else absent_since
            if fired_since is None or now - absent_since >= alert.keep_s:
                if fired_since is not None:
                    yield Firing(alert.name, labels, fired_since, now, value)
                active_since = absent_since = fired_since = None
    if fired_since is not None:
        yield Firing(alert.name, labels, fired_since, None, value)


def backtest(
    openmetrics: Path, rules: Sequence[Path], folder: Path, start_s: int, stop_s: int, step_s: int
) -> list[Firing]:
    """Return what would have fired between two times, in order. Uses an empty folder. Raises BacktestError."""
    data = folder / "data"
    _promtool("tsdb", "create-blocks-from", "openmetrics", "-q", openmetrics, data)
    with _prometheus(folder, data, rules) as url:
        recorded = folder / "recorded"
        span = (f"--start={start_s}", f"--end={stop_s}", f"--eval-interval={step_s}s", f"--output-dir={recorded}")
        _promtool("tsdb", "create-blocks-from", "rules", f"--url={url}", *span, *rules)
    for block in recorded.glob("*") if recorded.exists() else ():
        shutil.move(block, data / block.name)
    times = [float(now) for now in range(start_s, stop_s + 1, step_s)]
    found: list[Firing] = []
    with _prometheus(folder, data, rules) as url:
        for alert in _alerts(url):
            for labels, answers in _answers(url, alert.query, times, step_s):
                found += firings(alert, labels, answers, times)
    return sorted(found, key=lambda one: (one.since, one.alert, sorted(one.labels.items())))


# --- Prometheus -------------------------------------------------------------------------------------------------------


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BacktestError(f"{name} is not on the PATH, and a back-test wants it (Debian: apt-get install prometheus)")
    return path


def _promtool(*arguments: object) -> None:
    done = subprocess.run([_program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise BacktestError(f"promtool: {said[-1].strip() if said else 'failed'}")


@contextmanager
def _prometheus(folder: Path, data: Path, rules: Sequence[Path]) -> Iterator[str]:
    """Start Prometheus on a data folder; yield its address. It evaluates nothing of its own."""
    config = folder / "prometheus.yml"
    files = [str(path.resolve()) for path in rules]
    config.write_text(json.dumps({"global": {"evaluation_interval": "1d"}, "rule_files": files}))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}")
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_program("prometheus"), *flags, "--storage.tsdb.retention.time=100y"], stdout=output, stderr=output
        )
    try:
        _await_ready(process, f"http://{address}", log)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    said = [line for line in log.read_text(errors="replace").splitlines() if "level=error" in line]
    raise BacktestError(f"prometheus did not start: {said[-1] if said else 'no answer'}")


def _get(url: str, path: str, **parameters: object) -> Any:
    query = urllib.parse.urlencode(parameters).encode()
    request = urllib.request.Request(url + path, query if parameters else None)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise BacktestError(f"prometheus: {json.load(error).get('error', error.reason)}") from None
    except OSError as error:
        raise BacktestError(f"prometheus: {error}") from None


def _alerts(url: str) -> list[Alert]:
    groups = _get(url, "/api/v1/rules")["groups"]
    return [
        Alert(rule["name"], rule["query"], rule["duration"], rule.get("keepFiringFor", 0))
        for group in groups
        for rule in group["rules"]
        if rule["type"] == "alerting"
    ]


def _answers(url: str, query: str, times: Sequence[float], step_s: int) -> list[tuple[Labels, Answers]]:
    """Return, by labels, what an expression gives at each of the times."""
    found: dict[tuple[tuple[str, str], ...], Answers] = {}
    for first in range(0, len(times), _POINTS):
        part = times[first : first + _POINTS]
        answer = _get(url, "/api/v1/query_range", query=query, start=part[0], end=part[-1], step=step_s)
        for series in answer["result"]:
            labels = tuple(sorted((name, text) for name, text in series["metric"].items() if name != "__name__"))
            found.setdefault(labels, {}).update((float(at), float(value)) for at, value in series["values"])
    return [(dict(labels), answers) for labels, answers in found.items()]
