"""The figures of /api/campaigns: the same state and the same ratios as /metrics, as JSON.

Money is a decimal string, a ratio is a number, and what is undefined is null.
"""

from typing import Any

from streams.core import rates
from streams.core.events import NO_CURRENCY, TOPICS
from streams.core.money import decimal_text
from streams.core.panes import Cell
from streams.core.rules import OUTCOME_NAMES
from streams.metrics.reading import Reading, shown

Row = dict[str, Any]


def campaigns(reading: Reading, windows: tuple[str, ...], min_sample: int, max_campaigns: int) -> list[Row]:
    """Return a row a campaign and currency as billed, the largest in the shortest window first."""
    rows = [
        {
            "campaign_id": line.series.campaign_id,
            "name": reading.campaigns.name_of(line.series.campaign_id),
            "currency": line.series.currency,
            "total": _counts(line.total),
            "windows": {
                name: _counts(cell) | _ratios(cell, line.series.currency, min_sample)
                for name, cell in zip(windows, line.windows or (), strict=False)
            },
        }
        for line in shown(reading, max_campaigns).billed
    ]
    return sorted(rows, key=lambda row: (-_served(row, windows[0]), row["campaign_id"], row["currency"]))


def stream(reading: Reading) -> Row:
    """Return how the stream does: events by outcome, what waits, lag."""
    states = list(reading.partitions.values())
    return {
        "events": {
            topic: {
                outcome: sum(state.progress[topic].outcomes[number] for state in states)
                for number, outcome in enumerate(OUTCOME_NAMES)
            }
            for topic in TOPICS
        },
        "pending": {topic: sum(state.pending[topic] for state in states) for topic in TOPICS},
        "lag": sum(reading.lag.values()),
        "remembered": sum(len(state.impressions) for state in states),
        "partitions": len(states),
        "up_to_date": reading.up_to_date,
    }


def _served(row: Row, window: str) -> int:
    shown: Row = row["windows"].get(window, {})
    return int(shown.get("served", 0))


def _counts(cell: Cell) -> Row:
    return {
        "served": cell.served,
        "measurable": cell.measurable,
        "viewable": cell.viewable,
        "clicks": cell.clicks,
        "spend": decimal_text(cell.spend),
    }


def _ratios(cell: Cell, currency: str, min_sample: int) -> Row:
    priced = currency != NO_CURRENCY
    return {
        "cpm": rates.cpm(cell, min_sample) if priced else None,
        "vcpm": rates.vcpm(cell, min_sample) if priced else None,
        "viewable_rate": rates.viewable_rate(cell, min_sample),
        "viewable_of_served": rates.viewable_of_served(cell, min_sample),
        "measured_rate": rates.measured_rate(cell, min_sample),
        "ctr": rates.ctr(cell, min_sample),
    }
