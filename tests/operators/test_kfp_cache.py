"""The cache of pipeline runs: a hit in the place of a run, on a server and on the worker, and what a key is made of."""

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
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG

from airflow_ml_provider import Cache, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.config import Settings
from airflow_ml_provider.core.cache_key import make_key
from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.exceptions import ConfigError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.jobs.kfp_results import forget_servers
from airflow_ml_provider.models.cache import CacheKey, changes
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import Attempt, StepIdentity, StepRecord
from airflow_ml_provider.operators.declared import declare_outputs
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.kfp_cache import HERE, SERVER, RunCache, run_facts
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.tracking.runs import RunTree, tags_of
from tests.airflow_runs import Outcome
from tests.kfp_stores import PIPELINE, READABLE, Bucket, bucket_at, s3_server

START = pendulum.datetime(2024, 1, 1)
OPTIONS = KfpRunOptions(poll_interval_s=0.1, settle_s=1, results_root=READABLE)
OUTPUTS = {"model": Model, "data": Dataset, "metrics": Metrics, "loss": float}
TRAINS = f"{Path(__file__).parents[1] / 'jobs/kfp_pipelines.py'}:trains"


class CrashesOnce(KfpRunPipelineOperator):
    """Its first worker is gone while it waits: nothing of its own comes after."""

    crashes = 1

    def _wait(self, *given: Any) -> Any:
        if CrashesOnce.crashes:
            CrashesOnce.crashes -= 1
            raise SupersededError("the worker is gone")
        return super()._wait(*given)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3: str) -> Iterator[Bucket]:
    with bucket_at(s3) as bucket:
        yield bucket


