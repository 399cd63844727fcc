"""Scrapes that take for ever: `python -m benchmarks.slow URL N` holds N connections to a worker, until it is ended.

Half of them send half a request, half ask for /metrics and take a thousand bytes a second. Who is closed comes again.
"""

import asyncio
import sys
from contextlib import suppress
from urllib.parse import urlsplit

_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: worker\r\n"
_AGAIN_S = 1.0


async def hold(host: str, port: int, ending: bytes) -> None:
    """Be one slow client after the other."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port, limit=1_000)
            writer.write(_REQUEST + ending)
            while await reader.read(1_000):
                await asyncio.sleep(1)
            writer.close()
        await asyncio.sleep(_AGAIN_S)


async def main(url: str, clients: int) -> None:
    """Hold all of them."""
    address = urlsplit(url)
    endings = [b"\r\n" if number % 2 else b"" for number in range(clients)]
    await asyncio.gather(*(hold(str(address.hostname), address.port or 80, ending) for ending in endings))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
