"""Bytes to words and back: every reason with its example, and no record of our own that opens when it should not."""

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.core.delta import Delta, Refused
from streams.core.events import Click, Malformed, Render, Viewability
from streams.core.journal import Claim, Position
from streams.core.panes import Cell, Series, Touched
from streams.core.partition import Partition
from streams.core.rollup import Clock, Head, Lifetime, Partial, RowKey, Share, Window
from streams.core.rules import Outcome, Rules
from streams.wire import records
from streams.wire.events import REASONS, decoder
from tests.logs import T0, batch, click, render, seeded_logs, view
from tests.test_properties import THOROUGH

SECRET = "hunter2"


def decoded(topic: str, value: bytes | None) -> object:
    (event,) = decoder(topic)([value])
    return event


def with_field(json_text: str, ts: str = "1") -> bytes:
    """A render with a field more, given as JSON text."""
    return f'{{"impression_id":"{SECRET}","campaign_id":"c","ts":{ts},{json_text}}}'.encode()


# --- events -----------------------------------------------------------------------------------------------------------


def test_an_event_with_every_field_is_read_as_it_is_written():
    fields = {
        "source": "dsp", "viewer_id": "v", "page_view_id": "p", "slot_id": "s", "creative_id": "cr",
        "line_item_id": "l", "price_unit": "micros_cpm", "currency": "EUR", "format": "video", "width": 300,
        "height": 250, "device": "desktop", "country": "DE", "placement": "top", "user_agent": "ua", "ip": "::1",
        "server_side": True, "invalid": "bot",
    }  # fmt: skip
    declared = {"type": "user", "count": 3, "min_interval_s": 30}
    event = decoded("renders", json.dumps(render(ts=5, price=2.5, refresh=declared, **fields)).encode())
    assert isinstance(event, Render)
    assert {name: getattr(event, name) for name in fields} == fields
    assert (event.impression_id, event.campaign_id, event.ts, bytes(event.price)) == ("x", "c", 5, b"2.5")
    assert event.refresh is not None
    assert (event.refresh.type, event.refresh.count, event.refresh.min_interval_s) == ("user", 3, 30)


def test_views_and_clicks_are_read_as_they_are_written():
    signal = {"in_view_pct": 50, "continuous_ms": 1000, "played_ms": 2000, "in_focus": True, "muted": False}
    event = decoded("viewability", json.dumps(view(kind="signal", vendor="v", **signal)).encode())
    assert isinstance(event, Viewability)
    assert {name: getattr(event, name) for name in signal} == signal
    event = decoded("clicks", json.dumps(click(click_id="k")).encode())
    assert event == Click(impression_id="x", ts=click()["ts"], click_id="k")


@pytest.mark.parametrize(
    "text",
    [
        '"unknown":{"deep":[1,2,{"a":null}]}',
        '"source":null',
        '"viewer_id":""',
        '"source":"\\ud83d\\ude00"',
        '"unknown":1e400',
        '"price":null',
        '"price":"1000000"',
        '"width":9007199254740991',
        f'"placement":"{"x" * 5_000_000}"',
        f'"source":"{"x" * 256}"',
        '"ts":2',
    ],
    ids=lambda text: text[:30],
)
def test_what_is_unknown_null_large_or_said_twice_is_still_an_event(text):
    assert isinstance(decoded("renders", with_field(text)), Render)


def test_of_a_field_said_twice_the_last_one_holds():
    event = decoded("renders", with_field('"ts":7,"price":-1,"price":3'))
    assert isinstance(event, Render)
    assert (event.ts, bytes(event.price)) == (7, b"3")


