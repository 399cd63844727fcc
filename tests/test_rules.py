"""Rules are part of the state: a journal of other rules is not folded, unless somebody says that it is right."""

import asyncio
from functools import partial
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.core.campaigns import Campaigns
from streams.core.journal import Claim, Position
from streams.core.rules import Rules
from streams.kafka.journal import JournalError
from streams.kafka.qualify import Qualify
from streams.kafka.transport import Extent
from streams.wire.records import decode_delta, encode_claim, encode_delta, journal_key
from tests.logs import RULES, TOPICS, figures, seeded_logs
from tests.runs import Run, folded
from tests.test_properties import THOROUGH

NETWORKS = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
OTHER: dict[str, Any] = {
    "lateness_ms": 1, "dedup_horizon_ms": 1, "viewability_horizon_ms": 1, "early_ms": 1, "future_ms": 1,
    "refresh_interval_ms": 1, "refresh_slack_ms": 1, "count_user_refresh": True, "click_makes_viewable": True,
    "datacenters": NETWORKS, "crawlers": "1.0", "billing_source": "dsp", "key": "impression", "windows": "1m",
}  # fmt: skip
HORIZONS = (
    "lateness_ms", "dedup_horizon_ms", "viewability_horizon_ms", "early_ms", "refresh_interval_ms", "refresh_slack_ms",
)  # fmt: skip


FLOW = SimpleNamespace(confirm=partial(asyncio.sleep, 0))


class Journal(dict[bytes, bytes]):
    """A table of journal records that are delivered as soon as they are written."""

    outbox = SimpleNamespace(flush=partial(asyncio.sleep, 0))

    def take(self) -> dict[bytes, bytes]:
        return dict(self)


def inputs(begin: int = 0, committed: int = 0) -> dict[TP, Extent]:
    """The inputs of partition 0, where each begins and was committed at these offsets."""
    return {TP(topic, 0): Extent(begin, committed) for topic in TOPICS}


def written(rules: Rules, records: int = 2) -> Journal:
    """The journal of partition 0 under some rules."""
    run = Run(rules, seeded_logs(1, 20))
    for _ in range(records):
        for topic in TOPICS:
            run.read(topic, 5)
        run.commit()
    return Journal({journal_key(0, Position(0, seq)): record for seq, record in run.journal.items()})


def claim(journal: Journal, rules: Rules, accept: bool = False) -> Qualify:
    made = Qualify(rules, "", 0, 1, journal, FLOW, Campaigns(), accept_settings=accept)
    made.take_over(0, 1)
    asyncio.run(made.claim(inputs()))
    return made


def test_there_is_another_value_here_for_every_rule():
    assert OTHER.keys() == set(Rules.__struct_fields__)
    assert Rules().differences(Rules().plain()) == []


@pytest.mark.parametrize("name", OTHER)
def test_a_worker_with_another_value_of_any_rule_does_not_start_and_says_which_and_what_to_do(name):
    other = msgspec.structs.replace(Rules(), **{name: OTHER[name]})
    with pytest.raises(JournalError, match=f"partition 0.*{name} was .*--accept-settings"):
        claim(written(Rules()), other)


def test_the_same_networks_in_another_order_are_the_same_rules():
    there, here = (Rules(datacenters=networks) for networks in (NETWORKS, NETWORKS[::-1]))
    assert claim(written(there), here).owned.keys() == {0}


@pytest.mark.parametrize("name", OTHER)
def test_a_smaller_horizon_or_another_policy_is_accepted_when_it_is_said_to_be_right(name):
    other = msgspec.structs.replace(Rules(), **{name: OTHER[name]})
    journal = written(Rules())
    (owned,) = claim(journal, other, accept=True).owned.values()
    position = Position(owned.epoch, owned.state.seq)
    journal[journal_key(0, position)] = encode_delta(owned.state.take())
    assert claim(journal, other).owned.keys() == {0}, "the change is in the journal now"
    with pytest.raises(JournalError, match=name):
        claim(journal, Rules())


@pytest.mark.parametrize("name", HORIZONS)
def test_a_larger_horizon_is_refused_even_then(name):
    small = msgspec.structs.replace(Rules(), **{name: 5})
    with pytest.raises(JournalError, match=rf"{name} was 5, is \d+.*send the events again"):
        claim(written(small), Rules(), accept=True)


def test_a_journal_of_a_time_when_rules_were_not_written_down_is_folded():
    journal = written(Rules())
    for key, record in journal.items():
        journal[key] = encode_delta(msgspec.structs.replace(decode_delta(record), rules={}))
    assert claim(journal, Rules(lateness_ms=1)).owned.keys() == {0}


def test_a_partition_without_a_journal_takes_any_rules():
    assert claim(Journal(), Rules(lateness_ms=1)).owned.keys() == {0}


def claim_of(partitions: int) -> Journal:
    return Journal({journal_key(0, Position(1, 0)): encode_claim(Claim(None, partitions))})


@pytest.mark.parametrize("before", [2, 12])
def test_a_journal_of_another_partition_count_is_refused_with_what_to_do(before):
    with pytest.raises(JournalError, match=f"{before} partitions, and now there are 1.*another STREAMS_TOPIC_PREFIX"):
        claim(claim_of(before), Rules())


@pytest.mark.parametrize("before", [0, 1])
def test_a_journal_of_the_same_partition_count_or_one_that_names_none_is_folded(before):
    assert claim(claim_of(before), Rules()).owned.keys() == {0}


@THOROUGH
@given(st.sampled_from(RULES), st.integers(0, 2**32))
def test_what_was_counted_before_a_change_of_rules_stays_as_it_was(rules, seed):
    run = Run(rules, seeded_logs(seed, 60))
    for _ in range(20):
        for topic in TOPICS:
            run.read(topic, 3)
        run.commit()
    other = Rules(
        lateness_ms=1, dedup_horizon_ms=1, viewability_horizon_ms=1, early_ms=0, refresh_interval_ms=1,
        refresh_slack_ms=1, click_makes_viewable=not rules.click_makes_viewable,
    )  # fmt: skip
    after = folded(other, run.journal)
    assert figures(after.cells()) == figures(run.state.cells())
    assert after.progress == run.state.progress
    assert (after.invalid, after.unchecked) == (run.state.invalid, run.state.unchecked)
