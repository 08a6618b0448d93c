"""Which models were trained on data of some kind; and conditions, which are read strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.condition import Condition
from airflow_ml_provider.lineage.trained import TrainedModels, data_of, trained_on
from airflow_ml_provider.models.lineage import DatasetNode
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.lineage_tags import trained_on_metrics
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import tags_of
from tests.lineage.nights import Night
from tests.lineage.test_query import model_id_of

TABLE = DatasetNode(
    name="table", uri="s3://b/k", digest="ab" * 18, sha256="ab" * 32, size=2000, numbers={"rows": 12_345, "share": 0.5}
)


class TestConditions:
    @pytest.mark.parametrize(
        ("words", "holds"),
        [
            ("rows > 10000", True),
            ("rows>10_000", True),
            ("rows >= 12345 and rows <= 12345", True),
            ("rows = 12345 AND name = 'table'", True),
            ("rows == 1.2345e4", True),
            ("rows < 12345", False),
            ("rows != 12345", False),
            ("share < 0.75 and size > 1e3", True),
            ('name = "other"', False),
            ("name != other", True),
            ("digest = abab", True),
            ("digest = 'ABAB'", True),
            ("digest = bb", False),
            ("digest != bb", True),
            ("uri = s3://b/k", True),
            ("columns > -1", False),
        ],
    )
    def test_a_condition_is_true_or_not(self, words: str, holds: bool) -> None:
        assert Condition.parse(words).holds_for(TABLE) is holds

    @pytest.mark.parametrize(
        "words",
        [
            *("", "rows", "rows >", "> 3", "rows > ten", "rows > '3'", "rows > nan", "rows > inf", "rows = 1 or 1 = 1"),
            *(
                "rows > 1; drop",
                "rows > 1 and",
                "and rows > 1",
                "name > 'a'",
                "name LIKE '%'",
                "digest = xyz",
                "rows > 1 rows < 2",
            ),
            *("`rows` > 1", "rows > 1 AND metrics.auc > 0 OR 1", "größe > 1", "name = 'a"),
        ],
    )
    def test_anything_else_is_refused_and_says_what_can_be_asked(self, words: str) -> None:
        with pytest.raises(ConfigError, match="rows > 10000 and name = 'table'"):
            Condition.parse(words)

    def test_the_largest_and_the_smallest_number_are_kept_where_there_are_several(self) -> None:
        read = [{"rows": 3, "odd name": 1}, {"rows": 5}, {"share": 0.5}]
        assert trained_on_metrics(read) == {"trained_on.rows": 5, "trained_on.rows.min": 3, "trained_on.share": 0.5}


@pytest.fixture
def night(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> Night:
    return Night(mlflow_api, tmp_path, unique, salt=unique)


def found_by(found: TrainedModels, night: Night) -> set[str]:
    """The models of this test, of all on the shared server."""
    own = [
        each
        for each in found.graph.models
        if (run := found.graph.by_id.get(f"run:{each.run_id}")) and run.step.dag_id == night.dag_id
    ]
    return {each.model_id for each in own}


class TestModels:
    def test_models_are_found_by_the_rows_that_they_were_trained_on(self, night: Night, unique: str) -> None:
        few = night.whole(rows=9_999)
        second = Night(night.api, night.folder, night.dag_id, "second", salt=f"{unique}2")
        many = second.whole(unique, rows=10_001)
        one, both = {model_id_of(many)}, {model_id_of(many), model_id_of(few)}
        asked = {"rows > 10000": one, "rows < 10000": both - one, "rows = 10001": one, "rows != 10001": both - one, "": both}
        asked |= {"rows > 1e6": set(), "rows > 9000": both, f"digest = {second.table.sha256 if second.table else ''}": one}
        asked |= {"rows > 10000 and name = 'flights'": set(), "name = table and rows > 10000": one}
        assert {words: found_by(trained_on(night.api, words), night) for words in asked} == asked
        found = trained_on(night.api, "rows > 10000")
        (model,) = [each for each in found.graph.models if each.model_id in one]
        assert [(each.name, each.numbers) for each in data_of(found.graph, model)] == [("table", {"rows": 10_001})]
        assert [each.name for each in found.graph.versions if each.name == unique] == [unique]

    def test_one_of_several_inputs_is_enough(self, night: Night) -> None:
        small = night.step("a", makes={"x": "Dataset"}, rows=3)["x"]
        large = night.step("b", makes={"y": "Dataset"}, rows=70)["y"]
        model = night.step("train", [small, large], {"model": "Model"})["model"]
        for words in ("rows > 60", "rows < 5", "rows = 3", "rows = 70"):
            assert found_by(trained_on(night.api, f"{words} and rows != 7"), night) == {model_id_of(model)}, words
        for words in ("rows > 70", "rows < 3", "rows = 50", "rows > 5 and rows < 60"):
            assert found_by(trained_on(night.api, words), night) == set(), words

    def test_what_an_earlier_try_was_trained_on_is_found_after_a_clear(self, night: Night, unique: str) -> None:
        read = {rows: night.step(f"made_{rows}", makes={"x": "Dataset"}, rows=rows)["x"] for rows in (12_000, 5_000, 8_000)}
        models = {}
        for number, rows in enumerate(read, start=1):
            night.salt = f"{unique}{number}"
            models[rows] = model_id_of(night.step("train", [read[rows]], {"model": "Model"}, try_number=number)["model"])
        asked = {"rows > 10000": [12_000], "rows < 6000": [5_000], "rows = 12000": [12_000], "rows = 5000": [5_000]}
        asked |= {"rows = 8000": [8_000], "rows >= 8000": [12_000, 8_000], "rows > 12000": [], "rows < 5000": []}
        found = {words: found_by(trained_on(night.api, words), night) for words in asked}
        assert found == {words: {models[each] for each in rows} for words, rows in asked.items()}

    def test_the_newest_come_first_and_no_more_than_were_wanted(self, night: Night) -> None:
        raw = night.step("prepare", makes={"x": "Dataset"}, rows=424_242)["x"]
        made = [model_id_of(night.step(f"train_{each}", [raw], {"model": "Model"})["model"]) for each in range(3)]
        found = trained_on(night.api, "rows = 424242", limit=2)
        assert [each.model_id for each in found.graph.models] == [made[2], made[1]]
        assert found.more
        whole = trained_on(night.api, "rows = 424242", limit=None)
        assert ([each.model_id for each in whole.graph.models], whole.more) == (made[::-1], False)

    def test_a_cache_hit_is_no_training(self, night: Night) -> None:
        raw = night.step("prepare", makes={"x": "Dataset"}, rows=737_373)["x"]
        model = night.step("train", [raw], {"model": "Model"})["model"]
        Night(night.api, night.folder, night.dag_id, "second").step("train", [raw], taken={"model": model})
        found = trained_on(night.api, "rows = 737373")
        assert (found.looked_at, found_by(found, night)) == (1, {model_id_of(model)})


class TestWhatIsOnRecord:
    def test_numbers_that_a_container_has_stored_count_too(self, night: Night) -> None:
        """Of a step in a pod the worker knows only that there is metadata."""
        record, recorder = night.open("prepare"), Recorder(night.api)
        output = night.output(record, "x", "Dataset")
        output.metadata, record.outputs, record.status = {"rows": 616_161}, [output], "FINISHED"
        recorder.store_outputs(record)
        output.metadata = {}
        recorder.log(record)
        assert output.stored is not None
        model = night.step("train", [output.stored], {"model": "Model"})["model"]
        assert found_by(trained_on(night.api, "rows = 616161"), night) == {model_id_of(model)}

    def test_metadata_that_is_gone_fails_no_step(self, night: Night) -> None:
        record, recorder = night.open("prepare"), Recorder(night.api)
        output = night.output(record, "x", "Dataset")
        record.outputs, record.status = [output], "FINISHED"
        recorder.store_outputs(record)
        assert output.stored is not None
        output.stored = output.stored.model_copy(update={"metadata": f"runs:/{record.run.run_id}/nothing.json"})
        recorder.log(record)
        assert night.api.get("runs/get", run_id=record.run.run_id)["run"]["info"]["status"] == "FINISHED"

    def test_a_step_that_reads_more_than_one_request_holds_says_all_of_it(self, night: Night) -> None:
        def ref(index: int) -> ArtifactRef:
            digest = hashlib.sha256(str(index).encode()).hexdigest()
            return ArtifactRef(
                type="Dataset", name=f"parts[{index}]", uri=f"runs:/{digest[:32]}/x", sha256=digest, run_id=digest[:32]
            )

        night.step("join", [ref(index) for index in range(120)])
        run = night.api.get("runs/get", run_id=night.runs["join"])["run"]
        assert len([key for key in tags_of(run) if key.startswith("airflow.read.")]) == 240
        assert run["info"]["status"] == "FINISHED"