BROKEN: list[tuple[str, str, bytes | None]] = [
    ("renders", "null_value", None),
    ("renders", "not_json", b""),
    ("renders", "not_json", b"{"),
    ("renders", "not_json", b"\x00"),
    ("renders", "not_json", SECRET.encode()),
    ("renders", "not_json", b"\xef\xbb\xbf" + with_field('"a":1')),
    ("renders", "not_json", with_field('"a":1') + b"x"),
    ("renders", "not_json", with_field('"price":NaN')),
    ("renders", "not_json", with_field('"a":Infinity')),
    ("renders", "not_json", with_field('"source":"\\ud800"')),
    ("renders", "not_json", with_field('"a":"\\ud800"')),
    ("renders", "not_json", with_field('"a":' + "[" * 100_000 + "]" * 100_000)),
    ("renders", "not_json", with_field('"a":' + '{"a":' * 100_000 + "1" + "}" * 100_000)),
    ("renders", "not_json", with_field(f"'{SECRET}':1")),
    ("renders", "not_utf8", b"\xff"),
    ("renders", "not_utf8", with_field('"a":1').replace(b"hunter2", b"hunter2\xff")),
    ("renders", "not_utf8", with_field('"a":"?"').replace(b"?", b"\xff")),
    ("renders", "not_utf8", with_field('"?":1').replace(b"?", b"\xe9")),
    ("renders", "not_utf8", with_field('"a":"?"').replace(b"?", b"\xed\xa0\x80")),
    ("renders", "not_an_object", b"null"),
    ("renders", "not_an_object", b"[]"),
    ("renders", "not_an_object", b"12"),
    ("renders", "not_an_object", f'"{SECRET}"'.encode()),
    ("renders", "missing_field", b"{}"),
    ("renders", "missing_field", b'{"impression_id":"hunter2","ts":1}'),
    ("renders", "missing_field", with_field('"campaign_id":null')),
    ("renders", "missing_field", with_field('"refresh":{}')),
    ("renders", "missing_field", with_field('"refresh":{"type":null}')),
    ("viewability", "missing_field", b'{"impression_id":"hunter2","ts":1}'),
    ("clicks", "missing_field", b'{"impression_id":"hunter2"}'),
    ("renders", "wrong_type", with_field('"campaign_id":5')),
    ("renders", "wrong_type", with_field('"campaign_id":{"hunter2":1}')),
    ("renders", "wrong_type", with_field('"ts":"1"')),
    ("renders", "wrong_type", with_field('"ts":1.5')),
    ("renders", "wrong_type", with_field('"ts":true')),
    ("renders", "wrong_type", with_field('"server_side":1')),
    ("renders", "wrong_type", with_field('"width":"300"')),
    ("renders", "wrong_type", with_field('"refresh":"hunter2"')),
    ("renders", "wrong_type", with_field('"format":5')),
    ("viewability", "wrong_type", b'{"impression_id":"x","ts":1,"kind":"signal","in_view_pct":"hunter2"}'),
    ("clicks", "wrong_type", b'{"impression_id":"x","ts":1,"click_id":7}'),
    ("renders", "out_of_range", with_field('"campaign_id":""')),
    ("renders", "out_of_range", with_field(f'"source":"{SECRET * 37}"')),
    ("renders", "out_of_range", with_field('"source":""')),
    ("renders", "out_of_range", with_field('"ts":-1')),
    ("renders", "out_of_range", with_field('"ts":4102444800000')),
    ("renders", "out_of_range", with_field('"ts":' + "9" * 5_000)),
    ("renders", "out_of_range", with_field('"width":-1')),
    ("renders", "out_of_range", with_field('"width":9007199254740992')),
    ("renders", "out_of_range", with_field('"width":1e400')),
    ("renders", "out_of_range", with_field('"currency":"usd"')),
    ("renders", "out_of_range", with_field('"currency":"USDX"')),
    ("renders", "out_of_range", with_field('"currency":"ÜSD"')),
    ("renders", "out_of_range", with_field('"currency":"US\\n"')),
    ("renders", "out_of_range", with_field(f'"format":"{SECRET}"')),
    ("renders", "out_of_range", with_field(f'"format":"{SECRET} - at `$.ip`"')),
    ("renders", "out_of_range", with_field(f'"format":"{SECRET}, got `null`"')),
    ("renders", "out_of_range", with_field(f'"price_unit":"{SECRET}"')),
    ("renders", "out_of_range", with_field(f'"refresh":{{"type":"{SECRET}"}}')),
    ("renders", "out_of_range", with_field('"refresh":{"type":"user","count":-1}')),
    ("viewability", "out_of_range", b'{"impression_id":"x","ts":1,"kind":"hunter2"}'),
    ("viewability", "out_of_range", b'{"impression_id":"x","ts":1,"kind":"signal","in_view_pct":100.5}'),
    ("viewability", "out_of_range", b'{"impression_id":"x","ts":1,"kind":"signal","in_view_pct":1e400}'),
    ("renders", "bad_price", with_field('"price":-1')),
    ("renders", "bad_price", with_field('"price":-1e-30')),
    ("renders", "bad_price", with_field('"price":1000000.01')),
    ("renders", "bad_price", with_field('"price":1e400')),
    ("renders", "bad_price", with_field('"price":1e-31')),
    ("renders", "bad_price", with_field('"price":' + "9" * 5_000)),
    ("renders", "bad_price", with_field(f'"price":"{SECRET}"')),
    ("renders", "bad_price", with_field('"price":"NaN"')),
    ("renders", "bad_price", with_field('"price":"Infinity"')),
    ("renders", "bad_price", with_field('"price":""')),
    ("renders", "bad_price", with_field('"price":" 1"')),
    ("renders", "bad_price", with_field('"price":"1_0"')),
    ("renders", "bad_price", with_field('"price":"2,5"')),
    ("renders", "bad_price", with_field('"price":"١"')),
    ("renders", "bad_price", with_field('"price":true')),
    ("renders", "bad_price", with_field('"price":[1]')),
    ("renders", "bad_price", with_field('"price":{"hunter2":1}')),
]


