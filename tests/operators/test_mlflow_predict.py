"""Batch prediction in real DAG runs: with a real pyfunc model, in the worker and in an interpreter of the model's own."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import threading
import warnings
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import mlflow
import pandas as pd
import pendulum
import pyarrow as pa
import pytest
from airflow.sdk import DAG, dag
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyarrow import parquet

from airflow_ml_provider import Dataset, Input, ml_task
from airflow_ml_provider.exceptions import ConfigError, PredictionError, RemoteUnavailableError
from airflow_ml_provider.interpreters import ChildProcess, Environments, Requirements, environment_for
from airflow_ml_provider.operators.mlflow_predict import MlflowBatchPredictOperator
from airflow_ml_provider.tracking.environments import model_requirements
from airflow_ml_provider.tracking.predict import PredictionRequest, predict_apart, predict_here

NEEDS_UV = pytest.mark.skipif(not shutil.which("uv"), reason="needs uv, which `make test` has in its PATH")

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint.*:UserWarning")  # of MLflow: the model has none

START = pendulum.datetime(2024, 1, 1)
CODE = """
import os, sys
import mlflow
import pandas as pd

class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        frame = pd.DataFrame(model_input)
        if (frame["x"] < 0).any():
            raise ValueError("negative")
        if (frame["x"] == 99).any():
            return [1]
        if (frame["x"] == 97).any():
            return [True]
        if (frame["x"] == 98).any():
            return [1j]
        if (frame["x"] == 96).any():
            return ["six"]
        return pd.DataFrame({"twice": frame["x"] * 2, "rows": len(frame), "apart": os.environ.get("VIRTUAL_ENV", sys.prefix)})

