"""What has to come out of counting events that were made for the purpose.

Law: the truth is known from how an event was made, never by counting as the program counts. An event carries a `Fact`;
the truth adds facts up.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from streams.core.events import RENDERS, TOPICS
from streams.core.money import decimal_text, nano_of
from streams.core.rules import OUTCOME_NAMES, Outcome, Rules

PENDING: Final = "pending"
FIGURES: Final = ("served", "measurable", "viewable", "clicks", "spend")

Made = Literal["render", "refresh", "bot", "duplicate", "late", "malformed", "stray", "view", "click"]
"""What an event was made as. A stray is a view or click of an impression that never was."""

_OF_RENDER: Final[Mapping[str, Outcome]] = {
    "render": Outcome.COUNTED,
    "refresh": Outcome.REFRESH,
    "bot": Outcome.INVALID_TRAFFIC,
}
"""What a render was made as -> what becomes of it."""


class Fact(NamedTuple):
    """How an event was made, as far as its outcome and the figures depend on it."""

    topic: str
    made: Made
    of: Made | None = None
    """What the render of a view or click was made as."""
    campaign_id: str = ""
    currency: str = ""
    cost: int = 0
    """Of a render, in nano-units of its currency."""
    gains: tuple[str, ...] = ()
    """The figures that a view adds to, one each."""
    reason: str = ""
    """Why a malformed record is refused."""


class Truth:
    """The expected outcomes of each topic and the expected figures of each campaign and currency."""

    def __init__(self, seed: int = 0, rules: Rules = Rules()) -> None:  # noqa: B008 - frozen
        self.seed = seed
        self._patience_ms = rules.lateness_ms + rules.early_ms
        self._facts: Counter[Fact] = Counter()
        self._newest_render: dict[int, int] = {}
        self._strays: list[tuple[int, str, int]] = []

    def note(self, fact: Fact, at_ms: int, partition: int = 0) -> None:
        """Take note of an event that was sent at a time of the event clock to a partition of its topic."""
        self._facts[fact] += 1
        if fact.made in _OF_RENDER:
            self._newest_render[partition] = at_ms
        elif fact.made == "stray":
            self._strays.append((partition, fact.topic, at_ms))

    @property
    def sent(self) -> int:
        """How many events were noted."""
        return self._facts.total()

    # --- what has to come out ----------------------------------------------------------------------------------------

    def outcomes(self, topic: str) -> dict[str, int]:
        """Return how many events of a topic have each outcome, or are pending; only those that occur."""
        counts: Counter[str] = Counter()
        for fact, count in self._facts.items():
            if fact.topic == topic and fact.made != "stray":
                counts[OUTCOME_NAMES[self._outcome(fact)]] += count
        counts.update(self._stray_outcomes(topic))
        return dict(counts)

    def _outcome(self, fact: Fact) -> Outcome:
        match fact.made:
            case "malformed":
                return Outcome.MALFORMED
            case "late":
                return Outcome.LATE
            case "render" | "refresh" | "bot":
                return _OF_RENDER[fact.made]
        if fact.of is not None and _OF_RENDER[fact.of] is not Outcome.COUNTED:
            return Outcome.ORPHAN
        return Outcome.DUPLICATE if fact.made == "duplicate" else Outcome.COUNTED

    def _stray_outcomes(self, topic: str) -> Iterator[str]:
        """Yield what became of each stray: it waits until every render that it could be of would be late."""
        for partition, of_topic, at_ms in self._strays:
            if of_topic == topic:
                past = at_ms < self._newest_render.get(partition, 0) - self._patience_ms
                yield OUTCOME_NAMES[Outcome.ORPHAN] if past else PENDING

    def reasons(self) -> dict[str, int]:
        """Return how many records are refused for each reason."""
        counts: Counter[str] = Counter()
        for fact, count in self._facts.items():
            if fact.reason:
                counts[fact.reason] += count
        return dict(counts)

    def campaigns(self) -> dict[tuple[str, str], Counter[str]]:
        """Return the figures by (campaign, currency); spend is nano-units, `gross` is served and invalid."""
        rows: dict[tuple[str, str], Counter[str]] = {}
        for fact, count in self._facts.items():
            gains = self._gains(fact)
            if gains:
                row = rows.setdefault((fact.campaign_id, fact.currency), Counter())
                row.update({figure: gain * count for figure, gain in gains.items()})
        return rows

    def _gains(self, fact: Fact) -> dict[str, int]:
        outcome = self._outcome(fact) if fact.made != "stray" else Outcome.ORPHAN
        if fact.topic == RENDERS and outcome is Outcome.INVALID_TRAFFIC:
            return {"gross": 1}
        if outcome is not Outcome.COUNTED:
            return {}
        if fact.topic == RENDERS:
            return {"served": 1, "gross": 1, "spend": fact.cost}
        return {"clicks": 1} if fact.made == "click" else dict.fromkeys(fact.gains, 1)

    # --- telling and comparing ---------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values: spend as decimal text of currency units, campaigns sorted."""
        made: Counter[str] = Counter()
        for fact, count in self._facts.items():
            made[fact.made] += count
        return {
            "seed": self.seed,
            "made": dict(made),
            "events": {topic: self._topic_json(topic) for topic in TOPICS},
            "dead_letters": self.reasons(),
            "campaigns": [_row_json(name, row) for name, row in sorted(self.campaigns().items())],
        }

    def _topic_json(self, topic: str) -> dict[str, Any]:
        outcomes = self.outcomes(topic)
        return {"sent": sum(outcomes.values()), "outcomes": outcomes}

    def compare(self, observed: Mapping[str, Any]) -> list[str]:
        """Return how what was observed differs from the truth, in plain words; nothing if it does not.

        `observed` has the form of `to_json`, with what was consumed as `sent`. Its spend may be text or a number.
        `gross` and `dead_letters` are compared where they are given.
        """
        expected = self.to_json()
        return [
            *(line for topic in TOPICS for line in _topic_differences(topic, expected["events"], observed["events"])),
            *_letter_differences(expected["dead_letters"], observed.get("dead_letters")),
            *_campaign_differences(expected["campaigns"], observed["campaigns"]),
        ]