@pytest.mark.parametrize(("topic", "reason", "value"), BROKEN, ids=lambda part: repr(part)[:50])
def test_a_record_that_is_no_event_says_why_and_repeats_nothing_of_itself(topic, reason, value):
    event = decoded(topic, value)
    assert isinstance(event, Malformed)
    assert event.reason == reason, event.detail
    assert SECRET not in event.detail
    assert 0 < len(event.detail) < 100


def test_every_reason_has_an_example_here_but_the_one_that_needs_a_clock():
    assert {reason for _, reason, _ in BROKEN} == set(REASONS) - {"future"}


def test_a_broken_record_leaves_its_neighbours_alone_and_keeps_its_place():
    good = json.dumps(render()).encode()
    events = decoder("renders")([good, b"{", None, good])
    assert [type(event) for event in events] == [Render, Malformed, Malformed, Render]


PIECES = ['{"impression_id":"x",', '"campaign_id":"c",', '"ts":1}', '{"impression_id":"y","campaign_id":"c","ts":1}']
BLANKS = ["\n", "\r\n", " ", "\t"]


def id_of(value: bytes) -> str | None:
    try:
        event = json.loads(value)
        return event["impression_id"] if event.keys() == {"impression_id", "campaign_id", "ts"} else None
    except ValueError:
        return None


@THOROUGH
@given(st.lists(st.lists(st.sampled_from(PIECES + BLANKS), max_size=5).map("".join), max_size=6))
@example(["".join(PIECES[:3]), PIECES[3], PIECES[3]])
@example([PIECES[0], "".join(PIECES[1:3]), PIECES[3]])
@example([PIECES[0], "".join(PIECES[1:3]) + "\n" + PIECES[3]])
@example([PIECES[0] + "\n" + PIECES[1] + PIECES[2], PIECES[3]])
@example([PIECES[3] + PIECES[3], "", PIECES[3]])
@example([PIECES[3] + "\n" + PIECES[3], ""])
@example([PIECES[3], PIECES[3] + "\n"])
def test_records_are_read_each_by_itself_wherever_their_text_is_cut(texts):
    values = [text.encode() for text in texts]
    assert [getattr(event, "impression_id", None) for event in decoder("renders")(values)] == [*map(id_of, values)]


@THOROUGH
@given(st.sampled_from(["renders", "viewability", "clicks"]), st.binary(max_size=60))
@example("renders", b'{"impression_id":')
def test_any_bytes_are_an_event_or_malformed_with_a_known_reason(topic, value):
    event = decoded(topic, value)
    assert isinstance(event, Render | Viewability | Click) or event.reason in REASONS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@THOROUGH
@given(
    st.fixed_dictionaries(
        {"impression_id": st.just("x"), "campaign_id": st.just("c"), "ts": st.just(1) | JSON},
        optional={name: JSON for name in ("price", "price_unit", "source", "format", "refresh", "width", "currency")},
    )
)
def test_any_json_is_an_event_or_malformed_and_what_is_an_event_can_be_counted(event):
    state = Partition(Rules())
    state.apply(batch("renders", [(0, event, None)]))
    assert sum(state.progress["renders"].outcomes) == 1


