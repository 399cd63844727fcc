"""The load: renders and their views, with duplicates, whose totals are known because of how it is made."""

import time
from collections import Counter
from typing import NamedTuple

from confluent_kafka import Producer

CAMPAIGNS = 20
VIEWERS = 100_000
SLOTS = 3
"""A viewer meets a slot again after VIEWERS * SLOTS / RENDERS_A_SECOND = 60 s: never a refresh."""
DUPLICATE_EVERY = 20
UNMEASURED_EVERY = 20
VIEWABLE_OF_FIVE = 2
RENDERS_A_SECOND = 5_000
"""Of event time: what the load looks like to the counting, however fast it is sent."""


class Truth(NamedTuple):
    """What has to come out."""

    events: int
    served: Counter[str]
    measurable: Counter[str]
    viewable: Counter[str]


def produce(bootstrap: str, prefix: str, renders: int) -> Truth:
    """Send `renders` impressions with their views and a twentieth of duplicates; return the truth."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
            "partitioner": "murmur2_random",
        }
    )
    truth = Truth(0, Counter(), Counter(), Counter())
    start = int(time.time() * 1000) - renders * 1000 // RENDERS_A_SECOND
    events = 0
    for number in range(renders):
        ts = start + number * 1000 // RENDERS_A_SECOND
        campaign = f"campaign-{number % CAMPAIGNS}"
        viewer = f"viewer-{number * 7919 % VIEWERS:06d}"
        render = (
            f'{{"impression_id":"imp-{number:012d}","campaign_id":"{campaign}","ts":{ts},"viewer_id":"{viewer}",'
            f'"page_view_id":"pv-{number:08d}","slot_id":"slot-{number // VIEWERS % SLOTS}",'
            '"creative_id":"creative-33","price":"2.5","price_unit":"cpm","currency":"USD","format":"display","width":300,"height":250,"device":"desktop"}'
        ).encode()
        copies = 2 if number % DUPLICATE_EVERY == 0 else 1
        for _ in range(copies):
            send(producer, prefix + "renders", viewer, render)
        events += copies
        truth.served[campaign] += 1
        if number // CAMPAIGNS % UNMEASURED_EVERY:
            viewable = number // CAMPAIGNS % 5 < VIEWABLE_OF_FIVE
            view = (
                f'{{"impression_id":"imp-{number:012d}","ts":{ts + 1000},"viewer_id":"{viewer}",'
                f'"kind":"{"viewable" if viewable else "not_viewable"}","vendor":"ias"}}'
            ).encode()
            send(producer, prefix + "viewability", viewer, view)
            events += 1
            truth.measurable[campaign] += 1
            truth.viewable[campaign] += viewable
    if producer.flush(60):
        raise RuntimeError("the load was not delivered")
    return truth._replace(events=events)


def send(producer: Producer, topic: str, key: str | bytes, value: bytes, **where: int) -> None:
    """Send a record, however full the producer is."""
    while True:
        try:
            producer.produce(topic, value, key, **where)
            return
        except BufferError:
            producer.poll(0.1)
