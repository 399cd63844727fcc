"""In which campaigns and windows two counts differ, by how much, and from which outcomes."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from streams.replay.document import Row
from streams.replay.tally import REFUSED

COUNTS: Final = ("served", "measurable", "viewable", "clicks")
Place = tuple[str, str, int]
"""(campaign, currency, start of the minute in ms)."""

_NOTHING: Final[Row] = {}


class Difference(NamedTuple):
    """One window that differs: what it has in one count, in the other, and what became of more or fewer renders."""

    campaign_id: str
    currency: str
    start: int
    figures: dict[str, tuple[Any, Any]]
    outcomes: dict[str, int]

    def as_json_values(self) -> Row:
        """Return it as values, each figure as [before, after]."""
        told = {"campaign_id": self.campaign_id, "currency": self.currency, "start": self.start}
        return told | {"figures": {name: list(pair) for name, pair in self.figures.items()}, "outcomes": self.outcomes}


def differences(
    before: Mapping[Place, Row],
    after: Mapping[Place, Row],
    refused_before: Mapping[tuple[str, int], Row],
    refused_after: Mapping[tuple[str, int], Row],
) -> Iterator[Difference]:
    """Yield the windows whose figures differ, in order of campaign, currency and time; one without a window has 0."""
    for place in sorted(before.keys() | after.keys()):
        one, other = _figures(before.get(place)), _figures(after.get(place))
        figures = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
        if figures:
            where = (place[0], place[2])
            outcomes = _outcomes(refused_before.get(where, _NOTHING), refused_after.get(where, _NOTHING))
            outcomes["counted"] = other["counted"] - one["counted"]
            yield Difference(*place, figures, {name: more for name, more in outcomes.items() if more})


def _figures(row: Row | None) -> Row:
    """Return what is compared: counts, spend, and how many events counted; not ratios, which follow from them."""
    if row is None:
        return dict.fromkeys(COUNTS, 0) | {"spend": "0", "counted": 0}
    return {name: row[name] for name in COUNTS} | {"spend": _plain(row["spend"]), "counted": row["revision"]}


def _plain(spend: str) -> str:
    return "0" if Decimal(spend) == 0 else spend


def _outcomes(before: Row, after: Row) -> dict[str, int]:
    return {name: after.get(name, 0) - before.get(name, 0) for name in REFUSED}
