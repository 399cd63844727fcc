"""The tests of counting and of exactness, tried: each rule is broken on purpose in a copy, and they have to see it.

A mutant whose text is no longer in the source is no mutant, and fails here; so does one that ends in anything but a
failed test.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GUARD = """
from pathlib import Path

import streams

assert Path(streams.__file__).parent.parent == Path(__file__).parent, "this would try the original"
"""


SEEDS = "500"
"""Of the simulation: in so many of its runs, half of them, it has to see each of its mutants."""


class Mutant(NamedTuple):
    """A rule that is broken: in which file below streams, from what text to what, and who has to see it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant("a standard has to be exceeded", "core/standards.py", "told >= asked", "told > asked", "standards"),
    Mutant(
        "the share in view has to be exceeded",
        "core/standards.py",
        "_reaches(signal.in_view_pct, standard.in_view_pct)",
        "_reaches(signal.in_view_pct, standard.in_view_pct and standard.in_view_pct + 0.001)",
        "standards",
    ),
    Mutant(
        "the time in view has to be exceeded",
        "core/standards.py",
        "_reaches(signal.continuous_ms, standard.continuous_ms)",
        "_reaches(signal.continuous_ms, standard.continuous_ms and standard.continuous_ms + 1)",
        "standards",
    ),
    Mutant("a large display needs more than its area", "core/standards.py", ">= LARGE_PX", "> LARGE_PX", "standards"),
    Mutant(
        "what waits for a render misses one that comes just 10 s later",
        "core/partition.py", "if earliest <= waiting.ts <= latest]", "if earliest < waiting.ts <= latest]", "counting",
    ),
    Mutant(
        "of several renders none takes a view just 10 s before it",
        "core/partition.py", "if earliest <= ts_of(row) <= latest]", "if earliest <= ts_of(row) < latest]", "counting",
    ),
    Mutant(
        "finality does not wait for clicks",
        "core/partition.py", "renders, *others = stream_times", "renders, *others = stream_times[:2]", "silence",
    ),
    Mutant(
        "the viewable rate is of served",
        "core/rates.py", '= Rate("viewable", "measurable")', '= Rate("viewable", "served")', "rates",
    ),
    Mutant(
        "vCPM is per measurable",
        "core/rates.py", 'Rate("spend", "viewable", 1000', 'Rate("spend", "measurable", 1000', "rates",
    ),
    Mutant(
        "what has a price has it in dollars",
        "core/partition.py", "else render.currency or DEFAULT_CURRENCY", "else DEFAULT_CURRENCY", "counting",
    ),
    Mutant(
        "a price is rounded half up",
        "core/money.py", "quantize(quantum, ROUND_HALF_EVEN", "quantize(quantum, 'ROUND_HALF_UP'", "money",
    ),
    Mutant(
        "a plain price may have a place more than nano-units",
        "core/money.py", "if spare < 0 or", "if spare < -1 or", "money",
    ),
    Mutant(
        "a plain price may be larger than the largest",
        "core/money.py", "nano <= most", "nano <= 10 * most", "money",
    ),
    Mutant(
        "what is known at a glance to be a price may be larger than the largest",
        "core/money.py", "[0-9]{1,6}(?:", "[0-9]{1,7}(?:", "money",
    ),
    Mutant(
        "a view is an orphan while its render can still come",
        "core/partition.py",
        "self._due.before(self._earliest_possible_render() - self.rules.early_ms)",
        "self._due.before(self._earliest_possible_render() + self.rules.early_ms)",
        "counting",
    ),
    Mutant(
        "a click always makes viewable",
        "core/partition.py", " if rules.click_makes_viewable else 0", "", "standards",
    ),
    Mutant(
        "an ad that a server stitched in is traffic of a data centre",
        "core/traffic.py", "and not render.server_side ", "", "traffic",
    ),
    Mutant(
        "the newest terms hold for all times",
        "core/campaigns.py", "if terms.since_ms <= ts_ms), None)", "), None)", "campaigns",
    ),
    Mutant(
        "an impression is over the cap that just reaches it",
        "core/campaigns.py", "counts[key] > cap.impressions", "counts[key] >= cap.impressions", "campaigns",
    ),
    Mutant(
        "an old owner's partial is taken",
        "core/rollup.py", "partial.head.epoch < known.epoch", "partial.head.epoch < 0", "rollup",
    ),
    Mutant(
        "an old word is taken after a new one",
        "core/accounts.py", "elif version < share.version:", "elif version < (0, 0):", "accounts",
    ),
    Mutant(
        "finality is taken from an older word",
        "core/rollup.py", "version >= known.version", "True", "rollup",
    ),
    Mutant(
        "finality is taken from an old owner's partial, its cells are not",
        "core/rollup.py",
        "partial.head.epoch < known.epoch:\n            return\n",
        "partial.head.epoch < known.epoch:\n            late = partial.head.final_before\n"
        "            self.heads[partial.partition] = msgspec.structs.replace(known, final_before=late)\n"
        "            return\n",
        "rollup",
    ),
    Mutant(
        "what is folded into the totals is counted once more after a restart",
        "core/rollup.py", "        if key.minute < account.lifetime.bound:\n            return\n", "", "rollup",
    ),
    Mutant(
        "what is folded into the totals is counted once more",
        "core/rollup.py", "if touched.pane < account.lifetime.bound:", "if touched.pane < 0:", "rollup",
    ),
    Mutant(
        "a claim of an old owner is as good as the new one's",
        "core/journal.py", "max(claim_of, default=0)", "min(claim_of, default=0)", "journal",
    ),
    Mutant(
        "a claim stands on whatever its owner had folded, and on all that came after",
        "core/journal.py", "(newest is None or one.seq <= newest)", "True", "journal",
    ),
    Mutant(
        "impressions are forgotten by the stream time of renders alone",
        "core/partition.py",
        "last_word = min(renders, *(other - self.rules.viewability_horizon_ms for other in others))",
        "last_word = renders",
        "silence",
    ),
    Mutant(
        "offsets are committed before the journal",
        "kafka/qualify.py",
        "                await self._step_1_letters(commits)\n                await self._step_2_journal(commits)\n"
        "                await self._step_3_partials(commits)\n                self._step_4_offsets(commits)\n",
        "                self._step_4_offsets(commits)\n                await self._step_1_letters(commits)\n"
        "                await self._step_2_journal(commits)\n                await self._step_3_partials(commits)\n",
        "simulation",
    ),
    Mutant(
        "a cell is dropped before its last word is known to be delivered",
        "kafka/qualify.py", "state.take(owned.confirmed)", "state.take(head.final_before)", "simulation",
    ),
    Mutant(
        "a claim does not say what it stands on",
        "kafka/qualify.py", "Claim(basis, self.partitions)", "Claim(None, self.partitions)", "simulation",
    ),
    Mutant(
        "a claim is written without asking the group",
        "kafka/qualify.py", "        await self.flow.confirm()\n", "", "simulation",
    ),
    Mutant(
        "an old owner deletes what expired",
        "kafka/qualify.py", "self._expired[0][0] < heard_at", "heard_at", "journal",
    ),
    Mutant(
        "a new owner does not send every cell",
        "kafka/qualify.py", "self.claimed = False\n", "self.claimed = True\n", "simulation",
    ),
    Mutant(
        "renders exactly the refresh interval apart are refreshes",
        "core/refresh.py",
        "ts.take(at)) < interval_ms",
        "ts.take(at)) <= interval_ms",
        "refresh",
    ),
    Mutant(
        "renders exactly the refresh interval apart in one batch are refreshes",
        "core/refresh.py",
        "abs(time - other) < self._interval_ms for",
        "abs(time - other) <= self._interval_ms for",
        "refresh",
    ),
    Mutant(
        "a refresh is compared with the last one seen, counted or not",
        "core/refresh.py",
        "            if not found[at]:\n                here.append(time)\n",
        "            here.append(time)\n",
        "refresh",
    ),
    Mutant(
        "a refresh is an anchor too",
        "core/partition.py",
        "            born[at], places[at] = 0, NOWHERE\n",
        "            born[at] = 0\n",
        "refresh",
    ),
    Mutant(
        "an event just as old as lateness allows is late",
        "core/partition.py",
        "late = behind > self",
        "late = behind >= self",
        "counting",
    ),
    Mutant(
        "a render at the edge of the dedup horizon is another impression",
        "core/partition.py",
        "abs(time - other) <= self",
        "abs(time - other) < self",
        "counting",
    ),
    Mutant(
        "a render is compared with duplicates as well",
        "core/partition.py",
        "first[at] = False\n",
        "first[at] = False\n                times[key].append(time)\n",
        "counting",
    ),
    Mutant(
        "of two renders in one batch the second is another impression",
        "core/partition.py",
        " | repeated(keys)) & first",
        ") & first",
        "counting",
    ),
    Mutant(
        "a view is credited to the pane after that of its render",
        "core/bulk.py",
        "np.uint32).take(positions), ts)",
        "np.uint32).take(positions), ts + PANE_MS)",
        "counting",
    ),
    Mutant(
        "impressions of two sources with one id are the same",
        "core/partition.py",
        "{source: _seed(source) for source",
        "{source: _seed(None) for source",
        "counting",
    ),
    Mutant(
        "currencies are added up",
        "core/partition.py",
        "            ledgers = self.books.of(render, currency)\n",
        "            ledgers = self.books.of(render, DEFAULT_CURRENCY)\n",
        "counting",
    ),
    Mutant(
        "a record from the future moves stream time",
        "core/partition.py",
        "progress.outcomes[_FUTURE] += 1\n",
        "progress.outcomes[_FUTURE] += 1\n                progress.stream_time = max(progress.stream_time, event.ts)\n",
        "counting",
    ),
    Mutant(
        "what is paid when viewable is paid when served as well",
        "core/bulk.py",
        "counted & ((born & (PER_VIEWABLE | PER_CLICK)) == 0)",
        "counted & ((born & PER_CLICK) == 0)",
        "campaigns",
    ),
    Mutant(
        "a record below the fence is applied again",
        "core/partition.py",
        "start = bisect_left(batch.offsets, progress.fence)",
        "start = 0",
        "counting",
    ),
    Mutant(
        "two views of one impression in one batch are decided apart",
        "core/partition.py",
        " & ~repeated(rows)\n",
        "\n",
        "counting",
    ),
    Mutant(
        "a view is its render's for a millisecond longer",
        "core/partition.py",
        "(earliest[here] <= began)",
        "(earliest[here] <= began + 1)",
        "counting",
    ),
    Mutant(
        "a view is its render's from a millisecond earlier",
        "core/partition.py",
        "(began <= latest[here])",
        "(began <= latest[here] + 1)",
        "counting",
    ),
    Mutant(
        "of keys that come to one place together the last one's tag holds for all",
        "core/lookup.py", "    words[mixed] &= _BITS\n", "", "lookup",
    ),
    Mutant(
        "what was forgotten leaves its tag behind",
        "core/lookup.py",
        "np.where((before & _BITS) == 0, tags, before)",
        "np.where(before == 0, tags, before)",
        "lookup",
    ),
    Mutant(
        "a place that is empty takes the other one's tag away",
        "core/lookup.py", "np.where((some & _BITS) == 0, others, some)", "some", "lookup",
    ),
    Mutant(
        "anchors just within the interval are not looked at",
        "core/refresh.py",
        "if reach < part.newest]",
        "if reach + 1 < part.newest]",
        "refresh",
    ),
    Mutant(
        "a sieve that has grown stays as it is",
        "core/lookup.py", "self._words, self._larger = larger, None", "self._larger = None", "lookup",
    ),
    Mutant(
        "what is added while a sieve grows is missed when it has grown",
        "core/lookup.py", "            _note(self._larger, keys, parts[-1].bit)\n", "", "lookup",
    ),
    Mutant(
        "of a part that a growing sieve has begun with the rest is missed",
        "core/lookup.py", "                self._left.append((part, start))\n", "                continue\n", "lookup",
    ),
    Mutant(
        "of rows of one identity an older one is found",
        "core/impressions.py", "            bits[here[known]] = 0\n", "", "impressions",
    ),
    Mutant(
        "one by one, the oldest row of an identity is found",
        "core/impressions.py", "        older.reverse()\n", "", "impressions",
    ),
    Mutant(
        "an older word holds where there is one cell",
        "core/accounts.py", "version < lone.version", "version < version", "accounts",
    ),
    Mutant(
        "the windows of a series begin with its second cell",
        "core/accounts.py", "        elif only is None:\n            self.rolling(account, now)\n",
        "        elif only is None:\n            self.rolling(account, now).add(pane, difference)\n", "accounts",
    ),
    Mutant(
        "it is the turn of views when they begin",
        "kafka/backlog.py", "end - _VIEWED_AFTER_MS", "begin", "backlog",
    ),
    Mutant(
        "a topic that was full stays so",
        "kafka/backlog.py", "left - len(more)", "left", "backlog",
    ),
    Mutant(
        "a topic is fetched on only when another chunk is applied",
        "kafka/qualify.py", "if not owned.backlog.is_full(topic):", "if chunk and not owned.backlog.is_full(topic):",
        "simulation",
    ),
    Mutant(
        "what came with the next fetch waits for the next chunk",
        "kafka/backlog.py", "while behind and len(taken) < CHUNK:", "while behind and not taken:", "backlog",
    ),
    Mutant(
        "a batch that is not what its checksum says is counted",
        "kafka/fetch.py", "crc32c(left[_HEADER.size : end]) != checksum", "False", "fetch",
    ),
    Mutant(
        "each part of an answer is read when it comes",
        "kafka/fetch.py", "nbytes != self._awaited", "nbytes < 0", "fetch",
    ),
    Mutant(
        "what was folded is published once more",
        "core/rollup.py", "                untold.discard(series)\n", "", "rollup",
    ),
    Mutant(
        "in a flood partials are taken while a commit writes",
        "kafka/rollup.py", "await self._has_room.wait()", "pass", "flood",
    ),
    Mutant(
        "what waited in a flood is taken for a partition that went",
        "kafka/rollup.py", "if self.owned.get(batch.partition) is not rollup:", "if False:", "flood",
    ),
    Mutant(
        "long work is done in short turns, whatever others take",
        "kafka/turns.py", "max(began - ended, _SHORTEST_S)", "_SHORTEST_S", "flood",
    ),
    Mutant(
        "a view at once goes to the newest of several renders",
        "core/partition.py",
        "            if generation.older:\n",
        "            if not generation.older and generation.older:\n",
        "counting",
    ),
]  # fmt: skip