# --- our own records --------------------------------------------------------------------------------------------------


def delta_of(seed: int) -> Delta:
    state = Partition(Rules())
    for topic, log in seeded_logs(seed, 10).items():
        state.apply(batch(topic, log))
    return state.take()


HEAD = Head(3, 7, 2, 5, False, 0)
SERIES = Series("c", "USD", "adserver")
CELL = Cell(1, 2, 3, 4, 2**62, 6, 7)
PARTIAL = Partial(1, HEAD, [Touched(SERIES, 10_000, CELL)])
DELTA = delta_of(1)
SEALED = [
    (records.encode_delta(DELTA), records.decode_delta),
    (records.encode_partial(PARTIAL), records.decode_partial),
    (records.encode_row(HEAD), records.decode_row),
    (records.encode_row(Clock(10_000)), records.decode_row),
    (records.encode_row(Lifetime(5, CELL)), records.decode_row),
    (records.encode_row({1: Share((0, 1), {10_000: CELL})}), records.decode_row),
]
MINUTE = {1: Share((0, 1), {10_000: CELL}), 2: Share((1, 0), {})}
KEYS = [RowKey(SERIES, 60_000), RowKey(SERIES, None), RowKey(None, None, 3), RowKey(None, None)]
each_sealed = pytest.mark.parametrize(("data", "decode"), SEALED)


@pytest.mark.parametrize("row", [HEAD, Clock(10_000), Lifetime(5, CELL), MINUTE])
def test_a_row_comes_back_as_it_was(row):
    assert records.decode_row(records.encode_row(row)) == row


@pytest.mark.parametrize("key", KEYS)
def test_a_row_key_comes_back_as_it_was(key):
    assert records.decode_row_key(records.encode_row_key(9, 2**40, key)) == (9, 2**40, key)


def test_a_row_key_from_before_owners_had_epochs_is_of_epoch_0():
    written = b"\0\0\0\x09" + msgspec.msgpack.encode((None, None, 3))
    assert records.decode_row_key(written) == (9, 0, RowKey(None, None, 3))


@pytest.mark.parametrize("basis", [None, Position(0, 2**64 - 1), Position(2**64 - 1, 0)])
def test_a_claim_comes_back_as_it_was_and_is_told_from_a_delta(basis):
    sealed = records.encode_claim(Claim(basis, 12))
    assert records.decode_claim(sealed) == Claim(basis, 12)
    assert records.is_claim(sealed)
    assert not records.is_claim(records.encode_delta(Partition(Rules()).take()))


def test_a_partial_comes_back_as_it_was():
    assert records.decode_partial(records.encode_partial(PARTIAL)) == PARTIAL


def test_journal_keys_come_back_as_they_were_and_sort_by_partition_epoch_and_number():
    positions = [(0, (0, 2)), (0, (0, 10)), (0, (1, 0)), (1, (0, 0)), (2**32 - 1, (2**64 - 1, 2**64 - 1))]
    places = [(partition, Position(*position)) for partition, position in positions]
    keys = [records.journal_key(*place) for place in places]
    assert [records.journal_position(key) for key in keys] == places
    assert sorted(keys) == keys


@THOROUGH
@given(st.integers(0, 2**32))
def test_a_delta_comes_back_as_it_was(seed):
    delta = delta_of(seed)
    assert records.decode_delta(records.encode_delta(delta)) == delta


@each_sealed
def test_a_record_with_any_byte_changed_is_refused(data, decode):
    decode(data)
    for place in range(len(data)):
        for flip in (1, 0x80):
            broken = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
            with pytest.raises(records.RecordError):
                decode(broken)


@each_sealed
def test_a_record_that_is_cut_short_or_longer_is_refused(data, decode):
    for length in range(len(data)):
        with pytest.raises(records.RecordError):
            decode(data[:length])
    with pytest.raises(records.RecordError):
        decode(data + b"\0")


@each_sealed
def test_a_record_of_a_newer_format_is_refused_by_its_number(data, decode):
    with pytest.raises(records.RecordError, match=f"format {records.FORMAT + 1} is newer"):
        decode(data[:2] + bytes([records.FORMAT + 1]) + data[3:])


