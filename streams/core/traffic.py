"""Which renders no person saw: declared by the sender, asked for by a known bot, or served to a data centre.

Law: the answer depends on the render and the rules alone. User agent and address are looked at and not kept.
"""

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address
from typing import Final

from crawleruseragents import is_crawler

from streams.core.events import Render
from streams.core.rules import Network

DECLARED: Final = "declared"
BOT: Final = "bot"
DATACENTER: Final = "datacenter"
INVALID_REASONS: Final = (DECLARED, BOT, DATACENTER)
"""Why a render is invalid traffic, in the order in which it is asked."""

_LONGEST_AGENT: Final = 1_024
"""Characters of a user agent that are looked at: it is the sender's text, and the search takes as long as it is."""


class Addresses:
    """The addresses of many networks, found in logarithmic time."""

    def __init__(self, networks: Iterable[Network]) -> None:
        networks = list(networks)
        self._ranges = {
            4: _ranges(collapse_addresses(network for network in networks if isinstance(network, IPv4Network))),
            6: _ranges(collapse_addresses(network for network in networks if isinstance(network, IPv6Network))),
        }

    def __bool__(self) -> bool:
        return any(starts for starts, _ in self._ranges.values())

    def __contains__(self, text: str) -> bool:
        """Say whether an address is one of them; text that is no address is not."""
        try:
            address = ip_address(text)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        starts, ends = self._ranges[address.version]
        before = bisect_right(starts, int(address))
        return before > 0 and int(address) <= ends[before - 1]


def _ranges(collapsed: Iterable[Network]) -> tuple[list[int], list[int]]:
    """Return the first and the last addresses of networks that are sorted and do not overlap."""
    ends = [(int(network.network_address), int(network.broadcast_address)) for network in collapsed]
    return [first for first, _ in ends], [last for _, last in ends]


def invalid_reason(render: Render, datacenters: Addresses) -> str | None:
    """Return why a render is invalid traffic, or None. An ad that a server stitched in comes from a data centre."""
    if render.invalid:
        return DECLARED
    if render.user_agent and _is_bot(render.user_agent[:_LONGEST_AGENT]):
        return BOT
    if render.ip and datacenters and not render.server_side and render.ip in datacenters:
        return DATACENTER
    return None


_is_bot = lru_cache(maxsize=16_384)(is_crawler)
