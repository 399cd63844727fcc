"""Settings are read once, from four places in a fixed order, and all their errors are told at once."""

from importlib.metadata import version
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis.strategies import integers
from typer.testing import CliRunner

from streams.cli import app
from streams.core.rules import Rules
from streams.settings import Settings, SettingsError, duration_ms, duration_text, load


@pytest.fixture(autouse=True)
def empty_place(tmp_path, monkeypatch):
    """A working directory without streams.toml and an environment without STREAMS_*."""
    import os

    for name in [name for name in os.environ if name.upper().startswith("STREAMS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("1ms", 1), ("30s", 30_000), ("10m", 600_000), ("1h", 3_600_000), ("30d", 2_592_000_000), (" 5s ", 5_000)],
)
def test_a_duration_is_a_number_and_a_unit(text, ms):
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "10", "1.5h", "-1s", "h", "1 h", "1h30m", "1H", "1w"])
def test_what_is_no_duration_is_refused(text, monkeypatch):
    monkeypatch.setenv("STREAMS_LATENESS", text)
    with pytest.raises(SettingsError, match="STREAMS_LATENESS"):
        load()


def test_without_anything_given_the_defaults_are_those_of_the_contract():
    settings = load()
    assert settings.rules == Rules(
        lateness_ms=3_600_000, dedup_horizon_ms=3_600_000, viewability_horizon_ms=3_600_000, early_ms=10_000,
        billing_source="adserver", crawlers=version("crawler-user-agents"), key="viewer", windows="1m,5m,1h",
    )  # fmt: skip
    assert settings.windows == ("1m", "5m", "1h")
    assert settings.windows_ms == (60_000, 300_000, 3_600_000)
    assert (settings.http_port, settings.min_sample, settings.idle) == (6066, 1, 30_000)


