"""Questions and records that nobody should write, and servers that cannot answer: each gets an answer, or a sentence that helps."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from airflow_ml_provider.cli.lineage import LineageTree
from airflow_ml_provider.cli.main import main
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.lineage import reading
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.trained import trained_on
from airflow_ml_provider.models.lineage import DatasetNode, Edge, Graph, RunNode
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.lineage_tags import made_by
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.run_records import RunRecords
from airflow_ml_provider.tracking.runs import RunTree, as_pairs, now_ms, tags_of
from tests import mlflow_forms
from tests.lineage.nights import Night
from tests.lineage.test_query import model_id_of, names
from tests.servers import MlflowProcess, connection

WORDS = [
    *("it's", 'a "b" c', "a`b", "100%", "%s %(x)s", "a\nb", "größe 模型 😀", "x" * 250, "a\\b", "[bold red]x[/]", "a, b *"),
    *("a;DROP TABLE runs", "\x1b[31mred", "..", "a/b", "a@b", "models:/x@y", "' OR '1' = '1", "<script>"),
]


def asked(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str, str]:
    status = main([*command])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.usefixtures("mlflow_connection")
class TestWords:
    def test_names_and_places_of_any_kind_are_found_and_shown_without_doing_anything(
        self, night: Night, capsys: pytest.CaptureFixture[str], unique: str
    ) -> None:
        refs = [
            ArtifactRef(
                type="Dataset", name=word, uri=f"s3://{unique}/{word}", sha256=f"{index:03x}{night.dag_id.encode().hex():0<61.61}"
            )
            for index, word in enumerate(WORDS)
        ]
        night.run_id = "night ' \" ` % \n [red] 😀"
        model = night.step("train", refs, {"model": "Model"}, {f"p{index}": word for index, word in enumerate(WORDS)})["model"]
        up = trace(night.api, model.uri)
        assert sorted(edge.name for edge in up.into(up.runs[0].id)) == sorted(WORDS)
        for ref in refs:
            down = trace(night.api, ref.uri, direction="down")
            assert [(each.name, each.uri) for each in down.datasets] == [(ref.name, ref.uri)]
            assert [each.model_id for each in down.models] == [model_id_of(model)], ref.uri
        for command in (["lineage", model.uri], ["lineage", "--dot", model.uri], *(["impact", ref.uri] for ref in refs[:6])):
            status, out, _ = asked(capsys, *command)
            assert status == 0
            assert not {each for each in out if ord(each) < ord(" ") and each != "\n"}, "no control characters"
        found = json.loads(asked(capsys, "lineage", "--json", model.uri)[1])
        assert {each["name"] for each in found["nodes"] if each["kind"] == "dataset"} == set(WORDS)
        quoted = asked(capsys, "models", "--trained-on", f'uri = "s3://{unique}/it\'s"')[1]
        assert f"by train of {night.dag_id}" in quoted

    @pytest.mark.parametrize(
        "command",
        [
            ["lineage", "models:/x/99999999999999999999"],
            ["lineage", f"models:/{'x' * 100_000}@champion"],
            ["lineage", "models:/x\0@champion"],
            ["lineage", "models:/x/٣"],
            ["lineage", "models:/it's/1"],
            ["lineage", "models:/x@' OR 1"],
            ["diff", "models:/größe@champion", "models:/größe/1"],
            ["impact", f"S3://{'x' * 100_000}"],
            ["impact", f"runs:/{'0' * 32}/../../etc/passwd"],
            ["models", "--limit", "-1"],
            ["models", "--trained-on", "'"],
            ["models", "--trained-on", f"rows > {'9' * 10_000}"],
        ],
    )
    def test_what_cannot_be_answered_is_one_sentence_that_helps(
        self, capsys: pytest.CaptureFixture[str], command: list[str]
    ) -> None:
        status, out, err = asked(capsys, *command)
        assert (status, out) == (1, "")
        assert err.startswith("airflow-ml: ")
        assert err.count("\n") == 1

    def test_a_place_that_a_step_has_not_made_is_said_to_be_none(self, night: Night) -> None:
        night.step("prepare", makes={"table": "Dataset"})
        run = night.runs["prepare"]
        for direction in ("up", "down"):
            found = trace(night.api, f"runs:/{run}/tabel", direction=direction)
            assert [gap.reason for gap in found.gaps] == ["'tabel' is not among what it has made (table); this is the whole step"]

    def test_a_way_of_thousands_of_steps_is_drawn_on_any_terminal(self) -> None:
        runs = [
            RunNode(run_id=str(index), url="u", name=f"step-{index}", status="FINISHED")
            for index in range(3 * sys.getrecursionlimit())
        ]
        edges = tuple(Edge(source=after.id, target=before.id) for before, after in itertools.pairwise(runs))
        tree = LineageTree(Graph(asked="x", start=(runs[0].id,), nodes=tuple(runs[:200]), edges=edges[:199]))
        console = Console(width=80)
        drawn = tree.render()
        console.width = max(80, tree.width)
        with console.capture() as captured:
            console.print(drawn)
        assert "step-199 " in captured.get()
        LineageTree(Graph(asked="x", start=(runs[0].id,), nodes=tuple(runs), edges=edges)).render()

    def test_numbers_and_times_that_nothing_has_are_left_out(
        self, night: Night, capsys: pytest.CaptureFixture[str], unique: str
    ) -> None:
        table = night.step("collect", makes={"table": "Dataset"}, rows=3)["table"]
        model = night.step("train", [table], {"model": "Model"}, metrics={"nan": math.nan, "inf": math.inf})["model"]
        api, run_id = night.api, night.runs["collect"]
        run = RunTree(api).get(run_id)
        facts = {**json.loads(tags_of(run)["airflow.made.try-1/table"]), "size": 10**400, "numbers": {"rows": 10**400, "days": 7}}
        digits = "9" * 4400
        strange = {
            "airflow.made.try-1/table": json.dumps(facts),
            "airflow.made.try-1/half": json.dumps({**facts, "name": "\ud800", "uri": "runs:/\ud800"}),
            f"airflow.read.{model_id_of(model)}": f"try-{digits}/x",
        }
        api.post("runs/log-batch", {"run_id": run_id, "tags": as_pairs(strange)})
        lost = {"experiment_id": run["info"]["experiment_id"], "start_time": 10**17, "tags": as_pairs({"airflow.trained": "m"})}
        late = api.post("runs/create", lost)["run"]["info"]["run_id"]
        for uri in (model.uri, f"runs:/{run_id}", f"runs:/{late}"):
            for command in (["lineage"], ["lineage", "--down"], ["lineage", "--dot"], ["diff", model.uri], ["impact"]):
                status, _, err = asked(capsys, *command, uri)
                assert (status, err) == (0, "")
            for command in (["impact", "--json"], ["lineage", "--down", "--json"], ["lineage", "--json"]):
                status, out, err = asked(capsys, *command, uri)
                assert (status, err) == (0, "")
                found = json.loads(out, parse_constant=pytest.fail)
        nodes = {each.id: each for each in trace(api, model.uri).nodes}
        made = nodes[f"dataset:{table.uri}"]
        assert isinstance(made, DatasetNode)
        assert (made.size, made.numbers) == (None, {"days": 7})
        assert found["nodes"][0]["started"] is None
        assert asked(capsys, "models", "--limit", "1")[0] == 0

    def test_a_step_may_note_any_number(self, night: Night) -> None:
        record = night.open("count", 1, -1)
        record.outputs = [night.output(record, "table", "Dataset")]
        record.outputs[0].metadata = {"rows": 3, "states": 10**400}
        record.status, record.end_time_ms = "FINISHED", now_ms()
        Recorder(night.api).send(record)
        (made,) = made_by(tags_of(RunTree(night.api).get(night.runs["count"])))
        assert made.numbers == {"rows": 3}

    def test_a_negative_limit_is_refused(self, mlflow_api: MlflowApi) -> None:
        with pytest.raises(ConfigError, match="limit=-1: give 0 or more"):
            trained_on(mlflow_api, limit=-1)


@pytest.fixture
def theirs(night: Night, mlflow_servers: dict[str, MlflowServer], tmp_path: Path, unique: str) -> Iterator[Night]:
    """A night of the administrator's, in an experiment that the user of `night` may read by default."""
    with MlflowApi(mlflow_servers["admin"], night.api.settings) as admin:
        yield Night(admin, tmp_path, f"{unique}-theirs", salt=f"{unique}-theirs")