def copied(folder: Path) -> Path:
    """What the tests of the core need, and a guard that it is this copy which they try."""
    for part in ("streams", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "conftest.py").write_text(GUARD)
    return folder


def tried(folder: Path, *names: str) -> tuple[int, str]:
    """Exit code and output of the tests of a copy: 0 all passed, 1 one failed, and more if they could not be run.

    Only examples may speak: what sees a mutant by chance, or shrinks what it found for ten seconds, is no proof.
    """
    files = [f"tests/test_{name}.py" for name in names]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "STREAMS_TEST_SEEDS": SEEDS}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not hypothesis", *files]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def mutated(folder: Path, mutant: Mutant) -> tuple[int, str]:
    path = copied(folder) / "streams" / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} has this text {source.count(mutant.old)} times: {mutant.old}"
    path.write_text(source.replace(mutant.old, mutant.new))
    return tried(folder, mutant.tests)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[tuple[int, str]]"]]:
    """All mutants, two at a time, each begun before anybody asks for it."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            mutant.name: pool.submit(mutated, tmp_path_factory.mktemp("mutant") / "copy", mutant) for mutant in MUTANTS
        }


def test_without_a_mutation_all_tests_pass(tmp_path: Path) -> None:
    code, output = tried(copied(tmp_path / "copy"), *sorted({mutant.tests for mutant in MUTANTS}))
    assert code == 0, output


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_the_tests_see_that(name: str, trials: dict[str, "Future[tuple[int, str]]"]) -> None:
    code, output = trials[name].result()
    assert code == 1, output
