"""The report for people: one page that needs nothing but itself.

Law: what senders wrote, such as names of campaigns, is text: nothing in it is markup, style or address.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from itertools import pairwise
from typing import IO, Any, Final

from streams.core.panes import TUMBLING_MS
from streams.replay.document import Document, Row

CHARTED: Final = 12
"""Campaigns that have charts: those that served most."""
_POINTS: Final = 360
_WIDTH, _HEIGHT = 720, 140

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --a: #2f6fde; --b: #1a936f; --c: #c2571a }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h2, h3 { margin: 2rem 0 .5rem; overflow-wrap: anywhere } h3 { font-size: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; max-width: 24rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .85rem } svg { width: 100%; height: auto; background: #8881 }
svg text { font-size: 11px; fill: currentColor } .a { stroke: var(--a) } .b { stroke: var(--b) } .c { stroke: var(--c) }
polyline { fill: none; stroke-width: 1.5 } i { font-style: normal; font-weight: 600 }
i.a { color: var(--a) } i.b { color: var(--b) } i.c { color: var(--c) }
"""

Points = list[tuple[int, dict[str, int]]]
"""(start of a minute or of several in ms, sums of figures)."""


def write_html(document: Document, file: IO[bytes]) -> None:
    """Write a report as a page in UTF-8."""
    for part in _page(document):
        file.write(part.encode())


def _page(document: Document) -> Iterator[str]:
    parameters, summary = document.parameters, document.summary
    rows = [*document.campaigns()]
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>Replay</title>'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<style>{_STYLE}</style><h1>Replay of {_range(parameters)}</h1>"
    yield f"<p>{_finality(parameters, summary)}</p><h2>Campaigns</h2>{_table(_campaign_lines(rows))}"
    yield "<h2>By the minute</h2>"
    for row, points in _charted(document, rows):
        yield f"<h3>{escape(row['campaign_id'])} ({escape(row['currency'])})</h3>{_charts(points, row['currency'])}"
    yield f"<h2>What became of what was read</h2>{_table(_outcome_lines(summary['events']))}"
    yield f"<h2>Parameters</h2>{_table(_parameter_lines(parameters))}</html>\n"


def _range(parameters: Row) -> str:
    start, stop = parameters["from"], parameters["to"]
    begin = "the beginning" if start is None else _clock(start)
    return f"{begin} to {'the end' if stop is None else _clock(stop)}, UTC"


def _finality(parameters: Row, summary: Row) -> str:
    if parameters["to"] is not None and summary["final_before"] >= parameters["to"]:
        return "All windows are final: nothing acceptable can change them any more."
    return f"Windows that end after {_clock(summary['final_before'])} are not final yet."


def _clock(ts_ms: int) -> str:
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M}"


# --- tables -----------------------------------------------------------------------------------------------------------

_COLUMNS: Final[list[tuple[str, Callable[[Row], str]]]] = [
    ("Campaign", lambda row: row["campaign_id"]),
    ("Currency", lambda row: row["currency"]),
    *(
        (name.capitalize(), lambda row, name=name: f"{row[name]:,}")
        for name in ("served", "measurable", "viewable", "clicks")
    ),
    ("Spend", lambda row: f"{Decimal(row['spend']):,.2f}"),
    ("CPM", lambda row: _money(row["cpm"])),
    ("vCPM", lambda row: _money(row["vcpm"])),
    ("Viewable rate", lambda row: _percent(row["viewable_rate"])),
    ("Measured rate", lambda row: _percent(row["measured_rate"])),
]


