"""What the counting must give, in plain dicts and lists: slow, obvious, and without a line of `streams`.

It sees the whole log of each topic of one partition at once: first all renders, then all views, then all clicks. So
it knows nothing of arrival order between topics, and that is the definition: whatever the interleaving, this holds.

    logs = {"renders": [(offset, event, appended_ms or None), ...], "viewability": [...], "clicks": [...]}

An event is a dict as the JSON has it; anything else stands for a malformed record.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

PENDING = "pending"
OUTCOMES = ("malformed", "future", "late", "duplicate", "invalid_traffic", "refresh", "orphan", "counted")
FIGURES = ("served", "measurable", "viewable", "clicks", "spend", "gross", "revision", "declared", "over_cap")
SCALE = {"cpm": 1_000, "impression": 1, "micros_cpm": 1_000_000_000, "micros_impression": 1_000_000}

Event = dict[str, Any]
Log = list[tuple[int, Any, int | None]]
Logs = dict[str, Log]


@dataclass(frozen=True)
class Contract:
    """The numbers of the rules, in ms, and a switch (None or False: off) for each rule that can be absent."""

    lateness: int = 3_600_000
    dedup: int = 3_600_000
    horizon: int = 3_600_000
    early: int = 10_000
    future: int | None = None
    """How far an event may lie ahead of its record's own time."""
    invalid_traffic: Callable[[Event], str | bool | None] | None = None
    """Whether a render is invalid traffic, or why."""
    refresh: int | None = None
    refresh_slack: int = 60_000
    count_user_refresh: bool = False
    signal: Callable[[Event, Event], str] | None = None
    """(render, view) -> the kind that the standard makes of a raw signal."""
    click_makes_viewable: bool = False
    agreed: dict[str, Any] = field(default_factory=dict)
    """Campaign -> {"currency": text, "cap": (impressions, period in ms), "pricing": [(from in ms, model, price)]}.

    Each is optional; the price of model "flat" is (cost, booked)."""
    keyed_by_viewer: bool = True
    segments: dict[str, str] = field(default_factory=dict)
    """Dimension -> the field of a render that it looks at."""


@dataclass
class Seen:
    """A render that is neither malformed, future, late nor duplicate."""

    event: Event
    outcome: str
    model: str = "own"
    cost: int = 0
    currency: str = "none"
    capped: bool = False
    """Whether it is among those that a frequency cap looks at."""
    said: set[str] = field(default_factory=set)
    credited: set[str] = field(default_factory=set)
    click_ids: list[str | None] = field(default_factory=list)


@dataclass
class Answer:
    """Outcome of each event by topic and offset, and all figures by (campaign, currency, source, pane).

    Those of a segment by (campaign, currency, source, pane, dimension, value).
    """

    outcomes: dict[str, dict[int, str]]
    cells: dict[tuple[Any, ...], dict[str, int]]
    stream_times: dict[str, int]
    unchecked_refreshes: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    """Invalid renders by reason, where the contract tells a reason."""

    def counts(self, topic: str) -> Counter[str]:
        return Counter(self.outcomes[topic].values())

    def pending(self, topic: str) -> set[int]:
        return {offset for offset, outcome in self.outcomes[topic].items() if outcome == PENDING}


def answer(logs: Logs, contract: Contract = Contract()) -> Answer:
    return _Reading(contract).read(logs)


def cost_nano(event: Event) -> int | None:
    """Exact cost of one impression in 10^-9 currency units, rounded once, half to even."""
    price = event.get("price")
    if price is None:
        return None
    exact = Fraction(str(price)) / SCALE[event.get("price_unit") or "cpm"]
    return round(exact * 1_000_000_000)


def identity(event: Event) -> tuple[str, str]:
    return (event.get("source") or "adserver", event["impression_id"])


