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

_run = events.Handle._run  # noqa: SLF001 - what every callback goes through
_longest_s = 0.0


def _timed(handle: events.Handle) -> None:
    global _longest_s  # noqa: PLW0603 - a figure of the whole process
    began = perf_counter()
    _run(handle)
    if threading.current_thread() is threading.main_thread():  # the thread that fetches has a loop of its own
        _longest_s = max(_longest_s, perf_counter() - began)


def _tell(*_: Any) -> None:
    global _longest_s  # noqa: PLW0603
    beside = Path(os.environ[FILE] + ".new")
    beside.write_text(str(_longest_s * 1000))
    beside.replace(os.environ[FILE])
    _longest_s = 0.0


if __name__ == "__main__":
    events.Handle._run = _timed  # type: ignore[method-assign]  # noqa: SLF001
    signal.signal(signal.SIGUSR1, _tell)
    main()
