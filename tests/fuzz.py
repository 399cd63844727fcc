"""Any bytes through decode -> decide: `python -m tests.fuzz RUNS FOLDER` lets atheris (libFuzzer) look for what raises.

What raises ends it with its traceback, and the input that does is written to a file `crash-...` where it runs. The
memory that it takes is libFuzzer's: tests/test_fuzz.py looks at that of the program without it.
"""

import json
import resource
import sys
from random import Random
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["streams"]):
        import streams.core.partition
        import streams.wire.events  # noqa: F401 - what is imported here is what is instrumented

from streams.core.delta import Batch
from streams.core.events import TOPICS, Click, Malformed, Render, Viewability
from streams.core.partition import Partition
from streams.core.rules import Rules
from streams.wire.events import REASONS, decoder

AT_ONCE = 512
"""Inputs that one partition is given: it remembers what it counted, and is not what is to be flat here."""
SEEDS = (
    b'{"impression_id":"x","campaign_id":"c","ts":1,"price":"2.50","viewer_id":"v","slot_id":"s","source":"dsp"}',
    b'{"impression_id":"x","campaign_id":"c","ts":2,"price":2.9e-05,"price_unit":"micros_cpm","currency":"EUR"}',
    b'{"impression_id":"x","campaign_id":"0","ts":4102444799999,"refresh":{"type":"user","count":1},"width":970}',
    b'{"impression_id":"x","campaign_id":"c","ts":3,"user_agent":"Googlebot","ip":"192.0.2.1","server_side":false}',
    b'{"impression_id":"x","ts":4,"kind":"signal","in_view_pct":50.0,"continuous_ms":1000,"in_focus":true}',
    b'{"impression_id":"x","ts":5,"kind":"viewable","source":null}',
    b'{"impression_id":"x","ts":6,"click_id":"k"}',
    b'{"impression_id":"\\ud83d\\ude00","campaign_id":"\\u0000","ts":1e400}',
    b'{"impression_id":"\\ud800","campaign_id":"c","ts":1}',
    b'{"impression_id":"x","impression_id":"y","campaign_id":"c","ts":1,"a":[[[[[[[[[[{}]]]]]]]]]]}',
)


class Desk:
    """A partition that decides one record after another."""

    def __init__(self) -> None:
        self.state = Partition(Rules())
        self._offset = 0

    def decide(self, topic: str, value: bytes | None) -> None:
        """Decode and apply one record. Raises whatever goes wrong, and AssertionError if it was not accounted for."""
        event = decoder(topic)([value])[0]
        assert not isinstance(event, Malformed) or event.reason in REASONS
        self.state.apply(Batch(topic, [self._offset], [event], self._offset + 1, [None]))
        self._offset += 1
        assert self.accounted() == self._offset

    def accounted(self) -> int:
        """Records that have an outcome or wait for one."""
        progress = self.state.progress
        return sum(sum(progress[topic].outcomes) + self.state.pending[topic] for topic in TOPICS)


def resident_kib() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


# --- inputs -----------------------------------------------------------------------------------------------------------

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 10**30, 0.5, -0.0, 2.9e-05, 10_001, 3_600_000, 7_200_000,
    "", "x", "0", "v", "s", "\x00", "\ud800", "\U0001f600", "x" * 256, "x" * 257,
    "2.5", "1e30", "1e31", "-0", "NaN", "USD", "EUR", "usd", "cpm", "micros_cpm", "video", "audio", "desktop",
    "signal", "viewable", "undetermined", "adserver", "192.0.2.1", "2001:db8::", "::ffff:192.0.2.1", "1.2.3",
    "Googlebot", [], {}, [[[[[]]]]], {"type": "user"}, {"type": "time", "count": -1},
)  # fmt: skip
FIELDS = sorted({field for event in (Render, Viewability, Click) for field in event.__struct_fields__})
SPLICES = (
    b"1e400", b"\xff", b"\xed\xa0\x80", b"[" * 2_000, b'{"a":' * 2_000, b'"ts":5,', b"9" * 400, b"\\ud800", b"NaN", b"",
)  # fmt: skip


def tampered(value: bytes, random: Random) -> bytes:
    """A record a little different: a field that holds something else or is gone; now and then other bytes somewhere."""
    if random.random() < 0.2:
        at = random.randrange(len(value) + 1)
        return value[:at] + random.choice(SPLICES) + value[at + random.choice((0, 0, 1, 5)) :]
    try:
        event = json.loads(value)
        event.pop(random.choice(FIELDS), None)
    except (ValueError, RecursionError, AttributeError):
        return random.choice(SEEDS)
    event[random.choice(FIELDS)] = random.choice(NASTY)
    return json.dumps(event).encode()


# --- atheris ----------------------------------------------------------------------------------------------------------


class Fuzz:
    """What atheris calls. The first byte of an input says on which topic the rest is a record."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._desk = Desk()
        self._done = 0

    def __call__(self, data: bytes) -> None:
        self._desk.decide(TOPICS[data[0] % len(TOPICS)] if data else TOPICS[0], data[1:] or None)
        self._done += 1
        if self._done % AT_ONCE == 0:
            self._desk = Desk()
        if self._done == self._runs:
            print(f"decided {self._done}", flush=True)


def mutated(data: bytes, most: int, seed: int) -> bytes:
    random = Random(seed)
    if random.random() < 0.3:
        return bytes(atheris.Mutate(data, most))
    return (data[:1] + tampered(data[1:], random))[:most]


def main() -> None:
    runs, folder = int(sys.argv[1]), sys.argv[2]
    for number, seed in enumerate(SEEDS):
        for topic in range(len(TOPICS)):
            with open(f"{folder}/seed-{number}-{topic}", "wb") as file:
                file.write(bytes([topic]) + seed)
    # What libFuzzer takes for its memory can be that of the process that started it; growth is looked at elsewhere.
    own = ["-max_len=4096", "-timeout=10", "-verbosity=0", "-rss_limit_mb=0"]
    options = [sys.argv[0], folder, f"-runs={runs}", *own]
    atheris.Setup(options, Fuzz(runs), custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
