from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepContext, StepFunction, StepMlflow
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import OpenRun, StepIdentity
from airflow_ml_provider.operators.declared import RESERVED
from airflow_ml_provider.operators.pod_body import COLLECT, FETCH, with_secret, with_step
from airflow_ml_provider.operators.pod_checks import check_parameters
from airflow_ml_provider.operators.pod_request import (
    StepRequest,
    build_context,
    container_mlflow,
    dump_context,
    secret_data,
)
from airflow_ml_provider.step import BOOT, packed
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.pod_places import ContainerPlaces
from airflow_ml_provider.tracking.pod_record import MANIFEST, PLAN, PlannedOutput, StepPlan

RUN, OTHER, MODEL, NEW = "a" * 32, "b" * 32, f"m-{'c' * 32}", f"m-{'d' * 32}"
PROXY = "mlflow-artifacts:"
OPEN = OpenRun(run_id=RUN, parent_run_id="p", experiment_id="1", artifact_uri=f"{PROXY}/1/{RUN}/artifacts")
IDENTITY = StepIdentity(dag_id="nightly", run_id="r", task_id="train")
DIGEST = hashlib.sha256(b"x").hexdigest()
MLFLOW = StepMlflow(url="http://mlflow:5000", run_id=RUN, experiment_id="1", credentials="/login")


class Api:
    """Two runs and two models, as an MLflow server answers them."""

    def __init__(self, root: str = PROXY) -> None:
        self.root = root

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        if path == "runs/get":
            return {"run": {"info": {"artifact_uri": f"{self.root}/1/{params['run_id']}/artifacts"}}}
        model_id = path.removeprefix("logged-models/")
        if model_id not in {MODEL, NEW}:
            raise RemoteNotFoundError(path)
        info = {"model_id": model_id, "artifact_uri": f"{self.root}/1/models/{model_id}/artifacts", "source_run_id": OTHER}
        tags = {"airflow.sha256": DIGEST, "airflow.metadata": f"runs:/{OTHER}/try-1/model.metadata.json"}
        info["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
        return {"model": {"info": info}}


def store(root: str = PROXY) -> ArtifactStore:
    return ArtifactStore(Api(root))  # type: ignore[arg-type]


def request(**fields: Any) -> StepRequest:
    plan = StepPlan(
        try_number=2,
        outputs={
            "model": PlannedOutput(type="Model", root=f"models:/{NEW}", model_id=NEW),
            "report": PlannedOutput(type="Dataset", root=f"runs:/{RUN}/try-2"),
        },
    )
    return StepRequest(identity=IDENTITY, **{"plan": plan, **fields})


TABLE = ArtifactRef(
    type="Dataset", name="table", uri=f"runs:/{OTHER}/try-1/table.csv", sha256=DIGEST, size=1,
    metadata=f"runs:/{OTHER}/try-1/table.metadata.json",
)  # fmt: skip
BASE = ArtifactRef(type="Model", name="models[0]", uri=f"models:/{MODEL}", sha256=DIGEST)
RAW = ArtifactRef(type="Artifact", name="models[1]", uri="https://example.com/data/raw%20file.csv?version=3")


class Signing(MemoryFileSystem):
    """A store that signs URLs."""

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        return f"https://signed.example.com/{path.strip('/')}?for={expiration}"


class TestTheContext:
    def test_it_says_where_everything_is_as_the_container_reaches_it(self) -> None:
        asked = request(
            refs={"table": [TABLE], "models": [BASE, RAW], "champion": []},
            many=["models"],
            parameters={"depth": 3},
            clears=1,
            grace_s=120,
        )
        context = build_context(store(), OPEN, asked, MLFLOW, PodOptions())
        assert json.loads(dump_context(context)) == {
            "version": 1,
            "step": "train",
            "try_number": 2,
            "mlflow": {"url": "http://mlflow:5000", "run_id": RUN, "experiment_id": "1", "credentials": "/login"},
            "inputs": {
                "table": [
                    {
                        "type": "Dataset",
                        "uri": f"runs:/{OTHER}/try-1/table.csv",
                        "path": "/airflow-ml/inputs/table/table.csv",
                        "place": {"kind": "proxy", "path": f"1/{OTHER}/artifacts/try-1/table.csv"},
                        "directory": False,
                        "sha256": DIGEST,
                        "size": 1,
                        "metadata": {"kind": "proxy", "path": f"1/{OTHER}/artifacts/try-1/table.metadata.json"},
                    }
                ],
                "models": [
                    {
                        "type": "Model",
                        "uri": f"models:/{MODEL}",
                        "path": f"/airflow-ml/inputs/models/0/{MODEL}",
                        "place": {"kind": "proxy", "path": f"1/models/{MODEL}/artifacts"},
                        "directory": True,
                        "sha256": DIGEST,
                        "metadata": {"kind": "proxy", "path": f"1/{OTHER}/artifacts/try-1/model.metadata.json"},
                    },
                    {
                        "type": "Artifact",
                        "uri": RAW.uri,
                        "path": "/airflow-ml/inputs/models/1/raw file.csv",
                        "place": {"kind": "url", "url": RAW.uri},
                    },
                ],
                "champion": [],
            },
            "many": ["models"],
            "outputs": {
                "model": {
                    "type": "Model",
                    "path": "/airflow-ml/outputs/model",
                    "place": {"kind": "proxy", "path": f"1/models/{NEW}/artifacts"},
                    "flat": True,
                },
                "report": {
                    "type": "Dataset",
                    "path": "/airflow-ml/outputs/report",
                    "place": {"kind": "proxy", "path": f"1/{RUN}/artifacts/try-2"},
                },
            },
            "parameters": {"depth": 3},
            "manifest": {"kind": "proxy", "path": f"1/{RUN}/artifacts/try-2/manifest.json"},
            "metadata": {"kind": "proxy", "path": f"1/{RUN}/artifacts/try-2"},
            "checkpoints": {"kind": "proxy", "path": f"1/{RUN}/artifacts/checkpoints/1"},
            "grace_s": 120.0,
        }

    def test_what_is_left_out_has_its_default_on_the_other_side(self) -> None:
        context = build_context(store(), OPEN, request(refs={"table": [TABLE]}), MLFLOW, PodOptions(checkpoints=False))
        assert StepContext.model_validate_json(dump_context(context)) == context
        assert context.checkpoints is None

    @pytest.mark.parametrize("value", [object(), {1, 2}, float("nan")])
    def test_a_parameter_that_json_cannot_carry_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"step 'train', parameter 'x'.*not plain JSON"):
            check_parameters("train", {"x": value})