FORMAT_1 = bytes.fromhex(
    "4a5201b2498f02186c18cb990093000000939303cf0000018bcfe57b889801000000000000029302cf0000018bcfe5680198"
    "00000000000000019301cf0000018bcfe5680298000000000000000181ad6d697373696e675f6669656c6401009700c410ef"
    "33a4ad3b1d6ec3426d96073b527300c4100068e5cf8b010000887be5cf8b010000c410a02526000000000000000000000000"
    "00c4080000000001000000c40201019293a163a3555344a8616473657276657293a163a46e6f6e65a364737093c408000000"
    "0000000000c4010c919200cfa921e3704fda881d9197ab766965776162696c69747900cfab67d919ba07288dcf0000018bcf"
    "e5680002000090"
)
"""Written by format 1: a signal that waits, a counted render with a view and a click, one of a dsp, a broken one."""


def test_a_journal_record_of_the_format_before_this_one_is_still_read():
    state = Partition(Rules())
    state.fold([records.decode_delta(FORMAT_1)])
    served = {(touched.series.source, touched.pane): touched.cell.served for touched in state.cells()}
    assert served == {("adserver", T0): 1, ("dsp", T0): 1}
    state.apply(batch("renders", [(3, render("w"), None), (4, render("x"), None)]))
    state.apply(batch("viewability", [(2, view("w", kind="undetermined"), None), (3, view("x"), None)]))
    cells = {touched.series.source: touched.cell for touched in state.cells()}
    assert cells["adserver"] == Cell(served=2, measurable=1, viewable=1, clicks=1, spend=5_000_000, gross=2, revision=5)
    assert state.pending == {"renders": 0, "viewability": 0, "clicks": 0}
    assert state.progress["viewability"].outcomes[Outcome.DUPLICATE] == 2


def test_a_record_of_another_kind_is_refused_by_name():
    with pytest.raises(records.RecordError, match="expected a record of kind b'JR', found b'PA'"):
        records.decode_delta(records.encode_partial(PARTIAL))
    with pytest.raises(records.RecordError, match="no row of kind b'PA'"):
        records.decode_row(records.encode_partial(PARTIAL))


def test_a_sound_seal_around_something_else_is_refused():
    with pytest.raises(records.RecordError, match="not what its kind promises"):
        records.decode_delta(records._seal(b"JR", b"\x01"))


@pytest.mark.parametrize("key", [b"", b"\0" * 19, b"\0" * 21])
def test_a_journal_key_of_another_length_is_refused(key):
    with pytest.raises(records.RecordError):
        records.journal_position(key)


@pytest.mark.parametrize("key", [b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0\x01"])
def test_a_row_key_that_is_none_is_refused(key):
    with pytest.raises(records.RecordError):
        records.decode_row_key(key)


# --- what others read -------------------------------------------------------------------------------------------------


def test_a_window_is_json_with_money_as_text_and_null_where_a_ratio_is_undefined():
    window = Window("c|d", "USD", 0, 60_000, 4, 3, 0, 1, "0.01", 2.5, None, 0.0, 0.75, 8, True)
    assert records.window_key(window) == b"c|d|USD|0"
    assert json.loads(records.encode_window(window)) == {
        "campaign_id": "c|d", "currency": "USD", "start": 0, "end": 60_000, "served": 4, "measurable": 3,
        "viewable": 0, "clicks": 1, "spend": "0.01", "cpm": 2.5, "vcpm": None, "viewable_rate": 0.0,
        "measured_rate": 0.75, "revision": 8, "final": True,
    }  # fmt: skip


def test_a_dead_letter_is_keyed_by_its_place_and_says_where_it_lay_and_why():
    letter = Refused("renders", 17, "bad_price", "price: not a decimal number")
    assert records.letter_key(letter, 3) == b"renders|3|17"
    assert dict(records.letter_headers(letter, 3, 1_000, b"viewer")) == {
        "reason": b"bad_price", "detail": b"price: not a decimal number", "topic": b"renders", "partition": b"3",
        "offset": b"17", "timestamp": b"1000", "key": b"viewer",
    }  # fmt: skip
    assert "key" not in dict(records.letter_headers(letter, 3, 1_000, None))
