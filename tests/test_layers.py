"""The import table: who may know whom. Imports point downward only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streams"
MODULES = sorted(PACKAGE.rglob("*.py"))

ABOVE = {
    "core": set(),
    "settings": {"core"},
    "wire": {"core"},
    "kafka": {"core", "wire", "settings"},
    "metrics": {"core", "wire", "settings"},
    "replay": {"core", "wire", "settings"},
    "sources": {"core", "wire", "settings"},
    "cli": {"core", "wire", "settings", "kafka", "metrics", "replay", "sources", "web"},
    "web": {"core", "wire", "settings", "kafka", "metrics", "replay", "sources"},
}
"""Part -> the parts below it."""

CORE_MAY_USE = {
    "array", "bisect", "collections", "copy", "crawleruseragents", "dataclasses", "decimal", "enum", "fractions",
    "functools", "heapq", "ipaddress", "itertools", "math", "msgspec", "numpy", "operator", "re", "string", "struct",
    "types", "typing", "xxhash",
}  # fmt: skip
"""No clock, no I/O, no log, no randomness: what is not here, counting does not need."""

KAFKA_ONLY = {"faust", "mode", "aiokafka"}
CORE_AND_WIRE_ONLY = {"msgspec"}


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: Path) -> list[str]:
    """Full dotted names of all that a module imports, inside functions and under TYPE_CHECKING too."""
    package = list(module.relative_to(ROOT).with_suffix("").parts[:-1])
    names = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(name for name in (base, node.module) if name)
            names += [f"{origin}.{alias.name}" for alias in node.names]
    return names


def streams_parts(module: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("streams.")}


def roots(module: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))


@each_module
def test_a_module_imports_only_its_own_part_and_the_parts_below_it(module):
    part = part_of(module)
    if part == "__init__":
        assert streams_parts(module) == set()
        return
    assert streams_parts(module) <= ABOVE[part] | {part, "__version__"}


@pytest.mark.parametrize("module", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda module: module.name)
def test_the_core_has_no_clock_no_io_no_log_and_no_randomness(module):
    assert roots(module) - {"streams"} <= CORE_MAY_USE
    called = {node.id for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Name)}
    assert called.isdisjoint({"open", "print", "input", "exec", "eval", "__import__", "id", "hash"})


@each_module
def test_only_the_kafka_part_knows_faust_and_aiokafka(module):
    if part_of(module) != "kafka":
        assert roots(module).isdisjoint(KAFKA_ONLY)


@each_module
def test_only_the_core_and_the_wire_know_how_words_are_packed(module):
    if part_of(module) not in ("core", "wire"):
        assert roots(module).isdisjoint(CORE_AND_WIRE_ONLY)


def test_the_oracle_shares_no_code_with_what_it_judges():
    assert "streams" not in roots(ROOT / "tests" / "oracle.py")
    assert "tests" not in roots(ROOT / "tests" / "oracle.py")


def test_the_table_names_every_part_there_is():
    assert {part_of(module) for module in MODULES} - {"__init__"} <= set(ABOVE)


def test_an_import_inside_a_function_or_a_relative_one_is_seen(tmp_path, monkeypatch):
    module = tmp_path / "streams" / "core" / "sly.py"
    module.parent.mkdir(parents=True)
    module.write_text("def f():\n    import time\n    from ..kafka import app\n    from . import panes\n")
    monkeypatch.setattr("tests.test_layers.ROOT", tmp_path)
    assert imports(module) == ["time", "streams.kafka.app", "streams.core.panes"]
