"""The cache of steps in pods: what their key is made of, a hit in the place of a pod, a result that is kept whoever sees its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import DAG
from kubernetes.client import models as k8s

from airflow_ml_provider import Cache, Dataset, Input, Metrics, Model, Output, ml_pod_task
from airflow_ml_provider.core.cache_key import KeyFacts, make_key
from airflow_ml_provider.decorators.ml import make_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.cache import CacheKey, changes
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.resources import GpuRequest
from airflow_ml_provider.operators.caching import StepCache
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.operators.pod_build import build_pod
from airflow_ml_provider.operators.pod_cache import keep_result, look_before_pod, pod_facts
from airflow_ml_provider.tracking.cache_explain import _dated
from airflow_ml_provider.tracking.cache_index import Answer
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of, status_of, tags_of
from tests.airflow_runs import Outcome
from tests.operators.cached_pods import KUBE_CONFIG, FunctionHere, Machine, OnThisMachine, PodHere

START = pendulum.datetime(2024, 1, 1)
IMAGE = "registry.example.com/trainer@sha256:" + "a" * 64
TAGGED = "registry.example.com/trainer:1"


@pytest.fixture(autouse=True)
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config": json.dumps(KUBE_CONFIG)}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))


@pytest.fixture
def parsed() -> Iterator[DAG]:
    with DAG("parsed", schedule=None, start_date=START, default_args={"namespace": "ml"}) as dag:
        yield dag


# What a key is made of


def key_of(run_id: str = "night-1", number: int = 1, cache: Cache | None = None, **arguments: Any) -> CacheKey:
    """The key of a program in a pod, as KubernetesPodOperator makes it for one DAG run."""
    with DAG("example", schedule=None, start_date=START, default_args={"namespace": "ml"}):
        given: dict[str, Any] = {"image": IMAGE, "cmds": ["python", "train.py"], "outputs": {"model": Model}, **arguments}
        made = MLPodOperator(task_id="train", **given)
    ti = SimpleNamespace(dag_id="example", task_id="train", run_id=run_id, map_index=-1, try_number=number, task=made)
    pod = build_pod(made, made.resources_asked, {"ti": ti, "run_id": run_id, "dag": made.dag})  # type: ignore[typeddict-item]
    policy = cache or Cache()
    return make_key(policy, pod_facts(KeyFacts(), pod, "base", policy, made.options, made.function), redact)


def template(**fields: Any) -> dict[str, Any]:
    """A pod of the author's, with a second container and an init container."""
    proxy = {"name": "proxy", "image": "envoy:1", "command": ["envoy"], "env": [{"name": "LEVEL", "value": "1"}]} | fields
    prepare = k8s.V1Container(name="prepare", image="tool:1", command=["fetch"])
    base = {"name": "base", "workingDir": "/srv"}
    return {"pod_template_dict": {"spec": {"containers": [base, proxy]}}, "init_containers": [prepare]}


def volume(**source: Any) -> dict[str, Any]:
    return {
        "volumes": [k8s.V1Volume(name="data", **source)],
        "volume_mounts": [k8s.V1VolumeMount(name="data", mount_path="/data")],
    }


CLAIM = volume(persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="tables"))
VARIABLES = [
    k8s.V1EnvVar(name="LEVEL", value="3"),
    k8s.V1EnvVar(name="KEY", value_from=k8s.V1EnvVarSource(secret_key_ref=k8s.V1SecretKeySelector(name="keys", key="a"))),
]