class _Reading:
    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.seen: list[Seen] = []
        self.by_identity: dict[tuple[str, str], list[Seen]] = defaultdict(list)
        self.by_place: dict[tuple[Any, ...], list[Seen]] = defaultdict(list)
        self.result = Answer({}, defaultdict(lambda: dict.fromkeys(FIGURES, 0)), {})

    def read(self, logs: Logs) -> Answer:
        for topic, decide in (("renders", self.render), ("viewability", self.view), ("clicks", self.click)):
            self.result.outcomes[topic] = {}
            self.result.stream_times[topic] = -1
            for offset, event, appended in logs.get(topic, []):
                outcome = self.refused(topic, event, appended) or decide(event)
                self.result.outcomes[topic][offset] = outcome
        self.result.cells = dict(self.result.cells)
        return self.result

    def refused(self, topic: str, event: Any, appended: int | None) -> str | None:
        """Rules 1 to 3; what passes them moves stream time."""
        if not isinstance(event, dict):
            return "malformed"
        ts, limit = event["ts"], self.contract.future
        if limit is not None and appended is not None and ts > appended + limit:
            return "future"
        times = self.result.stream_times
        if ts < times[topic] - self.contract.lateness:
            return "late"
        times[topic] = max(times[topic], ts)
        return None

    # --- renders ---

    def render(self, event: Event) -> str:
        if any(self.same(event, seen) for seen in self.by_identity[identity(event)]):
            return "duplicate"
        outcome = self.quality(event)
        seen = self.priced(event, outcome)
        self.seen.append(seen)
        self.by_identity[identity(event)].append(seen)
        self.by_place[place(event)].append(seen)
        if outcome in ("counted", "invalid_traffic"):
            self.add(seen, gross=1)
        if outcome == "counted":
            spend = seen.cost if seen.model in ("own", "cpm", "flat") else 0
            self.add(seen, served=1, revision=1, spend=spend)
            self.add(seen, declared=event.get("refresh") is not None, over_cap=self.is_over_cap(seen))
        return outcome

    def priced(self, event: Event, outcome: str) -> Seen:
        """What was agreed for its campaign holds from its time on; before that, and without, its own price."""
        agreed = self.contract.agreed.get(event["campaign_id"], {})
        begun = [entry for entry in agreed.get("pricing", ()) if entry[0] <= event["ts"]]
        capped = "cap" in agreed and (begun != [] or "pricing" not in agreed)
        capped = capped and bool(event.get("viewer_id")) and self.contract.keyed_by_viewer
        if begun:
            _, model, price = max(begun, key=lambda entry: entry[0])
            return Seen(event, outcome, model, agreed_nano(model, price), agreed.get("currency", "USD"), capped)
        cost = cost_nano(event)
        currency = "none" if cost is None else event.get("currency") or "USD"
        return Seen(event, outcome, "own", cost or 0, currency, capped)

    def is_over_cap(self, seen: Seen) -> bool:
        if not seen.capped:
            return False
        impressions, period = self.contract.agreed[seen.event["campaign_id"]]["cap"]

        def whose(one: Seen) -> tuple[Any, ...]:
            event = one.event
            return event["campaign_id"], event.get("source") or "adserver", event["viewer_id"], event["ts"] // period

        counted = [one for one in self.seen if one.capped and one.outcome == "counted"]
        return sum(whose(one) == whose(seen) for one in counted) > impressions

    def same(self, event: Event, seen: Seen) -> bool:
        return abs(event["ts"] - seen.event["ts"]) <= self.contract.dedup

    def quality(self, event: Event) -> str:
        """Rules 5 and 6."""
        contract = self.contract
        reason = contract.invalid_traffic is not None and contract.invalid_traffic(event)
        if reason:
            self.result.invalid[str(reason)] += 1
            return "invalid_traffic"
        if contract.refresh is None:
            return "counted"
        if contract.count_user_refresh and (event.get("refresh") or {}).get("type") == "user":
            return "counted"
        behind = self.result.stream_times["renders"] - event["ts"]
        known = contract.keyed_by_viewer and event.get("viewer_id") and event.get("slot_id")
        if not known or behind > contract.refresh_slack:
            self.result.unchecked_refreshes += 1
            return "counted"
        return "refresh" if any(self.refreshes(event, seen) for seen in self.by_place[place(event)]) else "counted"

    def refreshes(self, event: Event, seen: Seen) -> bool:
        assert self.contract.refresh is not None
        near = abs(event["ts"] - seen.event["ts"]) < self.contract.refresh
        return seen.outcome == "counted" and near

    # --- views and clicks ---

    def view(self, event: Event) -> str:
        seen = self.render_of(event)
        if seen is None:
            return self.without_render(event)
        if seen.outcome != "counted":
            return "orphan"
        kind = event["kind"]
        if kind == "signal":
            kind = "undetermined" if self.contract.signal is None else self.contract.signal(seen.event, event)
        news = {
            "undetermined": set() if seen.said else {"undetermined"},
            "measurable": {"measurable"},
            "not_viewable": {"measurable"},
            "viewable": {"measurable", "viewable"},
        }[kind] - seen.said
        if not news:
            return "duplicate"
        seen.said |= news
        self.add(seen, revision=1)
        self.credit(seen, news - {"undetermined"})
        return "counted"

    def click(self, event: Event) -> str:
        seen = self.render_of(event)
        if seen is None:
            return self.without_render(event)
        if seen.outcome != "counted":
            return "orphan"
        click_id = event.get("click_id") or None
        if click_id in seen.click_ids if click_id else seen.click_ids:
            return "duplicate"
        seen.click_ids.append(click_id)
        self.add(seen, clicks=1, revision=1, spend=seen.cost if seen.model == "cpc" else 0)
        if self.contract.click_makes_viewable:
            self.credit(seen, {"measurable", "viewable"})
        return "counted"

    def render_of(self, event: Event) -> Seen | None:
        """The first non-duplicate render in partition order whose window holds the event."""
        for seen in self.by_identity[identity(event)]:
            if -self.contract.early <= event["ts"] - seen.event["ts"] <= self.contract.horizon:
                return seen
        return None

    def without_render(self, event: Event) -> str:
        """Pending while a render that is not late could lie late enough in time to hold this event."""
        latest_render = event["ts"] + self.contract.early
        earliest_acceptable = self.result.stream_times["renders"] - self.contract.lateness
        return PENDING if latest_render >= earliest_acceptable else "orphan"

    def credit(self, seen: Seen, figures: set[str]) -> None:
        for figure in figures - seen.credited:
            self.add(seen, **{figure: 1})
            if figure == "viewable" and seen.model == "vcpm":
                self.add(seen, spend=seen.cost)
        seen.credited |= figures

    def add(self, seen: Seen, **figures: int) -> None:
        """Add to the pane of the render: to its campaign, and to its segments."""
        render = seen.event
        pane = render["ts"] // 10_000 * 10_000
        place: tuple[Any, ...] = (render["campaign_id"], seen.currency, render.get("source") or "adserver", pane)
        segments = [(name, value_of(render, told)) for name, told in self.contract.segments.items()]
        for where in [place, *[(*place, *segment) for segment in segments]]:
            for figure, value in figures.items():
                self.result.cells[where][figure] += value


