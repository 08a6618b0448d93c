"""Options of the section ``[ml]``: where they are read from, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.config import PLACES, Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError

OTHER_VALUES = {
    "patience_s": ("0", 0.0),
    "http_timeout_s": ("2.5", 2.5),
    "http_retries": ("20", 20),
    "spool": ("s3://aws_default@bucket/spool", "s3://aws_default@bucket/spool"),
    "experiment": ("team/{dag_id}", "team/{dag_id}"),
    "listeners": ("off", False),
    "alert_timeout_s": ("2.5", 2.5),
    "interpreters": ("/var/interpreters", "/var/interpreters"),
    "kfp_requirements": ("kfp>=2.17 kfp-kubernetes", "kfp>=2.17 kfp-kubernetes"),
    "kfp_local_root": ("/var/kfp", "/var/kfp"),
    "kfp_local_keep_days": ("inf", float("inf")),
}
ELSEWHERE: dict[str, str | None] = dict.fromkeys(PLACES)
REFUSED = {
    "patience_s": ["soon", "-1", "nan"],
    "http_timeout_s": ["0", "-1", "inf", "nan"],
    "http_retries": ["21", "-1", "2.5", "many"],
    "listeners": ["perhaps"],
    "kfp_local_keep_days": ["-1", "nan", "a week"],
    "alert_timeout_s": ["0", "-1", "inf", "nan", "soon"],
}


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option is set by the environment of the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AIRFLOW__ML__{name.upper()}", raising=False)


def test_every_option_has_a_case_here() -> None:
    assert OTHER_VALUES.keys() == Settings.model_fields.keys()


def test_without_any_setting_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/opt/airflow")
    found = load_settings()
    assert found.model_dump() | ELSEWHERE == Settings().model_dump() | ELSEWHERE
    for name in PLACES:
        place = getattr(found, name)
        assert place.endswith(Settings.model_fields[name].default.removeprefix("{AIRFLOW_HOME}"))
        assert "{" not in place


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_the_environment_sets_an_option_in_its_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = OTHER_VALUES[name]
    monkeypatch.setenv(f"AIRFLOW__ML__{name.upper()}", text)
    found = load_settings()
    assert getattr(found, name) == value
    assert type(getattr(found, name)) is type(value)
    assert {**found.model_dump(), **ELSEWHERE, name: None} == {**Settings().model_dump(), **ELSEWHERE, name: None}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_an_empty_variable_means_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    monkeypatch.setenv(f"AIRFLOW__ML__{name.upper()}", "")
    assert load_settings() == before


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in REFUSED.items() for text in texts])
def test_a_bad_value_is_refused_with_option_value_meaning_and_default(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AIRFLOW__ML__{name.upper()}", text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    said, field = str(caught.value), Settings.model_fields[name]
    assert said.startswith(f"option {name} of [ml] is {text!r}: ")
    assert f"It means: {field.description} Default: {field.default!r}." in said


@pytest.mark.parametrize(
    ("home", "spool", "place"),
    [
        ("/opt/airflow", "{AIRFLOW_HOME}/kept", "/opt/airflow/kept"),
        ("~/af", "{AIRFLOW_HOME}/kept", f"{Path.home()}/af/kept"),
        ("$SITE/af", "{AIRFLOW_HOME}/kept", "/srv/af/kept"),
        (None, "{AIRFLOW_HOME}/kept", f"{Path.home()}/airflow/kept"),
        ("/opt/airflow", "~/kept", f"{Path.home()}/kept"),
        ("/opt/airflow", "/var/spool/ml", "/var/spool/ml"),
    ],
)
def test_the_place_of_the_spool_may_be_below_airflows_home(
    home: str | None, spool: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE", "/srv")
    if home is None:
        monkeypatch.delenv("AIRFLOW_HOME")
    else:
        monkeypatch.setenv("AIRFLOW_HOME", home)
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", spool)
    assert load_settings().spool == place
