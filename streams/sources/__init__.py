"""Where events come from: made ones, and real logs turned into events, both with a truth that is known beforehand.

    plans of renders ─> EventMaker ─> Scheduled records in order of time ─> Kafka, or files
                                        └─> facts ─> Truth: what has to come out

A plan comes from synthetic traffic or from the Open Bandit log.
"""
