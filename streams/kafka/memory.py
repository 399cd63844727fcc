"""The memory of a worker that runs for long: what is free goes back to the system, and stays in order.

Why order: CPython's allocator (pymalloc, 3.11 to 3.13) gives the block of a size that was freed last. A worker makes
twenty objects of an event and drops them, beside others that live a little longer; after minutes free blocks follow one
another as chance will have it, and all that makes or reads objects waits for memory.
"""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

SIZES: Final[Sequence[int]] = range(48, 129, 16)
"""Of the blocks that texts, keys and records have, in bytes; the allocator has a list of free ones for each."""
_BYTES: Final = 2 << 20
"""What is put in order of a size: more than a chunk of events has of any. It takes 3 to 10 ms of a busy worker: with
3 MiB it was up to 16."""
_OVERHEAD: Final = sys.getsizeof(b"")
"""Of a bytes object beside what is in it."""


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps pieces of it, after a recovery a sixth of what is resident."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def put_in_order(size: int) -> None:
    """Let the allocator give free blocks of a size, which is one of SIZES, in the order of their addresses.

    Takes what is free next, and frees the highest address first, the lowest last.
    """
    blocks = [bytes(size - _OVERHEAD) for _ in range(_BYTES // size)]
    blocks.sort(key=id)
    while blocks:
        blocks.pop()
