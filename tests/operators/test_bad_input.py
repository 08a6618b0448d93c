"""What goes wrong around a step, and what its task, its run and its log then say: one clear error each, nothing lost."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pendulum
import pytest
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import dag, task
from airflow.sdk.log import mask_secret
from airflow.utils.session import create_session
from sqlalchemy import text

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.exceptions import ArtifactError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import Attempt, StepIdentity
from airflow_ml_provider.tracking.places import ObjectStoragePlace, ProxyPlace
from airflow_ml_provider.tracking.runs import Run, RunTree, status_of, tags_of
from tests import mlflow_forms
from tests.servers import MlflowProcess, connection, free_port

ROOT = Path(__file__).resolve().parents[2]
START = pendulum.datetime(2024, 1, 1)
FULL = "/dev/full"
"""Takes no byte: every write to it is a write to a full disk."""


class Night:
    """One run of a DAG, and what became of each of its steps."""

    def __init__(self, outcome: Any, api: MlflowApi, errors: dict[str, BaseException]) -> None:
        self.outcome = outcome
        self.api = api
        self.errors = errors
        tree = RunTree(api)
        with suppress(Exception):  # no step came so far as to make a run
            found = tree.search([tree.experiment_id(outcome.dag_id)], "tags.`airflow.key` != ''")
            self.runs = {str(each["info"]["run_name"]): each for each in found}

    def said(self, step: str) -> str:
        """The text of a failed task's error; the run of the step is closed FAILED and tells the same."""
        assert self.outcome.task(step) == "failed"
        error = self.errors[step]
        assert status_of(self.runs[step]) == "FAILED"
        assert tags_of(self.runs[step])["airflow.error"].partition(": ")[2] == str(error)[: 1000 - 2 - len(kind_of(error))]
        return f"{kind_of(error)}: {error}"

    def metrics(self, step: str) -> dict[str, float]:
        return {each["key"]: each["value"] for each in self.runs[step]["data"].get("metrics", [])}

    def params(self, run: str) -> dict[str, str]:
        return {each["key"]: each["value"] for each in self.runs[run]["data"].get("params", [])}

    @property
    def parent(self) -> Run:
        return self.runs[self.outcome.run_id]


def kind_of(error: BaseException) -> str:
    """The error's own class: Airflow gets an AirflowFailException in place of a ConfigError, so as not to retry."""
    return type(error.__cause__ or error).__name__ if type(error).__name__ == "AirflowFailException" else type(error).__name__


