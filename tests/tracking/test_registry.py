"""The registry against a real MLflow server: once registered, moved and back, and what a cut leaves behind."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from airflow_ml_provider.core.model_names import alias_in, check_aliases, check_name
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.tracking.registry import LOGICAL_DATE, AliasMovedError, ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree
from tests.tracking.cuts import CUT, CutApi


def logged_model(api, tags=None):
    """Make a LoggedModel as a step does, without its bytes."""
    pairs = [{"key": key, "value": value} for key, value in (tags or {}).items()]
    experiment_id = RunTree(api).experiment_id(
        "logged models of tests"
    )  # an experiment 0 is nobody's, and in one workspace alone
    made = api.post("logged-models", {"experiment_id": experiment_id, "name": "model", "tags": pairs}, repeatable=False)
    return made["model"]["info"]["model_id"]


def registered(registry, api, name):
    model_id = logged_model(api)
    return registry.register(name, f"models:/{model_id}", model_id=model_id).version


def aliases(api, name):
    found = api.get("registered-models/get", name=name)["registered_model"]
    return {each["alias"]: each["version"] for each in found.get("aliases", [])}


def versions(api, name):
    found = api.get("model-versions/search", filter=f"name='{name}'").get("model_versions", [])
    return sorted(each["version"] for each in found)


@pytest.fixture
def registry(mlflow_api):
    return ModelRegistry(mlflow_api)


@pytest.fixture
def name(unique):
    return unique


@pytest.fixture
def other():
    """Registries on clients of their own, closed when the test ends."""
    with ExitStack() as clients:

        def registry_on(api):
            clients.callback(api.close)
            return ModelRegistry(api)

        yield registry_on


def test_a_model_or_an_alias_that_is_not_there_is_none(registry, mlflow_api, name):
    assert registry.find(name, "champion") is None
    registered(registry, mlflow_api, name)
    assert registry.find(name, "champion") is None


def test_a_server_that_is_away_is_never_none(mlflow_api, name, other):
    hasty = mlflow_api.settings.model_copy(update={"http_retries": 0})
    away = other(MlflowApi(MlflowServer("mlflow_default", "http://127.0.0.1:9"), hasty))
    with pytest.raises(RemoteUnavailableError):
        away.find(name, "champion")


def test_a_model_is_registered_with_its_source_and_tags(registry, mlflow_api, name):
    model_id = logged_model(mlflow_api)
    version = registry.register(name, f"models:/{model_id}", model_id=model_id, tags={"airflow.dag_id": "nightly"})
    registry.promote(name, version.version)
    found = registry.find(name, "champion")
    assert found == version
    assert (found.version, found.model_id, found.uri) == ("1", model_id, f"models:/{name}/1")
    assert found.tags == {"airflow.dag_id": "nightly"}
    assert registry.find_uri(f"models:/{name}@champion") == found


def test_registering_again_is_the_same_version_with_the_new_tags(registry, mlflow_api, name):
    model_id = logged_model(mlflow_api)
    for tags in ({"a": "1", "b": "1"}, {"b": "2"}):
        version = registry.register(name, f"models:/{model_id}", model_id=model_id, tags=tags)
    assert versions(mlflow_api, name) == ["1"]
    assert version.tags == {"a": "1", "b": "2"}
    stored = mlflow_api.get("model-versions/get", name=name, version="1")["model_version"]["tags"]
    assert {each["key"]: each["value"] for each in stored} == version.tags
    assert registered(registry, mlflow_api, name) == "2", "no number was used up in between"


def test_a_model_from_an_object_store_is_registered_too(registry, mlflow_api, name):
    version = registry.register(name, "s3://bucket/models/one")
    assert (version.source, version.model_id) == ("s3://bucket/models/one", "")


def test_of_two_that_register_at_once_the_older_version_stays(registry, mlflow_api, name):
    """The other has registered between our search and our create."""
    model_id = logged_model(mlflow_api)
    first = registry.register(name, f"models:/{model_id}", model_id=model_id)
    late = registry._create(name, f"models:/{model_id}", "", model_id, {})
    assert late.version == first.version
    assert versions(mlflow_api, name) == ["1"]


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [0, 1, 2], ids=["version", "previous alias", "alias"])
def test_registering_and_promoting_cut_anywhere_ends_in_the_same_state(registry, mlflow_api, name, other, at, answered):
    old = registered(registry, mlflow_api, name)
    registry.promote(name, old)
    model_id = logged_model(mlflow_api)

    def one_try(mine):
        version = mine.register(name, f"models:/{model_id}", model_id=model_id)
        return mine.promote(name, version.version)

    with pytest.raises(RemoteUnavailableError, match=CUT):
        one_try(other(CutApi(mlflow_api, at, answered)))
    last = one_try(registry)
    assert aliases(mlflow_api, name) == {"champion": "2", "previous-champion": "1"}
    assert versions(mlflow_api, name) == ["1", "2"]
    assert (last.version, last.previous) == ("2", "1")


def test_the_first_promotion_has_nothing_before_it(registry, mlflow_api, name):
    moved = registry.promote(name, registered(registry, mlflow_api, name))
    assert (moved.version, moved.previous, moved.changed) == ("1", None, True)
    assert aliases(mlflow_api, name) == {"champion": "1"}


def test_promoting_the_champion_changes_nothing_above_all_not_the_one_before_it(registry, mlflow_api, name):
    for _ in range(2):
        registry.promote(name, registered(registry, mlflow_api, name))
    before = aliases(mlflow_api, name)
    again = registry.promote(name, "2")
    assert (again.changed, again.version, again.previous) == (False, "2", "1")
    assert aliases(mlflow_api, name) == before == {"champion": "2", "previous-champion": "1"}


def test_promoting_a_version_that_is_not_there_moves_no_alias(registry, mlflow_api, name):
    registry.promote(name, registered(registry, mlflow_api, name))
    with pytest.raises(RemoteNotFoundError):
        registry.promote(name, "9")
    assert aliases(mlflow_api, name) == {"champion": "1"}


@pytest.mark.parametrize("moment", ["before our move", "after our move"])
def test_a_champion_that_somebody_else_makes_meanwhile_is_noticed(registry, mlflow_api, name, other, moment):
    class Raced(MlflowApi):
        def post(self, path, body, *, repeatable=True):
            ours = path == "registered-models/alias"
            after = ours and body["alias"] == "champion" and moment == "after our move"
            if ours and body["alias"] == "previous-champion" and moment == "before our move":
                mlflow_api.post(path, {"name": name, "alias": "champion", "version": "3"})
            answer = super().post(path, body, repeatable=repeatable)
            if after:
                mlflow_api.post(path, {"name": name, "alias": "champion", "version": "3"})
            return answer

    for _ in range(3):
        registered(registry, mlflow_api, name)
    registry.promote(name, "1")
    with pytest.raises(ConfigError, match=r"is version 3 and not .*somebody else moved it"):
        other(Raced(mlflow_api.server, mlflow_api.settings)).promote(name, "2")
    assert aliases(mlflow_api, name) == {"champion": "3", "previous-champion": "1"}


@pytest.mark.parametrize("expected", ["1", None])
def test_a_champion_that_the_caller_has_not_seen_is_not_replaced(registry, mlflow_api, name, expected):
    for version in ("1", "2"):
        registered(registry, mlflow_api, name)
        registry.promote(name, version)
    registered(registry, mlflow_api, name)
    with pytest.raises(AliasMovedError, match=f"champion is version 2 and not {expected or 'none'}"):
        registry.promote(name, "3", expected=expected)
    assert aliases(mlflow_api, name) == {"champion": "2", "previous-champion": "1"}
    assert registry.promote(name, "2", expected=expected).changed is False, "it is where it should be"
    assert registry.promote(name, "3", expected="2").previous == "2"


def test_a_rollback_swaps_and_a_second_one_swaps_back(registry, mlflow_api, name):
    for _ in range(2):
        registry.promote(name, registered(registry, mlflow_api, name))
    back = registry.rollback(name)
    assert (back.version, back.previous) == ("1", "2")
    assert aliases(mlflow_api, name) == {"champion": "1", "previous-champion": "2"}
    assert registry.rollback(name).version == "2"
    assert aliases(mlflow_api, name) == {"champion": "2", "previous-champion": "1"}
    assert "tags" not in mlflow_api.get("registered-models/get", name=name)["registered_model"]


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(4), ids=["mark", "alias", "previous alias", "unmark"])
def test_a_rollback_cut_anywhere_is_completed_by_the_next_call_and_not_undone(registry, mlflow_api, name, other, at, answered):
    for _ in range(2):
        registry.promote(name, registered(registry, mlflow_api, name))
    with pytest.raises(RemoteUnavailableError, match=CUT):
        other(CutApi(mlflow_api, at, answered)).rollback(name)
    if at == 3 and answered:
        assert aliases(mlflow_api, name)["champion"] == "1", "only the answer to its very last change was lost"
        return
    registry.rollback(name)
    assert aliases(mlflow_api, name) == {"champion": "1", "previous-champion": "2"}


def test_a_rollback_begun_long_ago_does_not_decide_after_a_promotion(registry, mlflow_api, name, other):
    for _ in range(2):
        registry.promote(name, registered(registry, mlflow_api, name))
    with pytest.raises(RemoteUnavailableError, match=CUT):
        other(CutApi(mlflow_api, 1, answered=False)).rollback(name)
    registry.promote(name, registered(registry, mlflow_api, name))
    assert registry.rollback(name).version == "2"
    assert aliases(mlflow_api, name) == {"champion": "2", "previous-champion": "3"}


def test_without_a_champion_before_it_a_rollback_is_refused(registry, mlflow_api, name):
    registry.promote(name, registered(registry, mlflow_api, name))
    with pytest.raises(ConfigError, match="'champion' is version 1, and 'previous-champion' is version none"):
        registry.rollback(name)
    assert aliases(mlflow_api, name) == {"champion": "1"}


def test_a_rollback_of_what_is_not_registered_says_so(registry, name):
    with pytest.raises(RemoteNotFoundError, match=name):
        registry.rollback(name)


def test_the_date_of_a_model_is_that_of_its_version_then_of_its_loggedmodel(registry, mlflow_api, name):
    model_id = logged_model(mlflow_api, {LOGICAL_DATE: "2013-06-01T06:00:00+00:00"})
    version = registry.register(name, f"models:/{model_id}", model_id=model_id)
    assert registry.trained_at(version) == datetime(2013, 6, 1, 6, tzinfo=UTC)
    assert registry.trained_at(f"models:/{model_id}/model.pkl") == datetime(2013, 6, 1, 6, tzinfo=UTC)
    tagged = registry.register(name, version.source, model_id=model_id, tags={LOGICAL_DATE: "2013-06-02T06:00:00"})
    assert registry.trained_at(tagged) == datetime(2013, 6, 2, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    "uri",
    [
        # Who is no admin is not told a deleted LoggedModel from another user's.
        pytest.param("models:/m-" + "0" * 32, marks=pytest.mark.form("sqlite", "postgresql", "workspaces")),
        "s3://bucket/model",
        "models:/other/1",
    ],
)
def test_a_model_of_which_nobody_recorded_a_date_has_none(registry, uri):
    assert registry.trained_at(uri) is None


@pytest.mark.parametrize("uri", ["s3://bucket/x@y", "models:/plain/1", "/data/a@b"])
def test_a_uri_without_an_alias_names_no_version(registry, uri):
    assert registry.find_uri(uri) is None


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("models:/flight-delays@champion", ("flight-delays", "champion")),
        ("models:/m-0123/model@2.pkl", None),
        ("models:/a@b@champion", None),
        ("s3://conn@bucket/champion", None),
        ("/mnt/models@prod/x", None),
        ("models:/@champion", None),
    ],
)
def test_only_a_registered_model_and_its_alias_name_an_alias(uri, named):
    assert alias_in(uri) == named


@pytest.mark.parametrize("name", ["", " ", "a/b", "a@eu", "a:b", "it's", 'say "x"', "a`b", "a\\b"])
def test_a_name_that_could_not_be_quoted_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be the name of a registered model"):
        check_name(name)


@pytest.mark.parametrize("alias", ["", "latest", "LATEST", "v12", "V1", "a.b", "a b", "x" * 256])
def test_an_alias_that_mlflow_refuses_is_refused_before(alias):
    with pytest.raises(ConfigError, match="cannot be an alias"):
        check_aliases(alias)


def test_the_two_aliases_must_differ(registry, name):
    with pytest.raises(ConfigError, match="must differ"):
        registry.promote(name, "1", alias="champion", previous_alias="champion")


def test_names_that_are_not_strange_are_taken_as_they_are(registry, mlflow_api, name):
    strange = f"{name} é-ü_1.2 (x)"
    registry.promote(strange, registered(registry, mlflow_api, strange), alias="Champion_2", previous_alias="v1x")
    assert aliases(mlflow_api, strange) == {"Champion_2": "1"}
