"""``airflow-ml cache``, on cached steps that have really run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider import Cache
from airflow_ml_provider.cli.main import main
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking.cache_index import CACHE
from airflow_ml_provider.tracking.registry import ModelRegistry
from tests.operators.cached_steps import Steps, train, write_model, write_table

TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@pytest.fixture
def step(mlflow_api: MlflowApi, mlflow_connection: str, unique: str) -> Steps:
    return Steps(mlflow_api, unique)


@pytest.fixture
def said(step: Steps, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end well, and give what it prints."""

    def run(*args: str, status: int = 0) -> str:
        assert main(["cache", *args, "--experiment", step.dag_id]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return run


class TestExplain:
    def test_a_hit_names_the_dag_run_whose_result_it_is(self, step: Steps, said: Any) -> None:
        first, second = step(1), step(2)
        lines = said("explain", step.dag_id, "train").splitlines()
        assert re.fullmatch(rf"HIT  train of {step.dag_id}, DAG run night-2 \({TIME}\)", lines[0])
        assert re.fullmatch(rf"  The step did not run\. Its result is that of DAG run night-1, made {TIME}\.", lines[1])
        assert re.fullmatch(r"  It took \d+\.\d s here, and \d+\.\d s there\.", lines[2])
        assert lines[3] == "  Outputs: table (Dataset 23 B)."
        assert lines[4].endswith(second.run_id)
        assert lines[5].startswith("  from  ")
        assert lines[5].endswith(first.run_id)

    def test_a_miss_says_each_part_that_has_changed_and_what_has_not(self, step: Steps, said: Any) -> None:
        step(1, given={"depth": 300}, cache=Cache(salt="a"))
        step(2, given={"depth": 400}, cache=Cache(extras={"grid": "one, parameter two"}))
        text = said("explain", step.dag_id, "train", "night-2")
        assert re.search(
            rf"^MISS  train of .*, DAG run night-2 \({TIME}\)\n  The step ran\. Compared with DAG run night-1 ", text
        )
        for each in ("parameter depth: 300 -> 400", "extra grid: new", "salt: gone"):
            assert f"\n    {each}\n" in text
        assert "\n  The same: input many, input raw, parameter day, outputs.\n" in text
        assert "the next run with this key is a hit" in text

    def test_the_newest_run_is_explained_and_an_older_one_by_its_name(self, step: Steps, said: Any) -> None:
        step(1)
        step(2)
        assert said("explain", step.dag_id, "train").startswith("HIT")
        text = said("explain", step.dag_id, "train", "night-1")
        assert text.startswith("MISS")
        assert "  The step ran: no earlier result has this key.\n" in text

    def test_a_step_that_failed_has_the_parts_that_its_tag_names(self, step: Steps, said: Any) -> None:
        def body(session: StepSession) -> None:
            session.fail(error := RuntimeError("out of ideas"), "failed")
            raise error

        step(1)
        with pytest.raises(RuntimeError):
            step(2, given={"depth": 4, "day": "other"}, body=body)
        text = said("explain", step.dag_id, "train")
        assert "\n    parameter day: any -> other\n    parameter depth: 3 -> 4\n" in text
        assert "No result is kept for this key: the step failed" in text

    def test_a_result_whose_run_is_run_again_is_not_promised_as_a_hit(
        self, step: Steps, mlflow_api: MlflowApi, said: Any
    ) -> None:
        mlflow_api.post("runs/update", {"run_id": step(1).run_id, "status": "RUNNING"})
        text = said("explain", step.dag_id, "train")
        assert "The next run with this key is a miss: the result that is kept is of before, and its run is run again" in text

    def test_a_deleted_source_is_no_miss_where_the_result_was_made_anew(
        self, step: Steps, mlflow_api: MlflowApi, said: Any
    ) -> None:
        first, _ = step(1), step(2)
        mlflow_api.post("runs/delete", {"run_id": first.run_id})
        assert "deleted since: the next run with this key is a miss." in said("explain", step.dag_id, "train", "night-2")
        step(3)
        assert "That run was deleted since.\n" in said("explain", step.dag_id, "train", "night-2")

    def test_a_text_that_is_in_the_id_by_chance_is_no_date(self, step: Steps, said: Any) -> None:
        step(1, given={"day": "something"})
        step(2, given={"day": ""})
        assert "holds the date" not in said("explain", step.dag_id, "train")

    def test_a_parameter_with_the_date_of_its_dag_run_is_pointed_out(self, step: Steps, said: Any) -> None:
        step(1, given={"day": "night-1"})
        step(2, given={"day": "night-2"})
        assert "Parameter day holds the date, or the id, of the DAG run" in said("explain", step.dag_id, "train")

    @pytest.mark.parametrize(
        ("mode", "words"), [("off", "OFF  .*ml_cache=off"), ("refresh", "REFRESH  .*a refresh was asked for")]
    )
    def test_a_run_without_cache_says_so(self, step: Steps, said: Any, mode: str, words: str) -> None:
        step(1, context={"params": {"ml_cache": mode}})
        assert re.match(words, said("explain", step.dag_id, "train"), re.DOTALL)

    def test_the_reason_of_any_other_miss_is_told_in_its_words(self, step: Steps, mlflow_api: MlflowApi, said: Any) -> None:
        first = step(1)
        mlflow_api.post("runs/delete", {"run_id": first.run_id})
        step(2)
        assert f"The step ran: run {first.run_id} (night-1), which made the earlier result, was deleted." in said(
            "explain", step.dag_id, "train"
        )

    def test_a_step_that_asked_no_cache_says_so(self, step: Steps, mlflow_api: MlflowApi, said: Any) -> None:
        done = step(1, context={"params": {"ml_cache": "off"}})
        mlflow_api.post("runs/delete-tag", {"run_id": done.run_id, "key": CACHE})
        assert said("explain", step.dag_id, "train").startswith("NO CACHE  train of ")

    def test_of_a_mapped_task_each_instance_has_a_line(self, step: Steps, said: Any) -> None:
        step(1, map_index=0)
        step(1, map_index=1, given={"depth": 4})
        text = said("explain", step.dag_id, "train")
        assert f"train of {step.dag_id}, DAG run night-1: 0 of 2 hits\n" in text
        assert text.index("  [0]  MISS      no earlier result") < text.index("  [1]  MISS      ")
        assert said("explain", step.dag_id, "train", "--map-index", "1").startswith("MISS  train [1] of ")

    @pytest.mark.parametrize(
        ("task", "run", "words"),
        [
            ("trian", None, "Did you mean 'train'?"),
            ("train", "night-7", "has no run of task 'train' of DAG '.*' in DAG run 'night-7'. Did you mean 'night-1'?"),
        ],
    )
    def test_a_name_that_is_unknown_is_told_with_the_nearest(
        self, step: Steps, said: Any, task: str, run: str | None, words: str
    ) -> None:
        step(1)
        assert re.search(words, said("explain", step.dag_id, task, *filter(None, [run]), status=1))


class TestListing:
    def test_names_and_times_come_before_ids(self, step: Steps, said: Any) -> None:
        first, second = step(1), step(2, given={"depth": 4}, task_id="other")
        lines = said("ls").splitlines()
        assert re.match(r"DAG +task +made +by DAG run +result +state +key +MLflow run", lines[0])
        row = rf"{step.dag_id}  (other|train)  {TIME}  night-\d  +table \(Dataset 23 B\)  newest  [0-9a-f]{{12}}  (\w{{32}})"
        found = [re.match(row, line) for line in lines[1:-1]]
        assert [each and (each[1], each[2]) for each in found] == [("other", second.run_id), ("train", first.run_id)]
        assert lines[-1] == "2 entries"
        assert said("ls", "--task", "train").endswith("1 entry\n")

    def test_entries_of_a_deleted_run_are_stale(self, step: Steps, mlflow_api: MlflowApi, said: Any) -> None:
        mlflow_api.post("runs/delete", {"run_id": step(1).run_id})
        text = said("ls")
        assert "stale: its run was deleted" in text
        assert text.endswith("1 entry, 1 of them stale: airflow-ml cache clear --stale\n")


class TestClearing:
    def test_it_is_a_dry_run_first(self, step: Steps, said: Any) -> None:
        step(1)
        text = said("clear", "--task", "train")
        assert text.endswith("1 entry to delete. Nothing was deleted: the same with --yes deletes them.\n")
        assert step(2).hit is not None
        assert said("clear", "--task", "train", "--yes").endswith("1 of 1 entry deleted. Runs and artifacts stay.\n")
        third = step(3)
        assert (third.ran, third.said) == (True, "miss: no earlier result has this key")

    def test_those_of_a_model_go_by_its_name_or_alias(self, step: Steps, mlflow_api: MlflowApi, unique: str, said: Any) -> None:
        made = [step(night, function=train, body=write_model, given={"depth": night}) for night in (1, 2)]
        step(3, task_id="other", body=write_table)
        registry = ModelRegistry(mlflow_api)
        for each in made:
            model_id = str(each.session.record.outputs[0].model_id)
            registry.register(unique, f"models:/{model_id}", run_id=each.run_id, model_id=model_id)
        mlflow_api.post("registered-models/alias", {"name": unique, "alias": "live", "version": "1"})
        assert "2 entries to delete" in said("clear", "--model", unique)
        assert made[0].run_id in said("clear", "--model", f"models:/{unique}@live")
        assert made[1].run_id in said("clear", "--model", f"models:/{unique}/2")
        text = said("clear", "--model", str(made[1].session.record.outputs[0].model_id), "--yes")
        assert "1 of 1 entry deleted" in text
        assert said("ls").endswith("2 entries\n")
        assert "no version of a registered model of that name" in said("clear", "--model", "nobody", status=1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["clear"], "cache clear needs to know what"),
        (["clear", "d"], "cache clear takes filters, not d"),
        (["ls", "--map-index", "1"], "cache ls takes filters, not --map-index"),
        (["ls", "--yes"], "cache ls deletes nothing"),
        (["ls", "--older-than", "nan"], "give days from 0"),
        (["clear", "--older-than", "-1"], "give days from 0"),
        (["explain", "d"], "cache explain needs a DAG and a task"),
        (["explain", "d", "t", "--dag", "d"], "cache explain takes no filters"),
    ],
)
def test_what_an_action_does_not_heed_is_refused(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *args]) == 1
    assert words in capsys.readouterr().err
