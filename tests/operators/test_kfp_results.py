"""What a pipeline run gives back: each source's promise, value by value, in DAG runs on the fake server, S3 and a real MLflow."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pendulum
import pytest
from airflow.sdk import DAG, task

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model
from airflow_ml_provider.core.kfp_component import MANIFEST
from airflow_ml_provider.exceptions import ConfigError, SupersededError
from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook
from airflow_ml_provider.jobs.kfp_connected import run_reference
from airflow_ml_provider.jobs.kfp_results import forget_servers
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.kfp_delivery import deliver
from airflow_ml_provider.sensors.kfp import KfpRunSensor
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.tracking.reconcile import AirflowView, Reconciler
from airflow_ml_provider.tracking.runs import RunTree, tags_of
from tests.airflow_runs import Outcome
from tests.kfp_stores import PIPELINE, READABLE, Bucket, bucket_at, s3_server

START = pendulum.datetime(2024, 1, 1)
OPTIONS = KfpRunOptions(poll_interval_s=0.1, settle_s=1, results_root=READABLE)
ALL = {"data": Dataset, "model": Model, "metrics": Metrics, "report": Artifact, "loss": float, "epochs": int, "auc": float}
FILES = {"data": Dataset, "model": Model, "report": Artifact, "best": Model}
NUMBERS = {"metrics": Metrics, "auc": float}
WEIGHTS = b"weights"
TABLE = {"part-0.csv": b"a,b\n1,2\n", "more/part-1.csv": b"3,4\n"}


class Crashing(KfpRunPipelineOperator):
    """Its worker is gone while it waits: nothing of its own comes after."""

    def _wait(self, *_: Any) -> Any:
        raise SupersededError("the worker is gone")


class Killed(KfpRunPipelineOperator):
    """It is killed while it waits, as by a mark in the UI."""

    def _wait(self, *_: Any) -> Any:
        self.on_kill()
        raise SupersededError("the worker is gone")


class Looped(KfpRunPipelineOperator):
    """It runs on a server that tells of two iterations of a loop, the second first."""

    def _results(self, submission: Any, run: Any) -> Any:
        places = {index: f"{READABLE}/loop/{index}/model" for index in (1, 0)}
        told = {"name": "model", "task": "train", "type": "Model", "source": "artifact-api"}
        found = [KfpOutput(**told, uri=uri, metadata={"at": index}, loop=(index,)) for index, uri in places.items()]
        return run_reference(run, "url") | deliver(KfpResults(outputs=tuple(found)), self.signature, self.session, "run")


def digest(files: dict[str, bytes]) -> str:
    """The digest of a folder, as references carry it."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3: str) -> Iterator[Bucket]:
    with bucket_at(s3) as bucket:
        yield bucket


@pytest.fixture
def package(tmp_path: Path) -> str:
    file = tmp_path / "two-steps.yaml"
    file.write_text(json.dumps(PIPELINE))
    return str(file)


@pytest.fixture
def serve(bucket: Bucket, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeKfpServer]]:
    """Start a pipeline server of a kind, whose tasks make something of every kind."""
    forget_servers()
    started: list[FakeKfpServer] = []

    def start(*, plugin: bool = False, artifacts: bool = False) -> FakeKfpServer:
        server = FakeKfpServer(mlflow=mlflow_url if plugin else False, artifacts=artifacts, store=bucket.write)
        server.start()
        started.append(server)
        server.auto(seconds=0.2)
        server.makes("prepare", files={"data": TABLE}, parameters={"Output": "prepared"}, metadata={"data": {"rows": 2}})
        server.makes(
            "train",
            files={"model": WEIGHTS, "report": b"<html>"},
            metrics={"metrics": {"auc": 0.93, "rows": 2.0}},
            parameters={"Output": 0.25, "epochs": 4},
            metadata={"model": {"framework": "none"}},
        )
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        for name, value in (("PATIENCE_S", "1"), ("HTTP_TIMEOUT_S", "5"), ("HTTP_RETRIES", "0")):
            monkeypatch.setenv(f"AIRFLOW__ML__{name}", value)
        return server

    yield start
    for each in started:
        each.stop()
    forget_servers()


@pytest.fixture
def night(run_dag: Callable[..., Outcome], unique: str, package: str) -> Callable[..., Outcome]:
    """Run the pipeline in a night of its own."""
    nights = itertools.count()

    def run(read: Callable[..., None] = lambda _: None, **arguments: Any) -> Outcome:
        with DAG(unique, schedule=None, start_date=START) as made:
            given: dict[str, Any] = {"pipeline": package, "options": OPTIONS, "deferrable": False} | arguments
            read(KfpRunPipelineOperator(task_id="train", **given))
        return run_dag(made, logical_date=START.add(days=next(nights)))

    return run


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What the tasks have written to their log so far."""
    caplog.set_level("INFO", "airflow_ml_provider")
    read: list[str] = []

    def all_of_it() -> str:
        read.extend(capfd.readouterr())
        return "".join(read) + caplog.text

    return all_of_it


def nested(api: MlflowApi, unique: str) -> list[dict[str, Any]]:
    """The MLflow runs of the DAG's task instances, oldest first."""
    tree = RunTree(api)
    found = tree.search([tree.experiment_id(unique)], "tags.`airflow.task_id` = 'train'")
    return sorted(found, key=lambda run: int(run["info"]["start_time"]))


def points(run: dict[str, Any]) -> dict[str, float]:
    return {each["key"]: each["value"] for each in run["data"].get("metrics", [])}


def params(run: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in run["data"].get("params", [])}