@pytest.fixture
def night(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> Callable[..., Night]:
    """Run the steps that a function calls as one DAG."""

    def run(steps: Callable[[], Any], *, api: MlflowApi = mlflow_api, conf: Any = None, **settings: Any) -> Night:
        errors: dict[str, BaseException] = {}

        def note(context: Any) -> None:
            errors[context["ti"].task_id] = context["exception"]

        made = dag(dag_id=unique, schedule=None, start_date=START, default_args={"on_failure_callback": note}, **settings)(
            steps
        )()
        return Night(run_dag(made, run_conf=conf), api, errors)

    return run


@ml_task
def write(table: Output[Dataset]) -> None:
    Path(table.path).write_text("true")


@ml_task
def read(table: Input[Dataset]) -> str:
    return Path(table.path).read_text()


@ml_task
def read_model(model: Input[Model]) -> str:
    return Path(model.path).read_text()


class TestTheStore:
    def test_what_was_changed_in_it_is_refused(self, night: Any, mlflow_server: MlflowServer) -> None:
        @ml_task
        def make(
            table: Output[Dataset], gone: Output[Dataset], folder: Output[Artifact], model: Output[Model], meta: Output[Dataset]
        ) -> None:
            for each in (table, gone, model, meta):
                Path(each.path).write_text("true")
            for name in "ab":
                (Path(folder.path) / name).parent.mkdir(exist_ok=True)
                (Path(folder.path) / name).write_text(name)
            meta.metadata["rows"] = 3

        @task
        def alter(made: dict[str, Any]) -> None:
            with MlflowApi(mlflow_server) as api:
                of_run = api.get("runs/get", run_id=made["run_id"])["run"]["info"]["artifact_uri"].partition(":/")[2]
                model_id = made["outputs"]["model"]["uri"].removeprefix("models:/").split("/")[0]
                of_model = api.get(f"logged-models/{model_id}")["model"]["info"]["artifact_uri"].partition(":/")[2]
                for path in (f"{of_run}/try-1/table", f"{of_run}/try-1/folder/c", f"{of_model}/model"):
                    api.upload(path, [b"evil"], 4)
                api.upload(f"{of_run}/try-1/meta.metadata.json", [b"{not json"], 9)
                api.delete_files(f"{of_run}/try-1/gone")

        @ml_task
        def read_folder(folder: Input[Artifact]) -> None:
            _ = folder.path

        @ml_task
        def read_metadata(table: Input[Dataset]) -> None:
            _ = table.metadata

        def steps() -> None:
            made = make()
            altered = alter(made)  # type: ignore[arg-type]
            gone = read.override(task_id="read_gone")
            altered >> [
                *(read(made["table"]), read_model(made["model"]), gone(made["gone"])),
                *(read_folder(made["folder"]), read_metadata(made["meta"])),
            ]

        ran = night(steps)
        for step, what in {"read": "Dataset 'table' at runs:/", "read_model": "Model 'model' at models:/m-"}.items():
            said = ran.said(step)
            assert said.startswith(f"ArtifactError: {what}")
            assert "was changed in the store after it was recorded: it has sha256 " in said
            assert "(4 bytes), on record is " in said
            assert "run the step that made it again" in said
        assert "was changed in the store" in ran.said("read_folder")
        assert "ArtifactError: Dataset 'table' is not at runs:/" in ran.said("read_gone")
        assert "ArtifactError: the metadata of 'table' at runs:/" in ran.said("read_metadata")

    def test_what_was_never_there_is_told_with_its_remedy(self, night: Any, unique: str, mlflow_api: MlflowApi) -> None:
        mlflow_api.post("registered-models/create", {"name": unique})
        experiment = mlflow_api.post("experiments/create", {"name": f"{unique}-other"})["experiment_id"]
        info = mlflow_api.post("runs/create", {"experiment_id": experiment})["run"]["info"]
        mlflow_api.upload(f"{info['artifact_uri'].partition(':/')[2]}/kept.csv", [b"kept"], 4)
        mlflow_api.post("runs/delete", {"run_id": info["run_id"]})
        tables = {
            "no_such_run": f"runs:/{'0' * 32}/table.csv",
            "no_such_file": f"runs:/{info['run_id']}/other.csv",
            "no_path": f"runs:/{info['run_id']}",
            "no_local_file": "/nowhere/table.csv",
            "no_provider": "s3://bucket/table.csv",
            "no_filesystem": "https://example.invalid/table.csv",
            "no_scheme": "foo://bucket/table.csv",
            "kept": f"runs:/{info['run_id']}/kept.csv",
        }
        models = {
            "no_version": f"models:/{unique}/99",
            "no_alias": f"models:/{unique}@champion",
            "neither": f"models:/{unique}",
            "no_model": "models:/nobody/1",
            "no_logged_model": f"models:/m-{'0' * 32}",
        }

        def steps() -> None:
            for name, uri in tables.items():
                read.override(task_id=name)(table=uri)
            for name, uri in models.items():
                read_model.override(task_id=name)(model=uri)

        ran = night(steps)
        words = {
            "no_such_run": ("ArtifactError", "is not at runs:/000", "Run the step that made it again"),
            "no_such_file": ("ArtifactError", "is not at runs:/", "Run the step that made it again"),
            "no_path": ("ConfigError", "is not a place: write models:/<name>@<alias>"),
            "no_local_file": ("ArtifactError", "is not at /nowhere/table.csv"),
            "no_provider": ("ConfigError", "'s3://bucket/table.csv' cannot be opened", "apache-airflow-providers-amazon[s3fs]"),
            "no_filesystem": ("ConfigError", "cannot be opened", "use a URI that MLflow keeps"),
            "no_scheme": ("ConfigError", "cannot be opened", "Install the Airflow provider"),
            "no_version": ("ConfigError", f"there is no models:/{unique}/99", "version=99) not found", "Promote a model first"),
            "no_alias": ("ConfigError", f"there is no models:/{unique}@champion", "declare Input[Model] | None"),
            "neither": ("ConfigError", "is not a place"),
            "no_model": ("ConfigError", "there is no models:/nobody/1"),
            "no_logged_model": ("ConfigError", "there is no models:/m-000"),
        }
        assert words.keys() == (tables | models).keys() - {"kept"}
        for step, expected in words.items():
            said = ran.said(step)
            assert all(each in said for each in expected), said
        assert ran.outcome.xcom("kept") == "kept", "a deleted run keeps its artifacts until mlflow gc"


class TestAFullDisk:
    def test_where_inputs_come_to_names_tmpdir(self, mlflow_api: MlflowApi, unique: str, tmp_path: Path) -> None:
        (tmp_path / "here").symlink_to(FULL)
        mlflow_api.upload(f"{unique}/file", [b"x"], 1)
        (tmp_path / "source").write_text("x")
        for place, path in ((ProxyPlace(mlflow_api, unique), "file"), (ObjectStoragePlace(str(tmp_path / "source")), "")):
            with pytest.raises(ArtifactError, match=rf"no space left while writing {tmp_path}/here. .*point TMPDIR \(now /"):
                place.read(path, tmp_path / "here")

    def test_fails_the_step_that_reads_or_writes(self, night: Any, tmp_path: Path) -> None:
        @ml_task
        def read_here(table: Input[Dataset], scratch: Output[Dataset]) -> None:
            place = Path(scratch.path).parents[2] / "inputs" / "1-table" / "table"
            place.parent.mkdir(parents=True)
            place.symlink_to(FULL)
            _ = table.path

        @ml_task(artifact_root=f"file://{tmp_path}/store")
        def write_there(table: Output[Dataset], ti: Any = None) -> None:
            Path(table.path).write_text("x")
            identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)
            place = tmp_path / "store" / identity.path / run_of(ti)[:12] / "try-1" / "table"
            place.parent.mkdir(parents=True)
            place.symlink_to(FULL)

        def steps() -> None:
            read_here(write()["table"])
            write_there()

        ran = night(steps)
        assert re.match(r"ArtifactError: no space left while writing .*/inputs/1-table/table\. .*TMPDIR", ran.said("read_here"))
        said = ran.said("write_there")
        assert said.startswith(f"ArtifactError: no space left while writing file://{tmp_path}/store/")
        assert "TMPDIR" not in said, "it is the store that is full"