def _money(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _campaign_lines(rows: Iterable[Row]) -> Iterator[list[str]]:
    yield [name for name, _ in _COLUMNS]
    for row in rows:
        yield [text(row) for _, text in _COLUMNS]


def _outcome_lines(events: Row) -> Iterator[list[str]]:
    names = [*events["renders"]]
    yield ["Topic", *names]
    for topic, counts in events.items():
        yield [topic, *(f"{counts[name]:,}" for name in names)]


def _parameter_lines(parameters: Row) -> Iterator[list[str]]:
    yield ["Name", "Value"]
    for name, value in (*parameters.items(), *parameters["rules"].items()):
        if name != "rules":
            yield [name, str(value)]


def _table(lines: Iterable[list[str]]) -> str:
    head, *body = lines
    cells = ["".join(f"<td>{escape(text)}</td>" for text in line) for line in body]
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f'<div class="wide"><table><tr>{titles}</tr>{"".join(f"<tr>{one}</tr>" for one in cells)}</table></div>'


# --- charts -----------------------------------------------------------------------------------------------------------


def _charted(document: Document, rows: list[Row]) -> Iterator[tuple[Row, Points]]:
    """Yield the campaigns that served most, with their figures over time: minutes, or several where there are many."""
    largest = sorted(rows, key=lambda row: (-row["served"], row["campaign_id"], row["currency"]))[:CHARTED]
    names = {(row["campaign_id"], row["currency"]) for row in largest}
    minutes: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for one in document.windows():
        if (one.campaign_id, one.currency) in names:
            figures = {"served": one.served, "measurable": one.measurable, "viewable": one.viewable}
            minutes[one.campaign_id, one.currency][one.start] = figures | {"spend": Decimal(one.spend)}
    for row in largest:
        yield row, _thinned(minutes[row["campaign_id"], row["currency"]])


def _thinned(minutes: dict[int, Any]) -> Points:
    if not minutes:
        return []
    step = TUMBLING_MS * (1 + (max(minutes) - min(minutes)) // (TUMBLING_MS * _POINTS))
    sums: dict[int, Any] = {}
    for start, figures in sorted(minutes.items()):
        total = sums.setdefault(start - start % step, dict.fromkeys(figures, 0))
        for name, value in figures.items():
            total[name] += value
    return [*sums.items()]


def _charts(points: Points, currency: str) -> str:
    rates = {"b": _ratio(points, "viewable", "measurable"), "a": _ratio(points, "measurable", "served")}
    counts = f'<i class="a">served</i> and <i class="b">viewable</i> impressions, {_step(points)}'
    charts = [
        (counts, _counts(points), "{:,.0f}"),
        (f'<i class="c">vCPM</i>, {escape(currency)}', {"c": _ratio(points, "spend", "viewable", 1000)}, "{:,.2f}"),
        ('<i class="b">viewable rate</i> and <i class="a">measured rate</i>', rates, "{:.0%}"),
    ]
    times = [start for start, _ in points]
    figures = [f"<figcaption>{title}</figcaption>{_svg(times, lines, form)}" for title, lines, form in charts]
    return f'<div class="charts">{"".join(f"<figure>{one}</figure>" for one in figures)}</div>'


def _step(points: Points) -> str:
    minutes = min((later - start for (start, _), (later, _) in pairwise(points)), default=TUMBLING_MS) // TUMBLING_MS
    return "by the minute" if minutes == 1 else f"by {minutes} minutes"


def _counts(points: Points) -> dict[str, list[float | None]]:
    return {mark: [float(sums[name]) for _, sums in points] for mark, name in (("a", "served"), ("b", "viewable"))}


def _ratio(points: Points, above: str, below: str, times: int = 1) -> list[float | None]:
    return [float(sums[above]) * times / sums[below] if sums[below] else None for _, sums in points]


def _svg(times: list[int], lines: dict[str, list[float | None]], form: str) -> str:
    """Draw lines over time; where a value is undefined a line is broken."""
    highest = max((value for line in lines.values() for value in line if value is not None), default=0.0) or 1.0
    first, span = times[0], max(1, times[-1] - times[0])
    drawn = []
    for mark, values in lines.items():
        for piece in _pieces(values):
            at = " ".join(
                f"{(times[n] - first) / span * _WIDTH:.1f},{_HEIGHT - value / highest * (_HEIGHT - 16):.1f}"
                for n, value in piece
            )
            drawn.append(f'<polyline class="{mark}" points="{at}"/>')
    labels = (
        f'<text x="4" y="12">{form.format(highest)}</text><text x="4" y="{_HEIGHT - 4}">{_clock(times[0])}</text>'
        f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 4}" text-anchor="end">{_clock(times[-1])}</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}{labels}</svg>'


def _pieces(values: list[float | None]) -> Iterator[list[tuple[int, float]]]:
    piece: list[tuple[int, float]] = []
    for number, value in enumerate(values):
        if value is not None:
            piece.append((number, value))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece
