"""Promotion in real DAG runs, against a real MLflow server."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pendulum
import pytest
from airflow.sdk import dag

from airflow_ml_provider import Input, Model, Output, ml_task
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import LOGICAL_DATE, ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, tags_of
from tests.tracking.test_registry import logged_model

START = pendulum.datetime(2024, 1, 1)


@ml_task
def fit(text: str, model: Output[Model]) -> None:
    model.path += ".txt"
    Path(model.path).write_text(text)


@ml_task
def read(model: Input[Model]) -> str:
    return Path(model.path).read_text()


@pytest.fixture
def registry(mlflow_api):
    return ModelRegistry(mlflow_api)


@pytest.fixture
def night(run_dag, unique):
    """One night without a gate: fit, promote, and read the champion by its alias."""

    def run(text, *, day=1, operator=PromoteModelOperator, **promotion):
        @dag(dag_id=unique, schedule=None, start_date=START)
        def nightly():
            promote = operator(task_id="promote", model=fit(text=text)["model"], name=unique, **promotion)
            promote >> read(model=f"models:/{unique}@champion")

        return run_dag(nightly(), logical_date=START.add(days=day))

    return run


def versions(api, name):
    found = api.get("model-versions/search", filter=f"name='{name}'").get("model_versions", [])
    return sorted(each["version"] for each in found)


def promotion_tags(api, name, outcome):
    tree = RunTree(api)
    found = tree.search([tree.experiment_id(name)], "tags.`airflow.task_id` = 'promote'")
    (tags,) = [tags for each in found if (tags := tags_of(each))["airflow.run_id"] == outcome.run_id]
    return {key.removeprefix("airflow.promotion."): each for key, each in tags.items() if key.startswith("airflow.promotion.")}


def test_a_model_is_registered_promoted_and_read_by_its_alias(night, registry, mlflow_api, unique):
    first = night("one", day=1, tags={"owner": "ada"})
    assert first.xcom("promote") == {
        "name": unique,
        "version": "1",
        "alias": "champion",
        "previous_version": None,
        "uri": f"models:/{unique}/1",
        "reason": f"Promoted: version 1 is {unique}@champion now; there was none before it.",
    }
    assert first.xcom("read") == "one"
    tags = registry.find(unique, "champion").tags
    assert tags | {"airflow.sha256": "a digest"} == {
        "airflow.dag_id": unique,
        "airflow.run_id": first.run_id,
        "airflow.task_id": "promote",
        LOGICAL_DATE: "2024-01-02T00:00:00+00:00",
        "airflow.sha256": "a digest",
        "owner": "ada",
    }
    assert len(tags["airflow.sha256"]) == 64

    second = night("two", day=2)
    assert promotion_tags(mlflow_api, unique, second) == {
        "version": f"models:/{unique}/2",
        "previous": "1",
        "newer": "none",
        "reason": f"Promoted: version 2 is {unique}@champion now; before it: version 1.",
    }
    assert (second.xcom("promote")["version"], second.xcom("promote")["previous_version"]) == ("2", "1")
    assert second.xcom("read") == "two"
    assert registry.find(unique, "previous-champion").version == "1"


def test_a_backfill_without_a_gate_does_not_replace_a_newer_champion(night, registry, mlflow_api, unique):
    night("newer", day=5)
    older = night("older", day=3)
    assert (older.state, older.task("promote")) == ("success", "skipped")
    said = older.xcom("promote")
    assert (said["version"], said["uri"]) == (None, None)
    assert said["reason"].startswith("Not promoted: the model is of 2024-01-04T00:00:00+00:00, and ")
    assert "version 1, of 2024-01-06T00:00:00+00:00, which is newer" in said["reason"]
    assert promotion_tags(mlflow_api, unique, older) == {
        "version": "none",
        "previous": "none",
        "newer": f"models:/{unique}/1",
        "reason": said["reason"],
    }
    assert registry.find(unique, "champion").version == "1"
    assert versions(mlflow_api, unique) == ["1"]


def test_an_older_model_is_promoted_when_that_is_said(night, registry, unique):
    night("newer", day=5)
    assert night("older", day=3, allow_older=True).xcom("read") == "older"
    assert registry.find(unique, "previous-champion").version == "1"


def test_the_same_night_cleared_is_not_older(night):
    night("first", day=1)
    assert night("again", day=1).xcom("promote")["version"] == "2"


@pytest.fixture
def promoted(registry, mlflow_api, unique):
    """Register a model of a night, and make it the champion unless that is for later."""

    def register(day, *, now=True):
        tags = {LOGICAL_DATE: START.add(days=day).isoformat()}
        model_id = logged_model(mlflow_api, tags)
        version = registry.register(unique, f"models:/{model_id}", model_id=model_id, tags=tags).version
        if now:
            registry.promote(unique, version)
        return version

    return register


def other_night_at(monkeypatch, moment, act, times=1):
    """Let another night act between the look and the move of a promotion, or right after the move."""
    name = {"before the move": "register", "after the move": "_point"}[moment]
    real, left = getattr(ModelRegistry, name), list(range(times))

    def raced(self, *args, **kwargs):
        made = real(self, *args, **kwargs)
        if left and "previous-champion" not in args:
            left.pop()
            act()
        return made

    monkeypatch.setattr(ModelRegistry, name, raced)


@pytest.mark.parametrize("moment", ["before the move", "after the move"])
def test_a_newer_night_promoted_meanwhile_is_not_replaced(night, promoted, registry, mlflow_api, unique, monkeypatch, moment):
    promoted(1)
    newer = promoted(9, now=False)
    other_night_at(monkeypatch, moment, lambda: registry.promote(unique, newer))
    ours = night("ours", day=5)
    assert (ours.state, ours.task("promote")) == ("success", "skipped")
    assert registry.find(unique, "champion").version == newer
    assert promotion_tags(mlflow_api, unique, ours)["newer"] == f"models:/{unique}/{newer}"


@pytest.mark.parametrize("moment", ["before the move", "after the move"])
def test_an_older_night_promoted_meanwhile_is_replaced_and_kept(night, promoted, registry, unique, monkeypatch, moment):
    promoted(1)
    older = promoted(3, now=False)
    other_night_at(monkeypatch, moment, lambda: registry.promote(unique, older))
    ours = night("ours", day=5)
    assert (ours.task("promote"), ours.xcom("promote")["previous_version"]) == ("success", older)
    assert registry.find(unique, "champion").version == ours.xcom("promote")["version"]
    assert registry.find(unique, "previous-champion").version == older


def test_an_alias_that_never_stands_still_fails_the_task_and_says_so(night, promoted, registry, mlflow_api, unique, monkeypatch):
    turns = cycle([promoted(1), promoted(2)])
    other_night_at(monkeypatch, "before the move", lambda: registry.promote(unique, next(turns)), times=9)
    ours = night("ours", day=5)
    assert (ours.state, ours.task("promote")) == ("failed", "failed")
    assert registry.find(unique, "champion").version in ("1", "2")
    assert promotion_tags(mlflow_api, unique, ours)["version"] == "none"


class CutOnce(PromoteModelOperator):
    """Loses its worker in the first try, just before or after one of its two moves."""

    def __init__(self, *, cut, **kwargs):
        super().__init__(**kwargs)
        self.cut = cut

    def _look_and_move(self, registry, *args):
        point = registry._point

        def cut_point(name, alias, version):
            if alias == self.cut and self.session.record.attempt.try_number == 1:
                raise RuntimeError("the worker is lost here")
            point(name, alias, version)

        registry._point = cut_point
        return super()._look_and_move(registry, *args)


class LostAnswer(PromoteModelOperator):
    """Moves the alias, and loses the server's answer once."""

    lost = False

    def _look_and_move(self, *args):
        answer = super()._look_and_move(*args)
        if self.lost:
            return answer
        self.lost = True
        raise RemoteUnavailableError("the answer is lost here")