def agreed_nano(model: str, price: Any) -> int:
    """What one impression, viewable impression or click costs in 10^-9 currency units, rounded once, half to even."""
    if model == "flat":
        cost, booked = price
        return round(Fraction(str(cost)) / booked * 1_000_000_000)
    return round(Fraction(str(price)) / (1 if model == "cpc" else 1_000) * 1_000_000_000)


def value_of(render: Event, told: str) -> str:
    return render.get(told) or ("display" if told == "format" else "unknown")


def standard(render: Event, signal: Event) -> str:
    """The kind that the MRC's standard for a render makes of a raw signal."""
    form = render.get("format") or "display"
    area = (render.get("width") or 0) * (render.get("height") or 0)
    large = render.get("device") == "desktop" and area >= 242_500
    wanted: dict[str, float] = {
        "audio": {"played_ms": 2_000},
        "video": {"in_view_pct": 50, "continuous_ms": 2_000, "played_ms": 2_000},
    }.get(form, {"in_view_pct": 30 if large else 50, "continuous_ms": 1_000})
    told = {name: signal[name] for name in wanted if signal.get(name) is not None}
    short = any(told[name] < wanted[name] for name in told)
    if short or signal.get("in_focus") is False or (form == "audio" and signal.get("muted")):
        return "not_viewable"
    return "viewable" if told.keys() == wanted.keys() else "undetermined"


def place(event: Event) -> tuple[Any, ...]:
    """Where a refresh would be: the same creative, or without one the same campaign, in one slot of one viewer."""
    what = ("creative", event["creative_id"]) if event.get("creative_id") else ("campaign", event["campaign_id"])
    return (event.get("source") or "adserver", event.get("viewer_id"), event.get("slot_id"), what)
