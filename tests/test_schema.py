"""`streams schema`: the schema accepts what the decoder accepts, and AsyncAPI's own parser accepts the document."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from streams.cli import app
from streams.core.events import CLICKS, RENDERS, VIEWABILITY, Malformed
from streams.wire.events import decoder
from streams.wire.schema import event_schemas
from tests.logs import click, render, view

EVENTS = {RENDERS: render(), VIEWABILITY: view(), CLICKS: click()}
VALIDATORS = {topic: Draft202012Validator(schema) for topic, schema in event_schemas().items()}
THOROUGH = settings(max_examples=1_500)


def streams(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def decodes(topic: str, event: Any) -> bool:
    return not isinstance(decoder(topic)([json.dumps(event).encode()])[0], Malformed)


def fits(topic: str, event: Any) -> bool:
    return VALIDATORS[topic].is_valid(event)


# --- both ways --------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["", "x", "é" * 256, "x" * 257, "\U0001f600" * 256, "\n", '"', "USD", "usd", "US\n", "ÜSD"])
NAMES = st.sampled_from(
    ["cpm", "micros_cpm", "micros_impression", "impression", "display", "audio", "viewable", "signal", "user", "CPM"]
)
INTEGERS = st.sampled_from([-1, 0, 1, 2**53 - 1, 2**53, 4_102_444_799_999, 4_102_444_800_000, 10**30]) | st.integers()
FLOATS = st.sampled_from([-0.5, -1e-9, 0.5, 99.5, 100.5, 1e6 + 0.5, 2.9e-05, 1e-30])
PRICES = st.sampled_from(
    ["2.5", "+.5", "5.", ".", "-0", "-0.0e3", "-1", " 1", "1_0", "1e5", "1e", "NaN", "١", "0x1"]
) | st.sampled_from([10**6, 10**6 + 1, 10**12, 10**12 + 1])
VALUES = st.one_of(
    st.none(), st.booleans(), TEXTS, NAMES, INTEGERS, FLOATS, PRICES,
    st.just([]), st.just({}), st.just({"type": "user", "count": 1, "min_interval_s": 0.5}), st.just({"type": None}),
    st.fixed_dictionaries({"type": NAMES}, optional={"count": INTEGERS | st.none(), "more": st.just([1])}),
)  # fmt: skip


@st.composite
def tampered(draw: st.DrawFn) -> tuple[str, Any]:
    """An event of which some fields are missing or hold anything; and now and then no object at all."""
    topic = draw(st.sampled_from(list(EVENTS)))
    fields = [*VALIDATORS[topic].schema["properties"], "unknown"]
    event = dict(EVENTS[topic]) | draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=3))
    for name in draw(st.lists(st.sampled_from(sorted(event)), max_size=1)):
        del event[name]
    return topic, draw(VALUES) if draw(st.integers(0, 20)) == 0 else event


@THOROUGH
@given(tampered())
def test_the_schema_accepts_exactly_what_the_decoder_accepts(example):
    topic, event = example
    assert fits(topic, event) == decodes(topic, event), event


@pytest.mark.parametrize("topic", EVENTS)
def test_every_field_is_looked_at(topic):
    for field in VALIDATORS[topic].schema["properties"]:
        assert not fits(topic, EVENTS[topic] | {field: [17]}), field
        assert not decodes(topic, EVENTS[topic] | {field: [17]}), field


@pytest.mark.parametrize(
    ("price", "unit"),
    [("1000001", "cpm"), ("1e31", "cpm"), (1e-31, "cpm"), ("1e13", "micros_cpm")],
)
def test_of_these_prices_a_schema_cannot_say_that_they_are_none(price, unit):
    event = render(price=price, price_unit=unit)
    assert fits(RENDERS, event)
    assert not decodes(RENDERS, event)


@pytest.mark.parametrize("text", ['{"impression_id":"x","ts":2.0}', '{"impression_id":"x","ts":1e3}'])
def test_to_json_schema_an_integer_may_be_written_with_a_point(text):
    assert fits(CLICKS, json.loads(text))
    assert isinstance(decoder(CLICKS)([text.encode()])[0], Malformed)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_topic_has_a_schema_of_its_own_and_without_a_name_all_three_come():
    alone = streams("schema", "renders")
    Draft202012Validator.check_schema(json.loads(alone.stdout))
    assert json.loads(streams("schema").stdout) == event_schemas()
    assert json.loads(alone.stdout) == event_schemas()["renders"]


@pytest.mark.parametrize("arguments", [("letters",), ("renders", "--asyncapi")])
def test_what_has_no_schema_is_a_usage_error(arguments):
    assert streams("schema", *arguments).exit_code == 2


def test_the_parser_of_asyncapi_has_nothing_to_say_about_the_document(tmp_path: Path):
    npm = shutil.which("npm")
    assert npm, "npm is needed: apt-get install nodejs npm"
    shutil.copytree(Path(__file__).parent / "asyncapi", tmp_path, dirs_exist_ok=True)
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund")
    installed = subprocess.run([npm, "ci", *quiet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    document = streams("schema", "--asyncapi", "--topic-prefix", "eu-", "--broker", "kafka:9092").stdout
    assert checked(tmp_path, document) == (
        0,
        [f"eu-{name}" for name in ("renders", "viewability", "clicks", "campaign-windows", "dead-letters")],
    )
    broken = json.loads(document)
    del broken["info"]["version"]
    broken["operations"]["renders"]["action"] = "take"
    code, lines = checked(tmp_path, json.dumps(broken))
    assert code == 1
    assert any("version" in line for line in lines)


def checked(folder: Path, document: str) -> tuple[int, list[str]]:
    node = subprocess.run(
        ["node", "check.cjs"], cwd=folder, input=document, capture_output=True, text=True, check=False
    )
    return node.returncode, node.stdout.splitlines()