class TestTheArtifactApi:
    @pytest.mark.parametrize("deferrable", [False, pytest.param(True, marks=pytest.mark.full)])
    def test_gives_every_kind_of_output_as_typed_references(self, night, serve, deferrable, bucket, unique, mlflow_api):
        @task.ml
        def use(model: Input[Model], data: Input[Dataset], metrics: Input[Metrics], report: Input[Artifact], loss: float) -> dict:
            return {
                "model": Path(model.path).read_bytes().decode(),
                "framework": model.metadata["framework"],
                "data": sorted(str(each.relative_to(data.path)) for each in Path(data.path).rglob("*.csv")),
                "rows": data.metadata["rows"],
                "metrics": dict(metrics.metadata),
                "report": Path(report.path).read_text(),
                "loss": loss,
            }

        def read(train: Any) -> None:
            some = {name: train.output[name] for name in ("model", "data", "metrics", "report", "loss")}
            use(**some)

        server = serve(artifacts=True)
        outcome = night(read, outputs=ALL, deferrable=deferrable, arguments={"lr": 0.5})
        assert outcome.state == "success"
        assert outcome.xcom("use") == {
            "model": "weights",
            "framework": "none",
            "data": ["more/part-1.csv", "part-0.csv"],
            "rows": 2,
            "metrics": {"auc": 0.93, "rows": 2.0},
            "report": "<html>",
            "loss": 0.25,
        }
        told = outcome.xcom("train")
        assert told["values"] == {"loss": 0.25, "epochs": 4, "auc": 0.93}
        assert type(told["values"]["epochs"]) is int
        root = f"{READABLE}/two-steps/{server.runs[0].run_id}"
        model, data = told["outputs"]["model"], told["outputs"]["data"]
        assert model["uri"].startswith(f"{root}/train/")
        assert model["uri"].endswith("/model")
        assert (model["type"], model["sha256"], model["size"]) == ("Model", hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
        assert data["uri"].startswith(f"{root}/prepare/")
        assert data["uri"].endswith("/data/")
        assert (data["sha256"], data["size"]) == (digest(TABLE), sum(map(len, TABLE.values())))
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["run_id"] == told["mlflow_run_id"]
        assert points(run) == {"auc": 0.93, "rows": 2.0}

    def test_gives_the_files_of_a_loop_as_a_list(self, run_dag, serve, unique, bucket, tmp_path):
        @task.ml
        def use(models: Input[list[Model]]) -> list:
            return [[Path(each.path).read_text(), each.metadata["at"]] for each in models]

        serve(artifacts=True)
        spec = copy.deepcopy(PIPELINE)
        spec["root"]["dag"]["tasks"]["train"]["parameterIterator"] = {"items": {"raw": "[0.1, 0.2]"}, "itemInput": "lr"}
        (tmp_path / "loop.json").write_text(json.dumps(spec))
        for index in range(2):
            bucket.write(f"minio://mlpipeline/v2/artifacts/loop/{index}/model", f"weights {index}".encode())
        with DAG(unique, schedule=None, start_date=START) as made:
            given = {"pipeline": str(tmp_path / "loop.json"), "options": OPTIONS, "deferrable": False}
            use(models=Looped(task_id="train", outputs={"train.model": list[Model]}, **given).output["train.model"])
        outcome = run_dag(made, logical_date=START)
        assert outcome.xcom("use") == [["weights 0", 0], ["weights 1", 1]]
        second = outcome.xcom("train")["outputs"]["train.model[1]"]
        assert (second["uri"], second["sha256"]) == (f"{READABLE}/loop/1/model", hashlib.sha256(b"weights 1").hexdigest())

    def test_gives_what_a_cached_task_was_served_with(self, night, serve, said):
        server = serve(artifacts=True)
        first = night(outputs=ALL).xcom("train")
        server.cached("prepare", "train")
        second = night(outputs=ALL).xcom("train")
        assert first["run_id"] != second["run_id"]
        for name in ("model", "data", "report"):
            assert second["outputs"][name]["uri"] == first["outputs"][name]["uri"]
        assert second["values"] == first["values"]
        assert "The server's artifact API knows" in said()


class TestFilesBelowThePipelineRoot:
    @pytest.mark.parametrize("deferrable", [False, pytest.param(True, marks=pytest.mark.full)])
    def test_give_artifacts_with_digest_and_size(self, night, serve, deferrable, bucket):
        server = serve()
        told = night(outputs=FILES, deferrable=deferrable).xcom("train")
        (run,) = server.runs
        (key,) = [each for each in bucket.listed() if each.endswith("/train/" + each.split("/")[-2] + "/model")]
        uri = f"{READABLE.removesuffix('v2/artifacts')}{key}"
        assert f"/two-steps/{run.run_id}/train/" in key
        assert told["outputs"]["model"] == {
            "type": "Model",
            "uri": uri,
            "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "size": len(WEIGHTS),
        }
        assert told["outputs"]["best"]["uri"] == uri  # an output of the pipeline itself
        assert told["outputs"]["data"]["sha256"] == digest(TABLE)
        assert told["outputs"]["report"]["type"] == "Artifact"
        assert (told["run_id"], told["state"]) == (run.run_id, "SUCCEEDED")

    def test_are_found_below_the_earlier_run_where_a_task_was_cached(self, night, serve, said):
        server = serve()
        other = night(outputs=FILES, arguments={"rows": 99}).xcom("train")  # prepare made something else here
        first = night(outputs=FILES, arguments={"lr": 0.1}).xcom("train")
        server.cached("prepare")
        server.makes("train", files={"model": b"others", "report": b"<html>"})
        second = night(outputs=FILES, arguments={"lr": 0.2}).xcom("train")
        assert second["outputs"]["data"] == first["outputs"]["data"]
        assert second["outputs"]["data"] != other["outputs"]["data"]
        assert second["outputs"]["model"]["sha256"] == hashlib.sha256(b"others").hexdigest()
        assert second["run_id"] in second["outputs"]["model"]["uri"]
        assert f"Task 'prepare' was served from the cache: its 'data' is that of run {first['run_id']}." in said()

    def test_of_a_cached_task_are_never_those_of_another_recipe(self, night, serve, said):
        server = serve()
        night(outputs=FILES, arguments={"rows": 99})
        server.cached("prepare")
        outcome = night(outputs={"data": Dataset}, arguments={"rows": 5})
        assert outcome.task("train") == "failed"
        assert "none of an earlier run in which the task was to make the same" in said()

    def test_hold_no_number_and_no_parameter_and_the_error_says_what_to_turn_on(self, night, serve, said):
        serve()
        outcome = night(outputs={"model": Model, "metrics": Metrics, "loss": float, "epochs": int})
        assert outcome.task("train") == "failed"
        for name, kind in (("metrics", "Metrics"), ("loss", "float"), ("epochs", "int")):
            assert f"output '{name}' ({kind}) was not found" in said()
        assert "output 'model'" not in said()
        for remedy in ("KFP's MLflow plugin", "artifact API", "as_kfp_component"):
            assert remedy in said()

    def test_that_only_kfp_reads_are_an_error_with_the_option_to_set(self, night, serve, said):
        serve()
        outcome = night(outputs={"model": Model}, options=KfpRunOptions(poll_interval_s=0.1))
        assert outcome.task("train") == "failed"
        assert "minio://mlpipeline/v2/artifacts" in said()
        assert "results_root='s3://<connection>@<bucket>/<path>'" in said()

    def test_of_which_one_was_taken_away_are_an_error(self, night, serve, said, bucket):
        server = serve()
        server.makes("train", files={"report": b"<html>"})
        outcome = night(outputs={"model": Model, "report": Artifact})
        assert outcome.task("train") == "failed"
        assert "output 'model' (Model) was not found" in said()
        assert "output 'report'" not in said()

    def test_that_the_worker_may_not_read_are_an_error_that_says_so(self, night, serve, said, s3, monkeypatch):
        import s3fs
        from airflow.sdk.io import attach

        serve()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        attach("s3", conn_id="nobody", fs=s3fs.S3FileSystem(endpoint_url=s3, skip_instance_cache=True))
        options = KfpRunOptions(poll_interval_s=0.1, results_root=READABLE.replace("moto@", "nobody@"))
        outcome = night(outputs={"model": Model}, options=options)
        assert outcome.task("train") == "failed"
        assert "may not be read from this worker: NoCredentialsError" in said()
        assert "results_root=" in said()


class TestAManifest:
    TOLD: ClassVar[dict[str, Any]] = {
        "version": 1,
        "try_number": 1,
        "state": "succeeded",
        "exit_code": 0,
        "outputs": {
            "model": {"type": "Model", "file": "model", "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)},
            "metrics": {"type": "Metrics", "file": "metrics.json", "sha256": "b" * 64, "size": 9},
        },
        "metrics": {"auc": 0.93, "worst": "-Infinity"},
        "result": 0.25,
    }

    def test_of_a_step_that_became_a_component_gives_everything(self, night, serve, unique, mlflow_api):
        server = serve()
        server.makes("train", files={"model": WEIGHTS, MANIFEST: json.dumps(self.TOLD).encode()})
        answer = night(outputs={"model": Model, "metrics": Metrics, "loss": float, "auc": float}).xcom("train")
        assert answer["values"] == {"loss": 0.25, "auc": 0.93}
        assert answer["outputs"]["model"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
        assert answer["outputs"]["metrics"]["path"] == "try-1/metrics.json"
        (run,) = nested(mlflow_api, unique)
        assert points(run)["auc"] == 0.93
        assert points(run)["worst"] < -1e300  # as MLflow keeps what no database can

    def test_of_a_step_that_the_cache_has_served_is_that_of_the_earlier_run(self, night, serve, said, tmp_path):
        server, wanted = serve(), {"model": Model, "metrics": Metrics, "train.Output": float, "auc": float}
        spec = copy.deepcopy(PIPELINE)
        made = spec["components"]["comp-train"]["outputDefinitions"]["artifacts"]
        made[MANIFEST] = {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}
        (tmp_path / "steps.json").write_text(json.dumps(spec))
        server.makes("train", files={"model": WEIGHTS, MANIFEST: json.dumps(self.TOLD).encode()})
        first = night(pipeline=str(tmp_path / "steps.json"), outputs=wanted).xcom("train")
        server.cached("prepare", "train")
        second = night(pipeline=str(tmp_path / "steps.json"), outputs=wanted).xcom("train")
        assert second["run_id"] != first["run_id"]
        assert second["values"] == first["values"] == {"train.Output": 0.25, "auc": 0.93}
        assert second["outputs"]["model"] == first["outputs"]["model"]
        assert second["outputs"]["metrics"]["path"] == "try-1/metrics.json"
        assert f"Task 'train' was served from the cache: its {MANIFEST!r} is that of run {first['run_id']}." in said()


class TestTheMlflowPlugin:
    @pytest.mark.parametrize("deferrable", [pytest.param(False, marks=pytest.mark.full), True])
    def test_gives_numbers_and_its_run_becomes_a_child_of_ours(self, night, serve, deferrable, unique, mlflow_api):
        server = serve(plugin=True)
        told = night(outputs={**FILES, **NUMBERS}, deferrable=deferrable, arguments={"lr": 0.5}).xcom("train")
        assert told["values"] == {"auc": 0.93}
        assert told["outputs"]["metrics"]["path"] == "try-1/metrics.json"
        (row,) = server.runs
        assert row.plugins_input == {"mlflow": {"experiment_name": unique}}
        (run,) = nested(mlflow_api, unique)
        tree = RunTree(mlflow_api)
        root = tree.get(row.plugins_output["mlflow"]["entries"]["root_run_id"]["value"])
        assert tags_of(root)["mlflow.parentRunId"] == run["info"]["run_id"] == told["mlflow_run_id"]
        tags = tags_of(run)
        assert tags["airflow.kfp.mlflow_run_id"] == root["info"]["run_id"]
        assert tags["airflow.kfp.mlflow_url"].endswith(f"/runs/{root['info']['run_id']}")
        assert tags["airflow.kfp.run_id"] == row.run_id
        assert tags["airflow.kfp.state"] == "SUCCEEDED"
        assert tags["airflow.kfp.url"].endswith(row.run_id)
        assert points(run) == {}  # they are the plugin's
        assert params(run) == {"lr": "0.5"}
        children = tree.search([root["info"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{root['info']['run_id']}'")
        by_name = {each["info"]["run_name"]: each for each in children}
        assert points(by_name["train"]) == {"auc": 0.93, "rows": 2.0}
        assert params(by_name["train"]) == {"lr": "0.5"}

    def test_that_wrote_elsewhere_is_linked_and_stays_there(self, night, serve, unique, mlflow_api):
        server = serve(plugin=True)
        elsewhere = OPTIONS.model_copy(update={"plugins_input": {"mlflow": {"experiment_name": f"{unique}-theirs"}}})
        told = night(outputs=NUMBERS, options=elsewhere).xcom("train")
        assert told["values"] == {"auc": 0.93}
        (row,) = server.runs
        root = RunTree(mlflow_api).get(row.plugins_output["mlflow"]["entries"]["root_run_id"]["value"])
        assert "mlflow.parentRunId" not in tags_of(root)
        (run,) = nested(mlflow_api, unique)
        assert tags_of(run)["airflow.kfp.mlflow_run_id"] == root["info"]["run_id"]

    def test_is_found_by_its_tag_where_the_server_does_not_name_its_run(self, night, serve, unique, mlflow_api):
        server = serve(plugin=True)

        def forget(run: Any) -> None:
            run.plugins_output, run.text = None, None

        server.engine.final.append(forget)
        assert night(outputs=NUMBERS).xcom("train")["values"] == {"auc": 0.93}

    def test_that_has_failed_is_told_in_its_own_words(self, night, serve, said):
        server = serve(plugin=True)
        server.lose("mlflow")
        assert night(outputs={"auc": float}).task("train") == "failed"
        assert "It has failed: MLflow request GET" in said()
        assert [each.state for each in server.runs] == ["SUCCEEDED"]

    def test_that_wrote_to_another_mlflow_is_told_and_its_numbers_are_missed(self, night, serve, said, monkeypatch):
        server = serve()
        fake = FakeKfpServer(mlflow=True)
        with fake:
            fake.auto(seconds=0.2)
            monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": fake.url}))
            outcome = night(outputs={"auc": float})
        assert outcome.task("train") == "failed"
        assert "to another MLflow" in said()
        assert server.runs == []


class TestWithoutDeclaredOutputs:
    def test_the_xcom_tells_what_was_found_and_refuses_nothing(self, night, serve):
        serve(artifacts=True)
        told = night().xcom("train")
        assert "outputs" not in told
        assert told["results"]["train.epochs"] == 4
        assert told["results"]["loss"] == 0.25
        assert told["results"]["train.metrics"] == {"type": "Metrics", "metadata": {"auc": 0.93, "rows": 2.0}}
        assert told["results"]["best"]["type"] == "Model"

    def test_a_source_that_is_away_is_a_note(self, night, serve, said):
        serve()
        options = KfpRunOptions(poll_interval_s=0.1, results_root="s3://nothere/x")
        assert night(options=options).state == "success"
        assert "Install apache-airflow-providers-amazon[s3fs]" in said()


class TestTheRecord:
    def test_is_there_and_closed_when_the_run_fails(self, night, serve, unique, mlflow_api):
        serve().auto(seconds=0.2, state="FAILED", failed_task="train")
        assert night(arguments={"lr": 0.5}).task("train") == "failed"
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "FAILED"
        assert tags_of(run)["airflow.kfp.state"] == "FAILED"
        assert "FAILED" in tags_of(run)["airflow.error"]
        assert params(run) == {"lr": "0.5"}

    def test_is_the_same_over_retries_and_so_is_the_run(self, night, serve, unique, mlflow_api):
        server = serve()
        server.script((0.1, "RUNNING"), (0.2, "FAILED"))

        def then_well(context: Any) -> None:
            server.auto(seconds=0.2)

        outcome = night(outputs=FILES, retries=1, retry_delay=pendulum.duration(seconds=0), on_retry_callback=then_well)
        assert outcome.task("train") == "success"
        assert len(server.workflows) == 1
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "FINISHED"
        assert tags_of(run)["airflow.try_number"] == "2"
        assert tags_of(run)["airflow.kfp.state"] == "SUCCEEDED"

    def test_is_closed_when_the_task_is_killed(self, run_dag, serve, unique, mlflow_api, package):
        server = serve()
        server.auto(seconds=None)
        with DAG(unique, schedule=None, start_date=START) as made:
            Killed(task_id="train", pipeline=package, options=OPTIONS, deferrable=False)
        run_dag(made, logical_date=START)
        assert [each.state for each in server.runs] == ["CANCELING"]
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "KILLED"

    def test_is_closed_when_the_time_is_up(self, night, serve, unique, mlflow_api):
        server = serve()
        server.auto(seconds=None)
        assert night(execution_timeout=pendulum.duration(seconds=1.5)).task("train") == "failed"
        assert [each.state for each in server.runs] == ["CANCELING"]
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "FAILED"

    def test_that_a_crash_has_left_open_is_closed_by_reconcile_like_every_steps(
        self, run_dag, serve, unique, mlflow_api, package
    ):
        serve().auto(seconds=None)
        with DAG(unique, schedule=None, start_date=START) as made:
            Crashing(task_id="train", pipeline=package, options=OPTIONS, deferrable=False)
        run_dag(made, logical_date=START)
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "RUNNING"
        assert tags_of(run)["airflow.kfp.run_id"]  # the page leads there while the run goes on
        view = AirflowView("failed", {("train", -1): "failed"})
        found = list(Reconciler(RunTree(mlflow_api), lambda *_: view).walk(unique))
        assert ("closed", "train", "FAILED") in {(each.action, each.label, each.after) for each in found}

    def test_that_cannot_be_opened_lets_no_run_start(self, night, serve, said, monkeypatch):
        server = serve()
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", '{"conn_type": "mlflow", "host": "http://127.0.0.1:9"}')
        assert night().task("train") == "failed"
        assert server.workflows == []
        assert "open the MLflow run" in said()

    def test_that_cannot_be_closed_does_not_double_the_run(self, night, serve, monkeypatch, mlflow_url, unique, mlflow_api):
        server = serve()
        gone = '{"conn_type": "mlflow", "host": "http://127.0.0.1:9"}'
        there = f'{{"conn_type": "mlflow", "host": "{mlflow_url}"}}'
        server.engine.final.append(lambda _: monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", gone))

        def back(context: Any) -> None:
            monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", there)

        outcome = night(
            outputs=FILES, deferrable=True, retries=1, retry_delay=pendulum.duration(seconds=0), on_retry_callback=back
        )
        assert outcome.task("train") == "success"
        assert len(server.workflows) == 1
        (run,) = nested(mlflow_api, unique)
        assert run["info"]["status"] == "FINISHED"

    def test_costs_one_reading_of_each_connection_which_is_a_request_to_airflow(self, night, serve, monkeypatch):
        serve()
        asked: list[str] = []

        def spied(own: Callable[[str], Any]) -> Callable[[str], Any]:
            def get_connection(conn_id: str) -> Any:
                # The listener's thread may still settle the DAG run of an earlier test.
                if threading.current_thread().name != "airflow-ml-listener":
                    asked.append(conn_id)
                return own(conn_id)

            return get_connection

        for hook in (KfpHook, MlflowHook):
            monkeypatch.setattr(hook, "get_connection", staticmethod(spied(hook.get_connection)))
        assert night(outputs={"model": Model}).state == "success"
        assert sorted(asked) == ["kfp_default", "mlflow_default"]

    def test_on_a_connection_that_is_named_and_not_there_lets_no_run_start(self, night, serve, said):
        server = serve()
        assert night(options=OPTIONS.model_copy(update={"mlflow_conn_id": "mlflow_elsewhere"})).task("train") == "failed"
        assert "there is no connection 'mlflow_elsewhere'" in said()
        assert server.workflows == []

    def test_is_left_out_and_said_once_where_there_is_no_connection(self, night, serve, said, monkeypatch):
        serve(artifacts=True)
        monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT")
        told = night(outputs={"model": Model, "loss": float}).xcom("train")
        assert told["mlflow_run_id"] == ""
        assert told["outputs"]["model"]["uri"].endswith("/model")
        assert told["values"] == {"loss": 0.25}
        assert said().count("so MLflow gets no record of this task") == 1

    def test_keeps_a_model_as_a_logged_model_that_can_be_promoted(self, night, serve, unique, mlflow_api):
        from airflow_ml_provider.operators.promotion import PromoteModelOperator

        serve()

        def promote(train: Any) -> None:
            PromoteModelOperator(task_id="promote", model=train.output["model"], name=unique)

        outcome = night(promote, outputs={"model": Model})
        assert outcome.xcom("promote")["version"] == "1"
        version = mlflow_api.get("model-versions/get", name=unique, version="1")["model_version"]
        assert version["source"].startswith("models:/m-")
        info = mlflow_api.get(f"logged-models/{version['source'].removeprefix('models:/')}")["model"]["info"]
        tags = {each["key"]: each["value"] for each in info["tags"]}
        assert tags["airflow.uri"] == outcome.xcom("train")["outputs"]["model"]["uri"]
        assert tags["airflow.sha256"] == hashlib.sha256(WEIGHTS).hexdigest()


class TestWhatIsDeclared:
    def test_is_checked_at_parse_time_like_every_steps(self, package):
        @task.ml
        def use(table: Input[Dataset]) -> None: ...

        @task.ml
        def plain(auc: float) -> None: ...

        with DAG("parse", schedule=None):
            train = KfpRunPipelineOperator(task_id="train", pipeline=package, outputs={"model": Model, "auc": float})
            with pytest.raises(ConfigError, match=r"wants Input\[Dataset\], but train\[\"model\"\] is a Model"):
                use(table=train.output["model"])
            with pytest.raises(ConfigError, match=r"train\[\"auc\"\] is a plain value \(float\)"):
                use(table=train.output["auc"])
            with pytest.raises(ConfigError, match=r"is a plain value, but train\[\"model\"\] is a Model"):
                plain(auc=train.output["model"])
            with pytest.raises(ConfigError, match=r"has no output 'modle'\. Did you mean 'model'"):
                train.output["modle"]
            plain(auc=train.output["auc"])

    @pytest.mark.parametrize(
        ("outputs", "words"),
        [
            ({"model": "Model"}, "is no type of an output. Give the class"),
            ({"model": object}, "Or, for a JSON value, float, int, str, bool, list or dict"),
            ({"a b": Model}, "outputs has the name 'a b'"),
            ({"../x": Model}, "outputs has the name '../x'"),
            ({"manifest": Artifact}, "cannot be named 'manifest'"),
            ({1: Model}, "outputs has the name 1"),
            (["model"], "is no dictionary by name"),
        ],
    )
    def test_with_a_bad_name_or_type_is_refused_when_the_dag_is_parsed(self, outputs, words):
        with pytest.raises(ConfigError) as error:
            KfpRunPipelineOperator(task_id="train", pipeline="p.yaml", outputs=outputs)
        assert words in str(error.value)

    @pytest.mark.parametrize(
        ("outputs", "words"),
        [
            ({"modle": Model}, "has no output 'modle'. Did you mean 'model'"),
            ({"data": Model}, "task 'prepare' of the pipeline"),
            ({"loss": Metrics}, "returns it as a parameter (NUMBER_DOUBLE)"),
        ],
    )
    def test_and_cannot_be_is_refused_before_anything_is_started(self, night, serve, said, outputs, words):
        server = serve()
        assert night(outputs=outputs).task("train") == "failed"
        assert words in said()
        assert server.workflows == []

    def test_of_the_wrong_type_when_it_came_is_refused(self, night, serve, said):
        serve(artifacts=True)
        assert night(outputs={"loss": int}).task("train") == "failed"
        assert "outputs['loss']=int, but run" in said()
        assert "gave 0.25, a float" in said()

    def test_that_two_tasks_have_is_asked_for_with_the_task(self, night, serve, said):
        serve(artifacts=True)
        assert night(outputs={"Output": str}).task("train") == "failed"
        assert "prepare.Output, train.Output" in said()
        told = night(outputs={"prepare.Output": str, "train.Output": float}).xcom("train")
        assert told["values"] == {"prepare.Output": "prepared", "train.Output": 0.25}

    def test_of_a_mapped_run_is_one_for_each_instance(self, run_dag, serve, unique, package):
        serve(artifacts=True)

        @task.ml
        def use(models: Input[list[Model]], losses: list[float]) -> list:
            return [[Path(each.path).read_bytes().decode() for each in models], losses]

        with DAG(unique, schedule=None, start_date=START) as made:
            train = KfpRunPipelineOperator.partial(
                task_id="train", pipeline=package, options=OPTIONS, deferrable=False, outputs={"model": Model, "loss": float}
            ).expand(arguments=[{"lr": 0.1}, {"lr": 0.2}])
            use(models=train.output["model"], losses=train.output["loss"])
        outcome = run_dag(made, logical_date=START)
        assert outcome.state == "success"
        assert outcome.xcom("use") == [["weights", "weights"], [0.25, 0.25]]


class TestASourceThatCannotBeRead:
    def test_does_not_matter_where_another_has_what_is_wanted(self, night, serve, said):
        serve(plugin=True)
        nowhere = KfpRunOptions(poll_interval_s=0.1, results_root="s3://nothere/x")
        assert night(outputs=NUMBERS, options=nowhere).xcom("train")["values"] == {"auc": 0.93}
        assert "Install apache-airflow-providers-amazon[s3fs]" in said()

    def test_and_does_not_answer_is_asked_again_by_a_retry(self, night, serve, said, bucket):
        server, bucket.away = serve(), True

        def back(context: Any) -> None:
            bucket.away = False

        retries = {"retries": 1, "retry_delay": pendulum.duration(seconds=0), "on_retry_callback": back}
        outcome = night(outputs=FILES, **retries)
        assert outcome.task("train") == "success"
        assert len(server.workflows) == 1
        assert outcome.xcom("train")["outputs"]["model"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
        assert "did not answer" in said()


class TestPlacesThatAServerNames:
    @pytest.mark.parametrize("place", ["file:///etc/hostname", "/etc/hostname", "s3://moto@mlpipeline/a/../../b", "local:///etc"])
    def test_are_not_read_where_they_are_the_workers_own_or_climb(self, night, serve, said, place):
        serve(artifacts=True).makes("train", uris={"model": place})
        assert night(outputs={"model": Model}).task("train") == "failed"
        assert "is on a pod's own disk, or climbs: it is not read" in said()
        assert "output 'model' (Model) was not found" in said()

    def test_in_another_bucket_are_read_there(self, night, serve, bucket):
        bucket.client.put_object(Bucket="mlpipeline", Key="elsewhere/m.bin", Body=b"theirs")
        serve(artifacts=True).makes("train", uris={"model": "s3://moto@mlpipeline/elsewhere/m.bin"})
        model = night(outputs={"model": Model}).xcom("train")["outputs"]["model"]
        assert (model["uri"], model["size"]) == ("s3://moto@mlpipeline/elsewhere/m.bin", 6)


class TestTheSensor:
    @pytest.mark.parametrize("deferrable", [pytest.param(False, marks=pytest.mark.full), True])
    def test_gives_the_outputs_of_a_run_that_was_started_elsewhere(self, run_dag, serve, unique, deferrable, mlflow_api):
        import httpx

        @task.ml
        def use(model: Input[Model], loss: float) -> list:
            return [Path(model.path).read_bytes().decode(), loss]

        server = serve(artifacts=True)
        body = {"display_name": "theirs", "pipeline_spec": PIPELINE}
        run_id = httpx.post(f"{server.url}/apis/v2beta1/runs", json=body).raise_for_status().json()["run_id"]
        with DAG(unique, schedule=None, start_date=START) as made:
            wait = KfpRunSensor(
                task_id="train",
                run_id=run_id,
                poke_interval=0.2,
                deferrable=deferrable,
                outputs={"model": Model, "loss": float},
                options=OPTIONS,
            )
            use(model=wait.output["model"], loss=wait.output["loss"])
        outcome = run_dag(made, logical_date=START)
        assert outcome.xcom("use") == ["weights", 0.25]
        assert outcome.xcom("train")["run_id"] == run_id
        (run,) = nested(mlflow_api, unique)
        assert (run["info"]["status"], tags_of(run)["airflow.kfp.run_id"]) == ("FINISHED", run_id)


@pytest.fixture
def example() -> Any:
    """The DAG of the documentation."""
    from tests.airflow_releases import DagBag

    file = Path(__file__).parents[2] / "dags/kfp_training.py"
    return DagBag(dag_folder=str(file), bundle_path=file.parent).dags["kfp_training"]


class TestTheExample:
    @pytest.mark.parametrize("kind", ["plugin", "artifacts"])
    def test_trains_judges_and_promotes(self, run_dag, serve, mlflow_api, kind, example):
        server = serve(**{kind: True})
        server.makes("train", files={"model": WEIGHTS}, metrics={"metrics": {"auc": 0.81}})
        outcome = run_dag(example, logical_date=pendulum.datetime(2026, 1, 2, 3))
        assert outcome.state == "success"
        assert outcome.xcom("gate")["decision"] == "promote"
        assert outcome.xcom("gate")["metrics"]["auc"] == 0.81
        promoted = outcome.xcom("promote")
        version = mlflow_api.get("model-versions/get", name="churn", version=promoted["version"])["model_version"]
        assert version["run_id"] == outcome.xcom("train")["mlflow_run_id"]
        (run,) = server.runs
        assert run.state == "SUCCEEDED"

    def test_does_the_same_without_a_cluster(self, run_dag, mlflow_api, example, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", '{"conn_type": "kfp", "host": "local://"}')
        outcome = run_dag(example, logical_date=pendulum.datetime(2026, 1, 4, 3))
        assert outcome.state == "success"
        assert outcome.xcom("gate")["metrics"]["auc"] > 0.7
        promoted = outcome.xcom("promote")
        version = mlflow_api.get("model-versions/get", name="churn", version=promoted["version"])["model_version"]
        assert version["run_id"] == outcome.xcom("train")["mlflow_run_id"]

    @pytest.mark.full
    def test_promotes_nothing_below_its_rule(self, run_dag, serve, example):
        server = serve(artifacts=True)
        server.makes("train", files={"model": WEIGHTS}, metrics={"metrics": {"auc": 0.6}})
        outcome = run_dag(example, logical_date=pendulum.datetime(2026, 1, 3, 3))
        assert (outcome.task("gate"), outcome.task("promote")) == ("success", "skipped")
