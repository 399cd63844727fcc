"""Prometheus' text formats for families of very many series; prometheus_client writes all the others.

Law: what is written means the same as what prometheus_client would write of the same samples. Its writer takes 3 us a
line, so a page of 5,000 campaigns would hold the worker for most of a second; here numbers become text all at once.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, compress
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

_AT_ONCE: Final = 2_000
"""Rows whose labels are looked at between two moments at which others may have their turn."""
_SUFFIX: Final = {"counter": b"_total", "gauge": b""}


class Table(NamedTuple):
    """A family of many series: the label text of each, as `Labels` gives it, and its value; NaN is no sample."""

    name: str
    """Without `_total`, of a counter."""
    documentation: str
    type: str
    """"counter" or "gauge"."""
    labels: Sequence[bytes]
    values: NDArray[Any]
    """int64 or float64."""

    def text(self, openmetrics: bool) -> bytes:
        """Return all of its lines. The two formats differ in how they name the family of a counter."""
        sample = self.name.encode() + _SUFFIX[self.type]
        family = self.name.encode() if openmetrics else sample
        head = b"# HELP %s %s\n# TYPE %s %s\n" % (family, self.documentation.encode(), family, self.type.encode())
        labels, values = self.labels, self.values
        absent = np.isnan(values)
        if absent.any():
            labels, values = [*compress(labels, ~absent)], values[~absent]
        if not len(values):
            return head
        numbers = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        return head + (sample + (b"%b\n" + sample).join(labels) + b"%b\n") % tuple(numbers)


class Labels:
    """The label texts of tables, kept from page to page: to join and escape them costs more than all the numbers do."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[tuple[str, ...], list[bytes]]] = {}

    def texts(
        self, names: tuple[str, ...], rows: Iterable[tuple[str, ...]], each: Sequence[str] | None = None
    ) -> Generator[None, None, list[bytes]]:
        """Return the label text of each row of values, all different, with % twice: a table formats it.

        The last label may have `each` of these values in every row, the same ones for every page: to look for all of
        them at once takes a third of the time. Yields where others may have their turn: a first page takes long.
        """
        known, rows = self._known.get(names, {}), [*rows]
        yield None
        if rows != [*known]:
            texts: dict[tuple[str, ...], list[bytes]] = {}
            for start in range(0, len(rows), _AT_ONCE):
                texts |= {row: known.get(row) or _texts(names, row, each) for row in rows[start : start + _AT_ONCE]}
                yield None
            known = self._known[names] = texts
        return [*chain.from_iterable(known.values())]


def _texts(names: tuple[str, ...], row: tuple[str, ...], each: Sequence[str] | None) -> list[bytes]:
    rows = [row] if each is None else [(*row, last) for last in each]
    return [label_text(names, values).replace(b"%", b"%%") for values in rows]


def label_text(names: tuple[str, ...], values: tuple[str, ...]) -> bytes:
    """Return labels as they stand between a sample's name and its value."""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}} ".encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _Few:
    """A registry of these families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Page:
    """A page in the format that is asked for, written family by family."""

    def __init__(self, accept: str) -> None:
        self._encode, self.content_type = choose_encoder(accept)
        self._openmetrics = "openmetrics" in self.content_type
        self._parts: list[bytes] = []
        self._few: list[Metric] = []

    def write(self, family: Table | Metric) -> None:
        """Add a family."""
        if isinstance(family, Table):
            self._parts.append(family.text(self._openmetrics))
        else:
            self._few.append(family)

    def parts(self) -> list[bytes]:
        """Return the page. What prometheus_client writes comes last: it knows how a page of the format ends."""
        return [*self._parts, self._encode(_Few(self._few))]


def page_of(families: Iterable[Table | Metric | None], accept: str = "") -> bytes:
    """Return a page of these families at once."""
    page = Page(accept)
    for family in families:
        if family is not None:
            page.write(family)
    return b"".join(page.parts())


Families = Iterator[Table | Metric | None]
"""Families as they are read from the state; None where others may have their turn."""
