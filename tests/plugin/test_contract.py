"""
What our pages need of Airflow that it promises nowhere, and what of ours would break with it.

A failure here after an upgrade names what to look at: plugin/internals.py, or the script of the page.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import airflow
import pytest
from airflow.models.serialized_dag import SerializedDagModel
from fastapi import Request
from pydantic import TypeAdapter

import airflow_ml_provider.plugin
from airflow_ml_provider.plugin import AirflowMLPlugin
from airflow_ml_provider.plugin.internals import LOGIN, which_dags
from airflow_ml_provider.plugin.web import RunId

PLUGIN = Path(airflow_ml_provider.plugin.__file__).parent
PROMISED = {"airflow.plugins_manager", "airflow.providers.common.compat.sdk"}
Look = Callable[[str, str], Any]


@pytest.fixture
def inside() -> Look:
    """Look up a name of Airflow's API server, whose import warns of what Airflow itself uses."""

    def look(module: str, name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(f"airflow.api_fastapi.{module}"), name)

    return look


def test_only_one_module_of_the_pages_names_what_is_internal_to_airflow() -> None:
    named = {}
    for file in PLUGIN.glob("*.py"):
        imports = [each for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.ImportFrom | ast.Import)]
        modules = {each.module or "" for each in imports if isinstance(each, ast.ImportFrom)}
        modules |= {name.name for each in imports if isinstance(each, ast.Import) for name in each.names}
        named[file.name] = {each for each in modules if each.partition(".")[0] == "airflow"} - PROMISED
    assert {name: modules for name, modules in named.items() if modules} == {
        "internals.py": {
            "airflow.api_fastapi.auth.managers.models.resource_details",
            "airflow.api_fastapi.core_api.security",
            "airflow.models.serialized_dag",
        }
    }


def test_the_guard_is_made_of_a_method_and_an_entity(inside: Look) -> None:
    guard = inside("core_api.security", "requires_access_dag")
    assert {"method", "access_entity"} <= set(inspect.signature(guard).parameters), "internals._guards"
    entities = inside("auth.managers.models.resource_details", "DagAccessEntity")
    assert {"RUN", "TASK_INSTANCE"} <= {each.name for each in entities}, "internals._guards"


def test_a_guard_of_another_dag_is_asked_with_the_user_alone(inside: Look) -> None:
    judge = inside("core_api.security", "requires_access_dag")(method="GET")
    assert list(inspect.signature(judge).parameters) == ["request", "user"], "internals.which_dags"
    assert callable(inside("core_api.security", "get_user")), "internals.which_dags"


@pytest.mark.parametrize("dag_id", ["", "~"])
def test_what_names_no_dag_may_not_be_read_whoever_asks(dag_id: str) -> None:
    may_read = which_dags()(Request({"type": "http", "headers": []}), user=object())
    assert not may_read(dag_id)


def test_the_guard_finds_the_dag_where_the_pages_have_it(inside: Look) -> None:
    source = inspect.getsource(inside("core_api.security", "requires_access_dag"))
    assert 'path_params.get("dag_id") or' in source, (
        "our pages name the DAG in the path, and whatever else names one is not judged"
    )


def test_a_dag_is_kept_with_its_default_args() -> None:
    assert callable(SerializedDagModel.get), "internals.default_argument"
    assert isinstance(inspect.getattr_static(SerializedDagModel, "data"), property), "internals.default_argument"


def test_there_is_a_page_to_log_in(inside: Look) -> None:
    assert LOGIN.endswith("/auth/login"), "web._refuse links to it"
    login = inside("core_api.routes.public.auth", "login")
    assert "next" in inspect.signature(login).parameters, "web._refuse gives it the address to come back to"


@pytest.mark.parametrize("view", AirflowMLPlugin.external_views, ids=lambda each: each["destination"])
def test_airflows_ui_takes_our_tabs(view: dict[str, Any], inside: Look) -> None:
    read = inside("core_api.datamodels.plugins", "ExternalViewResponse").model_validate(view)
    assert read.model_dump(exclude_none=True).items() >= view.items()


@pytest.mark.parametrize(
    ("arrived", "meant"),
    [
        ("scheduled__2026-01-01T00:00:00 00:00", "scheduled__2026-01-01T00:00:00+00:00"),
        ("manual__2026-01-01T00:00:00.123+02:00", "manual__2026-01-01T00:00:00.123+02:00"),
        ("one of mine 7:30", "one of mine 7:30"),
    ],
)
def test_a_run_id_that_airflows_ui_has_not_encoded_is_understood(arrived: str, meant: str) -> None:
    assert TypeAdapter(RunId).validate_python(arrived) == meant


def test_airflows_ui_frames_them_as_the_script_of_the_page_expects() -> None:
    built = "".join(file.read_text() for file in (Path(airflow.__file__).parent / "ui/dist/assets").glob("index-*.js"))
    sandboxes = re.findall(r"sandbox:`([a-z -]+)`|`(allow-scripts[a-z -]+)`", built)
    ours = [set("".join(each).split()) for each in sandboxes if "allow-downloads" in "".join(each)]
    assert ours, "the frame of a plugin's page has no sandbox that we know"
    for flags in ours:
        assert {"allow-scripts", "allow-same-origin"} <= flags, (
            "without these the script cannot open a tab from the document around"
        )
    for name in ("{DAG_ID}", "{RUN_ID}", "{TASK_ID}", "{MAP_INDEX}"):
        assert name in built, "the hrefs of our tabs hold it"


def test_airflows_ui_keeps_its_theme_where_the_script_of_the_page_looks() -> None:
    built = "".join(file.read_text() for file in (Path(airflow.__file__).parent / "ui/dist/assets").glob("index-*.js"))
    assert re.search(r"storageKey:\w+=`theme`", built), "page.js reads it where the page stands alone"
    assert "classList.add" in built
    assert re.search(r"attribute:`class`", built), "page.js reads the class of the document around"
