"""The page of a real worker on real Kafka, in a real browser: live, equal to /metrics, and safe from what it shows."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from streams.kafka.broker import EmbeddedBroker
from tests.browser import Browser, browser
from tests.conftest import create_topics
from tests.test_worker import now_ms, render, view
from tests.worker import WorkerProcess, send, wait_until

PREFIX = "page-"
SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
HOSTILE = {
    SCRIPT: SCRIPT,
    "two\nlines": "two lines",
    "🦊 herbst": "🦊 herbst",
    "\u202egnihsihp": "\u202egnihsihp",
    "' onmouseover='alert(3)": "' onmouseover='alert(3)",
    "{{x}} ${x} &lt;b&gt;": "{{x}} ${x} &lt;b&gt;",
    "x" * 256: "x" * 200 + "...",
}
"""Campaign id -> how it is shown."""
LONG_NAME = "<b>" + "long " * 2_000
CAMPAIGNS = 60
"""More than one page of rows, with the hostile ones."""


class Page:
    """The page, and how one worker's events come onto it."""

    def __init__(self, bootstrap: str, worker: WorkerProcess, tab: Browser) -> None:
        self.bootstrap, self.worker, self.tab = bootstrap, worker, tab
        self.sent = 0

    def open(self, query: str = "") -> "Page":
        self.tab.driver.get(self.worker.url + "/" + query)
        return self.is_live()

    def is_live(self) -> "Page":
        wait_until(lambda: self.tab.text("#state") == "live", "the page is live")
        return self

    def send(self, campaign: str, renders: int, viewable: int, **fields: Any) -> None:
        """Send renders and a view of each."""
        ts, numbers = now_ms(), range(self.sent, self.sent + renders)
        self.sent = numbers.stop
        send(self.bootstrap, PREFIX + "renders", (render(n, ts, campaign, **fields) for n in numbers))
        kinds = ["viewable"] * viewable + ["not_viewable"] * (renders - viewable)
        views = (view(n, ts, kind) for n, kind in zip(numbers, kinds, strict=True))
        send(self.bootstrap, PREFIX + "viewability", views)

    def rows(self) -> list[dict[str, str]]:
        """What each row shows, by slot."""
        return list(
            self.tab.script(
                "return [...document.querySelectorAll('[data-list=rows] > tr')].map((row) => Object.fromEntries("
                "[...row.querySelectorAll('[data-text]')].map((cell) => [cell.dataset.text, cell.innerText])))"
            )
        )

    def row(self, campaign: str) -> dict[str, str]:
        found = [row for row in self.rows() if campaign in (row["campaign"], row["id"])]
        return found[0] if found else {}

    def press(self, *keys: str) -> None:
        ActionChains(self.tab.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.tab.script("return document.activeElement.id || document.activeElement.innerText"))

    def tab_to(self, text: str) -> None:
        """Press Tab until the element of this text has the focus."""
        for _ in range(60):
            self.press(Keys.TAB)
            if self.focused().startswith(text):
                return
        raise AssertionError(f"Tab never comes to {text}")


