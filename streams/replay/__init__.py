"""Counting again: what topics, ranges of offsets and files held, through the same core."""
