"""Builds the peers once, outside the repository: a folder of jars each, or an environment of Python."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from streams.kafka.broker import cache_directory

SOURCES: Final = Path(__file__).parent
_SAID: Final = 300
"""Characters of an error that are shown."""


class PeerError(Exception):
    """A peer that cannot be built or run; the message says why, in one line."""


def jars(project: str) -> Path:
    """Return the folder with all jars of a Maven project in this package. Raises PeerError."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise PeerError(f"{program} is not on the PATH: the peers need a JDK (17 or later) and Maven")
    folders = [SOURCES / "common", SOURCES / project]
    sources = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]

    def package(scratch: Path) -> Path:
        for folder in folders:
            shutil.copytree(folder, scratch / folder.name)
        _run(["mvn", "-q", "-B", "-f", str(scratch / project), "package"])
        return scratch / project / "target" / "jars"

    return _built(sources, package)


def python() -> Path:
    """Return the Python of an environment that has what Bytewax needs. Raises PeerError."""
    requirements = SOURCES / "requirements.txt"

    def install(scratch: Path) -> Path:
        environment = scratch / "environment"
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(requirements)])
        return environment

    return _built([requirements], install) / "bin" / "python"


def _built(sources: Iterable[Path], build: Callable[[Path], Path]) -> Path:
    """Return the folder that `build` makes of the sources, kept by their hash; a rename puts it in its place whole."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    cache = cache_directory() / "peers"
    kept = cache / digest.hexdigest()[:16]
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            build(Path(scratch)).rename(kept)
    return kept


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}, check=False)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[:_SAID]
        raise PeerError(f"{' '.join(command[:4])} failed: {said}")
