"""Laws of one partition, on random small logs in which ids and times collide all the time.

A run reads the three topics in any interleaving and in batches of any size, reads records again, closes journal records
wherever it likes, loses its memory, and folds the journal. Whatever it does, the oracle's answer must come out.
`STREAMS_TEST_EXAMPLES=20000` tries that many logs for each law.
"""

import os
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.core.partition import Partition
from streams.core.rules import Rules
from streams.wire.records import decode_delta, encode_delta
from tests.logs import RULES, TOPICS, assert_as_the_oracle, batch, figures, logs
from tests.oracle import Logs

EXAMPLES = int(os.environ.get("STREAMS_TEST_EXAMPLES", "400"))
THOROUGH = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="STREAMS_TEST_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- a worker in miniature --------------------------------------------------------------------------------------------


class Run:
    """Reads logs into a partition, journals what it did, tells its cells, and starts again from the journal."""

    def __init__(self, rules: Rules, logs: Logs) -> None:
        self.rules = rules
        self.logs = logs
        self.journal: dict[int, bytes] = {}
        self.told: dict[tuple[str, str, str, int], dict[str, int]] = {}
        """Every cell's newest figures, as stage 2 has them."""
        self.declared = 0
        """The newest finality that was told."""
        self._start(Partition(rules))

    def _start(self, state: Partition) -> None:
        self.state = state
        self.confirmed = 0
        self.claimed = False
        self.position = {
            topic: sum(offset < state.progress[topic].fence for offset, _, _ in self.logs[topic]) for topic in TOPICS
        }

    def read(self, topic: str, count: int) -> None:
        records = self.logs[topic][self.position[topic] :][:count]
        if records:
            self.state.apply(batch(topic, records))
            self.position[topic] += len(records)

    def read_all(self) -> None:
        for topic in TOPICS:
            self.read(topic, len(self.logs[topic]))

    def rewind(self, topic: str, count: int) -> None:
        """The next batch begins with records that were read already."""
        self.position[topic] = max(0, self.position[topic] - count)

    def commit(self, forget: bool = True, deliver: bool = True) -> None:
        """The steps of a worker's commit; without delivery it dies between journal and partials."""
        final = self.state.final_before()
        cells = figures(self.state.touched() if self.claimed else self.state.cells())
        expired = self.state.expired()
        seq = self.state.seq
        self.journal[seq] = encode_delta(self.state.take(self.confirmed if forget else 0))
        for number in expired:
            del self.journal[number]
        if not deliver:
            self.crash()
            return
        for place, cell in cells.items():
            assert self.told.get(place) == cell or place[3] >= self.declared, "a final cell changed"
        self.told |= cells
        self.declared, self.confirmed, self.claimed = max(self.declared, final), final, True

    def crash(self) -> None:
        self._start(folded(self.rules, self.journal))


def folded(rules: Rules, journal: Mapping[int, bytes]) -> Partition:
    state = Partition(rules)
    fences = None
    for seq in sorted(journal):
        delta = decode_delta(journal[seq])
        assert fences in (None, delta.fences_before), "a record is missing before this one"
        fences = [progress.fence for progress in delta.progress]
        state.fold(delta)
    return state


