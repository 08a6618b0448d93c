"""Steps in pods on a real cluster, through dag.test() and a real MLflow server."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pendulum
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.sdk import DAG
from kubernetes.client import models as k8s

from airflow_ml_provider import Cache, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.decorators.ml_pod import ml_pod_task
from airflow_ml_provider.exceptions import SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.tracking.runs import Run, RunTree, status_of, tags_of
from tests.airflow_runs import Outcome
from tests.components import places
from tests.site import until

pytestmark = pytest.mark.cluster

NAMESPACE = os.environ.get("AIRFLOW_ML_TEST_NAMESPACE", "d2-test")
IMAGE = os.environ.get("CLUSTER_IMAGE", "localhost/python:3.11")
EXPOSE = os.environ.get("CLUSTER_EXPOSE", "")
"""Command that lets pods reach a port of this machine and prints the address; without it they are given this machine's URL."""
START = pendulum.datetime(2024, 1, 1)


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from kubernetes import client, config

    config.load_kube_config()
    api = client.CoreV1Api()
    if NAMESPACE not in {each.metadata.name for each in api.list_namespace().items}:
        api.create_namespace({"metadata": {"name": NAMESPACE}})
    until("the account that pods run as", lambda: api.list_namespaced_service_account(NAMESPACE).items, 60)
    yield api
    api.api_client.close()


@pytest.fixture
def cluster(core: Any, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The connections of both, and where pods reach MLflow."""
    url = mlflow_url
    if EXPOSE:
        port = str(urlsplit(mlflow_url).port)
        url = f"http://{subprocess.run([EXPOSE, port], capture_output=True, text=True, check=True).stdout.strip()}"
    connection = {"conn_type": "mlflow", "host": mlflow_url, "extra": {"pod_url": url}}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    extra = {"kube_config_path": os.environ["KUBECONFIG"], "namespace": NAMESPACE}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    return core


@pytest.fixture
def run(cluster: Any, airflow_db: None) -> Callable[..., Outcome]:
    from tests.airflow_runs import run

    return run


def test_the_same_steps_make_the_same_in_a_worker_in_a_pod_and_as_components_of_a_pipeline(
    run: Callable[..., Outcome], unique: str, tmp_path: Path
) -> None:
    decorators = {"worker": ml_task, "pod": ml_pod_task(image=IMAGE, cpu=0.1, memory_gib=0.25)}
    made = {"pipeline": places.made_on_this_machine(places.run_on_this_machine(tmp_path))}
    for place, as_task in decorators.items():
        with DAG(f"{unique}-{place}", schedule=None, start_date=START) as dag:
            places.wire(as_task)
        made[place] = places.made_in_airflow(run(dag))
    assert made["worker"] == made["pod"] == made["pipeline"]


def run_of(api: MlflowApi, dag_id: str, name: str) -> Run:
    tree = RunTree(api)
    runs = tree.search([tree.experiment_id(dag_id)], "tags.`mlflow.parentRunId` != ''")
    return next(each for each in runs if each["info"]["run_name"] == name)


TRAIN = """
import json, os, airflow_ml_step as step
view = step.load()
rows = open(view.inputs["table"].path).read().splitlines()
for epoch in range(3):
    step.log_metric("loss", 1 / (epoch + 1), step=epoch)
print("rows", len(rows), flush=True)
os.makedirs(view.outputs["model"].path)
open(view.outputs["model"].path + "/weights", "w").write("w" * view.parameters["width"])
open(os.environ["AIRFLOW_ML_OUTPUT_REPORT"] + ".txt", "w").write("fine")
"""


@ml_task
def make(rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    Path(table.path).write_text("x\n" * rows)
    table.metadata["rows"] = rows


@ml_task
def evaluate(model: Input[Model], metrics: Input[Metrics], report: Input[Dataset]) -> dict[str, Any]:
    weights = Path(model.path, "weights").read_text()
    return {"weights": len(weights), "loss": metrics.metadata["loss"], "report": Path(report.path).read_text()}


@ml_task
def read_all(said: Input[list[Dataset]]) -> list[str]:
    return sorted(Path(each.path).read_text() for each in said)


def pods_of(core: Any, dag_id: str) -> list[Any]:
    """Pods of a DAG that are not being deleted."""
    selector = f"airflow-ml/managed=true,dag_id={make_safe_label_value(dag_id)}"
    found = core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
    return [each for each in found if not each.metadata.deletion_timestamp]


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_step_in_a_pod_reads_and_writes_as_one_in_a_worker(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any, deferrable: bool
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        train = MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", TRAIN],
            gpu=2,
            cpu=0.1,
            memory_gib=0.25,
            inputs={"table": make(5)["table"]},
            outputs={"model": Model, "metrics": Metrics, "report": Dataset},
            parameters={"width": 7},
            deferrable=deferrable,
        )
        evaluate(model=train.output["model"], metrics=train.output["metrics"], report=train.output["report"])
    outcome = run(dag)
    assert outcome.state == "success"
    assert outcome.xcom("evaluate") == {"weights": 7, "loss": pytest.approx(1 / 3), "report": "fine"}
    nested = run_of(mlflow_api, unique, "train")
    assert status_of(nested) == "FINISHED"
    tags = tags_of(nested)
    assert {key: tags[key] for key in ("airflow.image", "airflow.pod.gpu", "airflow.pod.node", "airflow.pod.end")} == {
        "airflow.image": IMAGE,
        "airflow.pod.gpu": "2 x nvidia.com/gpu",
        "airflow.pod.node": "node1",
        "airflow.pod.end": "succeeded",
    }
    assert {each["key"]: each["value"] for each in nested["data"]["params"]}["width"] == "7"
    assert pods_of(cluster, unique) == []


@ml_pod_task(image=IMAGE, cpu=0.1)
def learn(table: Input[Dataset], rate: float, model: Output[Model], scores: Output[Metrics]) -> None:
    import pathlib

    rows = len(pathlib.Path(table.path).read_text().splitlines())
    scores.log_metric("rows", rows)
    pathlib.Path(model.path).write_text(str(rate))
    model.metadata["rows"] = table.metadata["rows"]


@ml_pod_task(image=IMAGE, cpu=0.1, deferrable=True)
def compare(models: Input[list[Model]], champion: Input[Model] | None) -> list[float]:
    import pathlib

    assert champion is None
    return sorted(float(pathlib.Path(each.path).read_text()) for each in models)


def test_a_typed_function_runs_in_pods_mapped_too(run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        fits = learn.partial(table=make(3)["table"]).expand(rate=[0.5, 0.1])
        compare(models=fits["model"], champion=f"models:/{unique}@champion")
    outcome = run(dag)
    assert outcome.state == "success"
    assert outcome.xcom("compare") == [0.1, 0.5]
    nested = run_of(mlflow_api, unique, "learn[1]")
    assert {each["key"]: each["value"] for each in nested["data"]["metrics"]} == {"rows": 3, "trained_on.rows": 3}


def test_the_outputs_of_a_mapped_operator_are_a_list_for_steps_of_any_kind(run: Callable[..., Outcome], unique: str) -> None:
    script = "import airflow_ml_step as s; v = s.load(); open(v.outputs['said'].path, 'w').write(str(v.parameters['n']))"
    told = "import airflow_ml_step as s; v = s.load(); s.log_metric('n', len(v.inputs['said']))"
    with DAG(unique, schedule=None, start_date=START) as dag:
        mapped = MLPodOperator.partial(
            task_id="many", image=IMAGE, cmds=["python3", "-c", script], outputs={"said": Dataset}
        ).expand(parameters=[{"n": 1}, {"n": 2}])
        read_all(said=mapped.output["said"])
        MLPodOperator(task_id="one", image=IMAGE, cmds=["python3", "-c", told], inputs={"said": mapped.output["said"]})
    outcome = run(dag)
    assert outcome.state == "success"
    assert outcome.xcom("read_all") == ["1", "2"]


def test_a_failed_program_keeps_its_metrics_and_says_why(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    script = "import airflow_ml_step as s; s.log_metric('loss', 0.5); print('almost', flush=True); raise SystemExit(3)"
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(task_id="train", image=IMAGE, cmds=["python3", "-c", script], outputs={"model": Model})
    assert run(dag).state == "failed"
    nested = run_of(mlflow_api, unique, "train")
    assert status_of(nested) == "FAILED"
    assert {each["key"]: each["value"] for each in nested["data"]["metrics"]} == {"loss": 0.5}
    assert "exit code 3" in tags_of(nested)["airflow.error"]
    assert tags_of(nested)["airflow.pod.exit_code"] == "3"
    body = {"experiment_ids": [nested["info"]["experiment_id"]], "filter": f"source_run_id = '{nested['info']['run_id']}'"}
    assert [each["info"]["status"] for each in mlflow_api.post("logged-models/search", body)["models"]] == [
        "LOGGED_MODEL_UPLOAD_FAILED"
    ]
    assert pods_of(cluster, unique) == []


def test_a_step_that_ran_out_of_memory_gets_more(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    script = "import os; block = bytearray(150 << 20); print('held', flush=True)"
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", script],
            parameters={"any": 1},
            memory_gib=0.125,
            memory_on_oom=2,
            retries=1,
            retry_delay=timedelta(0),
        )
    assert run(dag).state == "success"
    nested = run_of(mlflow_api, unique, "train")
    tags = tags_of(nested)
    assert tags["airflow.pod.memory_gib"] == "0.25"
    assert tags["airflow.try_number"] == "2"
    assert tags["airflow.error"].startswith("PodOutOfMemoryError")


def test_a_plain_pod_needs_no_python(run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(task_id="good", image="localhost/base:1", cmds=["sh", "-c", "echo hello"])
        MLPodOperator(task_id="skipped", image="localhost/base:1", cmds=["sh", "-c", "exit 99"], skip_on_exit_code=99)
    outcome = run(dag)
    assert (outcome.task("good"), outcome.task("skipped")) == ("success", "skipped")
    assert pods_of(cluster, unique) == []


def test_an_image_without_python_is_served_by_a_sidecar(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    script = 'wc -l < "$AIRFLOW_ML_INPUT_TABLE" > "$AIRFLOW_ML_OUTPUT_COUNT.txt"'
    with DAG(unique, schedule=None, start_date=START) as dag:
        count = MLPodOperator(
            task_id="count",
            image="localhost/base:1",
            cmds=["sh", "-c", script],
            inputs={"table": make(4)["table"]},
            outputs={"count": Dataset},
            options=PodOptions(sidecar=IMAGE),
        )
        told(count.output["count"])
    outcome = run(dag)
    assert outcome.state == "success"
    assert outcome.xcom("told") == "4 lines"
    assert pods_of(cluster, unique) == []


def test_a_sidecar_reads_what_the_programs_user_alone_may_and_tells_what_it_cannot(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    given: dict[str, Any] = {
        "image": "localhost/base:1",
        "outputs": {"made": Dataset},
        "container_security_context": {"runAsUser": 1000, "runAsGroup": 1000},
        "options": PodOptions(sidecar=IMAGE),
    }
    script = 'umask 077; echo x > "$AIRFLOW_ML_OUTPUT_MADE"'
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(task_id="own", cmds=["sh", "-c", script], **given)
        MLPodOperator(task_id="closed", cmds=["sh", "-c", f'{script}; chmod 0 "$AIRFLOW_ML_OUTPUT_MADE"'], **given)
    outcome = run(dag)
    assert (outcome.task("own"), outcome.task("closed")) == ("success", "failed")
    error = tags_of(run_of(mlflow_api, unique, "closed"))["airflow.error"]
    assert error.startswith("PodFailException: ArtifactError: ")
    assert "output 'made': /airflow-ml/outputs/made cannot be read" in error
    assert pods_of(cluster, unique) == []


def test_a_secret_that_cannot_be_mounted_fails_a_step_long_before_it_should_have_started(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", "1"],
            outputs={"said": Dataset},
            options=PodOptions(mlflow_secret="misspelt"),
            deferrable=True,
        )
    assert run(dag).state == "failed"
    error = tags_of(run_of(mlflow_api, unique, "train"))["airflow.error"]
    assert error.startswith("PodFailException: PodConfigError: ")
    assert 'secret "misspelt" not found' in error
    assert pods_of(cluster, unique) == []


def test_an_init_container_that_fails_has_its_last_lines_in_the_tasks_log(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any
) -> None:
    written: list[tuple[str, str]] = []

    def note(container: str, line: str) -> str:
        written.append((container, line))
        return line

    prepare = k8s.V1Container(name="prepare", image="localhost/base:1", command=["sh", "-c", "echo no disk; exit 5"])
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(
            task_id="train",
            image="localhost/base:1",
            cmds=["true"],
            init_containers=[prepare],
            log_formatter=note,
            deferrable=True,
        )
    assert run(dag).state == "failed"
    error = tags_of(run_of(mlflow_api, unique, "train"))["airflow.error"]
    assert "The last lines of init container prepare are in the task's log." in error
    assert written == [("prepare", "no disk")]
    assert pods_of(cluster, unique) == []


def test_a_login_is_copied_for_the_life_of_the_pod(
    run: Callable[..., Outcome], unique: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_MLFLOW_DEFAULT"]) | {"login": "me", "password": "secret-word"}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    script = "import os; print(sorted(os.listdir('/var/run/airflow-ml/mlflow')), os.environ['MLFLOW_TRACKING_USERNAME'] == 'me')"
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", script],
            outputs={"metrics": Metrics},
            options=PodOptions(copy_credentials=True),
        )
        MLPodOperator(
            task_id="good",
            image=IMAGE,
            cmds=["python3", "-c", f"{script}; import airflow_ml_step as s; s.log_metric('a', 1)"],
            outputs={"metrics": Metrics},
            options=PodOptions(copy_credentials=True),
        )
    outcome = run(dag)
    assert (outcome.task("train"), outcome.task("good")) == ("failed", "success")
    assert pods_of(cluster, unique) == []
    end = time.monotonic() + 60
    while cluster.list_namespaced_secret(NAMESPACE, label_selector="airflow-ml/managed=true").items:
        assert time.monotonic() < end, "a Secret was left behind"
        time.sleep(0.5)


RESUMES = """
import os, signal, sys, time, airflow_ml_step as step
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
found = step.last_checkpoint()
if found is None:
    open("state", "w").write("half way")
    step.save_checkpoint("state", 1)
    step.log_metric("epoch", 1, step=1)
    print("ready to be evicted", flush=True)
    time.sleep(600)
open(os.environ["AIRFLOW_ML_OUTPUT_SAID"], "w").write(open(found).read())
"""


def evict_when_ready(core: Any, dag_id: str) -> None:
    """Evict the pod of a DAG once its step says that it is ready."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for each in pods_of(core, dag_id):
            if each.status.phase == "Running" and "ready to be" in core.read_namespaced_pod_log(each.metadata.name, NAMESPACE):
                body = {"metadata": {"name": each.metadata.name, "namespace": NAMESPACE}}
                core.create_namespaced_pod_eviction(each.metadata.name, NAMESPACE, body)
                return
        time.sleep(0.5)


@pytest.mark.parametrize("deferrable", [False, True])
def test_an_evicted_step_that_answers_with_exit_0_is_no_success_and_goes_on_from_its_checkpoint(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any, deferrable: bool
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        train = MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", RESUMES],
            outputs={"said": Dataset},
            retries=1,
            retry_delay=timedelta(0),
            deferrable=deferrable,
        )
        told(train.output["said"])
    evicting = threading.Thread(target=evict_when_ready, args=(cluster, unique))
    evicting.start()
    outcome = run(dag)
    evicting.join()
    assert outcome.state == "success"
    assert outcome.xcom("told") == "half way lines"
    tags = tags_of(run_of(mlflow_api, unique, "train"))
    assert tags["airflow.error"].startswith("PodEvictedError")
    assert (tags["airflow.try_number"], tags["airflow.pod.end"]) == ("2", "succeeded")
    assert pods_of(cluster, unique) == []


@pytest.mark.parametrize("deferrable", [False, True])
def test_an_execution_timeout_ends_the_pod_too(
    run: Callable[..., Outcome], unique: str, mlflow_api: MlflowApi, cluster: Any, deferrable: bool
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        MLPodOperator(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", "import time; time.sleep(600)"],
            outputs={"said": Dataset},
            execution_timeout=timedelta(seconds=8),
            deferrable=deferrable,
        )
    assert run(dag).state == "failed"
    assert pods_of(cluster, unique) == []
    nested = run_of(mlflow_api, unique, "train")
    assert status_of(nested) == "FAILED"
    assert tags_of(nested)["airflow.error"].startswith("PodFailException: PodDeadlineError: ")


def test_the_example_of_the_field_runs_end_to_end(
    run: Callable[..., Outcome], mlflow_api: MlflowApi, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_TRAINING_SIZE", "small")
    monkeypatch.setenv("GPU_TRAINING_IMAGE", IMAGE)
    file = Path(__file__).parents[2] / "dags/gpu_training.py"
    bag = DagBag(dag_folder=str(file))
    assert bag.import_errors == {}
    outcome = run(bag.dags["gpu_training"])
    assert outcome.state == "success"
    assert outcome.xcom("evaluate")["accuracy"] > 0.9
    assert pods_of(cluster, "gpu_training") == []


@ml_task
def told(text: Input[Dataset]) -> str:
    return f"{Path(text.path).read_text().strip()} lines"


@ml_pod_task(image=IMAGE, cpu=0.1, cache=True, on_finish_action="keep_pod")
def weigh(model: Input[Model], times: int) -> dict:
    import pathlib

    return {"weight": len(pathlib.Path(model.path, "weights").read_text()) * times}


class CrashesOnce(MLPodOperator):
    """Its first worker is gone once the pod has ended: nothing of its own comes after."""

    crashes = 1

    def _finish(self, *given: Any) -> Any:
        if CrashesOnce.crashes:
            CrashesOnce.crashes -= 1
            raise SupersededError("the worker is gone")
        return super()._finish(*given)


@pytest.fixture
def kept_pods(core: Any, unique: str) -> Iterator[Callable[[], list[str]]]:
    """Names of the pods that were ever made for a DAG, whose tasks keep them; none is left after the test."""

    def names() -> list[str]:
        return sorted(each.metadata.name for each in pods_of(core, unique))

    yield names
    for each in names():
        core.delete_namespaced_pod(each, NAMESPACE, grace_period_seconds=0)


@pytest.mark.parametrize("how", ["deferred", "crashed"])
def test_an_unchanged_night_makes_no_pod(
    run: Callable[..., Outcome],
    unique: str,
    mlflow_api: MlflowApi,
    kept_pods: Callable[[], list[str]],
    how: str,
) -> None:
    CrashesOnce.crashes = int(how == "crashed")
    with DAG(unique, schedule=None, start_date=START, params={"width": 7}) as dag:
        train = CrashesOnce(
            task_id="train",
            image=IMAGE,
            cmds=["python3", "-c", TRAIN.replace('view.parameters["width"]', 'int(view.parameters["width"])')],
            cpu=0.1,
            inputs={"table": make(5)["table"]},
            outputs={"model": Model, "metrics": Metrics, "report": Dataset},
            parameters={"width": "{{ params.width }}"},
            cache=Cache(salt=how),
            deferrable=how == "deferred",
            on_finish_action="keep_pod",
            retries=1,
            retry_delay=timedelta(0),
        )
        weigh.partial(model=train.output["model"]).expand(times=[1, 2])
    first = run(dag)
    assert (first.state, first.xcom("weigh", 1)) == ("success", {"weight": 14})
    made = kept_pods()
    assert len(made) == 3
    second = run(dag)
    assert (second.state, kept_pods()) == ("success", made)
    for task_id, index in (("train", -1), ("weigh", 0), ("weigh", 1)):
        assert second.xcom(task_id, index) == first.xcom(task_id, index)
    tree = RunTree(mlflow_api)
    found = tree.search([tree.experiment_id(unique)], "tags.`airflow.task_id` = 'train'")
    said = {tags_of(each)["airflow.run_id"]: tags_of(each) for each in found}
    assert said[first.run_id]["airflow.cache"] == "miss: no earlier result has this key"
    assert said[first.run_id]["airflow.try_number"] == ("2" if how == "crashed" else "1")
    assert said[second.run_id]["airflow.cache"] == "hit"
    assert "airflow.pod" not in said[second.run_id]
    if how == "deferred":
        third = run(dag, run_conf={"width": 8})
        assert (third.xcom("weigh", 0), len(kept_pods())) == ({"weight": 8}, 6)
