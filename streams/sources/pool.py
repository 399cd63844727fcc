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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, cycle, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
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


class HelperError(Exception):
    """A process that judges rows is gone: it was killed, or says on standard error why it ended."""


def in_order(judging: Judging, tasks: Iterable[Task], processes: int) -> Iterator[Judged]:
    """Yield what becomes of each task, in their order. Few tasks are judged here, many by so many processes.

    Raises what reading the tasks raises, and HelperError.
    """
    coming = iter(tasks)
    yield from map(judging, islice(coming, ALONE) if processes > 1 else coming)
    first_of_many = next(coming, None)
    if first_of_many is not None:
        yield from _by_helpers(judging, chain([first_of_many], coming), processes)


def _by_helpers(judging: Judging, tasks: Iterable[Task], processes: int) -> Iterator[Judged]:
    begun: deque[Connection] = deque()
    with _helpers(judging, processes) as helpers:
        for task, helper in zip(tasks, cycle(helpers), strict=False):
            _unless_gone(helper.send, task)
            begun.append(helper)
            if len(begun) > _AHEAD * processes:
                yield _unless_gone(begun.popleft().recv)
        while begun:
            yield _unless_gone(begun.popleft().recv)


def _unless_gone(talk: Callable[..., Any], *what: Any) -> Any:
    """Send or receive. Raises HelperError."""
    try:
        return talk(*what)
    except (EOFError, OSError) as error:
        # Its frames hold a buffer: freed with them in one cycle, Python would complain of that on standard error.
        error.__traceback__ = None
    raise HelperError("a process that judges rows is gone")


@contextmanager
def _helpers(judging: Judging, processes: int) -> Iterator[list[Connection]]:
    """Start processes; yield the connection to each. They end when it is closed, however this process ends.

    An executor of concurrent.futures would wait for ever for one that is killed in the middle of a result.
    """
    with ExitStack() as stack:
        # Python waits for this thread at its end, as it does not for a daemon's that may be what runs here: a process
        # whose start was broken off would complain on standard error.
        with ThreadPoolExecutor(1) as starter:
            helpers = starter.submit(_start, judging, processes, stack).result()
        yield helpers


def _start(judging: Judging, processes: int, stack: ExitStack) -> list[Connection]:
    """Start processes from a thread that ends afterwards; the stack closes the connections, then waits for them."""
    resource_tracker.ensure_running()  # else the first process would have it started, and that lets SIGINT in again
    # They inherit that it is blocked: Ctrl-C is for this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Forked from a process that has threads, a process may wait for ever for a lock that one of them held.
    context = multiprocessing.get_context("spawn")
    helpers = []
    for _ in range(processes):
        own, its = context.Pipe()
        helper = context.Process(target=_help, args=(its, judging, gc.get_threshold()), daemon=True)
        helper.start()
        its.close()
        stack.callback(helper.join)
        helpers.append(stack.enter_context(own))
    return helpers


# --- in the other processes -------------------------------------------------------------------------------------------


def _help(connection: Connection, judging: Judging, collect_after: tuple[int, int, int]) -> None:
    """Judge what comes, and look for cycles as seldom as the parent does."""
    gc.set_threshold(*collect_after)
    tasks = SimpleQueue[Task]()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    with suppress(BrokenPipeError, ConnectionResetError):  # nobody wants the result any more
        while True:
            connection.send(judging(tasks.get()))


def _receive(connection: Connection, tasks: SimpleQueue[Task]) -> None:
    """Take tasks in while others are judged: the parent never waits to send one. End when it is done, or gone."""
    with suppress(EOFError, OSError):
        while True:
            tasks.put(connection.recv())
    os._exit(0)