# --- the whole state as plain values ----------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Everything an object holds, private or not, as comparable values; functions are no state."""
    if callable(value):
        return None
    if isinstance(value, Mapping):
        return {plain_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return {plain_key(item) for item in value}
    if not isinstance(value, (str, bytes, int, float, type(None))) and hasattr(type(value), "__iter__"):
        return [plain(item) for item in value]
    names = [*getattr(type(value), "__slots__", ()), *getattr(type(value), "__struct_fields__", ())]
    names += list(getattr(value, "__dict__", {}))
    special = _SPECIAL.get(type(value).__name__)
    if special is not None:
        return special(value)
    return {name: plain(getattr(value, name)) for name in names} if names else value


def plain_key(key: Any) -> Any:
    return key if isinstance(key, (str, bytes, int, tuple)) else repr(key)


def remembered(impressions: Any) -> Any:
    """Remembered rows without the rows that are forgotten but not yet wiped, and without links that lead to them."""
    front = impressions.first - impressions.base
    rows = range(impressions.first, impressions.end)
    columns = ("keys", "ts", "cost", "bits", "ledgers")
    return {
        "first": impressions.first,
        "end": impressions.end,
        "index": dict(impressions.index),
        "older": {row: older for row, older in impressions.older.items() if older >= impressions.first},
        "rows_of": {key: impressions.rows_of(key) for key in impressions.index},
        "linked": all(row in rows for row in impressions.older),
        **{column: plain(list(getattr(impressions, column)[front:])) for column in columns},
    }


def due(dates: Any) -> Any:
    """What is due and where it would be found: panes that nothing waits in any more are no state."""
    found = {place: plain(waiting) for held in dates._panes.values() for place, waiting in held.items()}
    findable = {place for pane in dates._order for place in dates._panes[pane]}
    return found, findable


_SPECIAL = {"Impressions": remembered, "_DueDates": due}


def assert_same_state(live: Partition, recovered: Partition, ignoring: tuple[str, ...] = ()) -> None:
    left, right = plain(live), plain(recovered)
    assert left.keys() == right.keys()
    for name in left:
        if name not in ignoring:
            assert left[name] == right[name], name


# --- laws -------------------------------------------------------------------------------------------------------------

rules = st.sampled_from(RULES)
topics = st.sampled_from(TOPICS)
reading = st.tuples(st.just("read"), topics, st.integers(1, 6))
rewinding = st.tuples(st.just("rewind"), topics, st.integers(1, 4))
committing = st.tuples(st.just("commit"), st.booleans(), st.sampled_from((True, True, True, False)))
crashing = st.tuples(st.just("crash"))
plain_steps = st.lists(st.one_of(reading, rewinding), max_size=20)
steps = st.lists(st.one_of(reading, reading, rewinding, committing, committing, crashing), max_size=30)


@THOROUGH
@given(rules, logs(), plain_steps)
def test_any_interleaving_and_any_cut_into_batches_gives_the_oracles_answer(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in steps:
        getattr(run, step)(*arguments)
    run.read_all()
    truth = assert_as_the_oracle(run.state, logs)
    assert figures(run.state.cells()) == truth.cells


@THOROUGH
@given(rules, logs(), steps)
def test_crashes_at_any_point_give_the_oracles_answer_and_stage_2_has_heard_all_of_it(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in steps:
        getattr(run, step)(*arguments)
    run.read_all()
    run.commit()
    truth = assert_as_the_oracle(run.state, logs)
    assert run.told == truth.cells


@THOROUGH
@given(rules, logs(), steps)
def test_the_folded_journal_is_the_live_state_field_by_field_after_every_commit(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in [*steps, ("read_all",), ("commit",), ("commit",)]:
        getattr(run, step)(*arguments)
        if step == "commit":
            assert_same_state(run.state, folded(rules, run.journal))


@THOROUGH
@given(rules, logs(), steps, st.randoms(use_true_random=False))
def test_a_journal_whose_expired_records_are_only_partly_deleted_gives_the_same_state(rules, logs, steps, random):
    run = Run(rules, logs)
    whole: dict[int, bytes] = {}
    for step, *arguments in [*steps, ("read_all",), ("commit",), ("commit",)]:
        getattr(run, step)(*arguments)
        whole |= run.journal
        if step == "commit":
            kept = random.randint(min(whole), min(run.journal))
            longer = {seq: record for seq, record in whole.items() if seq >= kept}
            assert_same_state(run.state, folded(rules, longer), ignoring=("_records",))


@THOROUGH
@given(rules, logs(), steps)
def test_in_every_cell_at_every_commit_viewable_is_within_measurable_within_served(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in [*steps, ("read_all",), ("commit",)]:
        getattr(run, step)(*arguments)
        for cell in figures(run.state.cells()).values():
            assert 0 <= cell["viewable"] <= cell["measurable"] <= cell["served"] <= cell["gross"]
            assert cell["revision"] >= cell["served"] + cell["clicks"]


@THOROUGH
@given(rules, logs(), plain_steps)
def test_at_any_time_consumed_is_the_sum_of_all_outcomes_and_what_is_pending(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in [*steps, ("read_all",)]:
        getattr(run, step)(*arguments)
        for topic, progress in run.state.progress.items():
            consumed = sum(offset < progress.fence for offset, _, _ in logs[topic])
            waiting = sum(held.topic == topic for of_key in run.state.waiting.values() for held in of_key)
            assert sum(progress.outcomes) + waiting == consumed


@THOROUGH
@given(rules, logs(40))
def test_long_logs_that_are_journaled_and_forgotten_as_they_go_give_the_oracles_answer(rules, logs):
    run = Run(rules, logs)
    for _ in range(60):
        for topic in TOPICS:
            run.read(topic, 1)
        run.commit()
    truth = assert_as_the_oracle(run.state, logs)
    assert run.told == truth.cells
    assert_same_state(run.state, folded(rules, run.journal))
