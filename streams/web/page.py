"""The page: page.html with its slots filled, and the same values for the script that fills them anew.

Law: what stands on the page is made here and nowhere else. The script and `_filled` put the same values into the same
slots, always as text, so that nothing that a campaign is called can become markup.

    data-text="x"              the text of the element is value x
    data-NAME="x"              its attribute NAME is value x; None is no attribute
    data-list="x"              its template is filled once for each of the values x
"""

import re
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from streams.core import rates
from streams.core.events import NO_CURRENCY, TOPICS
from streams.core.panes import Cell
from streams.core.rules import OUTCOME_NAMES
from streams.web.figures import stream
from streams.web.snapshot import Snapshot, Steps
from streams.web.trend import WIDTH, Span, height, in_words, line, points, span_of
from streams.web.view import COLUMNS, ROWS, Entry, Selected, View, percent, price, select

Values = dict[str, Any]

_PAGE: Final = (Path(__file__).parent / "page.html").read_text()
_SLOT: Final = re.compile(
    r' data-list="(?P<list>\w+)"[^>]*><template>(?P<item>.*?)</template>'
    r'| data-text="(?P<text>\w+)">'
    r'| data-(?P<attribute>class|href|value|title|d|aria-[a-z]+)="(?P<value>\w+)"',
    re.DOTALL,
)
_LONGEST_NAME: Final = 200
"""Characters of a name that are shown; /api/campaigns has all of it."""
_ROWS_AT_ONCE: Final = 5
"""For the lines of each, an hour of panes is added up."""
_UNDEFINED: Final = "-"


def as_html(snapshot: Snapshot, view: View) -> Steps[bytes]:
    """Return the whole page, also for those who run no script."""
    values = yield from _values(snapshot, view)
    return _filled(_PAGE, values | {"state": "as of this moment", "state_class": None}).encode()


def as_event(snapshot: Snapshot, view: View) -> Steps[bytes]:
    """Return what the script puts on the page, as a server-sent event."""
    values = yield from _values(snapshot, view)
    return b"data: %s\n\n" % orjson.dumps(values)


def _filled(template: str, values: Values) -> str:
    def slot(found: re.Match[str]) -> str:
        if found["list"]:
            return found[0] + "".join(_filled(found["item"], item) for item in values[found["list"]])
        if found["text"]:
            return found[0] + escape(values[found["text"]])
        value = values[found["value"]]
        return found[0] if value is None else f'{found[0]} {found["attribute"]}="{escape(value)}"'

    return _SLOT.sub(slot, template)


def _values(snapshot: Snapshot, view: View) -> Steps[Values]:
    selected = yield from select(snapshot, view)
    span = span_of(max(snapshot.settings.windows_ms))
    rows = []
    for number, entry in enumerate(selected.entries):
        rows.append(_row(snapshot, entry, span))
        if number % _ROWS_AT_ONCE == 0:
            yield None
    return _state(snapshot, span) | _navigation(snapshot.settings.windows, view, selected) | {"rows": rows}


# --- one row ----------------------------------------------------------------------------------------------------------


def _row(snapshot: Snapshot, entry: Entry, span: Span) -> Values:
    series = entry.line.series
    texts = {name: _shown(column.text, column.value(entry)) for name, column in COLUMNS.items()}
    texts |= {
        "campaign": _cut(entry.name),
        "campaign_id": _cut(series.campaign_id),
        "id": "" if entry.name == series.campaign_id else _cut(series.campaign_id),
    }
    return texts | _target(snapshot, entry) | _trends(snapshot, entry, span)


def _shown(text: Any, value: Any) -> str:
    return _UNDEFINED if value is None else text(value)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."


def _target(snapshot: Snapshot, entry: Entry) -> Values:
    """Return what is said of the viewable rate that was agreed."""
    agreed = snapshot.reading.campaigns.by_id.get(entry.line.series.campaign_id)
    if agreed is None or agreed.viewability_target is None:
        return {"target": "", "below": None, "target_line": None}
    target, rate = agreed.viewability_target, COLUMNS["viewable_rate"].value(entry)
    is_below = rate is not None and rate < target
    return {
        "target": f"{'below' if is_below else 'of'} {target:.0%}",
        "below": "below" if is_below else None,
        "target_line": f"M0 {height(target, 1):.1f}H{WIDTH}",
    }