def test_a_move_whose_answer_was_lost_is_told_of_as_a_move(night, unique, monkeypatch):
    monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "60")  # on a busy machine the first try alone takes the second that tests have
    night("one", day=1)
    again = night("two", day=2, operator=LostAnswer)
    assert again.xcom("promote")["reason"] == f"Promoted: version 2 is {unique}@champion now."


@pytest.mark.parametrize("cut", ["previous-champion", "champion"])
def test_a_retry_after_a_cut_ends_in_the_same_state(night, registry, mlflow_api, unique, cut):
    night("one", day=1)
    again = night("two", day=2, operator=CutOnce, cut=cut, retries=1, retry_delay=0)
    assert again.state == "success"
    assert (again.xcom("promote")["version"], again.xcom("promote")["previous_version"]) == ("2", "1")
    assert [registry.find(unique, each).version for each in ("champion", "previous-champion")] == ["2", "1"]
    assert versions(mlflow_api, unique) == ["1", "2"]


def test_promoting_the_same_model_twice_changes_nothing(run_dag, registry, mlflow_api, unique, night):
    night("one", day=1)

    @dag(dag_id=f"{unique}-twice", schedule=None, start_date=START)
    def twice():
        model = fit(text="two")["model"]
        first, second = (PromoteModelOperator(task_id=each, model=model, name=unique) for each in ("first", "second"))
        first >> second

    outcome = run_dag(twice(), logical_date=START.add(days=2))
    first, second = (outcome.xcom(each) for each in ("first", "second"))
    assert second == first | {"reason": f"Promoted: version 2 was {unique}@champion already."}
    assert registry.find(unique, "previous-champion").version == "1"
    assert versions(mlflow_api, unique) == ["1", "2"]


