"""A typed function in a container: it sees what it would see in a worker."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.core.function_source import read_function
from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models import artifact as worker
from airflow_ml_provider.models.artifact import Dataset, Input, Metrics, Model, Output, dump_metrics
from airflow_ml_provider.tracking.places import ProxyPlace
from tests.step.pods import Pod, proxy


def look(
    table: Input[Dataset],
    scores: Input[Metrics],
    champion: Input[Model] | None,
    model: Output[Model],
    metrics: Output[Metrics],
    seen: Output[Dataset],
    depth: int,
    options: dict[str, Any] | None = None,
) -> None:
    import json
    import os

    def refusal(action: Any) -> str:
        try:
            action()
        except ValueError as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    with open(table) as rows:  # noqa: PTH123
        text = rows.read()
    what: dict[str, Any] = {
        "rows": text,
        "paths": [os.path.basename(each.path) for each in (table, model, metrics)],  # noqa: PTH119
        "shown": [repr(table), repr(model), str(metrics)],
        "uris": [table.uri, model.uri],
        "metadata": [table.metadata, str(scores.metadata), model.metadata],
        "types": [isinstance(table, Dataset), isinstance(metrics, Model), type(scores).__name__, table.type_name],
        "champion": champion is None,
        "plain": [depth, options],
        "refused": [
            refusal(lambda: setattr(table, "path", "x")),
            refusal(lambda: setattr(table, "metadata", {})),
            refusal(lambda: scores.log_metric("x", 1)),
            refusal(lambda: metrics.log_metric("x", "many")),  # type: ignore[arg-type]
        ],
    }
    metrics.log_metric("auc", 0.5, step=1)
    metrics.log_metric("auc", 0.75, 2)
    metrics.log_metric("loss", float("inf"))
    metrics.metadata["note"] = "fine"
    model.path += ".txt"
    model.metadata["depth"] = depth
    with open(model.path, "w") as out:  # noqa: PTH123
        out.write("weights")
    what["after"] = [os.path.basename(model.path), str(metrics.metadata)]  # noqa: PTH119
    with open(seen, "w") as out:  # noqa: PTH123
        json.dump(what, out)


def in_worker(folder: Path) -> tuple[dict[str, Any], worker.Metrics, Model]:
    """Call it as a worker does, without Airflow."""
    (folder / "rows").write_text("a b")
    points: list[worker.MetricPoint] = []
    table = Dataset(
        "table", uri="runs:/x/rows", fetch=lambda: str(folder / "rows"), fetch_metadata=lambda: {"rows": 2}
    )  # fmt: skip
    scores = Metrics("scores", uri="runs:/x/scores.json", fetch=lambda: "", fetch_metadata=lambda: {"auc": float("nan")})
    outputs = {name: str(folder / name) for name in ("model", "metrics", "seen")}
    model, seen = (kind(name, path=outputs[name], metadata={}) for kind, name in ((Model, "model"), (Dataset, "seen")))
    metrics = Metrics("metrics", path=outputs["metrics"], metadata={}, log=points.append)
    look(table, scores, None, model, metrics, seen, 3, {"a": [1.5, None]})
    return json.loads((folder / "seen").read_text()), metrics, model


def test_a_function_sees_and_makes_the_same_in_a_worker_and_in_a_container(
    mlflow_api: MlflowApi, pod: Pod, tmp_path: Path
) -> None:
    (tmp_path / "worker").mkdir()
    what, metrics, model = in_worker(tmp_path / "worker")
    for name, content in (("rows", "a b"), ("rows.metadata.json", '{"rows": 2}'), ("scores.json", '{"auc": "nan"}')):
        (pod.folder / "sent").write_text(content)
        ProxyPlace(mlflow_api, pod.root).write(name, pod.folder / "sent")
    pod.input("table", "rows", "rows", metadata=proxy(f"{pod.root}/rows.metadata.json"))
    pod.input("scores", "scores.json", "scores.json", type="Metrics")
    pod.fields["inputs"]["champion"] = []
    pod.output("model", "Model", flat=True)
    pod.output("metrics", "Metrics")
    pod.output("seen", "Dataset")
    pod.fields["parameters"] = {"depth": 3, "options": {"a": [1.5, None]}}
    pod.fields["function"] = read_function(look, read_signature(look))
    assert pod.run() == 0, pod.text
    assert json.loads(pod.read(mlflow_api, "try-1/seen")) == what
    assert what["after"][0] == "model.txt"
    assert pod.read(mlflow_api, "models/model/model.txt") == Path(model.path).read_bytes()
    assert pod.read(mlflow_api, "try-1/metrics.json").decode() == dump_metrics(metrics.metadata)
    assert json.loads(pod.read(mlflow_api, "try-1/model.metadata.json")) == {"depth": 3}
    manifest = pod.manifest(mlflow_api)
    assert (manifest.outputs["model"].file, manifest.metrics) == ("model.txt", {"auc": 0.75, "loss": "Infinity"})


@pytest.mark.parametrize("value", [None, 1, "ü", [1, {"a": None}], {}])
def test_what_a_function_returns_comes_back(mlflow_api: MlflowApi, pod: Pod, value: Any) -> None:
    pod.function(f"def train():\n    return {value!r}", {})
    assert pod.run() == 0, pod.text
    assert pod.manifest(mlflow_api).result == value


@pytest.mark.parametrize(
    ("returned", "words"),
    [("{1, 2}", "returned set, which is not plain JSON"), ("float('nan')", "returned float, which is not plain JSON")],
)
def test_what_cannot_come_back_fails_with_the_remedy(mlflow_api: MlflowApi, pod: Pod, returned: str, words: str) -> None:
    pod.function(f"def train():\n    return {returned}", {})
    assert pod.run() == 1
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, manifest.result) == ("failed", None)
    assert words in manifest.error
    assert "Write it to an Output[Dataset]" in manifest.error


@pytest.mark.parametrize("leaves", ["os._exit(0)", "sys.exit(0)"])
def test_a_function_that_ends_its_process_has_not_succeeded(mlflow_api: MlflowApi, pod: Pod, leaves: str) -> None:
    pod.function(f"def train():\n    import os, sys\n    {leaves}", {})
    assert pod.run() == 1
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, manifest.result) == ("failed", None)
    assert "before the function had returned" in manifest.error


def test_a_function_with_outputs_returns_nothing(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.output("model", "Model")
    pod.function("def train(model):\n    open(model, 'w').write('x')\n    return 1", {"model": "output"})
    assert pod.run() == 1
    assert "step 'train' has outputs and returned int" in pod.message.error


def test_an_error_is_shown_with_its_line_and_told_in_short(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.output("scores", "Metrics")
    pod.output("model", "Model")
    pod.function(
        """
        def train(model, scores):
            scores.log_metric("loss", 2)
            scores.metadata["note"] = "kept"
            raise KeyError("no such column")  # here
        """,
        {"model": "output", "scores": "output"},
    )
    assert pod.run() == 1
    manifest = pod.manifest(mlflow_api)
    assert manifest.error == "KeyError: 'no such column'"
    assert 'raise KeyError("no such column")  # here' in pod.text
    assert (list(manifest.outputs), manifest.metrics) == (["scores"], {"loss": 2.0})
    assert json.loads(pod.read(mlflow_api, "try-1/scores.json")) == {"loss": 2.0, "note": "kept"}


def test_a_function_that_is_killed_leaves_the_metrics_of_each_output(mlflow_api: MlflowApi, pod: Pod) -> None:
    for name in ("a", "b"):
        pod.output(name, "Metrics")
    source = """
        def train(a, b):
            import os, signal
            a.log_metric("loss", 1)
            b.log_metric("loss", 2)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    pod.function(source, {"a": "output", "b": "output"})
    assert pod.run() == 137
    assert [json.loads(pod.read(mlflow_api, f"try-1/{name}.json")) for name in "ab"] == [{"loss": 1.0}, {"loss": 2.0}]