def run_of(ti: Any) -> str:
    """Id of the running step's MLflow run."""
    return str(ti.task.mlflow_run_url.rpartition("/")[2])


class Line:
    """The only way to the shared MLflow server; cut, and the server is away."""

    def __init__(self, mlflow: MlflowServer) -> None:
        self.mlflow = mlflow
        self.target = (urlsplit(mlflow.url).hostname, urlsplit(mlflow.url).port)
        self.port = free_port()
        self.open = True
        self.server = socket.create_server(("127.0.0.1", self.port))
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def connection(self) -> str:
        return connection(replace(self.mlflow, url=f"http://127.0.0.1:{self.port}"))

    def cut(self, back_after_s: float | None = None) -> None:
        self.open = False
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if back_after_s is not None:
            threading.Timer(back_after_s, self.mend).start()

    def mend(self) -> None:
        self.open = True

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.cut()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self.server.accept()
                if not self.open:
                    here.close()
                    continue
                there = socket.create_connection(self.target)
                self.ends += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with closing(sink), suppress(OSError):
            while piece := source.recv(1 << 16):
                sink.sendall(piece)


@pytest.fixture
def line(mlflow_server: MlflowServer, mlflow_connection: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    made = Line(mlflow_server)
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", made.connection)
    monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
    yield made
    made.close()


def spools(tmp_path: Path) -> dict[str, str]:
    """Places that take no record."""
    (tmp_path / "file").write_text("a file, not a folder")
    return {"no folder": str(tmp_path / "file"), "no provider": "s3://bucket/spool", "full": str(tmp_path / "full")}


class TestASpoolThatCannotBeWritten:
    @pytest.mark.parametrize("kind", [pytest.param("no folder", marks=pytest.mark.full), "no provider", "full"])
    def test_does_not_end_the_waiting_and_is_named_when_it_was_in_vain(
        self, kind: str, night: Any, line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        place = spools(tmp_path)[kind]
        monkeypatch.setenv("AIRFLOW__ML__SPOOL", place)
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "6")

        def fill(ti: Any) -> None:
            if kind == "full":
                identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)
                folder = Path(f"{place}/{identity.path}-try-1-{run_of(ti)[:12]}")
                folder.mkdir(parents=True)
                (folder / "record.json").symlink_to(FULL)

        @ml_task
        def waits(table: Output[Dataset], metrics: Output[Metrics], ti: Any = None) -> None:
            fill(ti)
            Path(table.path).write_text("x")
            line.cut(back_after_s=1)
            metrics.log_metric("auc", 0.7)

        @ml_task
        def waits_in_vain(metrics: Output[Metrics], ti: Any = None) -> None:
            fill(ti)
            os.environ["AIRFLOW__ML__PATIENCE_S"] = "1"
            line.cut()
            metrics.log_metric("auc", 0.7)

        @ml_task
        def fails(ti: Any = None) -> None:
            fill(ti)
            line.cut()
            raise KeyError("its own error")

        @task(trigger_rule="all_done")
        def mend() -> None:
            line.mend()

        @task
        def lose_patience() -> None:
            os.environ["AIRFLOW__ML__PATIENCE_S"] = "1"

        def steps() -> None:
            waits() >> lose_patience() >> waits_in_vain() >> mend() >> fails()

        ran = night(steps)
        assert ran.outcome.task("waits") == "success"
        assert (status_of(ran.runs["waits"]), ran.metrics("waits")) == ("FINISHED", {"auc": 0.7})
        error = ran.errors["waits_in_vain"]
        assert isinstance(error, RemoteUnavailableError)
        assert "The step itself has ended well; " in str(error)
        assert "[ml] spool" in str(error) if kind != "no provider" else "'s3://bucket/spool" in str(error)
        assert repr(ran.errors["fails"]) == "KeyError('its own error')", "nothing is raised over the step's own error"


