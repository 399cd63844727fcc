"""Where events come from: made ones with a truth that is known beforehand, and real logs turned into events.

    plans of renders (synthetic, open_bandit) ─> EventMaker ─> Scheduled records in order of time ─> Kafka or files
                                                                └─> facts ─> Truth: what has to come out
"""
