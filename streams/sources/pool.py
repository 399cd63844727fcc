"""Lines of log files judged by all processors of a machine, and brought back in their order.

Law: what comes out is the same for any number of processes. A line is judged alone (adapter.py), so pieces of a file
go to whichever process is free, and their results wait for those before them.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from streams.sources.adapter import BadRow, Options
from streams.sources.systems import SYSTEMS, Batch, Reader

ALONE: Final = 10
"""Pieces that are judged before other processes are asked to help: those take a second to start."""
_AHEAD: Final = 3
"""Pieces a process that are on their way: more would only take memory."""


class Task(NamedTuple):
    """Consecutive lines of a file, the number of the first, and how the file begins."""

    file: str
    head: Sequence[bytes]
    first: int
    lines: list[bytes]


class Judged(NamedTuple):
    """What became of a task: (topic, number of records, what was made of them), and what is no event."""

    file: str
    made: list[tuple[str, int, Any]]
    skipped: Counter[str]
    bad: list[BadRow]


def as_lines(batch: Batch) -> bytes:
    """Make lines of records."""
    return b"".join(value + b"\n" for value in batch.values)


class Judging:
    """How all tasks of a run are judged; can be sent to another process, as `make` must be."""

    def __init__(self, system: str, options: Options, make: Callable[[Batch], Any]) -> None:
        self._system = system
        self._options = options
        self._make = make
        self._open: Reader | None = None
        """The file of the newest task: most are of the same one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Judging, (self._system, self._options, self._make)

    def __call__(self, task: Task) -> Judged:
        """Judge the lines of a task. Raises HeaderError."""
        judged = Judged(task.file, [], Counter(), [])
        for piece in self._reader(task).pieces(task.lines, task.first):
            judged.made.extend((batch.topic, len(batch.values), self._make(batch)) for batch in piece.batches)
            judged.skipped.update(piece.skipped)
            judged.bad.extend(piece.bad)
        return judged

    def _reader(self, task: Task) -> Reader:
        if self._open is None or (self._open.file, self._open.head) != (task.file, task.head):
            self._open = Reader(SYSTEMS[self._system], task.head, task.file, self._options)
        return self._open


def in_order(judging: Judging, tasks: Iterable[Task], processes: int) -> Iterator[Judged]:
    """Yield what becomes of each task, in their order. Few tasks are judged here, many by so many processes.

    Raises what reading the tasks raises, and BrokenProcessPool if a process was killed.
    """
    coming = iter(tasks)
    yield from map(judging, islice(coming, ALONE) if processes > 1 else coming)
    first_of_many = next(coming, None)
    if first_of_many is not None:
        yield from _by_processes(judging, chain([first_of_many], coming), processes)


def _by_processes(judging: Judging, tasks: Iterable[Task], processes: int) -> Iterator[Judged]:
    begun: deque[Future[Judged]] = deque()
    # Forked from a process that has threads, a process may wait for ever for a lock that one of them held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (judging, gc.get_threshold())) as pool:
        try:
            for task in tasks:
                begun.append(_submitted(pool, task))
                while len(begun) > _AHEAD * processes or (begun and begun[0].done()):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        except BaseException:
            # Ctrl-C may have come anywhere, also within the pool: it would wait for ever for a task that it lost.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _submitted(pool: ProcessPoolExecutor, task: Task) -> Future[Judged]:
    """Submit a task. A process that is started for it inherits that SIGINT is blocked: Ctrl-C is for the parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_judge, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the other processes -------------------------------------------------------------------------------------------

_judging: Judging | None = None


def _begin(judging: Judging, collect_after: tuple[int, int, int]) -> None:
    """Judge like this from now on, and look for cycles as seldom as the parent does."""
    global _judging  # noqa: PLW0603 - a process of a pool has no other place that outlives a task
    _judging = judging
    gc.set_threshold(*collect_after)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent does, however it does: else nobody would close the queue that is waited for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _judge(task: Task) -> Judged:
    assert _judging is not None
    return _judging(task)
