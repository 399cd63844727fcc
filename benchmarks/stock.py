"""Stock Faust's recovery: a table with a key an impression in its changelog. Prints keys and seconds."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from typing import Any

import faust
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

_VALUE = bytes(24)
"""As long as a packed row."""


async def _recover(broker: str, keys: int, folder: str) -> None:
    name = f"stock{os.getpid()}"
    _preload(broker, name, keys)
    app = faust.App(
        name,
        broker=f"kafka://{broker}",
        store="memory://",
        topic_partitions=1,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=folder,
        consumer_auto_offset_reset="earliest",
    )
    table = app.Table("impressions", partitions=1, key_type=bytes, value_type=bytes)
    times: dict[str, float] = {}
    done = asyncio.Event()

    @app.agent(app.topic(f"{name}-input", value_type=bytes))
    async def agent(stream: Any) -> None:
        async for _ in stream:
            pass

    @app.on_partitions_assigned.connect
    async def assigned(*_: Any, **__: Any) -> None:
        times.setdefault("began", time.monotonic())

    @app.on_rebalance_complete.connect
    async def recovered(*_: Any, **__: Any) -> None:
        times["ended"] = time.monotonic()
        done.set()

    app.finalize()
    starting = asyncio.create_task(app.start())
    await done.wait()
    print(len(table), times["ended"] - times["began"], flush=True)
    starting.cancel()
    shutil.rmtree(folder)
    os._exit(0)  # its threads would go on


def _preload(broker: str, name: str, keys: int) -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    changelog = f"{name}-impressions-changelog"
    for created in admin.create_topics([NewTopic(changelog, 1), NewTopic(f"{name}-input", 1)]).values():
        created.result()
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 20})
    for number in range(keys):
        producer.produce(changelog, _VALUE, number.to_bytes(8, "big"), partition=0)
        if number % 10_000 == 0:
            producer.poll(0.1)
    producer.flush()


asyncio.run(_recover(os.environ["STREAMS_BROKER"], int(sys.argv[1]), tempfile.mkdtemp()))
