"""Which records of one partition's journal hold: whoever takes the partition over writes a claim, and that decides.

Law: an owner's records stand on its claim, and the claim stands on the record that its owner had folded up to. So the
newest claim leads back, owner by owner, along one chain; what lies beside the chain was written by an owner that had
lost the partition and did not know it yet, and is void.

    epoch 1   1 ── 2 ── 3 ── 4 . 5 . 6      void: 5 and 6, written when 2 had been folded up to 4
    epoch 2                  └─ claim 5 ── 6 ── 7
    epoch 3                                     └─ claim 8 ── 9
"""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

_GENERATIONS: Final = 1 << 32


class Position(NamedTuple):
    """Whose record it is, and its number: every record of a chain, claims among them, has the next one."""

    epoch: int
    seq: int


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """The first record of an owner: what it had folded when it took the partition over, None if there was nothing."""

    basis: Position | None
    partitions: int = 0
    """How many partitions of viewers there were, 0 if it does not say: with another number, viewers lie elsewhere."""


class ChainError(Exception):
    """A journal in which a record is missing."""


def next_epoch(newest: int, generation: int) -> int:
    """Return the epoch of a new owner: larger than any known one, and no other owner's.

    A generation of the consumer group has one owner of a partition. A group that was deleted counts its generations
    from 1 again, so that how often that happened stands before them.
    """
    deleted, before = divmod(newest, _GENERATIONS)
    return (deleted if generation > before else deleted + 1) * _GENERATIONS + generation


def chain(claims: Mapping[Position, Claim], deltas: Collection[Position]) -> list[Position]:
    """Return the records that hold, claims among them, oldest first. Raises ChainError.

    Epoch 0 is that of journals from before there were claims.
    """
    claim_of = {position.epoch: position for position in claims}
    epoch, newest = max(claim_of, default=0), None
    ownerless = [position for position in deltas if position.epoch > epoch]
    if ownerless:
        raise ChainError(f"the claim of epoch {min(ownerless).epoch} is missing")
    held: list[Position] = []
    while True:
        own = [one for one in deltas if one.epoch == epoch and (newest is None or one.seq <= newest)]
        held += sorted(own, reverse=True)
        claim = claim_of.get(epoch)
        if claim is None:
            break
        held.append(claim)
        basis = claims[claim].basis
        if basis is None:
            break
        if basis.epoch >= epoch:
            raise ChainError(f"claim {_name(claim)} stands on {_name(basis)}, which no owner before it wrote")
        epoch, newest = basis
    held.reverse()
    _refuse_gaps(held, claims)
    return held


def _refuse_gaps(held: list[Position], claims: Mapping[Position, Claim]) -> None:
    """Refuse a chain with a hole. Records are deleted from the oldest on, never the newest nor its owner's claim."""
    first = next((number for number, position in enumerate(held) if position not in claims), None)
    if first is None:
        if held and (basis := claims[held[0]].basis) is not None:
            raise ChainError(f"the record before claim {_name(held[0])} is missing: {_name(basis)}")
        return
    for before, after in pairwise(held[first:]):
        if after.seq != before.seq + 1:
            raise ChainError(f"the record before {_name(after)} is missing")


def _name(position: Position) -> str:
    return f"{position.epoch}/{position.seq}"
