"""The program's own records: journal, partials, rows of the campaign table, windows, dead letters.

Everything but windows and dead letters is MessagePack behind a seal: two letters for what it is, a format version,
and a 64-bit checksum. A record that does not open is refused by name; guessing would be miscounting.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
import xxhash

from streams.core.accounts import Lifetime, Share
from streams.core.delta import Delta, Refused
from streams.core.journal import Claim, Position
from streams.core.panes import Series
from streams.core.rollup import Clock, Farewell, Head, Partial, Row, RowKey, Window

FORMAT: Final = 2
"""Format 2 added to the end of journal records and cells; what format 1 left out is as if it had never happened."""
OLDEST_FORMAT: Final = 1

T = TypeVar("T")

_SEAL = struct.Struct(">2sBQ")
_JOURNAL_KEY = struct.Struct(">IQQ")
_PARTITION = struct.Struct(">I")
_pack = msgspec.msgpack.encode


class RecordError(Exception):
    """A record of the program's own that cannot be read: it is damaged, or a newer version wrote it."""


def _seal(kind: bytes, payload: bytes) -> bytes:
    return _SEAL.pack(kind, FORMAT, xxhash.xxh3_64_intdigest(payload)) + payload


def _open(kind: bytes, data: bytes, decode: Callable[[bytes], T]) -> T:
    if len(data) < _SEAL.size:
        raise RecordError("shorter than a seal")
    found, version, checksum = _SEAL.unpack_from(data)
    payload = data[_SEAL.size :]
    if found != kind:
        raise RecordError(f"expected a record of kind {kind!r}, found {found!r}")
    if version > FORMAT:
        raise RecordError(f"format {version} is newer than this program's {FORMAT}")
    if version < OLDEST_FORMAT:
        raise RecordError(f"format {version} is older than {OLDEST_FORMAT}, the oldest that this program reads")
    if xxhash.xxh3_64_intdigest(payload) != checksum:
        raise RecordError("checksum does not match")
    return _decoded(payload, decode)