def test_no_output_is_named_as_what_is_kept_of_every_try() -> None:
    assert {f"{each}.json" for each in RESERVED} == {MANIFEST, PLAN}


class TestPlacesThatNoContainerReaches:
    @pytest.mark.parametrize(
        ("root", "has", "message"),
        [
            ("/mlruns", (), "a folder of its own machine.*--serve-artifacts"),
            ("file:///mlruns", ("mlflow", "fsspec"), "a folder of its own machine"),
            ("s3://bucket/mlruns", ("fsspec",), r"only MLflow's own client opens.*image_has=\('mlflow',\)"),
        ],
    )
    def test_mlflows_own_store(self, root: str, has: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ContainerPlaces(store(root), has).of_input(TABLE)

    def test_mlflows_own_store_with_its_client(self) -> None:
        place = ContainerPlaces(store("s3://bucket/mlruns"), ("mlflow",)).of_input(TABLE)
        assert place.uri == f"s3://bucket/mlruns/1/{OTHER}/artifacts/try-1/table.csv"
        assert place.kind == "mlflow"

    @pytest.mark.parametrize("uri", ["/data/table.csv", "file:///data/table.csv"])
    def test_files_of_the_worker(self, uri: str) -> None:
        ref = TABLE.model_copy(update={"uri": uri})
        with pytest.raises(ConfigError, match=r"input 'table' is .*a file of the worker, which no pod reaches"):
            ContainerPlaces(store(), ("fsspec",)).of_input(ref)

    def test_object_stores_whose_package_the_image_has(self) -> None:
        ref = TABLE.model_copy(update={"uri": "s3://aws_default@bucket/key.csv"})
        place = ContainerPlaces(store(), ("fsspec",)).of_input(ref)
        assert (place.kind, place.uri) == ("fsspec", "s3://bucket/key.csv")

    def test_directories_in_object_stores(self) -> None:
        ref = TABLE.model_copy(update={"uri": "s3://bucket/folder/"})
        with pytest.raises(ConfigError, match="a directory, and only single files can be had by a presigned URL"):
            ContainerPlaces(store()).of_input(ref)

    def test_object_stores_that_sign_nothing(self) -> None:
        ref = TABLE.model_copy(update={"uri": "memory://bucket/key"})
        with pytest.raises(ConfigError, match=r"the worker cannot sign a URL of it.*image_has=\('fsspec',\)"):
            ContainerPlaces(store()).of_input(ref)

    def test_object_stores_that_sign(self) -> None:
        attach("memory", conn_id="signing", fs=Signing())
        place = ContainerPlaces(store()).of_input(TABLE.model_copy(update={"uri": "memory://signing@bucket/key.csv"}))
        assert (place.kind, place.url) == ("url", "https://signed.example.com/bucket/key.csv?for=604800")

    def test_object_stores_that_could_sign_and_do_not(self) -> None:
        attach("memory", conn_id="mute", fs=MemoryFileSystem())
        with pytest.raises(ConfigError, match=r"its store signs no URL \(NotImplementedError.*image_has=\('fsspec',\)"):
            ContainerPlaces(store()).of_input(TABLE.model_copy(update={"uri": "memory://mute@bucket/key.csv"}))

    def test_outputs_that_go_to_an_object_store(self) -> None:
        with pytest.raises(ConfigError, match="for which the image needs fsspec"):
            ContainerPlaces(store()).of_output("s3://bucket/ml/try-1")
        assert ContainerPlaces(store(), ("fsspec",)).of_output("s3://c@bucket/ml/try-1").uri == "s3://bucket/ml/try-1"


class TestTheWayToMlflow:
    SERVER = MlflowServer("mlflow_default", "http://mlflow.example.com")

    @pytest.mark.parametrize(
        ("pod_url", "options", "url"),
        [
            ("", {}, "http://mlflow.example.com"),
            ("http://mlflow.mlops:5000", {}, "http://mlflow.mlops:5000"),
            ("http://mlflow.mlops:5000", {"mlflow_url": "http://10.0.0.1:5000"}, "http://10.0.0.1:5000"),
        ],
    )
    def test_the_option_counts_before_the_connection(self, pod_url: str, options: dict[str, Any], url: str) -> None:
        assert container_mlflow(replace(self.SERVER, pod_url=pod_url), OPEN, PodOptions(**options)).url == url

    def test_the_pod_asks_in_the_connections_workspace(self) -> None:
        assert container_mlflow(replace(self.SERVER, workspace="team"), OPEN, PodOptions()).workspace == "team"

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "mlflow.localhost"])
    def test_the_workers_own_machine_is_not_the_pods(self, host: str) -> None:
        server = MlflowServer("mlflow_default", f"http://{host}:5000")
        with pytest.raises(ConfigError, match="which in a pod is the pod itself"):
            container_mlflow(server, OPEN, PodOptions())
        assert container_mlflow(server, OPEN, PodOptions(mlflow_url="http://node:5000")).credentials == ""

    @pytest.mark.parametrize("login", [{"username": "me", "password": "secret"}, {"password": "secret"}, {"token_file": "/t"}])
    def test_a_login_that_the_pod_does_not_get_is_refused(self, login: dict[str, str]) -> None:
        server = MlflowServer("mlflow_default", "http://mlflow.example.com", **login)
        with pytest.raises(ConfigError, match="has a login, and nothing says how the pod gets it") as refused:
            container_mlflow(server, OPEN, PodOptions())
        assert "secret" not in str(refused.value).replace("mlflow_secret", "").replace("Secret", "")

    @pytest.mark.parametrize(
        "options", [{"mlflow_secret": "login"}, {"mlflow_token_audience": "mlflow"}, {"copy_credentials": True}]
    )
    def test_a_login_is_mounted(self, options: dict[str, Any]) -> None:
        server = MlflowServer("mlflow_default", "http://mlflow.example.com", "me", "secret")
        assert container_mlflow(server, OPEN, PodOptions(**options)).credentials == "/var/run/airflow-ml/mlflow"

    def test_there_must_be_something_to_copy(self) -> None:
        with pytest.raises(ConfigError, match="has no password to copy"):
            container_mlflow(self.SERVER, OPEN, PodOptions(copy_credentials=True))

    def test_what_is_copied(self) -> None:
        assert secret_data(MlflowServer("c", "u", "me", "word")) == {"username": "me", "password": "word"}
        assert secret_data(MlflowServer("c", "u", "", "token")) == {"token": "token"}