class TestHostileNames:
    def test_params_and_conf_of_any_name_and_size_are_on_record(self, night: Any) -> None:
        long, many = "x" * 10_000, {f"p{index}": index for index in range(101)}
        params = {"größe 1": "日本", "a$b": 1, "x/../y": 3, "": 4, "w" * 300: 5, "long": long} | many

        @ml_task
        def take(text: str) -> int:
            return len(text)

        def steps() -> None:
            take(text=long)

        ran = night(steps, conf=params)
        assert ran.outcome.state == "success"
        assert ran.outcome.xcom("take") == 10_000
        assert re.fullmatch(r"x+\.\.\. \(10000 characters, sha256 [0-9a-f]{64}\)", ran.params("take")["text"])
        seen, tags = ran.params(ran.outcome.run_id), tags_of(ran.parent)
        assert len(seen) == len(params)
        assert (seen["größe 1"], seen["a_b"], seen["p100"], len(seen["long"])) == ("日本", "1", "100", 6000)
        assert max(map(len, seen)) == 250
        assert set(seen.values()) == {value for name, value in tags.items() if name.startswith("airflow.conf.")}

    def test_a_metric_that_mlflow_refuses_does_not_cost_the_others(self, night: Any) -> None:
        @ml_task
        def bad_name(metrics: Output[Metrics]) -> None:
            metrics.log_metric("good", 1)
            metrics.log_metric("a$b", 2)
            metrics.log_metric("größe/von a-b.c: d_1", 3)

        @ml_task
        def bad_step(metrics: Output[Metrics]) -> None:
            metrics.log_metric("good", 1)
            metrics.log_metric("loss", 1, step=1.5)  # type: ignore[arg-type]

        def steps() -> None:
            bad_name(), bad_step()

        ran = night(steps)
        assert ran.outcome.task("bad_name") == "success"
        assert ran.metrics("bad_name") == {"good": 1.0, "a_b": 2.0, "größe/von a-b.c: d_1": 3.0}
        assert "ConfigError: metric 'loss' cannot be logged: step 1.5" in ran.said("bad_step")
        assert ran.metrics("bad_step") == {"good": 1.0}, "what was logged before is kept"

    def test_files_of_any_name_and_place_come_through_or_are_refused(self, night: Any, tmp_path: Path) -> None:
        @ml_task
        def outside(table: Output[Dataset], größe: Output[Model]) -> None:  # noqa: PLC2401  (a hostile name)
            table.path = str(tmp_path / "my tåble (1) & 50% 日本.csv")
            Path(table.path).write_text("outside")
            Path(größe.path).write_text("größe")

        @ml_task
        def climbs(table: Output[Dataset], folder: Output[Dataset]) -> None:
            table.path += "/../../../climbed.csv"
            (Path(table.path).parents[3]).mkdir()
            Path(table.path).write_text("climbed")
            Path(folder.path).mkdir()
            Path(folder.path).with_name("ü b.csv").write_text("up")
            folder.path += "/.."

        @ml_task
        def refused(table: Output[Dataset], metrics: Output[Metrics]) -> None:
            metrics.log_metric("kept", 1)
            (Path(table.path) / "carrier=A%2FB #1").mkdir(parents=True)
            (Path(table.path) / "carrier=A%2FB #1" / "part").write_text("x")

        @ml_task
        def read_all(
            table: Input[Dataset], model: Input[Model], climbed: Input[Dataset], folder: Input[Dataset]
        ) -> dict[str, str]:
            names = [each.name for each in Path(folder.path).iterdir()]
            return {"folder": ", ".join(names)} | {each.name: Path(each.path).read_text() for each in (table, model, climbed)}

        def steps() -> None:
            out, up = outside(), climbs()
            read_all(out["table"], out["größe"], up["table"], up["folder"])
            refused()

        ran = night(steps)
        assert ran.outcome.xcom("read_all") == {
            "table": "outside",
            "model": "größe",
            "climbed": "climbed",
            "folder": "ü b.csv",
        }
        assert (tmp_path / "my tåble (1) & 50% 日本.csv").exists(), "what lies outside of the scratch folder is the user's"
        paths = [each["path"] for name in ("outside", "climbs") for each in outputs_of(ran, name) if "path" in each]
        assert paths == ["try-1/table/my tåble (1) & 50% 日本.csv", "try-1/table/climbed.csv", "try-1/folder/"]
        assert "ConfigError: MLflow's artifact proxy does not keep the name" in ran.said("refused")
        assert "artifact_root=" in ran.said("refused")
        assert ran.metrics("refused") == {"kept": 1.0}

    def test_values_that_are_not_json_are_refused_before_the_run_is_closed_well(self, night: Any) -> None:
        @ml_task
        def nan() -> float:
            return math.nan

        @ml_task
        def deep_nan() -> dict[str, Any]:
            return {"scores": [1.0, math.inf]}

        @ml_task
        def loop(table: Output[Dataset]) -> None:
            Path(table.path).write_text("x")
            table.metadata["itself"] = table.metadata

        @ml_task
        def keys(metrics: Output[Metrics]) -> None:
            metrics.log_metric("kept", 1)
            metrics.metadata[1, 2] = 3  # type: ignore[index]

        @ml_task
        def fine(table: Output[Dataset]) -> None:
            Path(table.path).write_text("x")
            table.metadata |= {"when": START, "nan": math.nan, 1: 2}  # type: ignore[dict-item]

        @ml_task
        def read_metadata(table: Input[Dataset]) -> list[str]:
            return [f"{key}: {value}" for key, value in table.metadata.items()]

        def steps() -> None:
            nan(), deep_nan(), loop(), keys()
            read_metadata(fine()["table"])

        ran = night(steps)
        for step in ("nan", "deep_nan"):
            assert f"ConfigError: step '{step}' returned " in ran.said(step)
            assert "which is not plain JSON (Out of range float values are not JSON compliant" in ran.said(step)
        for step in ("loop", "keys"):
            assert "is not plain JSON (" in ran.said(step)
            assert "ConfigError: the metadata of output " in ran.said(step)
        assert ran.metrics("keys") == {"kept": 1.0}
        assert ran.outcome.xcom("read_metadata") == ["when: 2024-01-01 00:00:00+00:00", "nan: nan", "1: 2"]


