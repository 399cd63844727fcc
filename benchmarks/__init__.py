"""Benchmarks: programs that print what they measured, with the machine and an exact-count line. No timed tests."""
