"""`streams config`: every setting with its value and where it is from; secrets are hidden."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import typer
from pydantic import SecretStr

from streams.cli.shared import (
    BrokerOption,
    HostOption,
    JsonOption,
    LevelOption,
    PortOption,
    PrefixOption,
    settings_from,
    write_json,
)
from streams.settings import HIDDEN, SecretFile, Settings, duration_ms, duration_text, origins, variable

EPILOG: Final = "Examples: [bold]streams config[/bold] | [bold]STREAMS_IDLE=0 streams config --json[/bold]"


class Shown(NamedTuple):
    """A setting as anybody may see it: its value as text, hidden if it is a secret, and where it is from."""

    name: str
    value: str
    origin: str
    description: str


def command(
    broker: BrokerOption = None,
    topic_prefix: PrefixOption = None,
    http_host: HostOption = None,
    http_port: PortOption = None,
    log_level: LevelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every setting as a worker with the same flags would take it, and where it is from. Secrets are hidden."""
    flags: dict[str, Any] = {
        "broker": broker,
        "topic_prefix": topic_prefix,
        "http_host": http_host,
        "http_port": http_port,
        "log_level": log_level,
    }
    settings = list(shown(settings_from(**flags), origins(**flags)))
    if as_json:
        write_json([setting._asdict() for setting in settings])
        return
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        typer.secho(
            f"{setting.name:{width}}  {setting.value or '-'}  ({setting.origin})", bold=setting.origin != "default"
        )


def shown(settings: Settings, origin: dict[str, str]) -> Iterator[Shown]:
    """Yield every setting; those without an origin have their default."""
    for name, field in Settings.model_fields.items():
        is_duration = any(getattr(part, "func", None) is duration_ms for part in field.metadata)
        value = _text(getattr(settings, name), is_duration)
        yield Shown(variable(name), value, origin.get(name, "default"), field.description or "")


def _text(value: Any, is_duration: bool) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return HIDDEN
        case SecretFile():
            return str(value.path)
        case tuple():
            return ",".join(value)
        case bool():
            return str(value).lower()
    return duration_text(value) if is_duration else str(value)