def test_the_settings_of_counting_reach_the_rules(tmp_path, monkeypatch):
    (tmp_path / "cidrs").write_text("# a comment\n192.0.2.0/24\n\n2001:db8::/32 # and another\n")
    for name, value in {
        "REFRESH_INTERVAL": "10s", "REFRESH_SLACK": "2m", "COUNT_USER_REFRESH": "true", "CLICK_MAKES_VIEWABLE": "true",
        "DATACENTER_CIDRS": str(tmp_path / "cidrs"), "LATENESS": "1m", "DEDUP_HORIZON": "2m",
        "VIEWABILITY_HORIZON": "3m", "BILLING_SOURCE": "dsp", "KEY": "impression",
        "WINDOWS": "10s, 1m",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"STREAMS_{name}", value)
    assert load().rules == Rules(
        lateness_ms=60_000, dedup_horizon_ms=120_000, viewability_horizon_ms=180_000, refresh_interval_ms=10_000,
        refresh_slack_ms=120_000, count_user_refresh=True, click_makes_viewable=True, billing_source="dsp",
        datacenters=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        crawlers=version("crawler-user-agents"), key="impression", windows="10s,1m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"192.0.2.0/24\nexample.org\n", "line 2"),
        (b"192.0.2.1/24\n", "line 1: .*host bits"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_list_of_networks_that_cannot_be_used_is_refused_with_the_line(content, words, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "cidrs").write_bytes(content)
    monkeypatch.setenv("STREAMS_DATACENTER_CIDRS", str(tmp_path / "cidrs"))
    with pytest.raises(SettingsError, match=f"STREAMS_DATACENTER_CIDRS=.*{words}"):
        load()


def test_flags_go_before_environment_before_file_before_defaults(tmp_path, monkeypatch):
    (tmp_path / "streams.toml").write_text('lateness = "2h"\ngroup = "file"\nbroker = "file:1"\n')
    monkeypatch.setenv("STREAMS_GROUP", "environment")
    monkeypatch.setenv("STREAMS_BROKER", "environment:1")
    settings = load(broker="flag:1", group=None)
    assert (settings.broker, settings.group, settings.lateness) == ("flag:1", "environment", 7_200_000)
    assert settings.dedup_horizon == 3_600_000


def test_all_errors_are_told_at_once_each_with_the_name_and_the_value(monkeypatch):
    monkeypatch.setenv("STREAMS_LATENESS", "soon")
    monkeypatch.setenv("STREAMS_HTTP_PORT", "70000")
    monkeypatch.setenv("STREAMS_WINDOWS", "1m,7s")
    monkeypatch.setenv("STREAMS_GROUP", "a b")
    with pytest.raises(SettingsError) as refused:
        load(min_sample=0)
    lines = str(refused.value).splitlines()
    assert sorted(line.partition("=")[0] for line in lines) == [
        "STREAMS_GROUP",
        "STREAMS_HTTP_PORT",
        "STREAMS_LATENESS",
        "STREAMS_MIN_SAMPLE",
        "STREAMS_WINDOWS",
    ]
    assert "STREAMS_LATENESS='soon': a duration such as 30s, 10m, 1h or 1d is needed" in lines


def test_a_misspelt_setting_in_the_file_is_refused_by_name(tmp_path):
    (tmp_path / "streams.toml").write_text('latness = "1h"\n')
    with pytest.raises(SettingsError, match="LATNESS"):
        load()


def test_a_misspelt_flag_is_refused_by_name():
    with pytest.raises(SettingsError, match="LATNESS"):
        load(latness="1h")


@pytest.mark.parametrize("windows", ["", ",", "5s", "15s", "0s", "2d", "25h", "1m,1x", "86410s"])
def test_windows_are_multiples_of_a_pane_up_to_a_day(windows, monkeypatch):
    monkeypatch.setenv("STREAMS_WINDOWS", windows)
    with pytest.raises(SettingsError, match="STREAMS_WINDOWS"):
        load()


@pytest.mark.parametrize(("text", "windows"), [("10s", ("10s",)), (" 1m , 1d ", ("1m", "1d")), ("90s", ("90s",))])
def test_windows_are_given_as_a_list_with_commas(text, windows, monkeypatch):
    monkeypatch.setenv("STREAMS_WINDOWS", text)
    assert load().windows == windows


def test_windows_in_the_file_are_a_list(tmp_path):
    (tmp_path / "streams.toml").write_text('windows = ["30s", "2h"]\n')
    assert load().windows_ms == (30_000, 7_200_000)


@pytest.mark.parametrize(("text", "ms"), [("30s", 30_000), ("2m", 120_000), ("0", 0), ("0s", 0)])
def test_how_long_silence_lasts_is_a_duration_and_0_switches_it_off(text, ms, monkeypatch):
    monkeypatch.setenv("STREAMS_IDLE", text)
    assert load().idle == ms


def test_a_duration_of_nothing_is_refused_where_it_would_make_no_sense(monkeypatch):
    monkeypatch.setenv("STREAMS_LATENESS", "0s")
    with pytest.raises(SettingsError, match="STREAMS_LATENESS"):
        load()


def test_settings_never_change_once_they_are_read():
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.group = "other"  # type: ignore[misc]


def test_every_setting_says_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_prefix_goes_before_every_topic(monkeypatch):
    monkeypatch.setenv("STREAMS_TOPIC_PREFIX", "eu.")
    assert load().topic("renders") == "eu.renders"


@pytest.mark.parametrize("prefix", ["a b", "a/b", "ä", "a\n"])
def test_a_prefix_that_no_topic_can_have_is_refused(prefix):
    with pytest.raises(SettingsError, match="STREAMS_TOPIC_PREFIX"):
        load(topic_prefix=prefix)


# --- secrets ----------------------------------------------------------------------------------------------------------

CANARY = "s3cret-canary"


def test_a_secret_comes_from_a_variable_or_from_a_file_without_the_end_of_its_line(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{CANARY}\n")
    assert load(http_token=CANARY).secret("http_token") == CANARY
    monkeypatch.setenv("STREAMS_HTTP_TOKEN_FILE", str(tmp_path / "token"))
    assert load().secret("http_token") == CANARY
    assert load().secret("sasl_password") is None


def test_a_secret_is_in_no_words_about_the_settings(tmp_path):
    (tmp_path / "token").write_text(CANARY)
    settings = load(http_token_file=tmp_path / "token", ssl_key_password=CANARY)
    for words in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert CANARY not in words


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "the file is empty"), (b"\n", "the file is empty"), (b"\xff", "no UTF-8 text")],
)
def test_a_file_of_a_secret_that_cannot_be_used_is_refused_by_name(content, words, tmp_path):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(SettingsError, match=f"STREAMS_HTTP_TOKEN_FILE=.*{words}"):
        load(http_token_file=tmp_path / "token")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"http_token": ""}, "STREAMS_HTTP_TOKEN=********: it is empty: leave it out, or give one"),
        ({"http_password": CANARY}, "STREAMS_HTTP_USERNAME: it and STREAMS_HTTP_PASSWORD need each other"),
        ({"http_username": "me"}, "STREAMS_HTTP_USERNAME='me': it and STREAMS_HTTP_PASSWORD need each other"),
        ({"http_key": __file__}, "STREAMS_HTTP_CERTIFICATE: it is needed beside STREAMS_HTTP_KEY"),
        (
            {"security_protocol": "SASL_SSL", "sasl_username": "me"},
            "STREAMS_SECURITY_PROTOCOL='SASL_SSL': needs STREAMS_SASL_MECHANISM and STREAMS_SASL_PASSWORD as well",
        ),
        (
            {"security_protocol": "SSL", "sasl_password": CANARY},
            "STREAMS_SECURITY_PROTOCOL='SSL': does not log in, but STREAMS_SASL_PASSWORD is given: take SASL_SSL, or "
            "SASL_PLAINTEXT",
        ),
        (
            {"ssl_ca": __file__},
            "STREAMS_SECURITY_PROTOCOL='PLAINTEXT': is without TLS, but STREAMS_SSL_CA is given: take SSL or SASL_SSL",
        ),
        (
            {"sasl_pasword": CANARY},
            "STREAMS_SASL_PASWORD: there is no such setting; did you mean STREAMS_SASL_PASSWORD?",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_with_what_is_missing(flags, line):
    with pytest.raises(SettingsError) as refused:
        load(**flags)
    assert str(refused.value) == line


def test_a_secret_that_is_given_twice_is_refused_without_showing_it(tmp_path):
    (tmp_path / "token").write_text(CANARY)
    with pytest.raises(SettingsError) as refused:
        load(http_token="other-canary", http_token_file=tmp_path / "token", http_port=-1)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2  # what is wrong elsewhere is told at the same time
    assert "STREAMS_HTTP_TOKEN is given too: keep one of them" in lines[1]
    assert "canary" not in str(refused.value)


def test_a_settings_file_that_is_no_toml_is_one_clear_line(tmp_path):
    (tmp_path / "streams.toml").write_text(f'http_token = "{CANARY}\n')
    with pytest.raises(SettingsError, match=r"^streams.toml: .*line 1") as refused:
        load()
    assert CANARY not in str(refused.value)


# --- streams config ---------------------------------------------------------------------------------------------------


def shown(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["config", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_config_shows_every_setting_with_its_value_and_where_it_is_from(tmp_path, monkeypatch):
    (tmp_path / "streams.toml").write_text('lateness = "90m"\ngroup = "file"\n')
    monkeypatch.setenv("STREAMS_GROUP", "environment")
    settings = {line["name"]: line for line in orjson.loads(shown("--http-port", "7000", "--json"))}
    assert settings.keys() == {f"STREAMS_{name.upper()}" for name in Settings.model_fields}
    for name, value, origin in (
        ("LATENESS", "90m", "streams.toml"), ("GROUP", "environment", "environment"), ("HTTP_PORT", "7000", "flag"),
        ("IDLE", "30s", "default"), ("WINDOWS", "1m,5m,1h", "default"), ("CLICK_MAKES_VIEWABLE", "false", "default"),
        ("CAMPAIGNS", "", "default"),
    ):  # fmt: skip
        assert (settings[f"STREAMS_{name}"]["value"], settings[f"STREAMS_{name}"]["origin"]) == (value, origin)


def test_config_hides_secrets_and_shows_files_of_secrets(tmp_path, monkeypatch):
    (tmp_path / "streams.toml").write_text(f'ssl_key_password = "{CANARY}"\n')
    (tmp_path / "token").write_text(CANARY)
    monkeypatch.setenv("STREAMS_HTTP_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("STREAMS_HTTP_PASSWORD", CANARY)
    monkeypatch.setenv("STREAMS_HTTP_USERNAME", "me")
    for words in (shown(), shown("--json")):
        assert CANARY not in words
        assert str(tmp_path / "token") in words
        assert words.count("********") == 2


def test_what_config_shows_is_what_settings_are_read_from(monkeypatch):
    for line in orjson.loads(shown("--json")):
        if line["value"]:
            monkeypatch.setenv(line["name"], line["value"])
    assert load() == Settings.model_construct()


def test_config_tells_all_that_is_wrong_and_ends_with_2(monkeypatch):
    monkeypatch.setenv("STREAMS_IDLE", "soon")
    monkeypatch.setenv("STREAMS_HTTP_TOKEN", "")
    result = CliRunner().invoke(app, ["config"])
    assert result.exit_code == 2
    assert "STREAMS_IDLE='soon'" in result.output
    assert "STREAMS_HTTP_TOKEN=********" in result.output


@given(integers(min_value=0, max_value=10**12))
def test_a_duration_is_shown_as_it_may_be_given(ms):
    assert duration_ms(duration_text(ms)) == ms