class TestServers:
    def test_one_that_is_away_is_said_to_be(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(MlflowServer("mlflow_default", "http://127.0.0.1:9")))
        monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
        for command in (["lineage", "models:/x@champion"], ["diff", "models:/x/1", "models:/x/2"], ["impact", "/x"], ["models"]):
            status, out, err = asked(capsys, *command)
            assert (status, out) == (1, "")
            assert "http://127.0.0.1:9" in err

    @pytest.mark.form("basic-auth")
    def test_a_model_that_may_be_read_and_not_edited_fails_no_step_and_its_readers_are_found(
        self, night: Night, theirs: Night
    ) -> None:
        table = theirs.step("prepare", makes={"table": "Dataset"}, rows=3)["table"]
        base = theirs.step("train", makes={"model": "Model"})["model"]
        night.step("tune", [table, base], {"model": "Model"})
        inputs = RunTree(night.api).get(night.runs["tune"])["inputs"]
        assert len(inputs["dataset_inputs"]) == 1
        assert "model_inputs" not in inputs
        assert "tune" in names(trace(night.api, base.uri, direction="down"))

    @pytest.mark.form("basic-auth")
    def test_what_the_user_may_not_read_is_a_gap_and_the_rest_is_answered(
        self, night: Night, theirs: Night, mlflow_servers: dict[str, MlflowServer]
    ) -> None:
        table = theirs.step("prepare", makes={"table": "Dataset"}, rows=939_393)["table"]
        base = theirs.step("train", makes={"model": "Model"})["model"]
        experiment = theirs.api.get("experiments/get-by-name", experiment_name=theirs.dag_id)["experiment"]["experiment_id"]
        mlflow_forms.grant(mlflow_servers["admin"], "experiment", experiment, "EDIT")  # MLflow wants it of who names a model
        model = night.step("tune", [table, base], {"model": "Model"})["model"]
        mlflow_forms.grant(mlflow_servers["admin"], "experiment", experiment, "DENY")
        found = trace(night.api, model.uri)
        assert names(found) == ["tune"]
        assert {each.id for each in found.gaps} == {f"run:{theirs.runs['prepare']}", f"model:{model_id_of(base)}"}
        assert all("not to be read by the user of this connection" in each.reason for each in found.gaps)
        assert len(trace(theirs.api, model.uri).runs) == 3
        own = [each.model_id for each in trained_on(night.api, limit=None).graph.models]
        assert model_id_of(model) in own
        assert model_id_of(base) not in own

    def test_a_registered_model_that_was_deleted_with_all_its_versions_is_left_out(
        self, night: Night, unique: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reading, "FEW_VERSIONS", 0)
        night.whole(unique)
        night.api.delete("registered-models/delete", {"name": unique})
        found = trace(night.api, f"runs:/{night.runs['train']}", direction="down")
        assert (len(found.models), found.versions) == (1, [])

    @pytest.mark.full
    def test_an_empty_one_and_one_whose_runs_are_gone_for_good(self, tmp_path: Path, unique: str) -> None:
        process = MlflowProcess(tmp_path / "mlflow")
        with process, MlflowApi(MlflowServer("mlflow_default", process.url)) as api:
            assert trained_on(api, "rows > 1").graph.models == []
            night = Night(api, tmp_path, unique)
            model = night.whole(unique)
            RunRecords(api).delete(night.runs["features"])
            store = f"sqlite:///{process.folder / 'mlflow.db'}"
            command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store, "--run-ids", night.runs["features"]]
            subprocess.run(command, check=True, env=os.environ | {"MLFLOW_TRACKING_URI": process.url})
            up = trace(api, model.uri)
            assert names(up) == ["train"]
            assert [each.id for each in up.gaps] == [f"run:{night.runs['features']}"]
            down = trace(api, f"runs:/{night.runs['validate']}/flights", direction="down")
            assert (down.runs, down.gaps) == ([], ())
            assert names(trace(api, (night.table.sha256 or "") if night.table else "", direction="down")) == ["train"]
