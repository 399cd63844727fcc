"""The figures of /api/campaigns: the same state and the same ratios as /metrics, as JSON.

Money is a decimal string, a rate is a number, and what is undefined is null.
"""

from typing import Any

import orjson

from streams.core import rates
from streams.core.events import NO_CURRENCY, TOPICS
from streams.core.money import decimal_text
from streams.core.panes import Cell
from streams.core.rules import OUTCOME_NAMES
from streams.metrics.reading import Line
from streams.web.snapshot import Snapshot, Steps
from streams.wire.events import REASONS

Row = dict[str, Any]
_AT_ONCE = 100
"""Rows that are written between two moments at which others may have their turn."""


def as_json(snapshot: Snapshot) -> Steps[bytes]:
    """Return the document, a row a campaign and currency, those that served most in the shortest window first."""
    lines = sorted(snapshot.lines, key=_served, reverse=True)
    parts = []
    for start in range(0, len(lines), _AT_ONCE):
        yield None
        rows = [campaign(snapshot, line) for line in lines[start : start + _AT_ONCE]]
        yield None
        parts.append(orjson.dumps(rows)[1:-1])
    yield None
    head = orjson.dumps({"windows": snapshot.settings.windows, "stream": stream(snapshot)})
    return b"%s,%s}" % (head[:-1], b'"campaigns":[' + b",".join(parts) + b"]")


def _served(line: Line) -> int:
    return line.windows[0].served if line.windows else -1


def campaign(snapshot: Snapshot, line: Line) -> Row:
    """Return the row of a campaign and currency. Rates of counts are the campaign's, over its currencies."""
    series, counts = line.series, snapshot.counts.get(line.series.campaign_id, [])
    agreed = snapshot.reading.campaigns.by_id.get(series.campaign_id)
    names, min_sample = snapshot.settings.windows, snapshot.settings.min_sample
    return {
        "campaign_id": series.campaign_id,
        "name": agreed.name if agreed else "",
        "currency": series.currency,
        "viewability_target": agreed.viewability_target if agreed else None,
        "total": _counts(line.total) if series.source else None,  # `_other` has windows only
        "windows": {
            name: _counts(cell) | _money(cell, series.currency, min_sample) | _rates(count, min_sample)
            for name, cell, count in zip(names, line.windows or (), counts, strict=False)
        },
    }


def stream(snapshot: Snapshot) -> Row:
    """Return how the stream does: events by outcome, what waits, lag."""
    reading = snapshot.reading
    states = list(reading.partitions.values())
    heads = [head for rollup in reading.rollups.values() for head in rollup.heads.values()]
    return {
        "events": {
            topic: {
                outcome: sum(state.progress[topic].outcomes[number] for state in states)
                for number, outcome in enumerate(OUTCOME_NAMES)
            }
            for topic in TOPICS
        },
        "pending": {topic: sum(state.pending[topic] for state in states) for topic in TOPICS},
        "dead_letters": {reason: sum(state.reasons.get(reason, 0) for state in states) for reason in REASONS},
        "lag": sum(reading.lag.values()),
        "lag_by_topic": {
            topic: sum(lag for place, lag in reading.lag.items() if place[0] == topic)
            for topic in sorted({place[0] for place in reading.lag})
        },
        "windows_end_ms": snapshot.windows_end_ms(),
        "remembered": sum(len(state.impressions) for state in states),
        "partitions": len(states),
        "campaign_partitions": len(reading.rollups),
        "campaign_partitions_of_all": max((head.partitions for head in heads), default=None),
        "overflow_campaigns": snapshot.overflow,
        "up_to_date": reading.up_to_date,
        "not_ready": snapshot.not_ready,
    }


def _counts(cell: Cell) -> Row:
    return {
        "served": cell.served,
        "measurable": cell.measurable,
        "viewable": cell.viewable,
        "clicks": cell.clicks,
        "spend": decimal_text(cell.spend),
    }


def _money(cell: Cell, currency: str, min_sample: int) -> Row:
    """Return what has a count below the smallest sample, or no price, as null."""
    enough = max(1, min_sample) if currency != NO_CURRENCY else float("inf")
    return {
        "cpm": rates.per_thousand(cell.spend, cell.served) if cell.served >= enough else None,
        "vcpm": rates.per_thousand(cell.spend, cell.viewable) if cell.viewable >= enough else None,
        "cpc": rates.each(cell.spend, cell.clicks) if cell.clicks >= enough else None,
    }


def _rates(counts: Cell, min_sample: int) -> Row:
    return {
        "viewable_rate": rates.viewable_rate(counts, min_sample),
        "viewable_of_served": rates.viewable_of_served(counts, min_sample),
        "measured_rate": rates.measured_rate(counts, min_sample),
        "ctr": rates.ctr(counts, min_sample),
    }
