"""`streams demo` as its user runs it: one command, a real broker, a worker of its own, a verdict."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from streams.cli.demo import observed
from streams.core.events import RENDERS, VIEWABILITY
from streams.sources.truth import Fact, Truth
from tests.worker import wait_until


class Demo:
    def __init__(self, *flags: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "demo", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.pid = self._process.pid

    def url(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Page "):
                return line.split()[1].rstrip("/")
        raise AssertionError("the demo told no address")

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        said = self._process.communicate(timeout=120)[0]
        return self._process.returncode, said


def processes_of(text: str) -> list[str]:
    """Command lines of running processes that hold a text."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def scrape(url: str) -> tuple[str, list[Any]]:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return page, [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def campaigns_with(url: str, name: str) -> set[str]:
    return {sample.labels["campaign"] for sample in scrape(url)[1] if sample.name == name}


def test_the_demo_shows_six_campaigns_and_ends_with_an_exact_verdict() -> None:
    demo = Demo("--for", "15s")
    url = demo.url()
    for name in ("ads_cpm", "ads_vcpm", "ads_viewable_rate"):
        wait_until(lambda name=name: len(campaigns_with(url, name)) == 6, f"{name} of six campaigns")  # type: ignore[misc]
    page, samples = scrape(url)
    served = {(s.labels["campaign"], s.labels["window"]) for s in samples if s.name == "ads_window_served" and s.value}
    clicked = {(s.labels["campaign"], s.labels["window"]) for s in samples if s.name == "ads_window_clicks" and s.value}
    assert {(s.labels["campaign"], s.labels["window"]) for s in samples if s.name == "ads_cpm"} == served
    assert {(s.labels["campaign"], s.labels["window"]) for s in samples if s.name == "ads_cpc"} == clicked
    promtool = shutil.which("promtool")
    assert promtool, "promtool is needed: apt-get install prometheus"
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    code, said = demo.end()
    assert "Verdict: exact." in said
    assert code == 0


def test_ctrl_c_ends_the_demo_with_a_verdict_and_leaves_nothing_running() -> None:
    demo = Demo("--speed", "500")
    url = demo.url()
    wait_until(lambda: len(campaigns_with(url, "ads_served_impressions_total")) == 6, "all campaigns are counted")
    folder = next(
        part.rsplit("/kafka/", 1)[0]
        for line in processes_of("streams-demo-")
        for part in line.split()
        if "/streams-demo-" in part and "/kafka/" in part
    ).split("=")[-1]
    demo.interrupt()
    code, said = demo.end()
    assert "Verdict: exact." in said
    assert code == 0
    assert not processes_of(folder)
    assert not os.path.exists(folder)
    port = url.rsplit(":", 1)[1]
    wait_until(lambda: not listens(int(port)), "nothing listens on the page's port")


def listens(port: int) -> bool:
    with open("/proc/net/tcp") as table:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in list(table)[1:])


def test_the_verdict_names_what_is_not_equal() -> None:
    truth = Truth()
    now = int(time.time() * 1000)
    truth.note(Fact(RENDERS, "render", None, "spring", "USD", 2_000_000), now)
    truth.note(Fact(RENDERS, "malformed", reason="not_json"), now)
    truth.note(Fact(VIEWABILITY, "view", "render", "spring", "USD", 0, ("measurable", "viewable")), now)
    page = """\
# TYPE streams_events_consumed counter
streams_events_consumed_total{topic="renders"} 2
streams_events_consumed_total{topic="viewability"} 1
streams_events_consumed_total{topic="clicks"} 0
# TYPE streams_events counter
streams_events_total{topic="renders",outcome="counted"} 1
streams_events_total{topic="renders",outcome="malformed"} 1
streams_events_total{topic="viewability",outcome="counted"} 1
# TYPE streams_dead_letters counter
streams_dead_letters_total{reason="not_json"} 1
# TYPE ads_served_impressions counter
ads_served_impressions_total{campaign="spring",currency="USD"} 1
# TYPE ads_measurable_impressions counter
ads_measurable_impressions_total{campaign="spring",currency="USD"} 1
# TYPE ads_viewable_impressions counter
ads_viewable_impressions_total{campaign="spring",currency="USD"} VIEWABLE
# TYPE ads_clicks counter
ads_clicks_total{campaign="spring",currency="USD"} 0
# TYPE ads_spend counter
ads_spend_total{campaign="spring",currency="USD"} 0.002
# EOF
"""
    assert truth.compare(observed(page.replace("VIEWABLE", "1"))) == []
    assert truth.compare(observed(page.replace("VIEWABLE", "0"))) == ["spring in USD: viewable should be 1, is 0"]
