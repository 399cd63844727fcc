"""The settings that counting depends on, and the names of what can become of an event.

Law: the same records under the same rules give the same numbers, so every one of these is part of the state.
"""

from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

import msgspec
import xxhash

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

LIFT_BEHIND_MS: Final = 30 * SECOND
"""How far behind the newest stream time a silent topic is lifted: room for senders that are a little behind."""

Network = IPv4Network | IPv6Network
Key = Literal["viewer", "impression"]

PlainRules = dict[str, bool | int | str]

HORIZONS: Final = (
    "lateness_ms",
    "dedup_horizon_ms",
    "viewability_horizon_ms",
    "early_ms",
    "refresh_interval_ms",
    "refresh_slack_ms",
)
"""The rules that say for how long something is remembered."""


class Outcome(IntEnum):
    """What became of an event: exactly one of these. The rules run in this order and the first that speaks decides."""

    MALFORMED = 0
    FUTURE = 1
    LATE = 2
    DUPLICATE = 3
    INVALID_TRAFFIC = 4
    REFRESH = 5
    ORPHAN = 6
    COUNTED = 7


OUTCOME_NAMES: Final = tuple(outcome.name.lower() for outcome in Outcome)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """All horizons and policies of counting. Times in milliseconds of event time."""

    lateness_ms: int = HOUR
    dedup_horizon_ms: int = HOUR
    viewability_horizon_ms: int = HOUR
    early_ms: int = 10 * SECOND
    """How far a view or click may lie before its render: clocks of one browser are read twice."""
    future_ms: int = 10 * MINUTE
    """How far an event may lie ahead of its record's own time."""
    refresh_interval_ms: int = 30 * SECOND
    """Renders of one place that are closer than this are refreshes; 0 switches the rule off."""
    refresh_slack_ms: int = MINUTE
    """A render further behind stream time than this is not asked whether it is a refresh."""
    count_user_refresh: bool = False
    click_makes_viewable: bool = False
    datacenters: tuple[Network, ...] = ()
    """Where invalid traffic comes from, unless a server stitched the ad in."""
    crawlers: str = ""
    """Which list of crawlers user agents are looked up in."""
    billing_source: str = "adserver"
    key: Key = "viewer"
    """What events are keyed by. Keyed by impression, nobody sees all renders of one viewer in order."""
    windows: str = "1m,5m,1h"
    """The rolling windows: a minute that has left the longest one is not held any more."""

    def plain(self) -> PlainRules:
        """Return every rule by its name, as a journal record holds it: of networks, a hash."""
        networks = ",".join(sorted(str(network) for network in self.datacenters))
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return values | {"datacenters": xxhash.xxh3_64_hexdigest(networks.encode()) if networks else ""}

    def differences(self, before: PlainRules) -> list[str]:
        """Return the names of the rules that are not as they were; where nothing was written, none are."""
        now = self.plain()
        return [name for name, value in before.items() if name in now and now[name] != value]

    def enlarged(self, before: PlainRules) -> list[str]:
        """Return the names of the horizons that are larger than they were: what they want is forgotten already."""
        return [name for name in self.differences(before) if name in HORIZONS and getattr(self, name) > before[name]]
