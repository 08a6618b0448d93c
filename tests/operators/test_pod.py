from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.xcom_arg import XComArg
from kubernetes.client import models as k8s

from airflow_ml_provider import Dataset, Input, Model, Output, ml_pod_task, ml_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.resources import GpuRequest, PodPlacement
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.operators.pod_build import build_pod
from airflow_ml_provider.operators.references import StepReference

START = pendulum.datetime(2024, 1, 1)


@ml_task
def make(rows: int, table: Output[Dataset]) -> None: ...


@ml_task
def evaluate(model: Input[Model]) -> None: ...


def whole_pod(**spec: Any) -> k8s.V1Pod:
    return k8s.V1Pod(spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", image="mine:1", command=["run"])], **spec))


def operator(task_id: str = "train", **arguments: Any) -> MLPodOperator:
    given: dict[str, Any] = {"image": "registry.example.com/trainer:1", "cmds": ["python", "train.py"], **arguments}
    return MLPodOperator(task_id=task_id, **given)


@pytest.fixture(autouse=True)
def _dag() -> Any:
    with DAG("example", schedule=None, start_date=START, default_args={"namespace": "ml"}) as dag:
        yield dag


class TestWired:
    def test_its_outputs_feed_steps_of_any_kind(self) -> None:
        train = operator(inputs={"table": make(1)["table"]}, outputs={"model": Model})
        assert isinstance(train.output["model"], StepReference)
        judged = evaluate(model=train.output["model"]).operator
        again = operator("again", inputs={"model": train.output["model"], "many": [make(1)["table"], "s3://bucket/key"]})
        assert (train.upstream_task_ids, judged.upstream_task_ids) == ({"make"}, {"train"})
        assert again.upstream_task_ids == {"train", "make__1"}
        assert again.signature.inputs["many"].many

    def test_all_instances_of_a_mapped_step_are_an_input_of_many(self) -> None:
        tables = make.expand(rows=[1, 2])["table"]
        assert operator(inputs={"tables": tables}).signature.inputs["tables"].many

    @pytest.mark.parametrize(
        ("name", "message"),
        [("table", "step 'evaluate', parameter 'model' wants Input"), ("modle", "has no output 'modle'. Did you mean 'model'")],
    )
    def test_wrong_wiring_is_refused(self, name: str, message: str) -> None:
        train = operator(outputs={"model": Model, "table": Dataset})
        with pytest.raises(ConfigError, match=message):
            evaluate(model=train.output[name])

    def test_what_airflow_says_of_all_tasks_holds_for_it(self) -> None:
        train = operator(retries=2, execution_timeout=timedelta(hours=1))
        assert (train.namespace, train.retries, train.do_xcom_push) == ("ml", 2, True)
        assert operator("quiet", do_xcom_push=False).do_xcom_push is False

    @pytest.mark.airflow("3.3")
    def test_a_retry_policy_of_the_users_is_told_from_ours(self) -> None:
        from airflow_ml_provider.operators.pod_retry_policy import PodRetryPolicy

        assert isinstance(operator().retry_policy, PodRetryPolicy)

        class Mine(PodRetryPolicy): ...

        assert [operator(f"t{number}", **each).own_policy for number, each in enumerate(({}, {"retry_policy": None}))] == [
            False
        ] * 2
        assert operator("ours", retry_policy=PodRetryPolicy()).own_policy is False
        assert operator("mine", retry_policy=Mine()).own_policy is True

    @pytest.mark.parametrize("codes", [(0,), (256,), ("3",), 75])
    def test_an_exit_code_is_a_number_of_a_byte(self, codes: Any) -> None:
        with pytest.raises(ConfigError, match=r"retry_exit_codes.*Give numbers from 1 to 255"):
            PodOptions(retry_exit_codes=codes)

    def test_a_pod_that_never_restarts_is_taken(self) -> None:
        assert operator(full_pod_spec=whole_pod(restart_policy="Never")).full_pod_spec is not None


class TestRefusedWhenTheDagIsParsed:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"gpu": -1}, "GpuRequest: count=-1"),
            ({"gpu": 1, "cpu": 0}, "cpu=0"),
            ({"gpu": GpuRequest(count=1, shared_memory_gib=8), "memory_gib": 4}, "shared_memory_gib=8 is more than memory_gib=4"),
            ({"image": "Trainer:1"}, "upper case"),
            ({"image": None}, "image=None names no image"),
            ({"cmds": None, "outputs": {"model": Model}}, "cmds is missing"),
            ({"inputs": {"table": "table.csv"}}, "'table.csv' is not the place of one"),
            ({"inputs": {"table": "s3://me:word@bucket/key"}}, "the URI holds a password"),
            ({"inputs": {"1x": "s3://a/b"}}, "inputs has the name '1x'"),
            ({"inputs": ["s3://a/b"]}, "is no dictionary by name"),
            ({"outputs": {"model": "Model"}}, r"outputs\['model'\]='Model' is no artifact type"),
            ({"outputs": {"model": dict}}, "is no artifact type"),
            ({"outputs": {"plan": Dataset}}, "an output cannot be named 'plan'"),
            ({"inputs": {"model": "models:/a@b"}, "outputs": {"Model": Model}}, "'Model' is the name of two"),
            ({"parameters": {"when": START}}, "parameter 'when': DateTime is not plain JSON"),
            ({"parameters": {"text": "x" * 131_072}}, r"its parameters take 1314\d\d bytes, 131074 of them 'text'"),
            ({"env_vars": {"BIG": "x" * 131_072}}, "environment variable 'BIG' takes 131076 bytes"),
            ({"env_vars": [k8s.V1EnvVar(name="AIRFLOW_ML_X", value="1")]}, "names that begin with AIRFLOW_ML_"),
            ({"arguments": ["x" * 131_072]}, r"arguments\[0\] takes 131072 bytes"),
            ({"outputs": {"model": Model}, "options": PodOptions(step="none")}, r"it declares \['model'\]"),
            ({"memory_on_oom": 1.5}, "there is nothing to multiply"),
            ({"memory_on_oom": 1, "memory_gib": 1}, "memory_on_oom=1 is no factor"),
            ({"memory_gib": 4, "memory_on_oom": 2, "options": PodOptions(memory_limit_gib=2)}, "the limit the largest"),
            (
                {"memory_gib": 2, "container_resources": k8s.V1ResourceRequirements(limits={"memory": "3Gi"})},
                "memory_gib says '2Gi'",
            ),
            (
                {
                    "memory_gib": 2,
                    "memory_on_oom": 2,
                    "container_resources": k8s.V1ResourceRequirements(limits={"memory": "2Gi"}),
                },
                "memory_gib says '4Gi'",
            ),
            ({"startup_timeout": timedelta(0)}, "startup_timeout=.* is no positive timedelta"),
            ({"capacity_timeout": timedelta(1), "schedule_timeout_seconds": 5}, "say the same"),
            ({"do_xcom_push": True}, "asks for an XCom sidecar"),
            ({"name": "mine"}, "the pod's name is derived"),
            ({"durable": False}, "always found again"),
            ({"log_pod_spec_on_failure": True}, "secrets among them"),
            ({"container_logs": True}, "container_logs=True cannot be given: the log of the task"),
            ({"container_logs": ["base", "proxy"]}, "is the main container's alone"),
            ({"init_container_logs": ["prepare"]}, "its last lines come into the task's log when it fails"),
            ({"log_events_on_startup": False}, "what a pod waits for is in the log"),
            ({"startup_check_interval_seconds": 30}, "poll_interval"),
            ({"base_container_status_polling_interval": 9}, "poll_interval"),
            ({"base_container_name": "main"}, "the main container is named 'base'"),
            ({"options": {"spot": True}}, r"options={'spot': True} is a dict\. Give options=PodOptions"),
            ({"options": PodPlacement(spot=True)}, r"is a PodPlacement\. Give options=PodOptions"),
            ({"full_pod_spec": whole_pod(restart_policy="OnFailure")}, "restartPolicy='OnFailure' of the pod"),
            ({"pod_template_dict": {"spec": {"restartPolicy": "Always"}}}, "restartPolicy='Always' of the pod"),
            (
                {"pod_template_dict": {"spec": {"containers": [{"name": "base", "restartPolicy": "Always"}]}}},
                "restartPolicy='Always' of container 'base'",
            ),
            ({"options": {}}, "Give options=PodOptions"),
            ({"env_vars": {"EPOCHS": 10}}, "environment variable EPOCHS is int 10. The environment holds texts: give '10'"),
            ({"env_vars": [{"name": "EPOCHS", "value": 10}]}, "environment variable EPOCHS is int 10"),
            ({"options": PodOptions(sidecar="Bad Image")}, r"options\.sidecar='Bad Image' is not the name of an image"),
            (
                {"pod_template_dict": {"spec": {"containers": [{"name": "base", "image": "Bad"}]}}},
                "image of container 'base'='Bad'",
            ),
            ({"cmds": "python3 -c 1"}, "cmds='python3 -c 1' is one text"),
            ({"poll_interval": 0}, "poll_interval=0 is no time between two looks"),
            ({"poll_interval": -1}, "poll_interval=-1 is no time"),
        ],
    )
    def test_what_could_never_work(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            operator(**arguments)

    def test_a_template_is_left_to_the_run(self) -> None:
        made = operator(image="{{ var.value.image }}", inputs={"table": "{{ params.table }}"}, parameters={"day": "{{ ds }}"})
        assert {"image", "inputs", "parameters"} <= set(made.template_fields)

    @pytest.mark.parametrize("argument", ["image", "env_vars", "node_selector", "labels", "container_resources"])
    def test_what_another_task_returns_is_left_to_the_run(self, argument: str) -> None:
        other = BaseOperator(task_id="other")
        made = operator(**{argument: XComArg(other)})
        if argument in made.template_fields:
            assert made.upstream_task_ids == {"other"}

    def test_what_holds_a_reference_is_left_to_the_run(self) -> None:
        other = XComArg(BaseOperator(task_id="other"))
        resources = k8s.V1ResourceRequirements(limits={"memory": other})
        operator("a", labels={"team": other}, node_selector={"zone": other}, container_resources=resources, memory_gib=2)
        operator("b", env_vars={"A": other, "B": "1"}, cmds=["run", other])
        operator("c", env_vars=[k8s.V1EnvVar(name="A", value=other), {"name": "B", "value": "{{ ds }}"}])
        operator("d", env_vars="{{ params.env }}", node_selector="{{ params.zone }}")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"gpu": -1}, "GpuRequest: count=-1"),
            ({"image": "BAD IMAGE"}, "it has a blank in it"),
            ({"options": {}}, "Give options=PodOptions"),
            ({"name": "mine"}, "the pod's name is derived"),
            ({"outputs": {"model": dict}}, "is no artifact type"),
        ],
    )
    def test_what_a_mapped_operator_says_of_all_instances(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            MLPodOperator.partial(task_id="train", **{"image": "a:1", "cmds": ["a"], **arguments})
        if "outputs" not in arguments:
            with pytest.raises(ConfigError, match=message):
                ml_pod_task(**{"image": "a:1", **arguments})

    def test_an_output_that_a_mapped_operator_does_not_have(self) -> None:
        mapped = MLPodOperator.partial(task_id="many", image="a:1", cmds=["a"], outputs={"model": Model}).expand(
            parameters=[{"a": 1}, {"a": 2}]
        )
        assert operator("one", inputs={"models": mapped.output["model"]}).signature.inputs["models"].many
        with pytest.raises(ConfigError, match="step 'many' has no output 'modle'"):
            operator("other", inputs={"models": mapped.output["modle"]})

    def test_an_airflow_reference_is_looked_at_when_it_runs(self) -> None:
        other = BaseOperator(task_id="other")
        made = operator(inputs={"table": XComArg(other)}, parameters={"depth": XComArg(other), "list": [XComArg(other)]})
        assert made.upstream_task_ids == {"other"}


def context(task: Any) -> Any:
    ti = SimpleNamespace(dag_id="example", task_id=task.task_id, run_id="r", map_index=-1, try_number=2, task=task)
    return {"ti": ti, "run_id": "r", "dag": task.dag}


class TestThePod:
    @pytest.fixture(autouse=True)
    def _connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        named = [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}, "context": {"cluster": "x", "user": "x"}, "user": {}}]
        config = {"current-context": "x", "clusters": named, "contexts": named, "users": named}
        extra = {"kube_config": json.dumps(config)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))

    def build(self, **arguments: Any) -> dict[str, Any]:
        made = operator(**arguments)
        before = dict(vars(made))
        pod = build_pod(made, made.resources_asked, context(made))
        assert vars(made).keys() - before.keys() <= {"hook"}
        assert all(vars(made)[name] is value for name, value in before.items())
        return pod

    def test_kubernetes_pod_operator_makes_it_of_what_the_step_asks_for(self) -> None:
        pod = self.build(
            gpu=GpuRequest(count=2, product="NVIDIA-H100-80GB-HBM3", shared_memory_gib=16),
            cpu=8,
            memory_gib=64,
            options=PodOptions(run_as_non_root=True, priority_class="train"),
            node_selector={"zone": "a"},
            env_vars={"A": "1"},
            volumes=[k8s.V1Volume(name="mine", empty_dir=k8s.V1EmptyDirVolumeSource())],
        )
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert container["resources"] == {
            "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
            "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
        }
        assert spec["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
        assert [each["name"] for each in spec["volumes"]] == ["mine", "airflow-ml-shm"]
        assert container["volumeMounts"] == [{"name": "airflow-ml-shm", "mountPath": "/dev/shm"}]
        assert container["env"] == [{"name": "A", "value": "1"}]
        assert (container["name"], container["command"]) == ("base", ["python", "train.py"])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert (spec["priorityClassName"], spec["automountServiceAccountToken"]) == ("train", False)
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
        assert pod["metadata"]["namespace"] == "ml"
        assert {"dag_id": "example", "task_id": "train", "try_number": "2"}.items() <= pod["metadata"]["labels"].items()

    def test_a_whole_pod_of_the_users_is_kept(self) -> None:
        given = k8s.V1Pod(
            metadata=k8s.V1ObjectMeta(labels={"team": "x"}),
            spec=k8s.V1PodSpec(
                containers=[k8s.V1Container(name="base", image="mine:1", command=["run"])], service_account_name="sa"
            ),
        )
        pod = self.build(image=None, cmds=None, full_pod_spec=given, gpu=1)
        (container,) = pod["spec"]["containers"]
        assert (container["image"], container["command"]) == ("mine:1", ["run"])
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        assert pod["spec"]["serviceAccountName"] == "sa"
        assert pod["metadata"]["labels"]["team"] == "x"


def test_without_a_cluster_it_says_so_and_is_not_retried(run_dag: Any, unique: str, capsys: Any) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        operator(config_file="/nowhere", retries=3)
    outcome = run_dag(dag)
    assert outcome.state == "failed"
    said = capsys.readouterr().out
    assert said.count("Task failed with exception") == 1
    assert "no Kubernetes cluster is reached by connection 'kubernetes_default'" in said
