"""All settings, read once, in one place, and frozen: defaults < streams.toml < environment `STREAMS_*` < flags."""

import re
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from streams.core.books import DIMENSIONS
from streams.core.events import DEFAULT_SOURCE
from streams.core.panes import PANE_MS
from streams.core.rules import DAY, Key, Network, Rules

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")


class SettingsError(Exception):
    """Settings that cannot be used; the message has a line for each one that is wrong."""


def duration_ms(text: Any) -> Any:
    """Return a duration such as "30s", "10m", "1h" in milliseconds; anything that is no text is left alone."""
    if not isinstance(text, str):
        return text
    if text.strip() == "0":
        return 0
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("a duration such as 30s, 10m, 1h or 1d is needed")
    return int(match[1]) * _UNITS_MS[match[2]]


def _listed(text: Any) -> Any:
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def _whole_panes(windows: tuple[str, ...]) -> tuple[str, ...]:
    for window in windows:
        length = duration_ms(window)
        if not 0 < length <= DAY or length % PANE_MS:
            raise ValueError(f"{window}: a window is a multiple of {PANE_MS // 1000}s, up to 1d")
    return windows


def _known_dimensions(dimensions: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in dimensions if name not in DIMENSIONS]:
        raise ValueError(f"{', '.join(unknown)}: not one of {', '.join(DIMENSIONS)}")
    return tuple(dict.fromkeys(dimensions))


def networks_in(file: Path) -> tuple[Network, ...]:
    """Return the networks of a file with one a line; `#` begins a comment. Raises ValueError naming the line."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    networks = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            networks += [ip_network(text)] if text else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return tuple(networks)


def _cidr_file(file: Path) -> Path:
    networks_in(file)
    return file


Duration = Annotated[int, BeforeValidator(duration_ms), Field(gt=0)]
OffOrDuration = Annotated[int, BeforeValidator(duration_ms), Field(ge=0)]
CidrFile = Annotated[Path, AfterValidator(_cidr_file)]
Segments = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known_dimensions)]
Windows = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_whole_panes), Field(min_length=1)]


class Settings(BaseSettings):
    """Every setting with its default. Durations are milliseconds inside and texts such as `30s` outside."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMS_", toml_file="streams.toml", frozen=True, extra="forbid", enable_decoding=False
    )

    broker: str = Field("127.0.0.1:9092", description="Kafka bootstrap address, host:port[,host:port]")
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Goes before every topic name")
    group: str = Field(
        "impression-streams", pattern=r"^[A-Za-z0-9._-]+$", description="Consumer group; the prefix goes before it"
    )
    http_host: str = Field("127.0.0.1", description="Address that the HTTP server binds to")
    http_port: int = Field(6066, ge=0, le=65535, description="Port of /, /metrics, /healthz and /readyz; 0 = any")

    lateness: Duration = Field(3_600_000, description="An event further behind its topic partition is late")
    dedup_horizon: Duration = Field(3_600_000, description="Renders of one identity this close are one impression")
    viewability_horizon: Duration = Field(3_600_000, description="How long after its render a view or click counts")
    refresh_interval: OffOrDuration = Field(
        30_000, description="Renders of one ad in one slot of one viewer closer than this are refreshes; 0 = off"
    )
    refresh_slack: Duration = Field(60_000, description="A render further behind is not asked whether it is a refresh")
    count_user_refresh: bool = Field(False, description="Refreshes that the viewer asked for count")
    click_makes_viewable: bool = Field(False, description="A counted click makes its impression viewable")
    datacenter_cidrs: CidrFile | None = Field(None, description="File of networks that no person browses from")
    billing_source: str = Field(DEFAULT_SOURCE, min_length=1, description="The source whose counts are billed")
    campaigns: Path | None = Field(None, description="File of what is agreed for each campaign")
    key: Key = Field("viewer", description="What senders key events by: viewer or impression")
    segments: Segments = Field((), description=f"Dimensions that campaigns are cut by: {', '.join(DIMENSIONS)}")
    windows: Windows = Field(("1m", "5m", "1h"), description="Rolling windows, each a multiple of 10s, up to 1d")
    max_campaigns: int = Field(5_000, ge=1, description="Campaigns a worker shows by name; the rest is one, _other")
    campaign_ttl: Duration = Field(30 * DAY, ge=DAY, description="A campaign this long without events is forgotten")
    min_sample: int = Field(1, ge=1, description="A ratio is absent while its denominator is smaller")
    idle: OffOrDuration = Field(30_000, description="A topic partition this long without records is idle; 0 = never")

    commit_interval: Duration = Field(200, description="How often counts are journaled and shown")
    session_timeout: Duration = Field(6_000, description="After this long without heartbeat a worker is dead")
    max_remembered: int = Field(
        50_000_000, ge=1, description="Impressions a worker remembers; then it pauses its input, and never evicts"
    )
    log_level: str = Field("info", pattern=r"^(debug|info|warning|error)$", description="Least severe log shown")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence, strongest first."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def rules(self) -> Rules:
        """The part that counting depends on."""
        return Rules(
            lateness_ms=self.lateness,
            dedup_horizon_ms=self.dedup_horizon,
            viewability_horizon_ms=self.viewability_horizon,
            refresh_interval_ms=self.refresh_interval,
            refresh_slack_ms=self.refresh_slack,
            count_user_refresh=self.count_user_refresh,
            click_makes_viewable=self.click_makes_viewable,
            datacenters=() if self.datacenter_cidrs is None else networks_in(self.datacenter_cidrs),
            crawlers=version("crawler-user-agents"),
            billing_source=self.billing_source,
            key=self.key,
            windows=",".join(self.windows),
        )

    @property
    def windows_ms(self) -> tuple[int, ...]:
        """Lengths of the rolling windows, in the order of `windows`."""
        return tuple(duration_ms(window) for window in self.windows)

    def topic(self, name: str) -> str:
        """Return the full name of a topic."""
        return self.topic_prefix + name


def load(**flags: Any) -> Settings:
    """Read the settings; flags that are None are not given. Raises SettingsError with a line for every error."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem) for problem in error.errors())) from None


def _line(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"STREAMS_{name.upper()}={problem['input']!r}: {message}"
