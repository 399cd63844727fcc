"""Claims: whoever takes a partition over decides what of the journal holds, and an old owner that wakes up cannot."""

import asyncio
from collections.abc import Iterator, Mapping
from random import Random
from types import SimpleNamespace

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.core.campaigns import Campaigns
from streams.core.journal import ChainError, Claim, Position, chain, next_epoch
from streams.core.rules import Rules
from streams.kafka.journal import JournalError
from streams.kafka.qualify import Qualify
from streams.kafka.transport import Extent
from streams.wire.records import journal_key, journal_position
from tests.logs import RULES, TOPICS, seeded_logs
from tests.runs import Run
from tests.test_properties import THOROUGH
from tests.test_rules import FLOW, Journal, inputs

# --- the chain --------------------------------------------------------------------------------------------------------

CLAIMS = {
    Position(1, 1): Claim(None),
    Position(2, 5): Claim(Position(1, 4)),
    Position(3, 8): Claim(Position(2, 7)),
}
DELTAS = {Position(1, seq) for seq in (2, 3, 4)} | {Position(2, 6), Position(2, 7), Position(3, 9)}
LATE = {Position(1, 5), Position(1, 6), Position(2, 8)}
WHOLE = sorted(CLAIMS.keys() | DELTAS, key=lambda position: position.seq)


def test_the_newest_claim_leads_back_owner_by_owner_and_what_lies_beside_is_void():
    assert chain(CLAIMS, DELTAS | LATE) == WHOLE


def test_a_claim_of_an_old_owner_that_comes_late_voids_nothing_of_what_the_new_owner_had_folded():
    late = {Position(2, 3): Claim(Position(1, 2))}
    claims = {Position(1, 1): Claim(None), Position(3, 5): Claim(Position(1, 4))}
    deltas = {Position(1, seq) for seq in (2, 3, 4)} | {Position(3, 6)}
    assert chain(claims | late, deltas) == chain(claims, deltas) == sorted(claims.keys() | deltas)


def test_a_journal_from_before_there_were_claims_holds_whole_and_a_claim_can_stand_on_it():
    old = {Position(0, seq) for seq in range(3)}
    assert chain({}, old) == sorted(old)
    claim = Position(7, 3)
    assert chain({claim: Claim(Position(0, 2))}, old | {Position(0, 3)}) == [*sorted(old), claim]


@pytest.mark.parametrize("gone", range(1, len(WHOLE)))
def test_records_that_are_deleted_from_the_oldest_on_are_not_missed(gone):
    kept = [position for position in WHOLE[gone:] if position != Position(3, 8)]
    claims = {position: CLAIMS[position] for position in [*kept, Position(3, 8)] if position in CLAIMS}
    held = chain(claims, [position for position in kept if position not in CLAIMS])
    assert [position for position in held if position != Position(3, 8)] == kept


@pytest.mark.parametrize("missing", [Position(1, 3), Position(1, 4), Position(2, 6), Position(2, 7)])
def test_a_record_that_is_missing_between_others_is_refused_and_named(missing):
    after = WHOLE[WHOLE.index(missing) + 1]
    with pytest.raises(ChainError, match=f"the record before {after.epoch}/{after.seq} is missing"):
        chain(CLAIMS, DELTAS - {missing})


def test_a_claim_without_what_it_stands_on_and_records_without_their_claim_are_refused():
    with pytest.raises(ChainError, match="the record before claim 2/5 is missing: 1/4"):
        chain({Position(2, 5): Claim(Position(1, 4))}, [])
    with pytest.raises(ChainError, match="the claim of epoch 3 is missing"):
        chain({Position(2, 5): Claim(None)}, [Position(3, 6)])


def test_a_claim_that_stands_on_its_own_or_a_later_owner_is_refused():
    with pytest.raises(ChainError, match="claim 2/5 stands on 2/4"):
        chain({Position(2, 5): Claim(Position(2, 4))}, [Position(2, 4)])


@given(st.integers(0, 2**20), st.integers(0, 2**20), st.lists(st.integers(1, 2**31), max_size=5))
def test_an_epoch_is_larger_than_all_before_it_even_when_the_group_counts_from_1_again(deleted, before, generations):
    newest = deleted * 2**32 + before
    for generation in generations:
        epoch = next_epoch(newest, generation)
        assert epoch > newest
        newest = epoch


def test_two_owners_that_saw_the_same_journal_have_two_epochs_in_the_order_of_their_generations():
    for newest in (0, 5, 2**32 + 5, 2**32 + 11):
        epochs = [next_epoch(newest, generation) for generation in (6, 7, 11)]
        assert sorted(set(epochs)) == epochs


# --- an owner that wakes up -------------------------------------------------------------------------------------------


