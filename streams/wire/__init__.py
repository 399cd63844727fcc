"""Bytes to words and back: events as JSON, the program's own records as MessagePack. A bad record is a value."""
