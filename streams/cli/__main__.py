"""`python -m streams.cli` is the `streams` command."""

from streams.cli import main

main()
