"""Laws of one partition, on random small logs in which ids and times collide all the time.

A run reads the three topics in any interleaving and in batches of any size, reads records again, closes journal records
wherever it likes, loses its memory, and folds the journal. Whatever it does, the oracle's answer must come out.
`STREAMS_TEST_EXAMPLES=20000` tries that many logs for each law.
"""

import os
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.wire.records import encode_delta
from tests.logs import COUNTINGS, TOPICS, assert_as_the_oracle, figures, logs, seeded_logs
from tests.oracle import PENDING
from tests.runs import Run, assert_same_state, folded

EXAMPLES = int(os.environ.get("STREAMS_TEST_EXAMPLES", "200"))
THOROUGH = settings(
    max_examples=EXAMPLES,
    derandomize="STREAMS_TEST_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- laws -------------------------------------------------------------------------------------------------------------

rules = st.sampled_from(COUNTINGS)
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
    truth = assert_as_the_oracle(run.state, logs, run.counting)
    assert figures(run.state.cells()) == truth.cells


@THOROUGH
@given(rules, logs(), steps)
def test_crashes_at_any_point_give_the_oracles_answer_and_stage_2_has_heard_all_of_it(rules, logs, steps):
    run = Run(rules, logs)
    for step, *arguments in steps:
        getattr(run, step)(*arguments)
    run.read_all()
    run.commit()
    truth = assert_as_the_oracle(run.state, logs, run.counting)
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
@given(rules, st.integers(0, 2**32), st.integers(1, 3))
def test_long_logs_that_are_journaled_and_forgotten_as_they_go_give_the_oracles_answer(rules, seed, pace):
    logs = seeded_logs(seed, 60)
    run = Run(rules, logs)
    random = Random(seed)
    while any(run.position[topic] < len(logs[topic]) for topic in TOPICS):
        for topic in TOPICS:
            run.read(topic, random.randint(0, 2 * pace))
        run.commit(deliver=random.random() < 0.9)
    run.commit()
    run.commit()
    truth = assert_as_the_oracle(run.state, logs, run.counting)
    assert run.told == truth.cells
    assert_same_state(run.state, folded(rules, run.journal))


def test_what_is_random_here_reaches_every_outcome_and_makes_the_partition_forget():
    reached = set()
    forgotten = cut = linked = 0
    for seed in range(100):
        logs = seeded_logs(seed, 60)
        run = Run(COUNTINGS[seed % len(COUNTINGS)], logs)
        for _ in range(60):
            for topic in TOPICS:
                run.read(topic, 1)
            run.commit()
            linked += any(generation.older for generation in run.state.impressions.generations)
        truth = assert_as_the_oracle(run.state, logs, run.counting)
        reached |= {(topic, outcome) for topic in TOPICS for outcome in truth.counts(topic)}
        forgotten += run.state.impressions.first > 10
        cut += len(run.journal) < 50
    views = {"malformed", "future", "late", "duplicate", "orphan", "counted", PENDING}
    expected = {(topic, outcome) for topic in ("viewability", "clicks") for outcome in views}
    expected |= {("renders", outcome) for outcome in views - {"orphan", PENDING} | {"invalid_traffic", "refresh"}}
    assert reached == expected
    assert min(forgotten, cut, linked) > 50, (forgotten, cut, linked)


def test_what_was_taken_does_not_change_with_what_comes_after_it():
    run = Run(COUNTINGS[0], seeded_logs(1, 60))
    for topic in TOPICS:
        run.read(topic, 20)
    delta = run.state.take()
    then = encode_delta(delta)
    run.read_all()
    run.state.take(run.state.final_before())
    assert encode_delta(delta) == then


def test_the_newest_journal_record_never_expires_even_if_it_holds_nothing():
    state = COUNTINGS[0].partition()
    state.take()
    assert state.expired() == []
    state.take()
    assert state.expired() == [0]
    assert state.expired() == []