def test_a_function_that_is_told_to_stop_can_save_its_work(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.fields["checkpoints"] = proxy(f"{pod.root}/checkpoints")
    source = f"""
        def train():
            import airflow_ml_step, time
            try:
                open("{pod.volume}/ready", "w")
                time.sleep(60)
            finally:
                airflow_ml_step.save_checkpoint("{pod.volume}/ready")
    """
    pod.function(source, {})
    process = pod.start("run")
    pod.await_file("ready", process)
    process.terminate()
    assert pod.end(process) == 143
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, manifest.checkpoint.endswith("/ready")) == ("terminated", True), pod.text


def test_defaults_apply_where_no_value_came(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.function("def train(depth, rate=0.5):\n    return [depth, rate]", {"depth": "plain", "rate": "plain"})
    pod.fields["parameters"] = {"depth": 3}
    assert pod.run() == 0
    assert pod.manifest(mlflow_api).result == [3, 0.5]


def test_metadata_that_is_not_json_fails_as_in_a_worker(pod: Pod) -> None:
    pod.output("model", "Model")
    pod.function("def train(model):\n    model.metadata[(1, 2)] = 3\n    open(model, 'w').write('x')", {"model": "output"})
    assert pod.run() == 1
    assert "the metadata of output 'model' is not plain JSON" in pod.message.error


def test_neither_a_program_nor_a_function_is_told(pod: Pod) -> None:
    assert pod.run() == 64
    assert "neither a program to run nor a function" in pod.message.error


def test_the_artifact_types_have_the_same_public_members() -> None:
    from airflow_ml_provider.step import airflow_ml_step as container

    for name, theirs in worker.ARTIFACT_TYPES.items():
        ours = container.KINDS[name]
        public = {each for each in dir(theirs) if not each.startswith("_")}
        assert public == {each for each in dir(ours) if not each.startswith("_")}
    wanted = inspect.signature(Metrics.log_metric).parameters
    assert list(wanted) == list(inspect.signature(container.Metrics.log_metric).parameters)
