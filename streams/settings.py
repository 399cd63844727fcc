"""All settings, read once, in one place, and frozen: defaults < streams.toml < environment `STREAMS_*` < flags."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from streams.core.books import DIMENSIONS
from streams.core.events import DEFAULT_SOURCE
from streams.core.panes import PANE_MS
from streams.core.rules import DAY, Key, Network, Rules

PREFIX: Final = "STREAMS_"
FILE: Final = "streams.toml"
HIDDEN: Final = "********"
"""What is shown in the place of a secret."""

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


@dataclass(frozen=True)
class SecretFile:
    """A file and the secret that it held when the settings were read, without the end of its line."""

    path: Path
    content: SecretStr


def _secret_file(given: Any) -> SecretFile:
    path = Path(given)
    try:
        content = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}") from None
    if not content:
        raise ValueError("the file is empty")
    return SecretFile(path, SecretStr(content))


def _not_empty(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        raise ValueError("it is empty: leave it out, or give one")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_not_empty)]
FileOfSecret = Annotated[SecretFile, BeforeValidator(_secret_file)]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
Duration = Annotated[int, BeforeValidator(duration_ms), Field(gt=0)]
OffOrDuration = Annotated[int, BeforeValidator(duration_ms), Field(ge=0)]
CidrFile = Annotated[Path, AfterValidator(_cidr_file)]
Segments = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_known_dimensions)]
Windows = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_whole_panes), Field(min_length=1)]


class Settings(BaseSettings):
    """Every setting with its default. Durations are milliseconds inside and texts such as `30s` outside."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        toml_file=FILE,
        frozen=True,
        extra="forbid",
        enable_decoding=False,
        hide_input_in_errors=True,
    )

    broker: str = Field("127.0.0.1:9092", description="Kafka bootstrap address, host:port[,host:port]")
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Goes before every topic name")
    group: str = Field(
        "impression-streams", pattern=r"^[A-Za-z0-9._-]+$", description="Consumer group; the prefix goes before it"
    )
    sasl_mechanism: Mechanism | None = Field(None, description="How to log in to Kafka, with a SASL protocol")
    sasl_username: str | None = Field(None, min_length=1, description="Who logs in to Kafka")
    sasl_password: Secret | None = Field(None, description="Password of the user who logs in to Kafka")
    sasl_password_file: FileOfSecret | None = Field(None, description="File with that password")
    ssl_ca: FilePath | None = Field(
        None, description="Certificates that Kafka's is to be signed by, PEM; without: those that the system trusts"
    )
    ssl_certificate: FilePath | None = Field(None, description="Certificate to show to Kafka, with its chain, PEM")
    ssl_key: FilePath | None = Field(None, description="Key of that certificate, PEM, if it is in a file of its own")
    ssl_key_password: Secret | None = Field(None, description="Password of that key, if it has one")
    ssl_key_password_file: FileOfSecret | None = Field(None, description="File with that password")
    # Behind what it is checked against.
    security_protocol: SecurityProtocol = Field(
        "PLAINTEXT", description="How to talk to Kafka: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
    )

    http_host: str = Field("127.0.0.1", description="Address that the HTTP server binds to")
    http_port: int = Field(6066, ge=0, le=65535, description="Port of /, /metrics, /healthz and /readyz; 0 = any")
    http_key: FilePath | None = Field(None, description="Key of the HTTP server's certificate, if in a file of its own")
    http_certificate: FilePath | None = Field(
        None, description="Certificate of the HTTP server with its chain, PEM; with it: HTTPS"
    )
    http_token: Secret | None = Field(None, description="Bearer token that opens all but /healthz")
    http_token_file: FileOfSecret | None = Field(None, description="File with that token")
    http_password: Secret | None = Field(None, description="Password that opens all but /healthz, with the user name")
    http_password_file: FileOfSecret | None = Field(None, description="File with that password")
    http_username: str | None = Field(
        None, min_length=1, pattern=r"^[^:]*$", description="User name beside that password"
    )
    http_max_connections: int = Field(64, ge=4, description="HTTP connections at a time; beyond, the slowest is closed")

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

    commit_interval: Duration = Field(
        200, description="How often counts are journaled and shown; many of them twice as often"
    )
    session_timeout: Duration = Field(6_000, description="After this long without heartbeat a worker is dead")
    max_remembered: int = Field(
        50_000_000, ge=1, description="Impressions a worker remembers; then it pauses its input, and never evicts"
    )
    log_level: str = Field("info", pattern=r"^(debug|info|warning|error)$", description="Least severe log shown")

    @field_validator("sasl_password_file", "ssl_key_password_file", "http_token_file", "http_password_file")
    @classmethod
    def _one_place_for_a_secret(cls, file: SecretFile | None, info: ValidationInfo) -> SecretFile | None:
        secret = str(info.field_name).removesuffix("_file")
        if file is not None and info.data.get(secret, ...) is not None:
            raise ValueError(f"{variable(secret)} is given too: keep one of them")
        return file

    @field_validator("security_protocol")
    @classmethod
    def _fits_what_is_given(cls, protocol: str, info: ValidationInfo) -> str:
        login = {name: _is_given(info.data, name) for name in ("sasl_mechanism", "sasl_username", "sasl_password")}
        files = [name for name in ("ssl_ca", "ssl_certificate") if _is_given(info.data, name)]
        if protocol.startswith("SASL_") and (missing := [name for name, given in login.items() if not given]):
            raise ValueError(f"needs {_variables(missing)} as well")
        if not protocol.startswith("SASL_") and (idle := [name for name, given in login.items() if given]):
            raise ValueError(f"does not log in, but {_variables(idle)} is given: take SASL_SSL, or SASL_PLAINTEXT")
        if not protocol.endswith("SSL") and files:
            raise ValueError(f"is without TLS, but {_variables(files)} is given: take SSL or SASL_SSL")
        return protocol

    @field_validator("http_certificate")
    @classmethod
    def _key_has_its_certificate(cls, certificate: Path | None, info: ValidationInfo) -> Path | None:
        if certificate is None and _is_given(info.data, "http_key"):
            raise ValueError(f"it is needed beside {variable('http_key')}")
        return certificate

    @field_validator("http_username")
    @classmethod
    def _password_has_its_name(cls, username: str | None, info: ValidationInfo) -> str | None:
        if (username is None) == _is_given(info.data, "http_password"):
            raise ValueError(f"it and {variable('http_password')} need each other")
        return username

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

    def secret(self, name: str) -> str | None:
        """Return a secret in the clear, from where it was given; None if it was not."""
        file: SecretFile | None = getattr(self, f"{name}_file")
        secret: SecretStr | None = getattr(self, name) if file is None else file.content
        return None if secret is None else secret.get_secret_value()

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
        return Settings(**_given(flags))
    except TOMLDecodeError as error:
        raise SettingsError(f"{FILE}: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem) for problem in error.errors())) from None


def variable(name: str) -> str:
    """Return the name of a setting as a variable of the environment."""
    return PREFIX + name.upper()


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _is_given(data: Mapping[str, Any], name: str) -> bool:
    """Say whether a setting, or the file with it, was given; what is wrong in itself is not in `data`, but was."""
    return any(data.get(place, ...) is not None for place in (name, f"{name}_file") if place in Settings.model_fields)


def _variables(names: list[str]) -> str:
    return " and ".join(variable(name) for name in names)


def _line(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":  # without its value: it may be a misspelt secret
        near = get_close_matches(name, Settings.model_fields, 1)
        return f"{variable(name)}: there is no such setting" + (f"; did you mean {variable(near[0])}?" if near else "")
    if problem["input"] is None:
        return f"{variable(name)}: {message}"
    given = HIDDEN if is_secret(name) else repr(problem["input"])
    return f"{variable(name)}={given}: {message}"


def is_secret(name: str) -> bool:
    """Say whether the value of a setting is never to be shown."""
    return f"{name}_file" in Settings.model_fields


def origins(**flags: Any) -> dict[str, str]:
    """Return where each setting comes from that was given to `load` with the same flags; the rest are defaults."""
    sources: list[tuple[str, Mapping[str, Any]]] = [
        (FILE, TomlConfigSettingsSource(Settings)()),
        ("environment", EnvSettingsSource(Settings)()),
        ("flag", _given(flags)),
    ]
    return {name: origin for origin, given in sources for name in given}


def duration_text(ms: int) -> str:
    """Return a duration in the largest unit that divides it; `duration_ms` reads it."""
    unit = next(unit for unit in reversed(_UNITS_MS) if ms % _UNITS_MS[unit] == 0)
    return f"{ms // _UNITS_MS[unit]}{unit}" if ms else "0"
