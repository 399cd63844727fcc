"""What tests on real Kafka share: one broker for the whole run, and names that no other test uses."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from streams.kafka.broker import EmbeddedBroker
from streams.kafka.topics import TopicAdmin, all_topics

GROUP = "impression-streams"

# Tests start hundreds of processes. Where bytecode may not be kept, each would spend three seconds on compiling.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell has what it starts in the background ignore Ctrl-C, and what is ignored is inherited: some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine, and nothing of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One broker for all tests; the topics of a test are told apart by its prefix. Clients connect to `.bootstrap`."""
    with EmbeddedBroker(0, Path(tmp_path_factory.mktemp("broker"))) as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """Return a prefix of topics and groups that nothing else has, such as "t3f2a91-"."""
    return f"t{uuid.uuid4().hex[:8]}-"


async def create_topics(bootstrap: str, prefix: str, partitions: int) -> None:
    """Create every topic of a prefix, as `streams topics create` does."""
    async with TopicAdmin(bootstrap) as admin:
        await admin.create(all_topics(prefix, prefix + GROUP), partitions)


@pytest.fixture(autouse=True, scope="session")
def tiny_memory() -> Iterator[None]:
    """Small parts, searched both ways: so that ten events fill several. Processes have the real sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.core.impressions.SMALLEST", 4)
        patch.setattr("streams.core.refresh.SMALLEST", 4)
        patch.setattr("streams.core.lookup.FEW", 2)
        yield