def _decoded(payload: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(payload)
    except msgspec.DecodeError as error:
        raise RecordError(f"not what its kind promises: {error}") from None


# --- journal ----------------------------------------------------------------------------------------------------------

_CLAIM: Final = b"CM"
_claim = msgspec.msgpack.Decoder(Claim).decode
_delta = msgspec.msgpack.Decoder(Delta).decode


def journal_key(partition: int, position: Position) -> bytes:
    """Return the key of a journal record. The partition comes first: it names the changelog partition."""
    return _JOURNAL_KEY.pack(partition, *position)


def journal_position(key: bytes) -> tuple[int, Position]:
    """Return (partition, position) of a journal key. Raises RecordError."""
    if len(key) != _JOURNAL_KEY.size:
        raise RecordError("no journal key: its length is wrong")
    partition, epoch, seq = _JOURNAL_KEY.unpack(key)
    return partition, Position(epoch, seq)


def is_claim(data: bytes) -> bool:
    """Say whether a journal record's value is a claim; if not, it is a delta."""
    return data[:2] == _CLAIM


def encode_claim(claim: Claim) -> bytes:
    """Return a claim as the value of a journal record."""
    return _seal(_CLAIM, _pack(claim))


def decode_claim(data: bytes) -> Claim:
    """Return the claim in a journal record's value. Raises RecordError."""
    return _open(_CLAIM, data, _claim)


def encode_delta(delta: Delta) -> bytes:
    """Return a delta as the value of a journal record."""
    return _seal(b"JR", _pack(delta))


def decode_delta(data: bytes) -> Delta:
    """Return the delta in a journal record's value. Raises RecordError."""
    return _open(b"JR", data, _delta)


# --- partials ---------------------------------------------------------------------------------------------------------

_partial = msgspec.msgpack.Decoder(Partial).decode


def encode_partial(partial: Partial) -> bytes:
    """Return a partial as a record's value."""
    return _seal(b"PA", _pack(partial))


def decode_partial(data: bytes) -> Partial:
    """Return the partial in a record's value. Raises RecordError."""
    return _open(b"PA", data, _partial)


# --- rows of the campaign table ---------------------------------------------------------------------------------------

_ROWS: Final[dict[bytes, Callable[[bytes], Any]]] = {
    b"CL": msgspec.msgpack.Decoder(Clock).decode,
    b"HE": msgspec.msgpack.Decoder(Head).decode,
    b"LI": msgspec.msgpack.Decoder(Lifetime).decode,
    b"MI": msgspec.msgpack.Decoder(dict[int, Share]).decode,
}
_KINDS: Final[dict[type, bytes]] = {Clock: b"CL", Head: b"HE", Lifetime: b"LI", dict: b"MI"}


class _RowKey(msgspec.Struct, frozen=True, array_like=True):
    series: Series | None
    minute: int | None
    partition: int | None
    epoch: int = 0
    """Format 1 had none."""


_row_key = msgspec.msgpack.Decoder(_RowKey).decode


def encode_row_key(table_partition: int, epoch: int, key: RowKey) -> bytes:
    """Return the key of a row that an owner writes: each has rows of its own. The partition comes first."""
    return _PARTITION.pack(table_partition) + _pack(_RowKey(*key, epoch))


def decode_row_key(data: bytes) -> tuple[int, int, RowKey]:
    """Return (partition of the table, epoch of who wrote it, key) of a row's key. Raises RecordError."""
    if len(data) < _PARTITION.size:
        raise RecordError("no row key: it is too short")
    key = _decoded(data[_PARTITION.size :], _row_key)
    return _PARTITION.unpack_from(data)[0], key.epoch, RowKey(key.series, key.minute, key.partition)


def encode_row(row: Row) -> bytes:
    """Return a row as a record's value."""
    return _seal(_KINDS[type(row)], _pack(row))


def decode_row(data: bytes) -> Row:
    """Return the row in a record's value. Raises RecordError."""
    kind = data[:2]
    if kind not in _ROWS:
        raise RecordError(f"no row of kind {kind!r}")
    row: Row = _open(kind, data, _ROWS[kind])
    return row


# --- windows ----------------------------------------------------------------------------------------------------------


def window_key(window: Window | Farewell) -> bytes:
    """Return the key on `campaign-windows`: `campaign|currency|start_ms`, or `campaign|currency|lifetime`."""
    which = window.start if isinstance(window, Window) else "lifetime"
    return f"{window.campaign_id}|{window.currency}|{which}".encode()


def encode_window(window: Window | Farewell) -> bytes:
    """Return a window, or the last word on a campaign, as JSON."""
    return msgspec.json.encode(window)


# --- dead letters -----------------------------------------------------------------------------------------------------

Headers = list[tuple[str, bytes]]


def letter_key(letter: Refused, partition: int) -> bytes:
    """Return the key `topic|partition|offset`: a letter that is sent again is the same letter."""
    return f"{letter.topic}|{partition}|{letter.offset}".encode()


CARRIED: Final = ("appended", "retries", "retry-of")
"""Headers of a record that its letter has, too: when it was first appended, and which letter it was sent again from."""


def letter_headers(
    letter: Refused, partition: int, timestamp_ms: int, key: bytes | None, own: Iterable[tuple[str, bytes]] = ()
) -> Headers:
    """Return what is known of a record that was refused; its own bytes are the letter's value, unchanged.

    `own` are the headers that the record had.
    """
    headers = [
        ("reason", letter.reason.encode()),
        ("detail", letter.detail.encode()),
        ("topic", letter.topic.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(letter.offset).encode()),
        ("timestamp", str(timestamp_ms).encode()),
        *((name, value) for name, value in own if name in CARRIED),
    ]
    return headers if key is None else [*headers, ("key", key)]
