"""The floor: aiokafka fetches, msgspec decodes, nothing is counted. Prints events, seconds, CPU seconds, peak MiB."""

import asyncio
import os
import sys
import time

import aiokafka

from benchmarks.processes import peak_mib
from streams.wire.events import decoder


async def _read(events: int) -> None:
    prefix = os.environ["STREAMS_TOPIC_PREFIX"]
    decoders = {prefix + topic: decoder(topic) for topic in ("renders", "viewability")}
    consumer = aiokafka.AIOKafkaConsumer(
        *decoders,
        bootstrap_servers=os.environ["STREAMS_BROKER"],
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=1 << 20,
    )
    await consumer.start()
    count, began, cpu = 0, time.monotonic(), time.process_time()
    while count < events:
        for place, records in (await consumer.getmany(timeout_ms=1000)).items():
            count += len(decoders[place.topic]([record.value for record in records]))
    print(count, time.monotonic() - began, time.process_time() - cpu, peak_mib(os.getpid()), flush=True)
    await consumer.stop()


asyncio.run(_read(int(sys.argv[1])))
