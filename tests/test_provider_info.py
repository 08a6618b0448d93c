"""What Airflow is told of the package, read by Airflow's own schema, managers, configuration and form."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import airflow
import jsonschema
import pytest
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.cli.cli_config import ActionCommand, GroupCommand
from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from airflow.providers_manager import ProvidersManager
from airflow.sdk import BaseHook, BaseOperator, BaseOperatorLink, task
from airflow.triggers.base import BaseTrigger
from packaging.version import Version

import airflow_ml_provider
from airflow_ml_provider import ml_task
from airflow_ml_provider.config import PLACES, SECTION, Settings
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.hooks.mlflow_connection import EXTRAS as MLFLOW_EXTRAS
from airflow_ml_provider.provider_info import PACKAGE, get_provider_info
from tests.airflow_releases import ProvidersOfTasks

SCHEMA = Path(airflow.__file__).parent / "provider_info.schema.json"
INFO = get_provider_info()
KINDS = {float: "float", int: "integer", bool: "boolean", str: "string"}
READERS = {"float": conf.getfloat, "integer": conf.getint, "boolean": conf.getboolean, "string": conf.get}


@pytest.fixture(scope="module")
def manager() -> ProvidersManager:
    return ProvidersManager()


def loaded(full_name: str) -> Any:
    module, _, name = full_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


class TestTheWhole:
    @pytest.mark.airflow("3.2")  # commands of a provider are new in it
    def test_it_is_valid_by_airflows_own_schema(self) -> None:
        schema = json.loads(SCHEMA.read_text())
        jsonschema.validate(INFO, schema)
        assert INFO.keys() <= schema["properties"].keys() | {"versions"}

    def test_it_is_plain_json_and_new_at_each_call(self) -> None:
        assert json.loads(json.dumps(INFO)) == INFO == get_provider_info()
        assert get_provider_info() is not INFO

    def test_it_names_this_package_and_release(self, manager: ProvidersManager) -> None:
        assert INFO["package-name"] == PACKAGE
        assert INFO["versions"][0] == airflow_ml_provider.__version__
        assert Version(manager.providers[PACKAGE].version) == Version(airflow_ml_provider.__version__)
        known = manager.providers[PACKAGE].data
        assert known | INFO == known

    @pytest.mark.airflow("3.3")  # two modules are about what is new in it, and imported there alone
    @pytest.mark.parametrize("kind", ["operators", "hooks", "sensors", "triggers"])
    def test_the_modules_of_a_kind_are_all_there(self, kind: str) -> None:
        base = {"operators": BaseOperator, "hooks": BaseHook, "sensors": BaseOperator, "triggers": BaseTrigger}[kind]
        listed = {name for each in INFO[kind] for name in each["python-modules"]}
        integrations = {each["integration-name"] for each in INFO["integrations"]}
        assert {each["integration-name"] for each in INFO[kind]} <= integrations
        folder = Path(airflow_ml_provider.__file__).parent / kind
        public = {f"airflow_ml_provider.{kind}.{file.stem}" for file in folder.glob("[a-z]*.py")}
        with_classes = {name for name in public if own_classes(name, base)}
        assert listed == with_classes


def own_classes(module: str, base: type) -> list[type]:
    found = vars(importlib.import_module(module)).values()
    return [each for each in found if inspect.isclass(each) and issubclass(each, base) and each.__module__ == module]


class TestWhatItNames:
    @pytest.mark.parametrize("connection", INFO["connection-types"], ids=lambda each: each["connection-type"])
    def test_the_hook_of_the_connection_type(self, connection: dict[str, Any]) -> None:
        hook = loaded(connection["hook-class-name"])
        assert issubclass(hook, BaseHook)
        assert connection["connection-type"] == hook.conn_type
        assert connection["hook-name"] == hook.hook_name
        assert hook.conn_name_attr in inspect.signature(hook).parameters

    def test_the_extra_links(self, manager: ProvidersManager) -> None:
        names = set(INFO["extra-links"])
        assert all(issubclass(loaded(name), BaseOperatorLink) for name in names)
        assert names <= set(manager.extra_links_class_names)
        modules = (name for kind in ("operators", "sensors") for each in INFO[kind] for name in each["python-modules"])
        operators = (each for name in modules for each in own_classes(name, BaseOperator))
        used = {type(link) for each in operators for link in each.operator_extra_links}
        assert used == {loaded(name) for name in names}

    def test_the_decorators_are_task_ml_and_task_ml_pod(self, manager: ProvidersManager) -> None:
        found = {each["name"]: loaded(each["class-name"]) for each in INFO["task-decorators"]}
        assert found == {"ml": task.ml, "ml_pod": task.ml_pod}
        assert found["ml"] is ml_task

    def test_the_plugin(self) -> None:
        (plugin,) = INFO["plugins"]
        loaded_class = loaded(plugin["plugin-class"])
        assert issubclass(loaded_class, AirflowPlugin)
        assert loaded_class.name == plugin["name"]
        loaded_class.validate()

    def test_the_commands(self) -> None:
        (commands,) = INFO["cli"]
        (group,) = loaded(commands)()
        assert isinstance(group, GroupCommand)
        assert group.name == "ml"
        assert all(isinstance(each, ActionCommand) for each in group.subcommands)


class TestTheConfiguration:
    def options(self) -> Mapping[str, Any]:
        return INFO["config"][SECTION]["options"]

    def test_it_is_exactly_the_settings(self) -> None:
        assert list(INFO["config"]) == [SECTION]
        assert list(self.options()) == list(Settings.model_fields)
        kinds = {name: KINDS[hint] for name, hint in get_type_hints(Settings).items() if name in Settings.model_fields}
        assert {name: each["type"] for name, each in self.options().items()} == kinds

    def test_every_option_says_what_it_means_and_in_which_unit(self) -> None:
        for name, each in self.options().items():
            assert each["description"] == Settings.model_fields[name].description
            assert each["description"].endswith(".")
            assert "Seconds" in each["description"] or not name.endswith("_s")
            assert Version(each["version_added"]) <= Version(airflow_ml_provider.__version__)

    @pytest.mark.airflow("3.2")  # 3.1 loads the options of providers later; the settings have defaults of their own
    @pytest.mark.parametrize("name", Settings.model_fields)
    def test_airflow_reads_the_default_that_the_settings_have(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(f"AIRFLOW__{SECTION.upper()}__{name.upper()}", raising=False)
        read = READERS[self.options()[name]["type"]](SECTION, name)
        default = Settings.model_fields[name].default
        if name in PLACES:
            assert read.endswith(default.removeprefix("{AIRFLOW_HOME}"))
            assert "{" not in read, "Airflow replaces {AIRFLOW_HOME} in defaults, and shows the folder itself"
        else:
            assert read == default
            assert type(read) is type(default)


class TestTheConnectionForm:
    def test_the_type_resolves_to_the_hook(self) -> None:
        found = ProvidersOfTasks().hooks["mlflow"]
        assert found is not None
        assert loaded(found.hook_class_name) is MlflowHook
        assert found.package_name == PACKAGE
        assert found.hook_name == "MLflow"
        assert found.connection_id_attribute_name == "mlflow_conn_id"
        assert found.connection_testable

    @pytest.mark.airflow("3.2")  # fields of a form without wtforms are new in it
    def test_the_form_asks_for_what_the_hook_reads(self) -> None:
        (shown,) = (each for each in HookMetaService.hook_meta_data() if each.connection_type == "mlflow")
        assert shown.hook_name == "MLflow"
        assert shown.extra_fields is not None
        assert shown.extra_fields.keys() == MLFLOW_EXTRAS.keys()
        fields = shown.standard_fields
        assert fields is not None
        assert {name for name in ("url_schema", "port", "host", "login", "password") if getattr(fields, name).hidden} == {
            "url_schema",
            "port",
        }
        assert fields.host.title == "Tracking URL"
        assert fields.host.placeholder.startswith("https://")
        assert fields.login.title == "Login (empty for a token)"
        assert fields.password.title == "Password or token"

    @pytest.mark.parametrize("connection", INFO["connection-types"], ids=lambda each: each["connection-type"])
    def test_it_changes_only_fields_that_the_form_has(self, connection: dict[str, Any]) -> None:
        behaviour = connection["ui-field-behaviour"]
        known = {"description", "host", "schema", "login", "password", "port", "extra"}
        named = {*behaviour["hidden-fields"], *behaviour["relabeling"], *behaviour["placeholders"]}
        assert named <= known
        assert not set(behaviour["hidden-fields"]) & {*behaviour["relabeling"], *behaviour["placeholders"]}
