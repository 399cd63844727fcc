"""A TCP proxy before the broker, that can be slow, cut its connections, and be away."""

import asyncio
import threading
from contextlib import suppress
from typing import Self

_AT_ONCE = 1 << 20
"""Bytes that a delay holds up together: a slow connection is one whose answers take long, not a narrow one."""


class Proxy:
    """Hands bytes through, both ways. Use as a context manager; `port` is where it listens."""

    def __init__(self) -> None:
        self.target = 0
        self.delay_s = 0.0
        self.is_away = False
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_AT_ONCE)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.is_away = True
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Break all connections in the middle of what they carry."""

        async def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_away:
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.add(writer)
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.target, limit=_AT_ONCE)
        except OSError:  # the broker is gone: nobody else would close what its client has opened
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(forth)
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_AT_ONCE):
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()
