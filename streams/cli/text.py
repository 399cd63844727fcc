"""Text that people read in a terminal: tables, and what senders call things."""

from collections.abc import Iterator, Mapping

from rich.cells import cell_len


def aligned(lines: list[list[str]], names: int) -> Iterator[str]:
    """Yield the lines of a table as wide as it has to be; the first so many columns are names, the others numbers.

    Lines can be very many, and rich would take a minute for them.
    """
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        gaps = [" " * (width - cell_len(text)) for width, text in zip(widths, line, strict=True)]
        padded = [
            text + gap if number < names else gap + text
            for number, (text, gap) in enumerate(zip(line, gaps, strict=True))
        ]
        yield "  ".join(["", *padded])


def safe(text: str) -> str:
    """Return a sender's text so that a terminal obeys nothing in it."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def listed(counts: Mapping[str, int]) -> str:
    """Return counts with their names, without those that are 0."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