def _trends(snapshot: Snapshot, entry: Entry, span: Span) -> Values:
    series = entry.line.series
    own = snapshot.slices(series, *span)
    all_currencies = [snapshot.slices(one, *span) for one in snapshot.currencies.get(series.campaign_id, ())]
    seen = points(_added(all_currencies), rates.viewable_rate)
    paid = points(own, rates.vcpm) if series.currency != NO_CURRENCY else []
    return {
        "rate_line": line(seen, 1),
        "rate_trend": in_words(f"Viewable rate, last {span.name}", seen, percent),
        "vcpm_line": line(paid, 2 * median([value for value in paid if value is not None] or [0])),
        "vcpm_trend": in_words(f"vCPM, last {span.name}", paid, price),
    }


def _added(rows: list[list[Cell]]) -> list[Cell]:
    sums, *others = rows or [[]]
    for cells in others:
        for total, cell in zip(sums, cells, strict=True):
            total.add(cell)
    return sums


# --- the rest of the page ---------------------------------------------------------------------------------------------


def _state(snapshot: Snapshot, span: Span) -> Values:
    told = stream(snapshot)
    behind, letters = told["lag"], sum(told["dead_letters"].values())
    return {
        "state": "; ".join(told["not_ready"]) or "live",
        "state_class": "bad" if told["not_ready"] else "good",
        "share": _share(told["campaign_partitions"], told["campaign_partitions_of_all"]),
        "lag": f"{behind:,} record{'' if behind == 1 else 's'}",
        "windows_end": "-" if told["windows_end_ms"] is None else _clock(told["windows_end_ms"]),
        "dead_letters": f"{letters:,}",
        "remembered": f"{told['remembered']:,}",
        "partitions": f"{told['partitions']} of viewers, {told['campaign_partitions']} of campaigns",
        "note": f"Lines show the last {span.name} of event time: the viewable rate from 0 to 100 %, vCPM from 0 to"
        " twice its median. Rates are a campaign's over all its currencies." + _overflow(told["overflow_campaigns"]),
        "outcomes": _outcomes(told),
    }


def _share(owned: int, of_all: int | None) -> str:
    if of_all is None or owned >= of_all:
        return ""
    return (
        f"These are the campaigns of {owned} of {of_all} partitions. Other workers show the others; `streams top` shows"
        " all of them."
    )


def _overflow(campaigns: int) -> str:
    return f" {campaigns:,} campaigns beyond STREAMS_MAX_CAMPAIGNS are one, _other." if campaigns else ""


def _clock(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _outcomes(told: Values) -> list[Values]:
    """Return a row an outcome, and what is not decided yet."""
    counts = {name: {topic: told["events"][topic][name] for topic in TOPICS} for name in reversed(OUTCOME_NAMES)}
    counts |= {"pending": told["pending"], "behind": {topic: told["lag_by_topic"].get(topic, 0) for topic in TOPICS}}
    return [
        {"outcome": name.replace("_", " "), **{topic: f"{count:,}" for topic, count in row.items()}}
        for name, row in counts.items()
    ]


def _navigation(windows: tuple[str, ...], view: View, selected: Selected) -> Values:
    end = selected.first + len(selected.entries)
    page = selected.first // ROWS + 1
    return {
        "window": view.window,
        "sort": view.sort,
        "order": view.order,
        "find": view.find,
        "range": f"{selected.first + 1:,} to {end:,} of {selected.found:,}" if end else "no campaign",
        "previous": view._replace(page=page - 1).address() if page > 1 else None,
        "next": view._replace(page=page + 1).address() if end < selected.found else None,
        "windows": [
            {
                "name": name,
                "href": view._replace(window=name).address(),
                "current": "true" if name == view.window else None,
            }
            for name in windows
        ],
        "columns": [
            {
                "name": name,
                "title": column.title,
                "about": column.about or None,
                "href": view.sorted_by(name).address(),
                "sorted": None if name != view.sort else "descending" if view.descending else "ascending",
            }
            for name, column in COLUMNS.items()
        ],
    }