@pytest.fixture(scope="module")
def worker(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    asyncio.run(create_topics(broker.bootstrap, PREFIX, 2))
    file = Path(tmp_path_factory.mktemp("page")) / "campaigns.toml"
    file.write_text(f'[campaigns.named]\nname = "{LONG_NAME}"\nviewability_target = 0.7\n')
    with WorkerProcess(broker.bootstrap, PREFIX, campaigns=str(file), session_timeout="60s") as running:
        yield running.ready()


@pytest.fixture(scope="module")
def page(broker: EmbeddedBroker, worker: WorkerProcess) -> Iterator[Page]:
    """The page with hostile campaigns and many others, all counted."""
    with browser() as tab:
        page = Page(broker.bootstrap, worker, tab)
        for campaign in HOSTILE:
            page.send(campaign, 4, 1)
        page.send("named", 20, 9)
        for number in range(CAMPAIGNS):
            page.send(f"c{number:02}", 1, 1)
        events = page.sent
        worker.wait_consumed(renders=events, viewability=events)
        wait_until(lambda: len(worker.totals()) == CAMPAIGNS + len(HOSTILE) + 1, "all campaigns are shown")
        yield page


@pytest.fixture(autouse=True)
def nothing_to_complain_about(page: Page) -> Iterator[None]:
    page.tab.complaints()
    page.tab.asked()
    yield
    assert page.tab.complaints() == []
    assert asked_elsewhere(page.tab, page.worker) == []


def asked_elsewhere(tab: Browser, worker: WorkerProcess) -> list[str]:
    """What was asked of any other address than the worker's."""
    return [address for address in tab.asked() if not address.startswith(worker.url + "/")]


def test_figures_change_while_one_looks_and_equal_metrics(page: Page) -> None:
    page.open("?window=1h&find=named")
    paths = {address.removeprefix(page.worker.url) for address in page.tab.asked()}
    assert {"/?window=1h&find=named", "/page.css", "/page.js", "/live?window=1h&find=named"} <= paths
    before = int(page.row("named")["served"])
    page.send("named", 1_180, 701, price="2.5")
    wait_until(lambda: int(page.row("named")["served"].replace(",", "")) == before + 1_180, "renders are shown")
    wait_until(lambda: page.row("named")["viewable"] == "710", "views are shown")
    metric, row = page.worker.metric, page.row("named")
    labels = {"campaign": "named", "window": "1h"}
    for name in ("served", "measurable", "viewable", "clicks"):
        assert row[name] == f"{metric(f'ads_window_{name}', currency='USD', **labels):,.0f}"
    for name in ("viewable_rate", "viewable_of_served", "measured_rate"):
        assert row[name] == f"{metric(f'ads_{name}', **labels):.2%}"
    for name in ("cpm", "vcpm"):
        assert row[name] == f"{metric(f'ads_{name}', currency='USD', **labels):,.3f}"
    assert row["spend"] == f"{metric('ads_window_spend', currency='USD', **labels):,.2f}"
    assert row["total_served"] == f"{metric('ads_served_impressions_total', campaign='named'):,.0f}" == "1,200"
    assert row["target"] == "below 70%"
    counted = page.worker.metric("streams_events_total", topic="renders", outcome="counted")
    assert page.tab.text("[data-list=outcomes] tr td") == f"{counted:,.0f}"
    wait_until(lambda: page.tab.text("[data-text=lag]") == "0 records", "nothing is left to read")
    assert page.tab.script("return document.querySelectorAll('[data-list=rows] path[d]').length") == 3
    label = page.tab.script("return document.querySelector('[data-aria-label=rate_trend]').getAttribute('aria-label')")
    assert label.startswith("Viewable rate, last 60 min: lowest ")


def test_hostile_names_are_text(page: Page) -> None:
    page.open("?window=1h&sort=served")
    shown = {row["campaign"] for row in page.rows()}
    assert set(HOSTILE.values()) <= shown
    assert page.row("named")["campaign"] == LONG_NAME[:200] + "..."
    assert page.tab.script("return document.querySelector('main script, main img, main b, [onmouseover]')") is None
    page.open("?window=1h&find=%3Cscript")
    assert [row["campaign"] for row in page.rows()] == [SCRIPT]
    width = page.tab.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width == 0, "a long name does not widen the page"


def test_a_campaign_id_that_is_too_long_is_malformed_and_the_page_says_so(page: Page) -> None:
    page.open()
    before = page.worker.metric("streams_dead_letters_total", reason="out_of_range") or 0
    viewer, event = render(page.sent, now_ms(), "y" * 10_000)
    send(page.bootstrap, PREFIX + "renders", [(viewer, event)])
    wait_until(
        lambda: page.worker.metric("streams_dead_letters_total", reason="out_of_range") == before + 1, "it is a letter"
    )
    wait_until(lambda: page.tab.text("[data-text=dead_letters]") == f"{before + 1:.0f}", "the page says so")


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    page.open("?window=5m")
    page.press("/")
    assert page.focused() == "find"
    page.press("C0")
    wait_until(lambda: {row["campaign"] for row in page.rows()} == {f"c0{n}" for n in range(10)}, "what is found")
    page.press(Keys.ESCAPE)
    wait_until(lambda: len(page.rows()) == 50, "all again")
    page.tab_to("Next")
    page.press(Keys.ENTER)
    last = CAMPAIGNS + len(HOSTILE) + 1 - 50
    wait_until(lambda: len(page.rows()) == last, "the next page")
    page.tab_to("Campaign")
    page.press(Keys.ENTER)
    wait_until(lambda: sorted_by(page) == ("campaign", "ascending"), "sorted by name")
    assert page.focused().startswith("Campaign"), "the focus stays where it is"
    page.press(Keys.ENTER)
    wait_until(lambda: sorted_by(page) == ("campaign", "descending"), "and the other way round")
    shown = [row["campaign"].casefold() for row in page.rows()]
    assert shown == sorted(shown, reverse=True)
    page.tab.driver.back()
    wait_until(lambda: sorted_by(page) == ("campaign", "ascending"), "back is where one was")
    page.press(Keys.TAB)
    outline = page.tab.script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "one sees where the focus is"


def sorted_by(page: Page) -> tuple[str, str]:
    head = page.tab.driver.find_element(By.CSS_SELECTOR, "th[aria-sort]")
    return str(head.get_attribute("class")), str(head.get_attribute("aria-sort"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_both_schemes_and_on_a_small_screen(page: Page, scheme: str) -> None:
    page.tab.look(400, 800, scheme)
    page.open("?window=1h")
    width = page.tab.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width == 0, "only the tables scroll sideways"
    assert page.tab.script(CONTRASTS) == []
    page.tab.look(1_280, 900)


def test_a_worker_that_stops_answering_is_noticed_and_the_page_goes_on_with_it(page: Page) -> None:
    page.open()
    page.worker.signal(signal.SIGSTOP)
    try:
        silent = "the worker does not answer; these are the last figures"
        wait_until(lambda: page.tab.text("#state") == silent, "the page says so")
        assert page.rows(), "and keeps what it has"
    finally:
        page.worker.signal(signal.SIGCONT)
    page.is_live()


def test_without_scripts_it_is_a_plain_table_with_links_and_a_form(page: Page) -> None:
    served = page.worker.metric("ads_window_served", campaign="named", window="1h")
    with browser(scripts=False) as plain:
        plain.driver.get(page.worker.url + "/?window=1h&find=named")
        assert plain.text("#state") == "as of this moment"
        assert plain.texts("[data-list=rows] [data-text=served]") == [f"{served:,.0f}"]
        plain.driver.find_element(By.CSS_SELECTOR, "th.campaign a").click()
        wait_until(lambda: "sort=campaign" in plain.driver.current_url, "the link is followed")
        assert plain.texts("th[aria-sort=ascending]") == ["Campaign"]
        plain.driver.find_element(By.ID, "find").clear()
        plain.driver.find_element(By.ID, "find").send_keys("c0", Keys.ENTER)
        wait_until(lambda: "find=c0" in plain.driver.current_url, "the form is sent")
        assert plain.texts("[data-list=rows] [data-text=campaign]") == [f"c0{n}" for n in range(10)]
        assert "window=1h" in plain.driver.current_url
        assert "sort=campaign" in plain.driver.current_url
        assert plain.complaints() == []
        assert asked_elsewhere(plain, page.worker) == []


CONTRASTS = """
const parts = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const light = (colour) => {
  const [r, g, b] = parts(colour).map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (parts(colour)[3] !== 0) return colour;
  }
};
const weak = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.matches("a:not([href]), script, noscript")) continue;
  const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) weak.push(`${element.tagName} ${element.textContent.trim()} ${contrast.toFixed(2)}`);
}
return weak;
"""
"""Elements with text of their own whose contrast is below WCAG 2.2's 4.5 (1.4.3); disabled links are exempt there."""
