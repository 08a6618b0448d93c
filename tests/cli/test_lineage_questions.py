"""``airflow-ml diff``, ``impact`` and ``models``: what is printed, for people and for programs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from airflow_ml_provider.cli import diff, impact
from airflow_ml_provider.cli.main import main
from airflow_ml_provider.lineage.difference import Change, Difference
from airflow_ml_provider.lineage.impact import Impact, ImpactedModel, ImpactedTask
from airflow_ml_provider.models.lineage import DatasetNode, Gap, ModelNode, RunNode, Step, VersionNode
from tests.lineage.nights import Night

TABLE = DatasetNode(name="table", uri="runs:/1/table", sha256="a" * 64, size=2000, numbers={"rows": 12_345}, run_id="1")


def said(capsys: pytest.CaptureFixture[str], *command: str, status: int = 0) -> str:
    assert main([*command]) == status
    return capsys.readouterr().out


class TestDiff:
    CHANGES = (
        Change(what="data", where="train", name="table", before=TABLE.id, after=None),
        Change(what="parameter", where="train", name="max_iter", before="300", after="\x1b400"),
        *(Change(what="code", where=f"clean[{index}]", before="4" * 40, after="5" * 40) for index in range(3)),
        Change(what="image", where="train", before="app:1", after="app:2"),
        Change(what="metric", where="train", name="loss", before=0.25, after=0.2),
        Change(what="step", where="tune", before=None, after="tune"),
    )

    def test_each_kind_of_change_has_a_paragraph_and_what_is_alike_is_said_once(self) -> None:
        gaps = (Gap(id="run:gone", reason="deleted"),)
        found = Difference(before="A", after="B", changes=self.CHANGES, datasets={TABLE.id: TABLE}, gaps=gaps)
        assert diff.in_words(found).plain.split("\n\n") == [
            "A -> B",
            "Data\n  table: 12,345 rows, 2.0 kB, sha256 aaaaaaaaaaaa -> none  (in train)",
            "Parameters\n  max_iter: 300 ->  400  (in train)",
            "Code\n  444444444444 -> 555555555555  (in clean)",
            "Images\n  app:1 -> app:2  (in train)",
            "Metrics\n  loss: 0.25 -> 0.2 (-0.05)  (in train)",
            "Steps\n  tune: only on the way to B",
            "Not compared\n  gone: deleted",
        ]

    def test_of_very_many_changes_the_first_and_the_last_are_shown(self) -> None:
        changes = tuple(Change(what="parameter", where="s", name=f"p{index:02}", before="1", after="2") for index in range(50))
        lines = diff.in_words(Difference(before="A", after="B", changes=changes)).plain.splitlines()
        assert [line.split(":")[0].strip() for line in lines[3:]] == [
            *(f"p{index:02}" for index in range(10)),
            "... 30 more (--json)",
            *(f"p{index:02}" for index in range(40, 50)),
        ]

    def test_the_exit_status_says_so_only_where_that_is_asked(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = night.whole(unique)
        second = Night(night.api, night.folder, night.dag_id, "second", commit="5" * 40).whole()
        assert "444444444444 -> 555555555555  (in validate, features, train)" in said(capsys, "diff", first.uri, second.uri)
        said(capsys, "diff", "--exit-code", first.uri, second.uri, status=3)
        assert "Nothing on record differs." in said(capsys, "diff", "--exit-code", first.uri, f"models:/{unique}@champion")
        found = json.loads(said(capsys, "diff", "--json", first.uri, second.uri))
        assert set(found) == {"before", "after", "changes", "datasets", "gaps"}
        assert set(found["changes"][0]) == {"what", "where", "name", "before", "after"}


class TestImpact:
    def test_what_is_in_use_is_said_first_and_then_what_to_run(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        table = night.table
        assert table is not None
        out = said(capsys, "impact", f"runs:/{night.runs['validate']}/flights")
        assert re.search(
            rf"Train again: models with an alias.*\n  {unique} version 1 @champion  trained 20.* by train of {night.dag_id} ", out
        )
        assert out.rstrip().endswith(f"Run again\n  {night.dag_id}: features, train  (1 DAG run: {night.run_id})")
        found = json.loads(said(capsys, "impact", "--json", (table.sha256 or "")[:12]))
        assert set(found) == {"asked", "datasets", "models", "tasks", "gaps"}
        assert f"{unique}" in {version["name"] for model in found["models"] for version in model["versions"]}

    def test_what_is_not_in_use_is_said_apart_and_not_without_end(self) -> None:
        run = RunNode(
            run_id="r", url="u", name="train", status="FINISHED", step=Step(dag_id="d", dag_run_id="n", task_id="train")
        )
        when = datetime(2013, 12, 30, 2, 10, tzinfo=UTC)
        loose = [
            ImpactedModel(model=ModelNode(model_id=f"m-{index}", name="model", created=when), run=run) for index in range(22)
        ]
        registered = ImpactedModel(model=loose[0].model, versions=(VersionNode(name="flights", version="7"),))
        tasks = (
            ImpactedTask(dag_id="d", task_id="train", dag_run_ids=("4", "3", "2", "1"), runs=4),
            ImpactedTask(dag_id="", task_id="x", runs=1),
        )
        text = impact.in_words(Impact(asked="A", datasets=(TABLE,) * 7, models=(registered, *loose), tasks=tasks)).plain
        assert "  and 2 other contents that it had" in text
        assert "Train again: other registered models\n  flights version 7  trained 2013-12-30 02:10 UTC\n" in text
        assert "not registered\n  model m-0  trained 2013-12-30 02:10 UTC by train of d n\n" in text
        assert "  2 more (--json)\n" in text
        assert "  d: train  (4 DAG runs: 4, 3, 2 and earlier)\n  runs that are not from Airflow: x" in text

    def test_data_of_which_no_model_came_is_said_to_be(self) -> None:
        assert "No model on record came of it." in impact.in_words(Impact(asked="A")).plain


class TestModels:
    def test_models_and_the_data_that_counts_are_listed(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique, rows=515_151)
        out = said(capsys, "models", "--trained-on", "rows = 515151")
        assert re.match(
            rf"{unique} version 1 @champion  trained 20.* by train of {night.dag_id} .*\n  \* table, 515,151 rows, ", out
        )
        found = json.loads(said(capsys, "models", "--trained-on", "rows = 515151", "--json"))
        assert (found["version"], len(found["start"])) == (2, 1)

    def test_it_is_said_when_there_are_none_and_when_there_are_more(
        self, night: Night, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(rows=3)
        second = Night(night.api, night.folder, night.dag_id, "second")
        second.whole(rows=3)
        assert "None of the models of 0 training steps" not in said(capsys, "models", "--trained-on", "name = nothing")
        assert said(capsys, "models", "--limit", "1").endswith("The newest 1; there are more: --limit 0 for all.\n")
        assert "Their data has no number row on record; it has: " in said(
            capsys, "models", "--trained-on", "row != 1 and name = table"
        )

    def test_a_condition_that_cannot_be_read_is_one_line_and_status_1(
        self, mlflow_connection: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["models", "--trained-on", "rows > ten"]) == 1
        assert re.fullmatch(r"airflow-ml: rows > 'ten': rows is compared with a number.*\n", capsys.readouterr().err)
