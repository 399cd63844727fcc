"""The counting. Pure: no clock, no I/O, no log, no randomness; time comes with the events."""