mlflow.models.set_model(Doubler())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package that gives an interpreter what this one has, as one requirement: no index is asked for it."""
    made = tmp_path_factory.mktemp("wheel") / "as_here-1-py3-none-any.whl"
    here = "\n".join([*site.getsitepackages(), str(Path(mlflow.__file__).parents[1])])
    info = "as_here-1.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("as_here.pth", here + "\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: as-here\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a-test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ["as_here.pth", *(f"{info}/{each}" for each in ("METADATA", "WHEEL", "RECORD"))]
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory, wheel):
    """A pyfunc model, saved by MLflow, that names its column."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "code.py").write_text(CODE)
    signature = ModelSignature(inputs=Schema([ColSpec("long", "x")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow: the model has no type hints
        mlflow.pyfunc.save_model(
            str(folder / "model"), python_model=str(folder / "code.py"), signature=signature, pip_requirements=[]
        )
    (folder / "model/requirements.txt").write_text(f"{wheel}\n")
    return folder / "model"


@pytest.fixture
def table(tmp_path):
    frame = pd.DataFrame({"id": [f"ü{each}" for each in range(25)], "x": range(25), "other": 1.5})
    frame.to_parquet(tmp_path / "table.parquet")
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.parquet"


@ml_task
def read(table: Input[Dataset]) -> dict[str, list[object]]:
    frame = pd.read_parquet(table.path)
    return {name: frame[name].tolist() for name in frame.columns}


def ask(model, table, tmp_path, **kwargs):
    given = {"batch_rows": 10} | kwargs
    return PredictionRequest(str(model), str(table), str(tmp_path / "out.parquet"), **given)


class TestInTheWorker:
    def test_a_table_is_predicted_by_stream_and_read_by_a_step(self, run_dag, unique, model, table):
        @dag(dag_id=unique, schedule=None, start_date=START, params={"columns": ["id"]})
        def predicting():
            predict = MlflowBatchPredictOperator(
                task_id="predict",
                model=model.as_uri() + "/",
                table=table.as_uri(),
                keep_columns=["{{ params.columns[0] }}"],
                batch_rows="{{ 10 }}",
            )
            read(table=predict.output["predictions"])

        done = run_dag(predicting(), logical_date=START)
        assert done.state == "success"
        got = done.xcom("read")
        assert got["id"] == [f"ü{each}" for each in range(25)]
        assert got["twice"] == [each * 2 for each in range(25)]
        assert got["rows"] == [10] * 20 + [5] * 5, "ten rows at once, and no more"
        assert set(got) == {"id", "twice", "rows", "apart"}

    def test_mapped_over_tables(self, run_dag, unique, model, table):
        @dag(dag_id=unique, schedule=None, start_date=START)
        def mapped():
            tables = [table.as_uri(), table.with_suffix(".csv").as_uri()]
            MlflowBatchPredictOperator.partial(task_id="predict", model=model.as_uri() + "/").expand(table=tables)

        done = run_dag(mapped(), logical_date=START)
        assert done.state == "success"
        assert [sorted(done.xcom("predict", index)["outputs"]) for index in (0, 1)] == [["predictions"]] * 2

    def test_a_folder_a_csv_and_no_rows(self, model, table, tmp_path):
        (tmp_path / "folder").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"folder/{name}.parquet").write_bytes(table.read_bytes())
        assert predict_here(ask(model, tmp_path / "folder", tmp_path))["rows"] == 50
        said = predict_here(ask(model, table.with_suffix(".csv"), tmp_path, keep=[]))
        assert said == {"rows": 25, "batches": 3, "columns": ["twice", "rows", "apart"]}
        pd.read_parquet(table).head(0).to_parquet(tmp_path / "none.parquet")
        assert predict_here(ask(model, tmp_path / "none.parquet", tmp_path, keep=["id"])) == {
            "rows": 0,
            "batches": 0,
            "columns": ["id"],
        }
        assert pd.read_parquet(tmp_path / "out.parquet").columns.tolist() == ["id"]

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([2**60 + 1, None, None, 2]),
            pa.array([None, None, "x", "y"]),
            pa.array([None, None, True, False]),
            pa.array([None, None, None, None], pa.date32()),
            pa.array([None, None, Decimal("1.5"), Decimal("0.1")]),
            pa.array([None, None, [1], [2, None]]),
            pa.array(["a", "b", None, "c"]).dictionary_encode(),
            pa.array([datetime(9999, 12, 31, tzinfo=UTC), None, None, datetime(1, 1, 1, tzinfo=UTC)]),
        ],
        ids=lambda values: str(values.type),
    )
    def test_a_kept_column_is_written_as_it_was_read_whatever_a_batch_holds(self, model, tmp_path, values):
        table = pa.table({"x": pa.array([0, 1, 2, 3]), "kept": values})
        parquet.write_table(table, tmp_path / "t.parquet")
        predict_here(ask(model, tmp_path / "t.parquet", tmp_path, batch_rows=2))
        written = parquet.read_table(tmp_path / "out.parquet")
        assert written.column_names == ["x", "kept", "twice", "rows", "apart"]
        assert written["kept"].type == values.type
        assert written["kept"].to_pylist() == values.to_pylist()
        assert written["twice"].to_pylist() == [0, 2, 4, 6]

    def test_answers_that_change_their_type_between_batches_are_said_to(self, model, tmp_path):
        pd.DataFrame({"x": [97, 96]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match="a later batch of predictions has other types than the first"):
            predict_here(ask(model, tmp_path / "t.parquet", tmp_path, batch_rows=1))
        pd.DataFrame({"x": [98]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match="the predictions cannot be written as a table"):
            predict_here(ask(model, tmp_path / "t.parquet", tmp_path))

    @pytest.mark.parametrize(
        ("frame", "keep", "said"),
        [
            ({"y": [1]}, None, r"no columns \['x'\], which the model's signature asks for"),
            ({"x": [1]}, ["nope"], r"no columns \['nope'\] to keep"),
            ({"x": [99, 1, 2]}, None, r"gave \[1\] predictions for 3 rows"),
            ({"x": [1], "twice": [1]}, None, r"columns \['twice'\] are in the table and in the model's answer"),
        ],
    )
    def test_what_does_not_fit_is_said_and_not_tried_again(self, model, tmp_path, frame, keep, said):
        pd.DataFrame(frame).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match=said):
            predict_here(ask(model, tmp_path / "t.parquet", tmp_path, keep=keep))

    def test_what_is_no_table_is_refused(self, model, tmp_path):
        for name, text in (("t.parquet", "no parquet"), ("t.exe", "x")):
            (tmp_path / name).write_text(text)
            with pytest.raises(ConfigError, match="the table"):
                predict_here(ask(model, tmp_path / name, tmp_path))

    def test_a_model_that_fails_says_why(self, model, tmp_path):
        pd.DataFrame({"x": [-1]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(PredictionError, match="ValueError: negative"):
            predict_here(ask(model, tmp_path / "t.parquet", tmp_path))


class TestInItsOwnInterpreter:
    @pytest.mark.parametrize("installer", [pytest.param("uv", marks=NEEDS_UV), pytest.param("pip", marks=pytest.mark.full)])
    def test_an_interpreter_is_made_once_and_works_without_the_network_after_that(self, wheel, tmp_path, monkeypatch, installer):
        requirements = Requirements(f"{wheel}\n")
        python = Environments(tmp_path, installer=installer).python(requirements)
        code = "import sys, mlflow, pyarrow; print(sys.prefix)"
        assert subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == str(
            python.parents[1]
        )
        monkeypatch.setenv("PATH", "")  # whoever wanted an installer now would not find one
        assert Environments(tmp_path, installer=installer).python(Requirements(f"# the same\n  {wheel}")) == python

    def test_two_that_want_it_at_once_make_it_once(self, wheel, tmp_path):
        class Counting(ChildProcess):
            made = 0

            def run(self, command, *, cwd):
                Counting.made += "venv" in command
                return super().run(command, cwd=cwd)

        found = []
        threads = [
            threading.Thread(target=lambda: found.append(Environments(tmp_path, Counting()).python(Requirements(f"{wheel}"))))
            for _ in range(3)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert (len(set(found)), len(found), Counting.made) == (1, 3, 1)

    def test_what_a_killed_task_has_left_is_made_anew(self, wheel, tmp_path):
        requirements = Requirements(f"{wheel}")
        left = tmp_path / requirements.digest / "venv/bin"
        left.mkdir(parents=True)
        (left / "python").write_text("half")
        python = Environments(tmp_path).python(requirements)
        assert subprocess.run([python, "-c", "print(1)"], capture_output=True, check=True).stdout == b"1\n"

    @pytest.mark.full
    def test_requirements_that_are_not_to_be_had_are_said_without_the_login_of_the_index(self, tmp_path):
        index = "http://ada:hunter22@127.0.0.1:9/"
        text = f"--no-index\n--find-links {index}\n{tmp_path}/none-1-py3-none-any.whl\n"
        with pytest.raises(RemoteUnavailableError, match="failed") as raised:
            Environments(tmp_path).python(Requirements(text))
        assert "hunter22" not in str(raised.value)
        assert not list(tmp_path.glob("*/ready"))

    def test_a_retry_uses_the_interpreter_of_the_try_before(self, run_dag, unique, model, table, tmp_path):
        class Cut(MlflowBatchPredictOperator):
            def _predict(self, session, child):
                said = super()._predict(session, child)
                if session.record.attempt.try_number == 1:
                    raise RuntimeError("the worker is lost here")
                return said

        with DAG(dag_id=unique, schedule=None, start_date=START) as made:
            predict = Cut(
                task_id="predict",
                model=model.as_uri() + "/",
                table=table.as_uri(),
                interpreter="model",
                interpreters=str(tmp_path / "kept"),
                retries=1,
                retry_delay=0,
            )
            read(table=predict.output["predictions"])
        done = run_dag(made, logical_date=START)
        assert done.state == "success"
        assert done.xcom("read")["twice"] == [each * 2 for each in range(25)]
        assert set(done.xcom("read")["apart"]) == {str(next((tmp_path / "kept").glob("*/venv")))}
        assert len(list((tmp_path / "kept").glob("*/ready"))) == 1

    def test_what_does_not_fit_is_said_as_in_the_worker(self, model, tmp_path):
        pd.DataFrame({"y": [1]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ConfigError, match="no columns"):
            predict_apart(ask(model, tmp_path / "t.parquet", tmp_path), tmp_path / "kept", ChildProcess())
        pd.DataFrame({"x": [-1]}).to_parquet(tmp_path / "t.parquet")
        with pytest.raises(PredictionError, match="ValueError: negative"):
            predict_apart(ask(model, tmp_path / "t.parquet", tmp_path), tmp_path / "kept", ChildProcess())

    def test_a_model_without_requirements_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"has no requirements\.txt"):
            model_requirements(tmp_path)

    def test_a_killed_task_leaves_no_process(self, tmp_path):
        child = ChildProcess()
        said = []
        command = [sys.executable, "-c", "import os; print(os.getpid(), flush=True); import time; time.sleep(600)"]
        thread = threading.Thread(target=lambda: said.append(child.run(command, cwd=tmp_path)))
        thread.start()
        while child._running is None:
            pass
        child.kill()
        thread.join()
        assert said[0][0] == -9
        assert child.run(command, cwd=tmp_path)[0] == -9, "nothing more is started"

    def test_it_gets_neither_airflows_variables_nor_mlflows_login(self):
        given = {
            "AIRFLOW_CONN_X": "a",
            "AIRFLOW__CORE__FERNET_KEY": "b",
            "MLFLOW_TRACKING_PASSWORD": "c",
            "PYTHONPATH": "d",
            "PIP_INDEX_URL": "e",
        }
        assert environment_for(given) == {"PIP_INDEX_URL": "e", "UV_DEFAULT_INDEX": "e"}, "uv reads none of pip's"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_rows": 0}, "batch_rows=0 must be a whole number"),
        ({"keep_columns": "id"}, "keep_columns='id' must be a list"),
        ({"interpreter": "moon"}, "interpreter='moon' is none of worker, model"),
    ],
)
def test_wrong_arguments_fail_at_once(run_dag, unique, model, table, capfd, wrong, said):
    with DAG(dag_id=unique, schedule=None, start_date=START) as made:
        given = {"model": model.as_uri() + "/", "table": table.as_uri()} | wrong
        MlflowBatchPredictOperator(task_id="predict", retries=3, **given)
    assert run_dag(made, logical_date=START).task("predict") == "failed"
    assert said in "".join(capfd.readouterr())
