"""`streams dlq`: what was refused, why, and sending it again."""

import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from time import time_ns
from typing import Annotated, Any, Final, NamedTuple

import typer

from streams.cli.shared import (
    BrokerOption,
    JsonOption,
    PrefixOption,
    connection_from,
    fail,
    finish,
    settings_from,
    write_json,
)
from streams.cli.text import safe
from streams.core.events import TOPICS
from streams.kafka.letters import Box, Retrier, letters, sent_already
from streams.kafka.reader import Reader
from streams.settings import Settings
from streams.wire.events import REASONS
from streams.wire.letters import Letter, Mark, Place, objection

app = typer.Typer(help="List, show and retry dead letters: records that were refused.", no_args_is_help=True)

ReasonOption = Annotated[str | None, typer.Option("--reason", help=f"Only of this reason: {', '.join(REASONS)}.")]
TopicOption = Annotated[str | None, typer.Option("--topic", help=f"Only from this topic: {', '.join(TOPICS)}.")]

_AT_ONCE: Final = 500
_AT_ONCE_BYTES: Final = 16 << 20
"""How many records, and of how many bytes, are sent again together."""
_SHOWN_BYTES: Final = 4_096


class Chosen(NamedTuple):
    """Which letters a command is about: those of all that is named here."""

    places: frozenset[Place]
    """Empty: of any place."""
    reason: str | None
    topic: str | None

    def has(self, letter: Letter) -> bool:
        """Say whether a letter is one of them."""
        return (
            (not self.places or letter.place in self.places)
            and self.reason in (None, letter.reason)
            and self.topic in (None, letter.place.topic)
        )


def _chosen(places: Iterable[str], reason: str | None, topic: str | None) -> Chosen:
    if reason not in (None, *REASONS):
        fail(f"--reason {reason}: not one of {', '.join(REASONS)}", 2)
    if topic not in (None, *TOPICS):
        fail(f"--topic {topic}: not one of {', '.join(TOPICS)}", 2)
    return Chosen(frozenset(map(_place, places)), reason, topic)


def _place(text: str) -> Place:
    try:
        return Place.parse(text)
    except ValueError:
        fail(f"{text}: a letter is named as `streams dlq ls` does, such as renders/0/17", 2)


# --- ls ---------------------------------------------------------------------------------------------------------------