def outputs_of(ran: Night, step: str) -> list[dict[str, Any]]:
    return list(ran.outcome.xcom(step)["outputs"].values())


class TestAStepThatFails:
    def test_raises_its_own_error_and_closes_its_run(self, night: Any) -> None:
        class UnspeakableError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        @ml_task
        def unspeakable(metrics: Output[Metrics]) -> None:
            metrics.log_metric("kept", 1)
            raise UnspeakableError

        @ml_task
        def half_a_character() -> None:
            raise ValueError("no file \udcff\0 here")

        @ml_task
        def leaves(metrics: Output[Metrics]) -> None:
            metrics.log_metric("kept", 1)
            raise SystemExit(3)

        @ml_task(artifact_root="s3://bucket/x")
        def no_store(table: Output[Dataset], metrics: Output[Metrics]) -> None:
            metrics.log_metric("kept", 1)
            Path(table.path).write_text("x")

        def steps() -> None:
            unspeakable(), half_a_character(), leaves(), no_store()

        ran = night(steps)
        assert type(ran.errors["unspeakable"]) is UnspeakableError
        assert {status_of(each) for name, each in ran.runs.items() if name != ran.outcome.run_id} == {"FAILED"}
        errors = {name: tags_of(each).get("airflow.error") for name, each in ran.runs.items()}
        assert str(errors["unspeakable"]).startswith("UnspeakableError")
        assert errors["half_a_character"] == "ValueError: no file ?? here"
        assert errors["leaves"] == "SystemExit: 3"
        assert "apache-airflow-providers-amazon[s3fs]" in ran.said("no_store")
        assert [ran.metrics(name) for name in ("unspeakable", "leaves", "no_store")] == [{"kept": 1.0}] * 3

    def test_does_not_close_the_run_of_the_try_that_has_taken_over(
        self, night: Any, unique: str, mlflow_server: MlflowServer
    ) -> None:
        @ml_task
        def train(table: Output[Dataset], ti: Any = None) -> None:
            identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)
            with MlflowApi(mlflow_server) as api:  # what a second try does when it starts
                RunTree(api).open(unique, Attempt(identity=identity, try_number=2, ti_id="the-other"))
            table.path += " #1.csv"  # refused before anybody looks whose turn it is
            Path(table.path).write_text("late")

        ran = night(lambda: train() and None)
        assert ran.outcome.task("train") == "failed"
        run = ran.runs["train"]
        assert (status_of(run), tags_of(run)["airflow.try_number"], tags_of(run).get("airflow.error")) == ("RUNNING", "2", None)