@pytest.fixture
def server(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    forget_servers()
    with FakeKfpServer(artifacts=True, store=bucket.write) as server:
        server.auto(seconds=0.2)
        server.makes(
            "prepare", files={"data": {"part-0.csv": b"a\n1\n"}}, parameters={"Output": "x"}, metadata={"data": {"rows": 1}}
        )
        server.makes(
            "train", files={"model": b"weights"}, metrics={"metrics": {"auc": 0.93}}, parameters={"Output": 0.25, "epochs": 4}
        )
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        for name, value in (("PATIENCE_S", "3"), ("HTTP_TIMEOUT_S", "5"), ("HTTP_RETRIES", "0")):
            monkeypatch.setenv(f"AIRFLOW__ML__{name}", value)
        yield server
    forget_servers()


@pytest.fixture
def package(tmp_path: Path) -> str:
    file = tmp_path / "two-steps.yaml"
    file.write_text(json.dumps(PIPELINE))
    return str(file)


@ml_task
def use(model: Input[Model], data: Input[Dataset], metrics: Input[Metrics], loss: float) -> dict[str, Any]:
    rows = [each.read_text() for each in Path(data.path).rglob("*.csv")]
    return {"model": Path(model.path).read_text(), "rows": rows, "auc": metrics.metadata["auc"], "loss": loss}


def creates(server: FakeKfpServer) -> int:
    return sum(each.method == "POST" and each.path.endswith("/runs") for each in server.requests)


def tags(api: MlflowApi, dag_id: str, outcome: Outcome) -> dict[str, str]:
    tree = RunTree(api)
    clauses = f"tags.`airflow.run_id` = '{outcome.run_id}' AND tags.`airflow.task_id` = 'train'"
    (run,) = tree.search([tree.experiment_id(dag_id)], clauses)
    return tags_of(run) | {"id": run["info"]["run_id"], "status": run["info"]["status"]}


# On a server


def test_an_unchanged_night_starts_no_run_and_hands_on_what_the_earlier_one_has_made(
    run_dag: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, server: FakeKfpServer, package: str
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        train = KfpRunPipelineOperator(
            task_id="train",
            pipeline=package,
            arguments={"rows": "{{ 5 }}"},
            outputs=OUTPUTS,
            cache=True,
            deferrable=True,
            options=OPTIONS,
        )
        use(model=train.output["model"], data=train.output["data"], metrics=train.output["metrics"], loss=train.output["loss"])
    first = run_dag(dag)
    assert first.xcom("use") == {"model": "weights", "rows": ["a\n1\n"], "auc": 0.93, "loss": 0.25}
    assert tags(mlflow_api, unique, first)["airflow.cache"] == "miss: no earlier result has this key"

    asked = len(server.requests)
    second = run_dag(dag)
    assert (second.state, creates(server)) == ("success", 1)
    assert all(each.method == "GET" and "/v2beta1/runs/" in each.path for each in server.requests[asked:]), (
        "the run that the task would have is asked for, and nothing else"
    )
    assert second.xcom("train") == first.xcom("train")
    assert second.xcom("use") == first.xcom("use")
    assert second.xcom("train", key="_link_KfpRunLink") == first.xcom("train")["url"]
    assert second.xcom("train", key="_link_MlflowCachedFromLink").endswith(first.xcom("train")["mlflow_run_id"])
    said = tags(mlflow_api, unique, second)
    assert (said["airflow.cache"], said["status"]) == ("hit", "FINISHED")
    assert said["airflow.cached_from"] == first.xcom("train")["mlflow_run_id"] != said["id"]

    off = run_dag(dag, run_conf={"ml_cache": "off"})
    assert (off.state, creates(server)) == ("success", 2)
    assert tags(mlflow_api, unique, off)["airflow.cache"] == "off"


def test_the_key_survives_a_crash_of_the_worker_and_a_registered_pipeline_of_the_same_content_is_the_same(
    run_dag: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, server: FakeKfpServer, package: str
) -> None:
    CrashesOnce.crashes = 1
    with DAG(unique, schedule=None, start_date=START, params={"pipeline": package}) as dag:
        CrashesOnce(
            task_id="train",
            pipeline="{{ params.pipeline }}",
            cache=True,
            deferrable=False,
            options=OPTIONS,
            retries=1,
            retry_delay=timedelta(0),
        )
    first = run_dag(dag)
    assert (first.state, creates(server)) == ("success", 1)
    said = tags(mlflow_api, unique, first)
    assert (said["airflow.try_number"], said["airflow.cache"]) == ("2", "miss: no earlier result has this key")
    assert first.xcom("train")["results"]["train.epochs"] == 4
    second = run_dag(dag, run_conf={"pipeline": "two-steps"})
    assert (second.state, creates(server)) == ("success", 1)
    assert second.xcom("train") == first.xcom("train"), "without outputs, what is found is told again"

    changed = json.loads(json.dumps(PIPELINE).replace("busybox:1.36", "busybox:1.37"))
    Path(package).write_text(json.dumps(changed))
    third = run_dag(dag, run_conf={"pipeline": package})
    assert (third.state, creates(server)) == ("success", 2)
    assert "pipeline: two-steps " in tags(mlflow_api, unique, third)["airflow.cache"]
    newest = run_dag(dag, run_conf={"pipeline": "two-steps"})
    assert (newest.state, creates(server)) == ("success", 2)
    assert newest.xcom("train")["run_id"] == third.xcom("train")["run_id"] != first.xcom("train")["run_id"]


@pytest.mark.parametrize(("memory", "looks"), [("nothing", True), ("started", True), ("sent", False)])
def test_a_create_of_which_nothing_is_known_is_settled_before_anything_else(memory: str, looks: bool) -> None:
    submission: Any = SimpleNamespace(run_id="a", notes=SimpleNamespace(of=lambda _: memory))
    cache = RunCache(SimpleNamespace(cache=None), None, {})  # type: ignore[arg-type]
    assert (cache.before(submission) is not None) is looks


@pytest.mark.parametrize(
    ("number", "looked", "before", "kept"),
    [
        pytest.param(1, True, None, "now", id="the first try"),
        pytest.param(2, True, None, "now", id="nothing was sent before"),
        pytest.param(2, True, "now", "now", id="the same was sent before"),
        pytest.param(2, True, "before", None, id="something else was, perhaps"),
        pytest.param(2, False, "now", None, id="nobody has looked, as a create was sent"),
    ],
)
def test_a_run_that_two_tries_may_have_started_is_kept_under_no_key_that_may_be_the_others(
    mlflow_api: MlflowApi, unique: str, tmp_path: Path, number: int, looked: bool, before: str | None, kept: str | None
) -> None:
    identity = StepIdentity(dag_id=unique, run_id="night", task_id="train")
    attempt = Attempt(identity=identity, try_number=number, ti_id="1")
    record = StepRecord(conn_id="mlflow_default", attempt=attempt, run=RunTree(mlflow_api).open(unique, attempt))
    session = StepSession(mlflow_api, Settings(patience_s=0), record, tmp_path)
    operator: Any = SimpleNamespace(cache=Cache(), kfp_links={}, arguments=None, signature=declare_outputs("train", None))
    submission: Any = SimpleNamespace(run_id="run-1")

    def noting(salt: str, *, has_looked: bool) -> RunCache:
        cache = RunCache(operator, session, {})
        if has_looked:
            operator.cache = Cache(salt=salt)
            cache.look(read_package(json.dumps(PIPELINE).encode(), source="a.yaml"), {})
        return cache

    if before:
        attempt_before = attempt.model_copy(update={"try_number": 1})
        record.attempt, now = attempt_before, record.attempt
        noting(before, has_looked=True).note(submission)
        record.attempt = now
    cache = noting("now", has_looked=looked)
    cache.note(submission)
    for each in (cache, RunCache(operator, session, {})):  # in the process that has looked, and in the one after a deferral
        session.keeper = None
        each.keep({"run_id": "run-1"})
        key = getattr(session.keeper, "key", None)
        assert (key.parts["salt"].shown if key else None) == kept


# On the worker


def test_an_unchanged_night_runs_nothing_on_the_worker(
    run_dag: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": "local://"}))
    monkeypatch.setenv("AIRFLOW__ML__KFP_LOCAL_ROOT", str(tmp_path / "ml-kfp"))

    @ml_task
    def write(table: Output[Dataset]) -> None:
        Path(table.path).write_text("rows")

    @ml_task
    def read(model: Input[Model], auc: float) -> list[Any]:
        return [Path(model.path).read_text(), auc]

    with DAG(unique, schedule=None, start_date=START) as dag:
        train = KfpRunPipelineOperator(
            task_id="train",
            pipeline=TRAINS,
            arguments={"day": write()["table"], "rows": 3},  # the same bytes each night, at another place
            outputs={"model": Model, "auc": float},
            cache=True,
        )
        read(model=train.output["model"], auc=train.output["auc"])
    first, second = run_dag(dag), run_dag(dag)
    assert (first.state, second.state) == ("success", "success")
    assert second.xcom("read") == first.xcom("read") == ["forest on 3 rows", 0.75]
    assert second.xcom("train") == first.xcom("train")
    assert tags(mlflow_api, unique, second)["airflow.cache"] == "hit"
    for night in (first, second):
        read_by = tags(mlflow_api, unique, night)
        assert read_by[f"airflow.read.{night.xcom('write')['run_id']}"] == "try-1/day", "a run and a hit have read the table"
    assert len([each for each in (tmp_path / "ml-kfp" / unique).rglob("*") if "train" in each.name]) <= 1, "no second run"


# What a key is made of


def key_of(
    arguments: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    cache: Cache | None = None,
    spec: dict[str, Any] | None = None,
    where: str = SERVER,
) -> CacheKey:
    package = read_package(json.dumps(spec or PIPELINE).encode(), source="a.yaml")
    session: Any = SimpleNamespace(scratch=None, settings=SimpleNamespace(patience_s=0))
    policy = cache or Cache()

    def read(ref: ArtifactRef, _: Path) -> dict[str, Any]:
        assert policy.metadata
        assert not policy.ignore, "what does not count is not read"
        return {"from": ref.metadata} if ref.metadata else {}

    session.recorder = SimpleNamespace(store=SimpleNamespace(read_metadata=read))
    facts = run_facts(session, declare_outputs("train", outputs), policy, package, arguments or {}, where)
    return make_key(policy, facts)


def reference(sha256: str | None = "a", uri: str = "runs:/1/a.csv", **fields: Any) -> dict[str, Any]:
    made = {"version": 1, "type": "Dataset", "name": "table", "uri": uri, "run_id": "1", **fields}
    return made | ({"sha256": sha256 * 64} if sha256 else {})


def test_a_key_has_the_pipelines_content_arguments_and_outputs() -> None:
    again = json.loads(json.dumps(PIPELINE, sort_keys=True))
    key = key_of({"rows": 1}, OUTPUTS)
    assert list(key.parts) == ["parameter rows", "pipeline", "pipeline runner", "outputs", "outputs declared"]
    assert changes(key_of({"rows": 1}, OUTPUTS, spec=again), key) == []
    image = json.loads(json.dumps(PIPELINE).replace("busybox:1.36", "busybox:1.37"))
    for other, said in (
        (key_of({"rows": 1}, OUTPUTS, spec=image), "pipeline: two-steps "),
        (key_of({"rows": 2}, OUTPUTS), "parameter rows: 1 -> 2"),
        (key_of({"rows": 1, "lr": 0.1}, OUTPUTS), "parameter lr: new"),
        (key_of({"rows": 1}, OUTPUTS | {"loss": int}), "outputs declared: "),
        (key_of({"rows": 1}, OUTPUTS | {"data": list[Dataset]}), "outputs declared: "),
        (key_of({"rows": 1}), "outputs declared: "),
        (key_of({"rows": 1}, OUTPUTS, where=HERE), "pipeline runner: a server -> this machine"),
    ):
        assert said in ", ".join(changes(other, key))
    no_code = key_of({"rows": 1}, cache=Cache(code=False))
    assert changes(key_of({"rows": 1}, cache=Cache(code=False), spec=image), no_code) == []
    assert changes(key_of({"rows": 2}, cache=Cache(ignore=["rows"])), key_of({"rows": 1}, cache=Cache(ignore=["rows"]))) == []


def test_an_artifact_that_is_an_argument_counts_by_its_digest() -> None:
    key = key_of({"table": reference()})
    assert "input table" in key.parts
    assert changes(key_of({"table": reference(uri="runs:/2/a.csv", run_id="2", size=3)}), key) == []
    for other in (reference("b"), reference(uri="runs:/1/a.txt"), reference(metadata="s3://a/b"), [reference()], reference(None)):
        assert changes(key_of({"table": other}), key) != []
    both = [reference(), reference("b")]
    assert changes(key_of({"table": both}), key_of({"table": both[::-1]})) != []
    plain = Cache(metadata=False)
    assert (
        changes(key_of({"table": reference(metadata="s3://a/b")}, cache=plain), key_of({"table": reference()}, cache=plain)) == []
    )
    ignored = Cache(ignore=["table"])
    assert changes(key_of({"table": reference("b")}, cache=ignored), key_of({"table": reference()}, cache=ignored)) == []


# When the DAG is parsed, and without MLflow


@pytest.mark.parametrize(
    ("cache", "arguments", "message"),
    [
        ("yes", None, "task 'train': cache='yes' is no policy"),
        (Cache(packages=["kfp"]), None, "task 'train': .*the image decides"),
        (Cache(ignore=["day"]), None, "task 'train': .*'day'"),
        (Cache(ignore=["day"]), {"dya": "{{ ds }}"}, "task 'train': .*'day'"),
    ],
)
def test_what_could_never_work_is_refused_when_the_dag_is_parsed(cache: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KfpRunPipelineOperator(task_id="train", pipeline="a.yaml", arguments=arguments, cache=cache)


def test_the_policy_of_default_args_is_the_tasks() -> None:
    with DAG("parsed", schedule=None, start_date=START, default_args={"cache": Cache(salt="v2")}):
        made = KfpRunPipelineOperator(task_id="train", pipeline="a.yaml")
        off = KfpRunPipelineOperator(task_id="off", pipeline="a.yaml", cache=False)
        own = KfpRunPipelineOperator(task_id="own", pipeline="a.yaml", arguments={"day": 1}, cache=Cache(ignore=["day"]))
    assert (made.cache, off.cache, own.cache) == (Cache(salt="v2"), None, Cache(ignore=["day"]))


def test_without_mlflow_nothing_is_kept_and_a_policy_may_call_that_an_error(caplog: pytest.LogCaptureFixture) -> None:
    operator: Any = SimpleNamespace(cache=Cache(), kfp_links={}, arguments=None, signature=declare_outputs("train", None))
    with caplog.at_level(logging.WARNING):
        cache = RunCache(operator, None, {})
    assert "there is no MLflow connection" in caplog.text
    cache.look(read_package(json.dumps(PIPELINE).encode(), source="a.yaml"), {})
    cache.keep({"run_id": "1"})
    operator.cache = Cache(unreadable="error")
    with pytest.raises(AirflowFailException, match="add 'mlflow_default'"):
        RunCache(operator, None, {})
