"""What /metrics says, found by searching its text: to parse all of a page would take CPU from who is measured."""

import re
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator

from benchmarks.load import Truth

FIGURES = ("served", "measurable", "viewable")
OTHER = "_other"


class Page:
    """The text of /metrics; of several workers, one after the other: each series is shown by one of them."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    @classmethod
    def of(cls, urls: Iterable[str]) -> "Page":
        """Read the pages of workers."""
        texts = []
        for url in urls:
            with urllib.request.urlopen(f"{url}/metrics", timeout=300) as page:
                texts.append(page.read())
        return cls(b"\n".join(texts))

    def has(self, name: str) -> bool:
        """Say whether there is a sample of a name."""
        return next(self._samples(name), None) is not None

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that carry these labels; 0 if there is none."""
        wanted = [f'{label}="{value}"'.encode() for label, value in labels.items()]
        return sum(
            float(sample[2]) for sample in self._samples(name) if all(one in (sample[1] or b"") for one in wanted)
        )

    def by_campaign(self, name: str, **labels: str) -> Counter[str]:
        """Return the samples of a name that carry these labels, by their campaign."""
        wanted = [f'{label}="{value}"'.encode() for label, value in labels.items()]
        found = Counter[str]()
        for sample in self._samples(name):
            if all(one in sample[1] for one in wanted):
                found[sample[1].split(b'campaign="')[1].split(b'"')[0].decode()] += int(float(sample[2]))
        return found

    def _samples(self, name: str) -> Iterator["re.Match[bytes]"]:
        return re.finditer(rb"\n%b(?:\{([^}]*)\})? (\S+)" % name.encode(), self.text)


def exact(page: Page, truth: Truth, *, in_hour: bool = True) -> bool:
    """Say whether a page tells the truth: every event's outcome, and the totals of every campaign that has a name.

    Unless the load is longer than the window of an hour, that has to hold the same, and what no campaign on the page
    stands for has to be in the window of `_other`.
    """
    return outcomes_are_exact(page, truth) and all(
        _figure_is_exact(page, name, getattr(truth, name), truth.served, in_hour) for name in FIGURES
    )


def outcomes_are_exact(page: Page, truth: Truth) -> bool:
    """Say whether a page tells the truth of what became of every event."""
    if page.total("streams_events_consumed_total") != truth.events:
        return False
    counted, duplicates = (page.total("streams_events_total", outcome=name) for name in ("counted", "duplicate"))
    return (counted, duplicates) == (truth.events - truth.duplicates, truth.duplicates)


def _figure_is_exact(page: Page, name: str, wanted: Counter[str], campaigns: Counter[str], in_hour: bool) -> bool:
    totals = page.by_campaign(f"ads_{name}_impressions_total")
    if any(found != wanted[campaign] for campaign, found in totals.items()):
        return False
    if len(campaigns) - len(totals) != page.total("streams_overflow_campaigns"):
        return False
    if not in_hour:
        return len(totals) == len(campaigns)
    rest = wanted.total() - totals.total()
    window = page.by_campaign(f"ads_window_{name}", window="1h")
    return window.pop(OTHER, 0) == rest and window == totals