class Table(Journal):
    """What one worker holds of a journal: what it found there, and what it wrote to it itself."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.journal = journal

    def __setitem__(self, key: bytes, value: bytes) -> None:
        super().__setitem__(key, value)
        self.journal[key] = value

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self.journal.pop(key, None)


class Owner(Qualify):
    """A worker that owns partition 0; when there is a newer one, it works on without knowing."""

    def __init__(
        self,
        journal: Journal,
        generation: int,
        rules: Rules = RULES[0],
        extents: Mapping[TP, Extent] | None = None,
        accept_loss: bool = False,
    ) -> None:
        flow = SimpleNamespace(
            confirm=FLOW.confirm, heard_at=self._heard_at, end_offset=lambda *_: None, done=lambda *_: None
        )  # fmt: skip
        super().__init__(rules, "", 0, 1, Table(journal), flow, Campaigns(), accept_loss=accept_loss)
        self.is_member = True
        self.take_over(0, generation)
        asyncio.run(self.claim(extents or inputs()))

    def _heard_at(self) -> float:
        return float("inf") if self.is_member else float("-inf")

    def read(self, run: Run, count: int) -> None:
        """Apply what comes next in each topic, from the fences on."""
        run.state = self.owned[0].state
        for topic in TOPICS:
            fence = run.state.progress[topic].fence
            run.position[topic] = sum(offset < fence for offset, _, _ in run.logs[topic])
            run.read(topic, count)

    def write(self) -> None:
        """The journal step of a commit, with partials that are delivered."""
        commit = self._gather(self.owned[0])
        asyncio.run(self._step_2_journal([commit]))
        self.owned[0].confirmed = commit.final_before

    def counts(self) -> list[list[int]]:
        return [list(progress.outcomes) for progress in self.owned[0].state.progress.values()]


def workers(journal: Journal, generations: range) -> Iterator[Owner]:
    """One owner after another; each is no member any more when the next one has come."""
    for generation in generations:
        made = Owner(journal, generation)
        yield made
        made.is_member = False


@THOROUGH
@given(st.sampled_from(RULES), st.integers(0, 2**32))
def test_owners_that_wake_up_at_any_time_count_nothing_twice_and_lose_nothing(rules: Rules, seed: int) -> None:
    random, journal, owners = Random(seed), Journal(), []
    run = Run(rules, seeded_logs(seed, 100))
    for generation in range(1, 12):
        owners.append(Owner(journal, generation, rules))
        for _ in range(random.randrange(6)):
            at_work = random.choice(owners[-3:])  # the newest, or one that does not know that it is no owner any more
            at_work.read(run, random.randrange(1, 9))
            at_work.write()
        owners[-1].is_member = False
    alone = Owner(Journal(), 1, rules)
    for last in (owners[-1], alone):
        last.read(run, 100)
    assert owners[-1].counts() == alone.counts()


def test_what_an_old_owner_wrote_beside_the_chain_is_deleted_by_the_next_one():
    journal, run = Journal(), Run(RULES[0], seeded_logs(1, 20))
    old, new = Owner(journal, 1), None
    for _ in range(2):
        old.read(run, 5)
        old.write()
        new = new or Owner(journal, 2)
    void = journal_key(0, Position(1, 2))
    assert void in journal
    Owner(journal, 3)
    assert void not in journal
    assert {journal_position(key)[1] for key in journal} == {(1, 0), (1, 1), (2, 2), (3, 3)}


def test_an_old_owner_deletes_nothing_however_far_it_gets():
    journal, run = Journal(), Run(RULES[0], seeded_logs(3, 600))
    old = Owner(journal, 1)
    for _ in range(3):
        old.read(run, 10)
        old.write()
    before = set(journal)
    Owner(journal, 2)
    old.is_member = False
    for _ in range(50):
        old.read(run, 10)
        old.write()
    assert before <= set(journal)
    old.is_member = True
    old.write()
    assert not before <= set(journal), "there was something to delete"


def test_the_journal_stays_short_however_often_a_partition_moves():
    journal, run = Journal(), Run(RULES[0], seeded_logs(3, 800))
    for at_work in workers(journal, range(1, 40)):
        for _ in range(2):
            at_work.read(run, 10)
            at_work.write()
        assert len(journal) < 30


def test_a_journal_with_a_hole_is_refused_by_name():
    journal, run = Journal(), Run(RULES[0], seeded_logs(1, 20))
    made = Owner(journal, 1)
    for _ in range(3):
        made.read(run, 5)
        made.write()
    del journal[journal_key(0, Position(1, 2))]
    with pytest.raises(JournalError, match="journal of partition 0: the record before 1/3 is missing"):
        Owner(journal, 2)


def journal_of_15_records() -> Journal:
    """The journal of a partition of which five records of each topic were counted."""
    journal, run = Journal(), Run(RULES[0], seeded_logs(1, 20))
    made = Owner(journal, 1)
    made.read(run, 5)
    made.write()
    fences = {progress.fence for progress in made.owned[0].state.progress.values()}
    assert all(0 < fence < 50 for fence in fences)
    return journal


@pytest.mark.parametrize(
    ("extents", "says"),
    [
        (inputs(begin=50), "renders/0 was counted up to offset [0-9]+, and what came before 50 was deleted"),
        (inputs(committed=50), "renders/0 was counted up to offset [0-9]+, and 50 is committed, so records of the jou"),
    ],
)
def test_an_input_that_does_not_go_on_where_the_journal_ends_is_refused_by_name(extents, says):
    journal = journal_of_15_records()
    before = dict(journal)
    with pytest.raises(JournalError, match=says + ".*--accept-loss"):
        Owner(Journal(journal), 2, extents=extents)
    assert journal == before
    assert Owner(journal, 2, extents=extents, accept_loss=True).owned.keys() == {0}


def test_a_partition_without_a_journal_may_begin_anywhere_but_not_where_another_one_left_it():
    assert Owner(Journal(), 1, extents=inputs(begin=50)).owned.keys() == {0}
    with pytest.raises(JournalError, match="counted up to offset 0, and 50 is committed"):
        Owner(Journal(), 1, extents=inputs(begin=50, committed=50))
