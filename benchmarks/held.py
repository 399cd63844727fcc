"""A worker that notes how long its event loop was held: `python -m benchmarks.held worker ...`.

At SIGUSR1 it writes the longest hold since the last one, in ms, to the file that HELD names.
"""

import os
import signal
import threading
from asyncio import events
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from streams.cli import main

FILE: Final = "HELD"


def note_holds(told: Path) -> None:
    """Note from now on what every callback of the main thread's loop takes; who fetches has a loop of its own."""
    run, longest_s = events.Handle._run, 0.0  # noqa: SLF001 - what every callback goes through

    def timed(handle: events.Handle) -> None:
        nonlocal longest_s
        began = perf_counter()
        run(handle)
        if threading.current_thread() is threading.main_thread():
            longest_s = max(longest_s, perf_counter() - began)

    def tell(*_: Any) -> None:
        nonlocal longest_s
        beside = told.with_suffix(".new")
        beside.write_text(str(longest_s * 1000))
        beside.replace(told)
        longest_s = 0.0

    events.Handle._run = timed  # type: ignore[method-assign]  # noqa: SLF001 - put in its place on purpose
    signal.signal(signal.SIGUSR1, tell)


if __name__ == "__main__":
    note_holds(Path(os.environ[FILE]))
    main()
