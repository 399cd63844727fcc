"""Where a test lets a worker die, or a retry: before and after each step of a commit, as if it were killed there.

`STREAMS_CRASH_AT=journal:3` kills the process when it comes to the step `journal` for the third time, and with
`journal:3:SIGSTOP` it falls asleep there. No setting, and without it nothing happens.
"""

import os
import signal
from collections import Counter
from typing import Final

POINTS: Final = (
    "claim", "claimed",
    "letters", "journal", "partials", "offsets", "committed",
    "windows", "fold", "rows", "row_offsets", "rows_committed",
)  # fmt: skip
RETRY_POINTS: Final = ("retrying", "sent")
"""Those of `streams dlq retry`."""

_point, _times, _signal, *_ = [*os.environ.get("STREAMS_CRASH_AT", "").split(":"), "", ""]
_reached: Counter[str] = Counter()


def reached(point: str) -> None:
    """Take note that a worker has come to a point; the one that it is to die at is its last."""
    if point == _point:
        _reached[point] += 1
        if _reached[point] == int(_times or 1):
            os.kill(os.getpid(), signal.Signals[_signal or "SIGKILL"])
