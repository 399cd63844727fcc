"""The shipped dashboards, and what they and the rules ask Prometheus for."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser

from tests.monitoring import GRAFANA, all_rules

FILES = sorted((GRAFANA / "dashboards").glob("*.json"))

EVERYTHING = {"campaign": ".*", "job": ".*", "topic": ".*", "currency": "USD", "window": "1m"}
"""A choice for each variable."""
INTERVALS = {"__rate_interval": "10s", "__range": "5m"}

_VARIABLE = re.compile(r"\$(\w+)")
_RECORDED = re.compile(r"\w+:\w+:\w+")


class Query(NamedTuple):
    """One query of a panel, with its variables as they are written."""

    dashboard: str
    panel: str
    text: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.text}"


def load(file: Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(file.read_text())
    return dashboard


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    return [
        Query(file.stem, panel["title"], target["expr"])
        for file in FILES
        for panel in panels(load(file))
        for target in panel["targets"]
    ]


def filled_in(text: str) -> str:
    """Return a query as Grafana sends it: with a value for each variable."""
    return _VARIABLE.sub(lambda found: (EVERYTHING | INTERVALS)[found[1]], text)


def expressions() -> list[str]:
    """Return every expression of dashboards and rules."""
    return [*(filled_in(query.text) for query in queries()), *(rule["expr"] for rule in all_rules())]


def selectors(expression: str) -> Iterator[Any]:
    """Yield every vector selector of an expression, wherever it stands."""
    yield from _selectors(promql_parser.parse(expression))


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from _selectors(one)


def metrics(texts: Iterable[str]) -> set[str]:
    return {selector.name for text in texts for selector in selectors(text)}


def is_recorded(metric: str) -> bool:
    return _RECORDED.fullmatch(metric) is not None
