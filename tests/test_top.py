"""`streams top`: what several workers say on /metrics, added up and shown in the terminal."""

import asyncio
import fcntl
import json
import os
import pty
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streams.cli.screen import COLUMNS, ORDERS, Said, Screen, bars
from streams.core.events import RENDERS, VIEWABILITY
from streams.kafka.broker import EmbeddedBroker
from streams.metrics.fleet import Fleet, PageError, Row, added, page_of, windows_of
from tests.conftest import create_topics
from tests.test_metrics import WINDOWS, Bench, T, render, view
from tests.test_worker import now_ms
from tests.test_worker import render as sent_render
from tests.worker import WorkerProcess, send, wait_until

HOSTILE = 'a"b\\c\nd,e="f"} 1,window="1m"\x1b[31m\u202e\x85x'


def together(*benches: Bench, window: str = "1m") -> Fleet:
    return added([page_of(bench.page(), window) for bench in benches])


def row_of(fleet: Fleet, campaign: str, currency: str = "USD") -> Row:
    (found,) = [row for row in fleet.rows if (row.campaign, row.currency) == (campaign, currency)]
    return found


# --- adding up --------------------------------------------------------------------------------------------------------


def test_one_worker_is_shown_as_it_says() -> None:
    bench = Bench().feed(RENDERS, render(1, price="2"), render(2, price="4", currency="EUR"), render(3, price=None))
    bench.feed(VIEWABILITY, view(1), view(2, "not_viewable"))
    fleet = together(bench)
    for row in fleet.rows:
        both = {"campaign": "spring", "currency": row.currency}
        for name in ("served", "measurable", "viewable", "clicks", "spend"):
            assert getattr(row, name) == bench.value(f"ads_window_{name}", window="1m", **both)
        for name in ("cpm", "vcpm"):
            assert getattr(row, name) == bench.value(f"ads_{name}", window="1m", **both)
        for name in ("viewable_rate", "viewable_of_served", "measured_rate"):
            assert getattr(row, name) == bench.value(f"ads_{name}", window="1m", campaign="spring")
        assert row.total_spend == bench.value("ads_spend_total", **both)
    assert [row.currency for row in fleet.rows] == ["EUR", "USD", "none"]
    assert (row_of(fleet, "spring").vcpm, row_of(fleet, "spring", "EUR").vcpm) == (2.0, None)
    assert (fleet.consumed, fleet.lag, fleet.events["renders"]["counted"]) == (5, 17, 3)


def test_what_several_show_is_added_up_and_its_ratios_are_of_the_sums() -> None:
    one, other = Bench(max_campaigns=1), Bench(max_campaigns=1)
    one.feed(RENDERS, *(render(n, campaign="a") for n in range(9)), render(10, campaign="x", price="1"))
    one.feed(VIEWABILITY, view(10))
    other.feed(RENDERS, *(render(n, campaign="b") for n in range(9)), *(render(n, campaign="y") for n in (10, 11, 12)))
    other.feed(VIEWABILITY, view(10), view(11, "not_viewable"))
    fleet = together(one, other)
    assert [row.campaign for row in fleet.rows] == ["_other", "a", "b"]
    row = row_of(fleet, "_other")
    assert (row.served, row.measurable, row.viewable, row.total_served) == (4, 3, 2, None)
    assert (row.cpm, row.vcpm) == (pytest.approx(19 / 4), pytest.approx(19 / 2))
    assert (row.viewable_rate, row.viewable_of_served, row.measured_rate) == (2 / 3, 2 / 4, 3 / 4)
    assert (fleet.workers, fleet.lag, fleet.partitions, fleet.consumed) == (2, 34, 2, 26 - 1)


def test_names_that_look_like_labels_and_controls_are_names() -> None:
    event = render(1)
    event.campaign_id = HOSTILE
    bench = Bench().feed(RENDERS, event)
    row = row_of(together(bench, window="5m"), HOSTILE)
    assert row.served == 1
    assert windows_of(bench.page()) == WINDOWS
    console = Console(width=250, record=True, file=StringIO(), force_terminal=True)
    console.print(Screen().table([row], 250, trends=False))
    shown = console.export_text()
    assert "\x1b[31m" not in console.export_text(styles=True)
    assert "\u202e" not in shown
    assert len(shown.splitlines()) == 3