@app.command("ls", epilog="Examples: streams dlq ls | streams dlq ls --reason future --json")
def list_letters(
    reason: ReasonOption = None,
    topic: TopicOption = None,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was refused: where it lay, when it came, why, and whether it was sent again. Times are UTC."""
    settings, chosen = settings_from(broker=broker, topic_prefix=topic_prefix), _chosen((), reason, topic)
    box = finish(_box(settings, chosen))
    found = sorted(box.letters.values(), key=_oldest_first)
    if as_json:
        write_json({"letters": [_values(letter, box) for letter in found]})
        return
    for letter in found:
        typer.echo(_line(letter, box))
    counts = Counter(letter.reason for letter in found)
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    typer.echo(f"{len(found):,} letters" + (f": {listed}" if listed else ""))


def _oldest_first(letter: Letter) -> tuple[int, Place]:
    return letter.timestamp, letter.place


async def _box(settings: Settings, chosen: Chosen) -> Box:
    box = Box()
    async for one, _ in letters(connection_from(settings), settings.topic_prefix):
        if isinstance(one, Mark) or chosen.has(one):
            box.put(one)
    return box


def _line(letter: Letter, box: Box) -> str:
    state = _state(letter, box)
    return f"{letter.place}  {_clock(letter.timestamp)}  {letter.reason}  {safe(letter.detail)}" + (
        f"  [{state}]" if state else ""
    )


def _state(letter: Letter, box: Box) -> str:
    if letter.place in box.retried:
        return "retried"
    if letter.place in box.unknown:
        return "retry broken off"
    return f"refused again, as {letter.retry_of.replace('|', '/')} was" if letter.retry_of else ""


def _values(letter: Letter, box: Box) -> dict[str, Any]:
    retry_of = letter.retry_of and letter.retry_of.replace("|", "/")
    return {
        "letter": str(letter.place),
        **letter.place._asdict(),
        "reason": letter.reason,
        "detail": letter.detail,
        "timestamp": letter.timestamp,
        "appended": letter.appended,
        "retries": letter.retries,
        "retry_of": retry_of,
        "retried": letter.place in box.retried,
        "bytes": letter.size,
    }


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


# --- show -------------------------------------------------------------------------------------------------------------


@app.command(
    "show", epilog="Examples: streams dlq show renders/0/17 | streams dlq show renders/0/17 --raw > record.json"
)
def show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="As `ls` names it, such as renders/0/17.")],
    raw: Annotated[bool, typer.Option("--raw", help="Only the record's own bytes, unchanged.")] = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a letter: what is known of it, and the record's own bytes (which may hold what is personal)."""
    settings = settings_from(broker=broker, topic_prefix=topic_prefix)
    box, value = finish(_one(settings, _chosen([letter], None, None)))
    if not box.letters:
        fail(f"no letter {safe(letter)} on {settings.topic('dead-letters')} of {settings.broker}")
    (found,) = box.letters.values()
    if raw:
        sys.stdout.buffer.write(value or b"")
    elif as_json:
        write_json(
            _values(found, box) | {"value": None if value is None else value.decode("utf-8", "backslashreplace")}
        )
    else:
        _show(found, box, value)


async def _one(settings: Settings, chosen: Chosen) -> tuple[Box, bytes | None]:
    box, found = Box(), None
    async for one, value in letters(connection_from(settings), settings.topic_prefix):
        if isinstance(one, Mark):
            box.put(one)
        elif chosen.has(one):
            box.put(one)
            found = value
    return box, found


def _show(letter: Letter, box: Box, value: bytes | None) -> None:
    typer.echo(f"{letter.place}: {letter.reason}, {safe(letter.detail)}")
    typer.echo(f"appended {_clock(letter.appended)}" + (f"; {state}" if (state := _state(letter, box)) else ""))
    if value is None:
        typer.echo("no value")
        return
    typer.echo(f"{len(value):,} bytes:")
    typer.echo(safe(value[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")))
    if len(value) > _SHOWN_BYTES:
        typer.echo(f"... the first {_SHOWN_BYTES:,}; --raw gives all")


# --- retry ------------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether the record of a letter is to be sent again, and if not, why."""

    letter: Letter
    objection: str | None


class Policy(NamedTuple):
    """What else may be sent again."""

    as_new: bool
    again: bool


@app.command(
    "retry",
    epilog="Examples: streams dlq retry --reason wrong_type --dry-run | streams dlq retry renders/0/17 "
    "| streams dlq retry --reason future --as-new",
)
def retry(
    places: Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", help="Such as renders/0/17.")] = None,
    reason: ReasonOption = None,
    topic: TopicOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All letters.")] = False,
    as_new: Annotated[
        bool, typer.Option("--as-new", help="With the time of now instead of their own: rule 2 asks about that one.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what was sent again before, and was refused again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send refused records again, their own bytes, into the partition that they came from.

    Only what would not be refused again: this program's decoder and rule 2 are asked first. A record keeps its time
    (header `appended`) and says which letter it was (`retry-of`) and how often (`retries`). Each letter is sent once,
    also if this command dies and is run again. What comes of a retry, a letter of its own, is sent again only with
    --again. A record that is old by now may be late, and a copy of what was counted is a duplicate: counting decides.

    Exit code 3 if any letter that was chosen was not sent.
    """
    if not (places or reason or topic or everything):
        fail("say which letters: by name, with --reason or --topic, or --all", 2)
    settings, chosen = settings_from(broker=broker, topic_prefix=topic_prefix), _chosen(places or (), reason, topic)
    policy = Policy(as_new, again)
    verdicts = finish(_retry(settings, chosen, policy, dry_run))
    kept = [verdict for verdict in verdicts if verdict.objection]
    if as_json:
        write_json({"dry_run": dry_run, "sent": _named(verdicts, sent=True), "kept": _named(verdicts, sent=False)})
    else:
        _tell(verdicts, dry_run)
    raise typer.Exit(3 if kept else 0)


async def _retry(settings: Settings, chosen: Chosen, policy: Policy, dry_run: bool) -> list[Verdict]:
    box, verdicts = Box(), dict[Place, Verdict]()
    now_ms = time_ns() // 1_000_000
    async for one, value in letters(connection_from(settings), settings.topic_prefix):
        if isinstance(one, Mark) or chosen.has(one):
            box.put(one)
        if isinstance(one, Letter) and chosen.has(one):
            appended_ms = now_ms if policy.as_new else one.appended
            verdicts[one.place] = Verdict(one, objection(one.place.topic, value, appended_ms, settings.rules))
    if missing := chosen.places - verdicts.keys():
        fail(f"no letter {', '.join(sorted(map(str, missing)))}: nothing was sent")
    unknown = {place: end for place, end in box.unknown.items() if place in box.letters}
    found = await sent_already(connection_from(settings), settings.topic_prefix, unknown) if unknown else set()
    judged = [_judged(verdict, box.retried | found, policy) for verdict in verdicts.values()]
    if not dry_run:
        await _send(settings, {verdict.letter.place for verdict in judged if not verdict.objection}, found, policy)
    return sorted(judged, key=lambda verdict: _oldest_first(verdict.letter))


def _judged(verdict: Verdict, retried: set[Place], policy: Policy) -> Verdict:
    """Return a verdict that also asks what was done before."""
    letter = verdict.letter
    if letter.place in retried:
        return Verdict(letter, "was sent again before")
    if letter.retries and not policy.again:
        return Verdict(letter, f"is refused again after {letter.retries} retries: --again sends it once more")
    return verdict


async def _send(settings: Settings, places: set[Place], found: set[Place], policy: Policy) -> None:
    async with Reader(connection_from(settings), settings.topic_prefix) as reader:
        ends = reader.ends
    async with Retrier(connection_from(settings), settings.topic_prefix) as retrier:
        await retrier.mark(Mark(place, True, 0) for place in found)
        waiting: dict[Place, tuple[Letter, bytes | None]] = {}
        async for one, value in letters(connection_from(settings), settings.topic_prefix):
            if isinstance(one, Letter) and one.place in places:
                places.discard(one.place)
                waiting[one.place] = one, value
                if len(waiting) >= _AT_ONCE or sum(letter.size for letter, _ in waiting.values()) >= _AT_ONCE_BYTES:
                    await retrier.retry(waiting.values(), ends, policy.as_new)
                    waiting.clear()
        await retrier.retry(waiting.values(), ends, policy.as_new)


def _named(verdicts: list[Verdict], *, sent: bool) -> list[Any]:
    if sent:
        return [str(verdict.letter.place) for verdict in verdicts if not verdict.objection]
    return [{"letter": str(one.letter.place), "why": one.objection} for one in verdicts if one.objection]


def _tell(verdicts: list[Verdict], dry_run: bool) -> None:
    for letter, why in verdicts:
        typer.echo(f"{letter.place}: " + (f"kept, {safe(why)}" if why else "would be sent" if dry_run else "sent"))
    sent = sum(not verdict.objection for verdict in verdicts)
    typer.echo(f"{sent:,} {'would be ' if dry_run else ''}sent, {len(verdicts) - sent:,} kept")