ADMIN, OTHER, KEY, CONF, DEEP, WRONG = (
    *("adm1n-passw0rd", "0ther's\\p\"ss", "k3y-1234567890", "c0nf-passw0rd", "d33p-passw0rd", "wr0ng-passw0rd"),
)
"""Secrets; that of OTHER looks different in Python's and JSON's quotes."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowProcess]:
    """A real MLflow server that asks for a login."""
    folder = tmp_path_factory.mktemp("guarded")
    environment = mlflow_forms.auth_environment(folder, ADMIN)
    with MlflowProcess(folder, options=("--app-name", "basic-auth"), environment=environment) as server:
        yield server


def test_a_step_shows_what_is_wrong_with_its_connection(
    night: Any, guarded: MlflowProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = {"conn_type": "mlflow", "host": guarded.url, "login": "admin", "password": WRONG}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(login))
    unknown_host = guarded.url.replace("127.0.0.1", "127.1")  # the same address by another name
    monkeypatch.setenv("AIRFLOW_CONN_HOST", json.dumps(login | {"host": unknown_host, "password": ADMIN}))
    ran: list[str] = []

    def step() -> None:
        ran.append("never")

    def steps() -> None:
        for conn_id in ("nowhere", "wrong", "host"):
            ml_task(step, task_id=f"{conn_id}_conn", mlflow_conn_id=conn_id)()

    errors = {name: str(error) for name, error in night(steps).errors.items()}
    assert (
        "there is no connection 'nowhere'. Add it: airflow connections add nowhere --conn-type mlflow" in errors["nowhere_conn"]
    )
    assert "(connection 'wrong') answered 401" in errors["wrong_conn"]
    assert "Check login and password" in errors["wrong_conn"]
    assert f"start it with --allowed-hosts 127.1:{guarded.port}" in errors["host_conn"]
    assert ran == []


def run_with_secrets(dag_id: str, folder: str) -> None:
    """Run steps that have every chance to show a secret; in a process of its own, so that all it says can be read."""
    from tests.airflow_runs import run

    @ml_task
    def works(plain: str, nested: dict[str, Any], table: Input[Dataset], made: Output[Dataset]) -> None:
        if (plain, os.environ["MLFLOW_TRACKING_PASSWORD"]) != (OTHER, ADMIN):
            raise RuntimeError("a step itself gets the real ones")
        Path(made.path).write_text(Path(table.path).read_text())

    @ml_task
    def fails(plain: str) -> None:
        raise RuntimeError(f"no login with {plain} and {os.environ['MLFLOW_TRACKING_PASSWORD']}")

    @ml_task
    def wrong_type(plain: int, api_key: float) -> None: ...

    @ml_task(mlflow_conn_id="wrong")
    def wrong_login() -> None: ...

    @dag(dag_id=dag_id, schedule=None, start_date=START, params={"api_key": KEY, "window": 3})
    def example() -> None:
        plain = "{{ conn.other.password }}"
        works(plain=plain, nested={"in": [plain], "password": DEEP}, table=f"{folder}/{plain}/table.csv")
        fails(plain=plain), wrong_login()
        wrong_type(plain=plain, api_key="1")
        wrong_type.override(task_id="wrong_key")(plain="1", api_key="{{ params.api_key }}")

    outcome = run(example(), run_conf={"password": CONF, "db": {"token": DEEP}})
    print("STATES" + json.dumps({task_id: state for (task_id, _), state in outcome.tasks.items()}))  # noqa: T201


def test_no_secret_shows_anywhere(
    airflow_db: None, unique: str, guarded: MlflowProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = {"conn_type": "mlflow", "host": guarded.url, "login": "admin", "password": ADMIN}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(login))
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(login | {"password": WRONG}))
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http", "host": "x", "password": OTHER}))
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    (tmp_path / OTHER).mkdir()
    (tmp_path / OTHER / "table.csv").write_text("from outside")
    code = f"import sys; from {__name__} import run_with_secrets; run_with_secrets(*sys.argv[1:])"
    command = [sys.executable, "-c", code, unique, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    states = json.loads(next(each for each in done.stdout.splitlines() if each.startswith("STATES")).removeprefix("STATES"))
    assert states == {
        "works": "success",
        **dict.fromkeys(("fails", "wrong_login", "wrong_type", "wrong_key"), "failed"),
    }

    with MlflowApi(MlflowServer("c", guarded.url, "admin", ADMIN)) as api:
        tree = RunTree(api)
        runs = [tree.get(each["info"]["run_id"]) for each in tree.search([tree.experiment_id(unique)], "")]
    by_name = {each["info"]["run_name"]: each for each in runs}
    parent = next(each for name, each in by_name.items() if name not in states)
    params = {
        name: {each["key"]: each["value"] for each in run["data"]["params"]}
        for name, run in by_name.items()
        if "params" in run["data"]
    }
    assert params["works"] == {"plain": "***", "nested": '{"in": ["***"], "password": "***"}'}
    assert params[parent["info"]["run_name"]] == {"api_key": "***", "window": "3", "password": "***", "db": '{"token": "***"}'}
    assert tags_of(by_name["fails"])["airflow.error"] == "RuntimeError: no login with *** and ***"

    for password in (ADMIN, OTHER, WRONG):  # as Airflow does for the connections that a task reads
        mask_secret(password)
    # Under a worker Airflow masks each line of a log; dag.test() prints it as it is, so the masker is asked here.
    log = str(redact(done.stdout + done.stderr))
    assert "RuntimeError: no login with *** and ***" in log
    places = {"log": log, "mlflow": json.dumps(runs, ensure_ascii=False)}
    with create_session() as session:
        for table in ("xcom", "rendered_task_instance_fields", "log"):
            rows = session.execute(text(f"select * from {table} where dag_id = :dag_id"), {"dag_id": unique})  # noqa: S608
            places[f"table {table}"] = str([tuple(row) for row in rows])
    assert all(unique in places[f"table {table}"] for table in ("xcom", "rendered_task_instance_fields"))
    for name, found in places.items():
        for secret in (ADMIN, OTHER, KEY, CONF, DEEP, WRONG):
            forms = {secret, *(quoted(secret, times) for times in (1, 2)), repr(secret)[1:-1], repr(repr(secret))[2:-2]}
            assert [each for each in forms if each in found] == [], f"{secret} in {name}"


def quoted(secret: str, times: int) -> str:
    """As it looks in JSON, or in JSON in JSON."""
    for _ in range(times):
        secret = json.dumps(secret)[1:-1]
    return secret
