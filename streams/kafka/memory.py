"""The memory of a worker that runs for long: what is free goes back to the system, and stays in order.

Why order: CPython's allocator (pymalloc, 3.11 to 3.13) gives the block of a size that was freed last. A worker makes
twenty objects of an event and drops them, beside others that live a little longer; after seconds free blocks follow one
another as chance will have it, and all that makes or reads objects waits for memory.
"""

import ctypes
import sys
from contextlib import suppress
from itertools import repeat
from typing import Final

SIZES: Final = (64, 80, 64, 96, 64, 48)
"""Of the blocks that texts, keys and records have, in bytes, the most used ones oftener: the allocator has a list of
free ones for each. A text of up to 14 characters takes 64, and a render has eight of them."""
_BYTES: Final = 2 << 20
"""What is put in order of a size: more than two chunks of events have of any. It takes 3 to 6 ms of a busy worker."""
_OVERHEAD: Final = sys.getsizeof(b"")
"""Of a bytes object beside what is in it."""


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps pieces of it, after a recovery a sixth of what is resident."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def put_in_order(size: int) -> None:
    """Let the allocator give free blocks of a size, which is one of SIZES, in the order of their addresses.

    Takes what is free next, and frees the highest address first, the lowest last: a list frees its last item first.
    """
    blocks = [*map(bytes, repeat(size - _OVERHEAD, _BYTES // size))]
    blocks.sort(key=id)
    blocks.clear()