def _row_json(name: tuple[str, str], row: Counter[str]) -> dict[str, Any]:
    figures = {figure: row[figure] for figure in (*FIGURES, "gross")}
    return {"campaign_id": name[0], "currency": name[1], **figures, "spend": decimal_text(row["spend"])}


def _topic_differences(topic: str, expected: Mapping[str, Any], observed: Mapping[str, Any]) -> Iterator[str]:
    truth, seen = expected[topic], observed.get(topic, {})
    if seen.get("sent", 0) != truth["sent"]:
        yield f"{topic}: {truth['sent']} were sent, {seen.get('sent', 0)} were consumed"
    wanted, found = truth["outcomes"], seen.get("outcomes", {})
    for outcome in (*OUTCOME_NAMES, PENDING):
        if wanted.get(outcome, 0) != found.get(outcome, 0):
            yield f"{topic}: {wanted.get(outcome, 0)} should be {outcome}, {found.get(outcome, 0)} are"


def _letter_differences(expected: Mapping[str, int], observed: Mapping[str, int] | None) -> Iterator[str]:
    for reason in sorted({*expected, *observed}) if observed is not None else ():
        wanted, found = expected.get(reason, 0), (observed or {}).get(reason, 0)
        if wanted != found:
            yield f"dead letters: {wanted} should be {reason}, {found} are"


def _campaign_differences(expected: list[dict[str, Any]], observed: list[dict[str, Any]]) -> Iterator[str]:
    truth, seen = ({(row["campaign_id"], row["currency"]): row for row in rows} for rows in (expected, observed))
    for name in sorted(truth.keys() | seen.keys()):
        words = f"{name[0]} in {name[1]}"
        if name not in seen:
            yield f"{words}: was not observed, {truth[name]['served']} should be served"
        elif name not in truth:
            yield f"{words}: was observed, and nothing was sent of it"
        else:
            yield from _figure_differences(words, truth[name], seen[name])


def _figure_differences(words: str, truth: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[str]:
    for figure in (*FIGURES, *(("gross",) if "gross" in seen else ())):
        wanted, found = truth[figure], seen.get(figure, 0)
        same = nano_of(str(found)) == nano_of(wanted) if figure == "spend" else wanted == found
        if not same:
            yield f"{words}: {figure} should be {wanted}, is {found}"
