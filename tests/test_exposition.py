"""Pages of very many series, against prometheus_client: its writer of the same samples, and its parsers."""

from functools import partial
from math import isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from streams.metrics.exposition import Labels, Table, page_of
from streams.metrics.reading import at_once
from tests.test_properties import THOROUGH

ACCEPTS = {"": parse_text, "application/openmetrics-text; version=1.0.0": parse_openmetrics}
NAMES = ("campaign", "currency")
FAMILIES: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

hostile = st.sampled_from(['"', "\\", "\n", "\\n", '"} 1', "%", "%b", "%%s"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | hostile
rows_of = partial(st.dictionaries, st.tuples(texts, texts), max_size=5)
series = rows_of(st.integers(0, 2**60)) | rows_of(st.floats(0, 1e18) | st.just(nan))


def read(page: bytes, accept: str) -> Any:
    return [
        (family.name, family.type, [(one.name, one.labels, float(one.value)) for one in family.samples])
        for family in ACCEPTS[accept](page.decode())
    ]


def written_by_the_library(kind: str, rows: dict[tuple[str, str], float], accept: str) -> bytes:
    family = FAMILIES[kind]("ads_x", "What it is", labels=list(NAMES))
    for row, value in rows.items():
        if not isnan(value):
            family.add_metric(list(row), value)

    class Only:
        def collect(self) -> list[Any]:
            return [family]

    registry = CollectorRegistry()
    registry.register(Only())  # type: ignore[arg-type]
    return choose_encoder(accept)[0](registry)


@THOROUGH
@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("kind", FAMILIES)
@given(rows=series)
def test_a_table_says_what_the_library_would_say_of_the_same_samples(kind, accept, rows):
    table = Table("ads_x", "What it is", kind, at_once(Labels().texts(NAMES, rows)), np.array([*rows.values()]))
    page = page_of([table, None], accept)
    assert read(page, accept) == read(written_by_the_library(kind, rows, accept), accept)


@given(rows=st.lists(texts, unique=True, max_size=3), each=st.lists(texts, unique=True, max_size=3))
def test_a_last_label_that_has_each_value_in_every_row_is_as_if_the_rows_had_it(rows, each):
    short = at_once(Labels().texts(NAMES, [(row,) for row in rows], each))
    assert short == at_once(Labels().texts(NAMES, [(row, last) for row in rows for last in each]))


def test_labels_are_kept_for_the_next_page_and_no_longer() -> None:
    labels = Labels()
    (first,) = at_once(labels.texts(NAMES, [("a", "USD")]))
    assert at_once(labels.texts(NAMES, [("b", "USD"), ("a", "USD")]))[1] is first
    at_once(labels.texts(NAMES, []))
    assert at_once(labels.texts(NAMES, [("a", "USD")])) == [first]
    assert at_once(labels.texts(NAMES, [("a", "USD")]))[0] is not first