class TestTheKey:
    def test_is_the_same_in_the_pods_of_two_dag_runs(self) -> None:
        given: dict[str, Any] = {
            **template(),
            **CLAIM,
            "arguments": ["--fast"],
            "env_vars": VARIABLES,
            "secrets": [Secret("volume", "/var/key", "keys", "a"), Secret("env", "TOKEN", "keys", "b")],
            "configmaps": ["settings"],
        }
        first, second = key_of(**given), key_of("night-2", number=3, **given)
        assert changes(second, first) == []
        assert list(first.parts) == [
            *("image", "command", "command arguments", "command folder"),
            *("environment", "environment KEY", "environment LEVEL", "environment TOKEN", "container prepare", "container proxy"),
            *("volume /data", "volume /var/key", "volume namespace", "outputs"),
        ]

    @pytest.mark.parametrize(
        "change",
        [
            {"gpu": 4, "cpu": 8, "memory_gib": 64},
            {"node_selector": {"zone": "b"}, "labels": {"team": "x"}, "annotations": {"a": "b"}},
            {"tolerations": [k8s.V1Toleration(key="a", operator="Exists")], "priority_class_name": "high"},
            {"namespace": "other", "service_account_name": "robot", "startup_timeout": timedelta(1), "deferrable": True},
            {"options": PodOptions(mlflow_url="http://elsewhere:5000", spot=True, folder="/other", volume_gib=3)},
            volume(empty_dir=k8s.V1EmptyDirVolumeSource()),
            {"gpu": GpuRequest(count=1, shared_memory_gib=1)},
            {"image_pull_policy": "Always", "image_pull_secrets": [k8s.V1LocalObjectReference("pull")]},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_does_not_change_with_where_or_with_how_much_it_runs(self, change: dict[str, Any]) -> None:
        assert changes(key_of(**change), key_of()) == []

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"image": TAGGED}, "image: "),
            ({"cmds": ["python", "train2.py"]}, "command: ['python', 'train.py'] -> ['python', 'train2.py']"),
            ({"cmds": ["python"], "arguments": ["train.py"]}, "command: ['python', 'train.py'] -> ['python']"),
            ({"arguments": ["--fast"]}, "command arguments: new"),
            ({"pod_template_dict": {"spec": {"containers": [{"name": "base", "workingDir": "/srv"}]}}}, "command folder: new"),
            ({"env_vars": {"LEVEL": "3"}}, "environment LEVEL: new"),
            ({"env_vars": {"A": "$(B)", "B": "1"}}, "environment: new"),
            ({"env_from": [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="keys"))]}, "environment: new"),
            (CLAIM, "volume /data: new"),
            (template(), "container proxy: new"),
            (template(), "container prepare: new"),
        ],
    )
    def test_changes_with_what_its_program_is_or_sees(self, change: dict[str, Any], said: str) -> None:
        assert said in ", ".join(changes(key_of(**change), key_of()))

    @pytest.mark.parametrize(
        "change",
        [
            {"image": "envoy:2"},
            {"command": ["envoy", "-v"]},
            {"args": ["-v"]},
            {"workingDir": "/srv"},
            {"env": [{"name": "LEVEL", "value": "2"}]},
            {"envFrom": [{"secretRef": {"name": "keys"}}]},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_changes_with_the_other_containers_of_a_template(self, change: dict[str, Any]) -> None:
        changed = [each.split(":")[0] for each in changes(key_of(**template(**change)), key_of(**template()))]
        assert changed == ["container proxy", *(["volume namespace"] if "envFrom" in change else [])]
        assert changes(key_of(**template(resources={"limits": {"cpu": "1"}})), key_of(**template())) == []

    def test_changes_with_what_a_volume_holds_and_not_with_its_name(self) -> None:
        other = volume(persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name="others"))
        assert "volume /data" in changes(key_of(**other), key_of(**CLAIM))[0]
        renamed = {
            "volumes": [k8s.V1Volume(name="x", persistent_volume_claim=CLAIM["volumes"][0].persistent_volume_claim)],
            "volume_mounts": [k8s.V1VolumeMount(name="x", mount_path="/data")],
        }
        assert changes(key_of(**renamed), key_of(**CLAIM)) == []

    def test_a_claim_and_a_secret_are_others_in_another_namespace(self) -> None:
        for given in (CLAIM, {"env_vars": VARIABLES}, {"secrets": [Secret("volume", "/var/key", "keys", "a")]}):
            assert changes(key_of(namespace="b", **given), key_of(**given)) == ["volume namespace: ml -> b"]

    def test_changes_with_where_scratch_space_lies_that_another_container_fills(self) -> None:
        def key(*places: str) -> CacheKey:
            fills, reads = (k8s.V1VolumeMount(name="room", mount_path=each) for each in places)
            prepare = k8s.V1Container(name="prepare", image="tool:1", command=["fetch"], volume_mounts=[fills])
            room = k8s.V1Volume(name="room", empty_dir=k8s.V1EmptyDirVolumeSource())
            return key_of(init_containers=[prepare], volumes=[room], volume_mounts=[reads])

        for places in (("/in", "/b"), ("/b", "/out")):
            assert changes(key(*places), key("/in", "/out")) != []

    def test_changes_with_a_label_that_the_program_is_told(self) -> None:
        def key(grid: str, **given: Any) -> CacheKey:
            field = k8s.V1ObjectFieldSelector(field_path="metadata.labels['grid']")
            told = [k8s.V1EnvVar(name="GRID", value_from=k8s.V1EnvVarSource(field_ref=field))]
            return key_of(labels={"grid": grid, "team": given.get("team", "a")}, env_vars=told)

        assert [each.split(":")[0] for each in changes(key("4"), key("3"))] == ["environment GRID"]
        assert changes(key("3", team="b"), key("3")) == []

    def test_of_a_variable_that_is_given_twice_the_first_counts_for_what_is_made_of_it(self) -> None:
        def key(first: str) -> CacheKey:
            given = [("A", first), ("B", "$(A)"), ("A", "last")]
            return key_of(env_vars=[k8s.V1EnvVar(name=name, value=value) for name, value in given])

        assert [each.split(":")[0] for each in changes(key("1"), key("2"))] == ["environment"]

    def test_tells_a_value_from_the_place_that_a_value_comes_from(self) -> None:
        keys = [k8s.V1EnvVar(name="KEY", value_from=VARIABLES[1].value_from)]
        text = {"KEY": str({"from": {"secretKeyRef": {"key": "a", "name": "keys"}}})}
        assert changes(key_of(env_vars=text), key_of(env_vars=keys)) != []

    def test_is_what_the_policy_makes_of_it(self) -> None:
        given: dict[str, Any] = {**template(), "env_vars": {"DAY": "2024-01-01", "LEVEL": "3"}, "arguments": ["--fast"]}
        ignored = key_of(cache=Cache(ignore=["DAY"]), **given)
        assert changes(ignored, key_of(**given)) == ["environment DAY: gone"]
        no_image, no_code = key_of(cache=Cache(image=False), **given), key_of(cache=Cache(code=False), **given)
        assert (
            changes(key_of(cache=Cache(image=False), **{**given, **template(image="envoy:2"), "image": TAGGED}), no_image) == []
        )
        assert "command" not in no_code.parts
        other = {**given, **template(command=["envoy", "-v"]), "cmds": ["other"], "arguments": ["-x"]}
        assert changes(key_of(cache=Cache(code=False), **other), no_code) == []

    def test_shows_no_variable_and_no_password_of_an_address(self) -> None:
        url = "postgresql://ml:tr0ub4dor@db/x"
        variables = {"DB_PASSWORD": "tr0ub4dor", "DATABASE_URL": url, "WANDB": "tr0ub4dor"}
        shown = key_of(env_vars=variables, cmds=["sh", "-c", f"train {url}"], arguments=[url]).parts
        assert not [each for each in shown.values() if "tr0ub4dor" in each.shown]
        assert shown["environment WANDB"].shown == shown["environment WANDB"].digest[:8]
        assert shown["command arguments"].shown == "['postgresql://***@db/x']"


def function_key(function: Callable[..., Any], **arguments: Any) -> CacheKey:
    with DAG("example", schedule=None, start_date=START, default_args={"namespace": "ml"}):
        made: Any = ml_pod_task(image=IMAGE, **arguments)(function)(rows=1).operator
    pod = {"spec": {"containers": [{"name": "base", "image": IMAGE}]}}
    return make_key(Cache(), pod_facts(KeyFacts(), pod, "base", Cache(), made.options, made.function))


def test_a_functions_comments_do_not_count_and_all_else_of_it_does() -> None:
    def first() -> Any:
        def step(rows: int, table: Output[Dataset]) -> None:
            table.metadata["text"] = "x" * rows

        return step

    def again() -> Any:
        def step(rows: int, table: Output[Dataset]) -> None:
            # The same, explained.

            table.metadata["text"] = "x" * rows  # rows of one letter

        return step

    def changed() -> Any:
        def step(rows: int, table: Output[Dataset]) -> None:
            table.metadata["text"] = "y" * rows

        return step

    def optional() -> Any:
        def step(rows: int, table: Output[Dataset], raw: Input[Dataset] | None = None) -> None:
            table.metadata["text"] = "x" * rows

        return step

    key = function_key(first())
    assert list(key.parts) == ["code", "image", "command", "outputs"]
    assert changes(function_key(again(), gpu=2, retries=3), key) == []
    for other in (changed, optional):
        assert [each.split(":")[0] for each in changes(function_key(other()), key)] == ["code"]
    python = function_key(first(), options=PodOptions(python="/opt/python"))
    assert changes(python, key) == ["command: ['python3'] -> ['/opt/python']"]


class TestRefusedWhenTheDagIsParsed:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"outputs": None}, "task 'train': cache is set, but the step has no outputs.*only its exit code is known"),
            ({"outputs": None, "options": PodOptions(step="none")}, "there is nothing to keep"),
            ({"cache": Cache(packages=["numpy"])}, r"task 'train': Cache\(packages=\['numpy'\]\): .* the image decides"),
            ({"cache": Cache(ignore=["dya"])}, "task 'train': .*'dya'"),
            ({"cache": Cache(ignore=["day"]), "env_vars": {"DAY": "1"}}, "task 'train': .*'day'"),
            ({"cache": "yes"}, "task 'train': cache='yes' is no policy"),
        ],
    )
    def test_what_could_never_work(self, parsed: DAG, arguments: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {"cache": True, "image": IMAGE, "cmds": ["a"], "outputs": {"model": Model}, **arguments}
        with pytest.raises(ConfigError, match=message):
            MLPodOperator(task_id="train", **given)

    def test_of_a_function(self, parsed: DAG) -> None:
        def nothing(rows: int) -> None: ...

        def of_airflows(rows: int, ti: Any, table: Output[Dataset]) -> None: ...

        for call in (lambda step: step(rows=1), lambda step: step.expand(rows=[1, 2])):
            with pytest.raises(ConfigError, match=r"task 'nothing': .*there is nothing to keep"):
                call(ml_pod_task(image=IMAGE, cache=True)(nothing))
            with pytest.raises(ConfigError, match="fills 'ti' with an object"):
                call(ml_pod_task(image=IMAGE, cache=True)(of_airflows))

    @pytest.mark.parametrize("begin", [MLPodOperator.partial, ml_pod_task])
    def test_of_a_mapped_step(self, parsed: DAG, begin: Callable[..., Any]) -> None:
        for cache, message in ((Cache(packages=["numpy"]), "the image decides"), ("yes", "is no policy")):
            with pytest.raises(ConfigError, match=message):
                begin(task_id="train", image=IMAGE, cache=cache)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"cache": Cache(ignore=["DAY", "day"]), "env_vars": {"DAY": "{{ ds }}"}, "parameters": {"day": "{{ ds }}"}},
            {"cache": Cache(ignore=["LEVEL"]), "env_vars": VARIABLES},
            {"cache": Cache(ignore=["ANY"]), "env_vars": "{{ params.env }}"},
            {
                "cache": Cache(ignore=["A"]),
                "pod_template_dict": {"spec": {"containers": [{"name": "base", "env": [{"name": "A"}]}]}},
            },
            {"cache": False, "outputs": None},
        ],
    )
    def test_and_what_works_is_not(self, parsed: DAG, arguments: dict[str, Any]) -> None:
        given: dict[str, Any] = {"image": IMAGE, "cmds": ["a"], "outputs": {"model": Model}, **arguments}
        assert MLPodOperator(task_id="train", **given).cache == (arguments["cache"] or None)

    def test_the_policy_of_default_args_is_every_pods(self) -> None:
        shared = Cache(salt="v2")
        with DAG("parsed", schedule=None, start_date=START, default_args={"cache": shared, "image": IMAGE}):
            program = MLPodOperator(task_id="program", cmds=["a"], outputs={"model": Model})
            function: Any = ml_pod_task()(_written_model)(rows=1).operator
        assert (program.cache, function.cache) == (shared, shared)


