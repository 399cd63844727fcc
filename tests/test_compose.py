"""What starts it all in containers, without an engine: every name in it is one of the program or of a service."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry
from typer.core import TyperGroup

from streams.cli import app
from streams.metrics.collector import Collector
from streams.settings import Settings
from streams.web.server import Site

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.M))
PORT = Settings.model_fields["http_port"].default
WRITES_BESIDE_ITSELF = {"kafka", "kafka-ui"}
ENDS_BY_ITSELF = {"topics"}
SERVES_NOTHING = {"topics", "generator"}


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [BIN / "docker-compose", "--file", ROOT / "docker-compose.yml", *arguments]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, check=False)


def services() -> dict[str, dict[str, Any]]:
    done = compose("--profile", "*", "config", "--format", "json", **EXAMPLE | {"GRAFANA_ADMIN_PASSWORD": "secret"})
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return found


SERVICES = services()
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)


def mounts(name: str) -> dict[str, Path]:
    """Where a service finds folders of this repository: its path -> ours."""
    binds = [one for one in SERVICES[name]["volumes"] if one["type"] == "bind"]
    return {one["target"]: Path(one["source"]) for one in binds}


def here(name: str, path: str) -> Path:
    """What a service finds at a path."""
    (found,) = [ours / Path(path).relative_to(its) for its, ours in mounts(name).items() if path.startswith(its)]
    return found


def addresses() -> set[str]:
    """host:port of all that a service can be reached at by others."""
    listeners = re.findall(r"NETWORK://(kafka:\d+)", SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"])
    ports = {f"{name}:{port['target']}" for name, service in SERVICES.items() for port in service.get("ports", ())}
    return {*listeners, *ports}


def routes() -> set[str]:
    return asyncio.run(_routes())


def never() -> NoReturn:
    raise AssertionError("to know the routes nobody has to read a figure")


async def _routes() -> set[str]:
    site = Site(Settings(), Collector(never, (), "", max_remembered=1), CollectorRegistry(), never, never)
    application = site._runner.app
    assert application is not None
    return {resource.canonical for resource in application.router.resources()}


# --- compose ----------------------------------------------------------------------------------------------------------


def test_compose_finds_nothing_and_wants_a_password_for_grafana() -> None:
    done = compose("config", "-q", GRAFANA_ADMIN_PASSWORD="secret")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    without = compose("config", "-q", **EXAMPLE)
    assert without.returncode != 0
    assert "say a password for Grafana in .env" in without.stderr


@each_of_ours
def test_what_ours_are_told_to_do_is_a_command_with_these_flags(name: str) -> None:
    command, words = typer.main.get_command(app), list(OURS[name]["command"])
    while isinstance(command, TyperGroup):
        command = command.commands[words.pop(0)]
    command.make_context(str(command.name), words).close()


@each_of_ours
def test_their_settings_are_settings_with_values_that_can_be_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = OURS[name]["environment"]
    assert {variable.removeprefix("STREAMS_").lower() for variable in given} <= set(Settings.model_fields)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert Settings().broker in addresses()


def test_the_example_of_settings_names_all_that_compose_asks_for_with_its_defaults() -> None:
    asked = dict(re.findall(r"\$\{(\w+)(?::[-?]([^}]*))?\}", COMPOSE))
    assert asked.keys() == EXAMPLE.keys()
    assert {name: asked[name] for name, value in EXAMPLE.items() if value} == {n: v for n, v in EXAMPLE.items() if v}
    for name in EXAMPLE:
        if name.startswith("STREAMS_"):
            assert name.removeprefix("STREAMS_").lower() in Settings.model_fields


def test_workers_are_reached_at_the_port_that_they_serve_on() -> None:
    assert [port["target"] for port in SERVICES["worker"]["ports"]] == [PORT]
    (job,) = yaml.safe_load(here("prometheus", "/etc/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["worker"], PORT)
    assert "/metrics" in routes() and "metrics_path" not in job


def test_services_find_each_other() -> None:
    prometheus = yaml.safe_load(here("prometheus", "/etc/prometheus/prometheus.yml").read_text())
    found = set(prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"])
    sources = yaml.safe_load(here("grafana", "/etc/grafana/provisioning/datasources/prometheus.yml").read_text())
    found |= {urlsplit(source["url"]).netloc for source in sources["datasources"]}
    found.add(SERVICES["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"])
    assert found <= addresses()


def test_every_file_that_a_service_is_told_of_is_there() -> None:
    for name in ("prometheus", "alertmanager"):
        (path,) = [word.split("=")[1] for word in SERVICES[name]["command"] if word.startswith("--config.file=")]
        assert here(name, path).is_file()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert here("grafana", home).is_file()
    (provider,) = yaml.safe_load(here("grafana", "/etc/grafana/provisioning/dashboards/dashboards.yml").read_text())[
        "providers"
    ]
    assert list(here("grafana", provider["options"]["path"]).glob("*.json"))


@each_service
def test_services_may_do_little_are_seen_on_this_machine_only_and_say_how_they_are(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) != (name in WRITES_BESIDE_ITSELF)
    assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}
    assert (service["restart"] == "no") == (name in ENDS_BY_ITSELF)
    assert service.get("healthcheck", {}).get("disable", False) == (name in SERVES_NOTHING)
    assert ":" in service.get("image", "") or name in OURS


# --- the image --------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_starts_a_script_of_the_project_as_nobody_in_particular() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [entrypoint] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    assert json.loads(entrypoint)[0] in scripts
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", DOCKERFILE, re.M)
    assert re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.M) == [str(PORT)]
    [url] = re.findall(r"http://[^']+", DOCKERFILE)
    health = urlsplit(url)
    assert health.port == PORT and health.path in routes()
    for name in re.findall(r"STREAMS_(\w+)=", DOCKERFILE):
        assert name.lower() in Settings.model_fields


def test_all_that_the_image_is_built_from_is_there_and_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M)]
    assert {path for paths in copied for path in paths} == sent
    assert all((ROOT / path).exists() for path in sent)
    pinned = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert all(re.search(r":.*\d", image) for image in pinned)