def pod(**container: Any) -> dict[str, Any]:
    base = {"name": "base", "image": "trainer:1", "command": ["python", "train.py"], "args": ["--fast"], **container}
    return {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [base]}}


CONTEXT = build_context(store(), OPEN, request(refs={"table": [TABLE]}), MLFLOW, PodOptions())
TOLD = {"name": "AIRFLOW_ML_CONTEXT", "value": dump_context(CONTEXT)}
HALF = {"name": "AIRFLOW_ML_STEP", "value": packed()}


class TestThePod:
    def test_the_program_gets_the_containers_half_around_it(self) -> None:
        before = pod(env=[{"name": "A", "value": "1"}])
        made = with_step(before, CONTEXT, PodOptions(volume_gib=5), "base")
        assert made == {
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "containers": [
                    {
                        "name": "base",
                        "image": "trainer:1",
                        "command": ["python3", "-c", BOOT],
                        "args": ["run", "--", "python", "train.py", "--fast"],
                        "env": [{"name": "A", "value": "1"}, TOLD, HALF],
                        "volumeMounts": [{"name": "airflow-ml", "mountPath": "/airflow-ml"}],
                    }
                ],
                "volumes": [{"name": "airflow-ml", "emptyDir": {"sizeLimit": "5Gi"}}],
            },
        }
        assert before == pod(env=[{"name": "A", "value": "1"}])

    def test_an_image_that_has_it_is_only_told(self) -> None:
        made = with_step(pod(), CONTEXT, PodOptions(step="image", python="python3.12"), "base")
        (container,) = made["spec"]["containers"]
        assert container["command"] == ["python3.12", "-m", "airflow_ml_step"]
        assert container["env"] == [TOLD]

    def test_a_function_needs_no_program(self) -> None:
        function = StepFunction(name="f", source="def f(): ...\n", roles={})
        context = CONTEXT.model_copy(update={"function": function})
        (container,) = with_step(pod(command=None, args=None), context, PodOptions(), "base")["spec"]["containers"]
        assert container["args"] == ["run"]

    def test_a_program_that_is_not_known_cannot_be_run(self) -> None:
        with pytest.raises(ConfigError, match="cmds is not given"):
            with_step(pod(command=None), CONTEXT, PodOptions(), "base")

    @pytest.mark.parametrize(
        ("options", "source"),
        [
            ({"mlflow_secret": "login"}, {"secret": {"secretName": "login", "defaultMode": 0o444}}),
            (
                {"mlflow_token_audience": "mlflow"},
                {
                    "projected": {
                        "sources": [{"serviceAccountToken": {"audience": "mlflow", "expirationSeconds": 3600, "path": "token"}}]
                    }
                },
            ),
        ],
    )
    def test_the_login_is_files(self, options: dict[str, Any], source: dict[str, Any]) -> None:
        made = with_step(pod(), CONTEXT, PodOptions(**options), "base")
        assert made["spec"]["volumes"][1] == {"name": "airflow-ml-mlflow", **source}
        assert made["spec"]["containers"][0]["volumeMounts"][1] == {
            "name": "airflow-ml-mlflow",
            "mountPath": "/var/run/airflow-ml/mlflow",
            "readOnly": True,
        }

    def test_a_secret_that_is_made_for_the_pod_is_named_last(self) -> None:
        before = with_step(pod(), CONTEXT, PodOptions(copy_credentials=True), "base")
        made = with_secret(before, "train-123")
        assert made["spec"]["volumes"][1]["secret"]["secretName"] == "train-123"
        assert before["spec"]["volumes"][1]["secret"]["secretName"] == ""

    def test_beside_a_program_without_python_stand_two_containers(self) -> None:
        made = with_step(pod(command=None, args=None), CONTEXT, PodOptions(sidecar="python:3", mlflow_secret="login"), "base")
        (main,) = made["spec"]["containers"]
        assert main["env"] == [
            {"name": "AIRFLOW_ML_INPUT_TABLE", "value": "/airflow-ml/inputs/table/table.csv"},
            {"name": "AIRFLOW_ML_OUTPUT_MODEL", "value": "/airflow-ml/outputs/model"},
            {"name": "AIRFLOW_ML_OUTPUT_REPORT", "value": "/airflow-ml/outputs/report"},
            {"name": "AIRFLOW_ML_FOLDER", "value": "/airflow-ml"},
            {"name": "AIRFLOW_ML_PARAMETERS", "value": json.dumps(CONTEXT.parameters)},
        ]
        assert [each["mountPath"] for each in main["volumeMounts"]] == ["/airflow-ml"]
        assert main.get("command") is None
        fetch, collect = made["spec"]["initContainers"]
        assert (fetch["name"], fetch["args"], fetch.get("restartPolicy")) == (FETCH, ["fetch"], None)
        assert (collect["name"], collect["args"], collect["restartPolicy"]) == (COLLECT, ["collect"], "Always")
        look = "import os,sys;sys.exit(not os.path.exists('/airflow-ml/step/collecting'))"
        assert fetch.get("startupProbe") is None
        assert collect["startupProbe"] == {
            "exec": {"command": ["python3", "-I", "-S", "-c", look]},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 600,
        }
        for each in (fetch, collect):
            assert each["env"] == [TOLD, HALF]
            assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert len(each["volumeMounts"]) == 2

    def test_beside_a_program_they_are_its_user_who_may_read_what_it_wrote(self) -> None:
        made = pod(securityContext={"runAsUser": 1000, "runAsGroup": 0, "readOnlyRootFilesystem": True})
        for each in with_step(made, CONTEXT, PodOptions(sidecar="python:3"), "base")["spec"]["initContainers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsUser": 1000,
                "runAsGroup": 0,
            }

    def test_the_probe_of_a_sidecar_holds_the_program_back_until_it_hears_signals(self, tmp_path: Path) -> None:
        options = PodOptions(sidecar="python:3", folder=str(tmp_path / "volume"), python=sys.executable)
        collect = with_step(pod(), CONTEXT, options, "base")["spec"]["initContainers"][1]
        command = collect["startupProbe"]["exec"]["command"]
        assert subprocess.run(command, check=False).returncode == 1
        (tmp_path / "volume/step").mkdir(parents=True)
        (tmp_path / "volume/step/collecting").touch()
        assert subprocess.run(command, check=False).returncode == 0

    @pytest.mark.parametrize("options", [PodOptions(), PodOptions(sidecar="python:3")])
    def test_kubernetes_replaces_nothing_in_a_parameter(self, options: PodOptions) -> None:
        paid = CONTEXT.model_copy(update={"parameters": {"text": "$(AIRFLOW_ML_FOLDER) $$5 $1"}})
        env = with_step(pod(), paid, options, "base")["spec"]["containers"][0]["env"]
        told = [each["value"] for each in env if each["name"] in {"AIRFLOW_ML_CONTEXT", "AIRFLOW_ML_PARAMETERS"}]
        assert len(told) == 1
        assert "$$(AIRFLOW_ML_FOLDER) $$$$5 $$1" in told[0]

    def test_parameters_that_linux_would_not_take_beside_a_sidecar_are_refused(self) -> None:
        large = CONTEXT.model_copy(update={"parameters": {"x": "y" * 131_055}})
        with pytest.raises(ConfigError, match=r"parameter 'x' takes 131057 bytes.*131071"):
            with_step(pod(), large, PodOptions(sidecar="python:3"), "base")

    @pytest.mark.parametrize(
        "taken",
        [
            {"env": [{"name": "AIRFLOW_ML_CONTEXT", "value": ""}]},
            {"volumeMounts": [{"name": "mine", "mountPath": "/airflow-ml/"}]},
        ],
    )
    def test_what_is_ours_cannot_be_the_users(self, taken: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="already, which this operator gives to every step's pod"):
            with_step(pod(**taken), CONTEXT, PodOptions(), "base")

    def test_a_context_that_linux_would_not_take_names_what_makes_it_large(self) -> None:
        large = CONTEXT.model_copy(update={"parameters": {"x": "y" * 131_072, "z": 1}})
        with pytest.raises(ConfigError, match=r"parameter 'x' takes 131074 bytes.*131071"):
            with_step(pod(), large, PodOptions(), "base")
        large = CONTEXT.model_copy(update={"many": ["name"] * 20_000, "parameters": {"z": 1}})
        with pytest.raises(ConfigError, match=r"AIRFLOW_ML_CONTEXT.*131071"):
            with_step(pod(), large, PodOptions(), "base")