def test_a_page_that_is_no_workers_is_refused() -> None:
    for text in ("", "<html>streams_build_info</html>", "streams_build_info{ 1\n", "go_info 1\n"):
        with pytest.raises(PageError):
            page_of(text, "1m")


# --- the screen -------------------------------------------------------------------------------------------------------


def some() -> Fleet:
    bench = Bench().feed(RENDERS, *(render(n, campaign=f"c{n % 3}", price=str(n % 3)) for n in range(6)))
    bench.feed(RENDERS, render(9, campaign="late", ts=T - 100_000))
    return together(bench.feed(VIEWABILITY, view(1), view(2, "not_viewable")))


def shown(screen: Screen) -> list[str]:
    return [row.campaign for row in screen.rows(some())]


def pressed(*keys: str, **given: Any) -> Screen:
    screen = Screen(**({"window": "1m"} | given))
    for key in keys:
        screen.press(key, WINDOWS)
    return screen


def test_keys_choose_column_order_window_and_search() -> None:
    assert ORDERS[0] == "campaign"
    screen = pressed("s", sort="campaign")
    assert (screen.sort, screen.descending) == ("viewable_rate", True)
    screen = pressed("S", sort="viewable_rate")
    assert (screen.sort, screen.descending) == ("campaign", False)
    assert pressed("S", sort="campaign").sort == ORDERS[-1]
    assert pressed("w").window == "5m"
    assert pressed("w", "w", "w").window == "1m"
    assert shown(pressed("r", sort="campaign")) == ["late", "c2", "c1", "c0"]
    assert shown(pressed(sort="viewable_rate")) == ["c1", "c2", "c0", "late"], "what is undefined is last"
    assert shown(pressed("r", sort="viewable_rate"))[:2] == ["c2", "c1"], "and stays last"
    assert shown(pressed(*"/LATX", "\x7f")) == ["late"]
    assert pressed(*"/sq", "\n", "q").find == "sq"
    assert pressed(*"/x", "\n", "\x1b").find == ""
    assert pressed("q").is_done


def test_a_screen_is_as_large_as_the_terminal_and_scrolls_to_the_end() -> None:
    fleet = some()
    said = Said(fleet, ["http://x/metrics does not answer"], None, WINDOWS)
    screen = pressed("\x1b[F")
    for width, height in ((80, 14), (120, 14), (300, 50)):
        console = Console(width=width, height=height, record=True, file=StringIO())
        console.print(screen.drawn(said, width, height, T / 1000))
        lines = console.export_text().splitlines()
        assert len(lines) <= height
        assert all(len(line.rstrip()) <= width for line in lines)
        assert any("does not answer" in line for line in lines)
    assert all(column.title.split("\n")[1] in " ".join(lines) for column in COLUMNS.values())
    assert screen.first == 0, "with room for all there is nothing to scroll"


def test_a_line_shows_gaps_and_has_its_median_in_the_middle() -> None:
    assert bars([0, 0.5, 1, None], 1.0) == "▁▅█ "
    assert bars([3, 3, 9, 0], None) == "▅▅█▁"
    assert bars([None], None) == " "


# --- the command ------------------------------------------------------------------------------------------------------


