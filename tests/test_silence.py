"""A topic that is read to its end and gives nothing does not hold back the others."""

from streams.core.delta import NEVER, Batch
from streams.core.events import CLICKS, RENDERS, TOPICS, VIEWABILITY, Render, Viewability
from streams.core.partition import Partition
from streams.core.rules import HOUR, MINUTE, SECOND, Outcome, Rules
from streams.wire.records import decode_delta, encode_delta

T = 1_700_000_000_000


def partition(render_ts: int = T) -> Partition:
    state = Partition(Rules())
    render = Render(impression_id="one", campaign_id="spring", ts=render_ts)
    state.apply(Batch(topic=RENDERS, offsets=[0], events=[render], next_offset=1, timestamps=[None]))
    return state


def look(state: Partition, impression_id: str, ts: int) -> None:
    view = Viewability(impression_id=impression_id, ts=ts, kind="viewable")
    offset = state.progress[VIEWABILITY].fence
    state.apply(Batch(topic=VIEWABILITY, offsets=[offset], events=[view], next_offset=offset + 1, timestamps=[None]))


def test_nothing_is_final_while_a_topic_has_never_spoken_and_something_is_when_it_was_lifted() -> None:
    state = partition()
    assert state.final_before() == 0
    assert state.lift(VIEWABILITY, T)
    assert state.final_before() == 0, "clicks have not spoken yet"
    assert state.lift(CLICKS, T)
    assert state.final_before() == T - 2 * HOUR


def test_finality_waits_for_renders_views_and_clicks_whichever_is_furthest_behind() -> None:
    for slow in TOPICS:
        state = partition()
        for topic in TOPICS:
            state.lift(topic, T + (5 * MINUTE if topic == slow else 3 * HOUR))
        horizons = HOUR if slow == RENDERS else 2 * HOUR
        assert state.final_before() == T + 5 * MINUTE - horizons, slow


def test_stream_time_is_lifted_by_a_pane_or_more_and_never_falls() -> None:
    state = partition()
    assert not state.lift(RENDERS, T + 9 * SECOND)
    assert not state.lift(RENDERS, T - MINUTE)
    assert state.progress[RENDERS].stream_time == T
    assert state.lift(RENDERS, T + 10 * SECOND)
    assert state.progress[RENDERS].stream_time == T + 10 * SECOND


def test_a_view_whose_render_can_no_longer_come_is_an_orphan_when_renders_fall_silent() -> None:
    state = partition()
    look(state, "never rendered", T)
    assert state.pending[VIEWABILITY] == 1
    state.lift(RENDERS, T + HOUR + 11 * SECOND)
    assert state.pending[VIEWABILITY] == 0
    assert state.progress[VIEWABILITY].outcomes[Outcome.ORPHAN] == 1


def test_what_comes_after_a_lift_is_late_if_it_is_older_than_that_less_lateness() -> None:
    state = partition()
    state.lift(VIEWABILITY, T + 2 * HOUR)
    look(state, "one", T + HOUR - 1)
    assert state.progress[VIEWABILITY].outcomes[Outcome.LATE] == 1
    look(state, "one", T + HOUR)
    assert state.progress[VIEWABILITY].outcomes[Outcome.COUNTED] == 1


def test_a_lift_is_in_the_journal() -> None:
    state = partition()
    look(state, "never rendered", T)
    first = encode_delta(state.take())
    for topic in TOPICS:
        state.lift(topic, T + 3 * HOUR)
    second = encode_delta(state.take())
    again = Partition(Rules())
    for record in (first, second):
        again.fold([decode_delta(record)])
    assert again.progress == state.progress
    assert again.final_before() == state.final_before() > 0
    assert again.pending == state.pending == dict.fromkeys(TOPICS, 0)
    assert Partition(Rules()).progress[CLICKS].stream_time == NEVER