def test_a_model_kept_outside_of_mlflow_is_of_the_night_that_promotes_it(run_dag, registry, unique):
    @dag(dag_id=unique, schedule=None, start_date=START)
    def outside():
        PromoteModelOperator(task_id="promote", model="s3://bucket/models/one", name=unique)

    assert run_dag(outside(), logical_date=START.add(days=1)).state == "success"
    champion = registry.find(unique, "champion")
    assert (champion.source, champion.model_id) == ("s3://bucket/models/one", "")
    assert registry.trained_at(champion) == START.add(days=1)


def test_a_model_below_an_artifact_root_is_promoted_with_its_metadata(run_dag, registry, unique, tmp_path):
    @ml_task(artifact_root=tmp_path.as_uri())
    def fit_outside(model: Output[Model]) -> None:
        model.path += ".txt"
        Path(model.path).write_text("outside")
        model.metadata["columns"] = ["a", "b"]

    @ml_task
    def use(model: Input[Model]) -> list[str]:
        return [Path(model.path).read_text(), *model.metadata["columns"]]

    @dag(dag_id=unique, schedule=None, start_date=START)
    def outside():
        promote = PromoteModelOperator(task_id="promote", model=fit_outside()["model"], name=unique)
        promote >> use(model=f"models:/{unique}@champion")

    assert run_dag(outside(), logical_date=START.add(days=1)).xcom("use") == ["outside", "a", "b"]
    champion = registry.find(unique, "champion")
    assert champion.model_id, "what is registered is its LoggedModel, which knows where its bytes are"
    assert registry.trained_at(champion.source) == START.add(days=1)
    assert [each.name for each in tmp_path.rglob("model.txt")] == ["model.txt"]


def test_a_place_that_looks_like_a_secret_is_registered_as_it_is(run_dag, registry, unique, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", '{"conn_type": "http", "host": "x", "password": "bucket-models"}')

    @dag(dag_id=unique, schedule=None, start_date=START)
    def masked():
        size = "{{ conn.other.password | length }}"  # from here on Airflow masks the word
        PromoteModelOperator(task_id="promote", model=f"s3://bucket-models/one/{size}", name=unique)

    assert run_dag(masked(), logical_date=START).state == "success"
    assert registry.find(unique, "champion").source == "s3://bucket-models/one/13"


WRONG_NAMES = [
    ({"name": "flights/delays"}, "cannot be the name of a registered model"),
    ({"name": "flights@eu"}, "must not hold a slash, a colon, an @"),
    ({"alias": "latest"}, "'latest' cannot be an alias"),
    ({"previous_alias": "v1"}, "'v1' cannot be an alias"),
    ({"alias": "x", "previous_alias": "x"}, "the aliases x, x must differ"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG_NAMES)
def test_names_that_mlflow_does_not_take_are_refused_when_the_dag_is_parsed(wrong, said):
    with pytest.raises(ConfigError, match=said):
        PromoteModelOperator(task_id="promote", model="models:/other/1", **({"name": "flights"} | wrong))


def test_a_name_from_a_template_is_refused_before_anything_is_registered(night, mlflow_api, unique):
    outcome = night("one", alias="{{ 'latest' }}", retries=2)
    assert outcome.task("promote") == "failed"
    with pytest.raises(RemoteNotFoundError):
        mlflow_api.get("registered-models/get", name=unique)


def test_what_is_no_model_is_refused_when_the_dag_is_parsed():
    with pytest.raises(ConfigError, match=r"parameter 'model' wants Input\[Model\], but 'flight-delays' is not the place"):
        PromoteModelOperator(task_id="promote", model="flight-delays", name="flight-delays")