def top(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", "top", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextmanager
def guarded(page: str, token: str) -> Iterator[str]:
    """The address of a server that shows a page to those with the token."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_let_in = self.headers["Authorization"] == f"Bearer {token}"
            self.send_response(200 if is_let_in else 401)
            self.end_headers()
            self.wfile.write(page.encode() if is_let_in else b"no")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Guard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_token_opens_protected_metrics(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with guarded(Bench().feed(RENDERS, render(1)).page(), "s3cret") as address:
        refused = top(address, "--json")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"streams: http://{address}/metrics wants a token")
        for answer in (
            top(address, "--json", STREAMS_HTTP_TOKEN="s3cret"),
            top(address, "--json", STREAMS_HTTP_TOKEN_FILE=str(file)),
            top(address, "--json", "--token-file", str(file), STREAMS_HTTP_TOKEN="another"),
        ):
            assert (answer.returncode, answer.stderr) == (0, "")
            assert json.loads(answer.stdout)["campaigns"][0]["cpm"] == "6"


def test_what_cannot_be_looked_at_is_one_line_each() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}/metrics"
        ended = top(gone, "127.0.0.1:1")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == (
            f"streams: {gone} does not answer (Connection refused)\n"
            "streams: http://127.0.0.1:1/metrics does not answer (Connection refused)\n"
        )
    for flags, said in (
        (["ftp://x"], "streams: ftp://x: no address such as 127.0.0.1:6066"),
        (["--token-file", "/nowhere"], "streams: --token-file /nowhere: cannot be read: No such file or directory"),
    ):
        ended = top(*flags)
        assert (ended.returncode, ended.stderr.startswith(said)) == (2, True), ended.stderr
    ended = top(STREAMS_HTTP_PORT="0")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


# --- on real workers --------------------------------------------------------------------------------------------------


class Terminal:
    """`streams top` on a terminal, and what it wrote there."""

    def __init__(self, *flags: str) -> None:
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 140, 0, 0))
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "top", *flags],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)

    def press(self, keys: str) -> None:
        self.written = ""
        os.write(self._own, keys.encode())

    def shows(self, *texts: str) -> None:
        """Wait until all of these have been written since the last key."""

        def is_so() -> bool:
            while select.select([self._own], [], [], 0)[0]:
                self.written += os.read(self._own, 65_536).decode(errors="replace")
            return all(text in self.written for text in texts)

        try:
            wait_until(is_so, f"the terminal shows {texts}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it wrote {self.written[-8_000:]!r}") from None

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(10)
        os.close(self._own)
        return code


def test_top_adds_up_the_workers_of_a_group_and_waits_for_one_that_is_away(
    broker: EmbeddedBroker, topic_prefix: str
) -> None:
    asyncio.run(create_topics(broker.bootstrap, topic_prefix, 2))
    ts, expected = now_ms(), {f"c{n}": 30 for n in range(6)}
    with WorkerProcess(broker.bootstrap, topic_prefix) as one, WorkerProcess(broker.bootstrap, topic_prefix) as other:
        wait_until(
            lambda: [worker.metric("streams_partitions_assigned") for worker in (one, other)] == [1, 1], "a share each"
        )
        send(broker.bootstrap, topic_prefix + "renders", (sent_render(n, ts, f"c{n % 6}") for n in range(180)))
        wait_until(lambda: sum(len(worker.totals()) for worker in (one, other)) == 6, "all campaigns are shown")

        def served() -> dict[str, int]:
            answer = top(one.url, other.url, "--json", "--window", "1h")
            assert (answer.returncode, answer.stderr) == (0, "")
            told = json.loads(answer.stdout)
            assert (told["stream"]["workers"], told["stream"]["partitions"]) == (2, 2)
            return {row["campaign"]: row["total_served"] for row in told["campaigns"]}

        wait_until(lambda: served() == expected, "they are added up")
        lines = top(one.url, other.url, "--window", "1h").stdout.splitlines()
        assert [line.split()[0] for line in lines[-6:]] == sorted(expected)
        assert {line.split()[4] for line in lines[-6:]} == {"30"}
        refused = top(one.url, "--window", "3m")
        assert (refused.returncode, refused.stderr) == (2, "streams: --window 3m: the workers have 1m, 5m, 1h\n")

        terminal = Terminal(one.url, other.url, "--every", "200ms")
        terminal.shows("2 workers, 2 partitions", "c0", "c5", "window 1m")
        terminal.press("w")
        terminal.shows("window 5m")
        terminal.press("/C3\r")
        terminal.shows("find: C3", "1 to 1 of 1")
        other.kill()
        terminal.press("\x1b")
        terminal.shows(f"{other.url}/metrics does not answer (Connection refused)", "1 worker")
        port = other.url.rsplit(":", 1)[1]
        with WorkerProcess(broker.bootstrap, topic_prefix, "--http-port", port) as back:
            back.ready()
            terminal.shows("2 workers, 2 partitions")
        terminal.press("q")
        assert terminal.end() == 0