def _written_model(rows: int, model: Output[Model]) -> None: ...


class Looked:
    """A cache that has been looked into."""

    def __init__(self, policy: Cache) -> None:
        self.policy = policy
        self.looked: list[KeyFacts] = []

    def look(self, facts: KeyFacts) -> None:
        self.looked.append(facts)

    def to_json(self) -> dict[str, Any]:
        return {"key": "kept"}


@pytest.mark.parametrize(
    ("image", "cache", "times"), [(TAGGED, Cache(), 1), (IMAGE, Cache(), 0), (TAGGED, Cache(image=False), 0)]
)
def test_an_image_that_is_named_by_a_tag_is_pointed_out_once(image: str, cache: Cache, times: int, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "airflow_ml_provider")
    looked: Any = Looked(cache)
    pod = {"spec": {"containers": [{"name": "base", "image": image}]}}
    assert look_before_pod(looked, KeyFacts(), pod, "base", PodOptions(), None) == {"key": "kept"}
    assert caplog.text.count(f"image {image} is named by a tag, and a tag may be moved") == times
    assert [each.image for each in looked.looked] == [image]


def test_a_variable_with_the_date_of_its_dag_run_is_pointed_out(caplog: Any, tmp_path: Path) -> None:
    def facts(day: str) -> KeyFacts:
        return KeyFacts(environment={"DAY": day, "LEVEL": "3"})

    identity = SimpleNamespace(dag_id="a", task_id="b")
    record = SimpleNamespace(run=None, attempt=SimpleNamespace(identity=identity), inputs=[])
    session: Any = SimpleNamespace(api=None, record=record, scratch=tmp_path, set_tags=lambda _: None)
    before = make_key(Cache(), facts("2024-01-01"))
    entry = SimpleNamespace(dag_run_id="night-1", made_at_ms=0, parts=before.parts, cache_key=before)
    cache = StepCache(Cache(), session, moments=["2024-01-02"])
    absent = Answer(None, "no earlier result has this key", absent=True)
    cache.index = SimpleNamespace(look=lambda *_: absent, latest=lambda _: entry)  # type: ignore[assignment]
    assert cache.look(facts("2024-01-02")) is None
    (warned,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warned.startswith(
        f"Variable 'DAY' ({make_key(Cache(), facts('2024-01-02')).parts['environment DAY'].shown}) holds a date, or the id, of this DAG run"
    )
    assert warned.endswith("Cache(ignore=['DAY']).")


@pytest.mark.parametrize(
    ("value", "dated"),
    [
        ("{run}", True),
        ("s3://x/{run}/table", False),
        ("{day}", True),
        ("s3://x/{day}/y.csv", True),
        ("{day}T00:00:00+00:00", True),
        ("{compact}", True),
        ("{compact}T000000", True),
        ("{compact}{compact}", False),
        ("key-{letters}", False),
    ],
)
def test_explain_sees_a_variable_with_the_date_or_the_id_of_its_dag_run(value: str, dated: bool) -> None:
    def entry(day: str, run: str) -> Any:
        text = value.format(day=day, compact=day.replace("-", ""), run=run, letters=run[-1])
        return make_key(Cache(), KeyFacts(environment={"DAY": text, "LEVEL": day[-1]}))

    tags = {"airflow.run_id": "big night no 2", "airflow.logical_date": "2024-01-02T00:00:00+00:00"}
    found = _dated(entry("2024-01-02", "big night no 2"), entry("2024-01-01", "big night no 1"), tags)
    assert found == (("environment DAY",) if dated else ())


def test_explain_sees_a_date_that_only_the_id_of_the_dag_run_has() -> None:
    one, two = (make_key(Cache(), KeyFacts(environment={"DAY": f"2024-01-0{each}"})) for each in (1, 2))
    tags = {"airflow.run_id": "scheduled__2024-01-02T00:00:00+00:00", "airflow.logical_date": "2024-01-01T00:00:00+00:00"}
    assert _dated(two, one, tags) == ("environment DAY",)  # type: ignore[arg-type]
    assert _dated(two, one, {"airflow.run_id": "manual__x"}) == ()  # type: ignore[arg-type]


def test_a_key_that_cannot_be_read_from_a_plan_costs_the_step_nothing(caplog: Any) -> None:
    session: Any = SimpleNamespace()
    keep_result(None, session, {"key": {"parts": {}}}, 1)
    keep_result(Cache(), session, {}, 1)
    assert caplog.text == ""
    session = SimpleNamespace(
        api=None, record=SimpleNamespace(run=None, attempt=SimpleNamespace(identity=SimpleNamespace(dag_id="a", task_id="b")))
    )
    keep_result(Cache(), session, {"key": {"parts": 3}, "inputs": {}}, 1)
    assert "the result of this step is not kept, as its key cannot be read from the pod's plan" in caplog.text
    assert not hasattr(session, "keeper")


# In DAG runs


TRAIN = """
import os, airflow_ml_step as step
view = step.load()
rows = open(view.inputs["table"].path).read().splitlines()
step.log_metric("rows", len(rows))
os.makedirs(view.outputs["model"].path)
open(view.outputs["model"].path + "/weights", "w").write("w" * int(view.parameters["width"]))
"""


def weigh(model: Input[Model], times: int, said: Output[Dataset]) -> None:
    import pathlib

    weight = len(pathlib.Path(model.path, "weights").read_text())
    pathlib.Path(said.path).write_text(str(weight * times))
    said.metadata["times"] = times


def count(said: Input[list[Dataset]]) -> dict:
    import pathlib

    return {"sum": sum(int(pathlib.Path(each.path).read_text()) for each in said)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(OnThisMachine, "machine", made, raising=False)
    monkeypatch.setattr(OnThisMachine, "crashes", 0)
    monkeypatch.setattr(OnThisMachine, "waits", False)
    return made


@pytest.fixture
def table(mlflow_api: MlflowApi, unique: str, tmp_path: Path) -> Callable[[str], str]:
    """Store a table of which nobody has recorded a digest."""
    from airflow_ml_provider.tracking.artifacts import ArtifactStore

    def store(text: str) -> str:
        body = {"experiment_id": RunTree(mlflow_api).experiment_id(unique), "start_time": 1}
        run = mlflow_api.post("runs/create", body, repeatable=False)["run"]["info"]
        (tmp_path / "raw.csv").write_text(text)
        ArtifactStore(mlflow_api).store(run["artifact_uri"], "raw.csv", tmp_path / "raw.csv")
        return f"runs:/{run['run_id']}/raw.csv"

    return store


def runs_of(api: MlflowApi, dag_id: str, outcome: Outcome) -> dict[str, Run]:
    """The nested runs of a DAG run by their names."""
    tree = RunTree(api)
    found = tree.search([tree.experiment_id(dag_id)], f"tags.`airflow.run_id` = '{outcome.run_id}'")
    return {each["info"]["run_name"]: each for each in found if "mlflow.parentRunId" in tags_of(each)}


def models_of(api: MlflowApi, run: Run) -> list[str]:
    body = {"experiment_ids": [run["info"]["experiment_id"]], "filter": f"source_run_id = '{run_id_of(run)}'"}
    return [each["info"]["status"] for each in api.post("logged-models/search", body).get("models", [])]


@pytest.mark.form("sqlite", "postgresql", "workspaces")
def test_an_unchanged_night_makes_no_pod_and_a_changed_one_those_that_depend_on_it(
    run_dag: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, machine: Machine, mlflow_url: str, table: Any
) -> None:
    raw = table("a\nb\n")
    with DAG(unique, schedule=None, start_date=START, params={"width": 7, "raw": raw}) as dag:
        shared = {"image": IMAGE, "options": machine.options(mlflow_url), "get_logs": False}
        train = PodHere(
            task_id="train",
            cmds=["python3", "-c", TRAIN],
            inputs={"table": "{{ params.raw }}"},
            outputs={"model": Model, "metrics": Metrics},
            parameters={"width": "{{ params.width }}"},
            cache=True,
            **shared,  # type: ignore[arg-type]
        )
        weighed = make_task(weigh, FunctionHere, {"cache": Cache(salt="v1"), **shared})
        said = weighed.partial(model=train.output["model"]).expand(times=[1, 2])
        make_task(count, FunctionHere, {"cache": True, **shared})(said=said["said"])
    first = run_dag(dag)
    assert (first.state, len(machine.bodies)) == ("success", 4), machine.said
    assert first.xcom("count") == {"sum": 21}

    second = run_dag(dag)
    assert (second.state, len(machine.bodies)) == ("success", 4), "no pod is made"
    for task_id, index in (("train", -1), ("weigh", 0), ("weigh", 1), ("count", -1)):
        assert second.xcom(task_id, index) == first.xcom(task_id, index)
    assert second.xcom("weigh", 1, key="said") == first.xcom("weigh", 1, key="said") is not None
    page = second.xcom("train", key="_link_MlflowCachedFromLink")
    assert page.endswith(first.xcom("train")["run_id"]), "a link leads there"
    before, after = runs_of(mlflow_api, unique, first), runs_of(mlflow_api, unique, second)
    assert {name: tags_of(each)["airflow.cache"] for name, each in after.items()} == dict.fromkeys(before, "hit")
    assert {name: tags_of(each)["airflow.cached_from"] for name, each in after.items()} == {
        name: run_id_of(each) for name, each in before.items()
    }
    assert all(status_of(each) == "FINISHED" for each in after.values())
    assert {each["key"]: each["value"] for each in after["train"]["data"]["metrics"]} == {"rows": 2}
    assert {each["key"] for each in after["train"]["data"]["params"]} == {"width"}, "of the pod there is nothing to tell"
    assert (models_of(mlflow_api, before["train"]), models_of(mlflow_api, after["train"])) == (["LOGGED_MODEL_READY"], [])
    assert [each["model_id"] for each in after["train"]["outputs"]["model_outputs"]] == [
        each["model_id"] for each in before["train"]["outputs"]["model_outputs"]
    ]
    assert not mlflow_api.get("artifacts/list", run_id=run_id_of(after["train"])).get("files"), "no plan is kept"
    assert "airflow.pod" not in tags_of(after["train"])

    third = run_dag(dag, run_conf={"raw": table("a\nb\n"), "ml_cache": {"count": "off"}})
    assert (third.state, len(machine.bodies)) == ("success", 5), "the same bytes at another place"
    assert third.xcom("count") == {"sum": 21}
    assert tags_of(runs_of(mlflow_api, unique, third)["count"])["airflow.cache"] == "off"


@pytest.mark.form("sqlite", "postgresql", "workspaces")
@pytest.mark.parametrize("how", ["deferred", "crashed"])
def test_the_key_survives_a_deferral_and_a_crash_of_the_worker(
    run_dag: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, machine: Machine, mlflow_url: str, table: Any, how: str
) -> None:
    OnThisMachine.crashes, OnThisMachine.waits = int(how == "crashed"), how == "deferred"
    with DAG(unique, schedule=None, start_date=START) as dag:
        PodHere(
            task_id="train",
            image=TAGGED,
            cmds=["python3", "-c", TRAIN],
            inputs={"table": table("a\n")},
            outputs={"model": Model},
            parameters={"width": 7},
            cache=True,
            options=machine.options(mlflow_url),
            get_logs=False,
            retries=1,
            retry_delay=timedelta(0),
        )
    first = run_dag(dag)
    assert (first.state, len(machine.bodies)) == ("success", 1), machine.said
    run = runs_of(mlflow_api, unique, first)["train"]
    tags = tags_of(run)
    assert (tags["airflow.cache"], tags["airflow.try_number"]) == (
        "miss: no earlier result has this key",
        "2" if how == "crashed" else "1",
    )
    told = json.loads(
        {each["name"]: each.get("value") for each in machine.bodies[0]["spec"]["containers"][0]["env"]}["AIRFLOW_ML_CONTEXT"]
    )
    assert len(told["inputs"]["table"][0]["sha256"]) == 64, "the pod reads what stands in the key, or nothing"
    second = run_dag(dag)
    assert (second.state, len(machine.bodies)) == ("success", 1)
    assert tags_of(runs_of(mlflow_api, unique, second)["train"])["airflow.cached_from"] == run_id_of(run)
    assert second.xcom("train") == first.xcom("train")
