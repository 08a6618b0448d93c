"""What came of data and of models, on histories with retries, mapped tasks, cache hits, rollbacks and deleted runs."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import between, trace
from airflow_ml_provider.models.lineage import Graph
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.run_records import RunRecords
from tests.lineage.nights import Counted, Night, outside
from tests.lineage.test_query import dataset_from, log_inputs, model_id_of, names


def other(night: Night, run_id: str, **fields: Any) -> Night:
    return Night(night.api, night.folder, night.dag_id, run_id, salt=night.salt, **fields)


def kinds(graph: Graph) -> list[str]:
    return sorted(each.id.partition(":")[0] for each in graph.nodes)


class TestDown:
    def test_data_leads_to_the_version_that_was_trained_on_it(self, night: Night, unique: str) -> None:
        night.whole(unique)
        found = trace(night.api, f"runs:/{night.runs['validate']}/try-1/flights.bin", direction="down")
        assert names(found) == ["features", "train"]
        assert [(each.name, each.aliases) for each in found.versions] == [(unique, ("champion",))]
        assert "validate" not in names(found), "it is above"
        assert found.gaps == ()

    @pytest.mark.parametrize("form", ["{sha}", "sha256:{sha}", "{short}", "runs:/{run}/try-1/table.bin", "runs:/{run}/table"])
    def test_every_form_of_asking_for_data_finds_its_readers(self, night: Night, form: str) -> None:
        night.whole()
        assert night.table is not None
        sha = night.table.sha256 or ""
        uri = form.format(sha=sha, short=sha[:12], run=night.runs["features"])
        assert names(trace(night.api, uri, direction="down")) == ["train"]

    def test_a_run_leads_to_all_that_came_of_it(self, night: Night) -> None:
        night.whole()
        found = trace(night.api, f"runs:/{night.runs['validate']}", direction="down")
        assert names(found) == ["validate", "features", "train"]

    def test_data_from_outside_is_found_by_its_place_and_each_content_of_it_apart(self, night: Night, unique: str) -> None:
        first = outside().model_copy(update={"uri": f"s3://{unique}/raw.csv"})
        second = first.model_copy(update={"sha256": "b" * 64})
        night.step("monday", [first])
        night.step("tuesday", [second])
        assert sorted(names(trace(night.api, first.uri, direction="down"))) == ["monday", "tuesday"]
        assert names(trace(night.api, f"{first.uri}/", direction="both")) == names(trace(night.api, first.uri, direction="both"))
        assert len(trace(night.api, first.uri).datasets) == 2

    def test_a_model_leads_to_those_that_were_tuned_of_it(self, night: Night, unique: str) -> None:
        base = night.whole(unique)
        tuned = night.step("tune", [base, outside()], {"model": "Model"})["model"]
        for uri in (f"models:/{unique}@champion", f"models:/{model_id_of(base)}", f"runs:/{night.runs['train']}/model"):
            found = trace(night.api, uri, direction="down")
            assert names(found) == ["tune"]
            assert {each.model_id for each in found.models} == {model_id_of(base), model_id_of(tuned)}

    def test_both_ways_at_once(self, night: Night, unique: str) -> None:
        night.whole(unique)
        found = trace(night.api, f"runs:/{night.runs['features']}/table", direction="both")
        assert sorted(names(found)) == ["features", "train", "validate"]
        assert kinds(found) == ["dataset"] * 3 + ["model"] + ["run"] * 3 + ["version"]

    def test_instances_of_a_mapped_task_are_steps_of_their_own(self, night: Night) -> None:
        raw = night.step("validate", makes={"raw": "Dataset"})["raw"]
        parts = [night.step("clean", [raw], {"part": "Dataset"}, map_index=each)["part"] for each in range(3)]
        listed = [part.model_copy(update={"name": f"parts[{index}]"}) for index, part in enumerate(parts)]
        night.step("join", listed, {"model": "Model"})
        found = trace(night.api, f"runs:/{night.runs['validate']}/raw", direction="down")
        assert sorted(names(found)) == ["clean[0]", "clean[1]", "clean[2]", "join"]
        assert sorted(edge.name for edge in found.into(f"run:{night.runs['join']}")) == ["parts[0]", "parts[1]", "parts[2]"]
        one = trace(night.api, f"runs:/{night.runs['clean[1]']}/part", direction="down")
        assert [edge.name for edge in one.edges if edge.target == f"run:{night.runs['join']}"] == ["parts[1]"]


class TestTries:
    def test_what_only_a_failed_try_had_read_came_to_nothing(self, night: Night) -> None:
        made = night.step("validate", makes={"bad": "Dataset", "good": "Dataset"})
        night.step("train", [made["bad"].model_copy(update={"name": "table"})])
        again = night.step("train", [made["good"].model_copy(update={"name": "table"})], {"model": "Model"}, try_number=2)
        bad, good = (f"runs:/{night.runs['validate']}/{each}" for each in ("bad", "good"))
        assert trace(night.api, bad, direction="down").models == []
        assert [each.model_id for each in trace(night.api, good, direction="down").models] == [model_id_of(again["model"])]

    def test_the_model_of_an_earlier_try_still_came_of_what_that_had_read(self, night: Night, unique: str) -> None:
        """A cleared task trains again on other data; what serves may be the model of before."""
        made = night.step("validate", makes={"bad": "Dataset", "good": "Dataset"})
        first = night.step("train", [made["bad"].model_copy(update={"name": "table"})], {"model": "Model"})["model"]
        night.register(unique, first)
        night.step("train", [made["good"].model_copy(update={"name": "table"})], {"model": "Model"}, try_number=2)
        found = impact(night.api, f"runs:/{night.runs['validate']}/bad")
        assert [(each.model.model_id, each.aliases) for each in found.models] == [(model_id_of(first), ("champion",))]
        up = trace(night.api, f"models:/{unique}@champion")
        assert [each.name for each in up.datasets] == ["bad"], "and the way up is that of the same try"

    def test_what_both_tries_have_read_came_to_the_models_of_both(self, night: Night) -> None:
        raw = night.step("validate", makes={"raw": "Dataset"})["raw"]
        models = [night.step("train", [raw], {"model": "Model"}, try_number=each)["model"] for each in (1, 2)]
        found = trace(night.api, raw.uri, direction="down")
        assert {each.model_id for each in found.models} == {model_id_of(each) for each in models}


class TestCacheHits:
    def test_what_was_taken_over_leads_to_its_maker_and_on_to_both_nights(self, night: Night) -> None:
        first = night.step("features", [outside()], {"table": "Dataset"})["table"]
        night.step("train", [first], {"model": "Model"})
        second = other(night, "second")
        second.step("features", [outside()], taken={"table": first})
        model = second.step("train", [first], {"model": "Model"})["model"]
        up = trace(night.api, model.uri)
        assert [each.run_id for each in up.runs] == [second.runs["train"], night.runs["features"]]
        down = trace(night.api, first.uri, direction="down")
        assert {each.run_id for each in down.runs} == {night.runs["train"], second.runs["train"]}

    def test_what_a_hit_has_read_came_to_what_it_took_over(self, night: Night, unique: str) -> None:
        """Its inputs have the same bytes at another place."""
        first = night.step("train", [outside()], {"model": "Model"})["model"]
        elsewhere = outside().model_copy(update={"uri": f"s3://{unique}/copy.csv"})
        second = other(night, "second")
        second.step("train", [elsewhere], taken={"model": first})
        found = trace(night.api, elsewhere.uri, direction="down")
        assert [each.model_id for each in found.models] == [model_id_of(first)]
        assert [each.cached_from for each in found.runs] == [night.runs["train"]]


class TestWhatIsGone:
    def test_a_deleted_run_is_shown_and_the_way_goes_on(self, night: Night) -> None:
        night.whole()
        night.api.post("runs/delete", {"run_id": night.runs["features"]})
        found = trace(night.api, f"runs:/{night.runs['validate']}/flights", direction="down")
        assert [(each.name, each.deleted) for each in found.runs] == [("features", True), ("train", False)]

    def test_a_deleted_model_or_version_is_left_out(self, night: Night, unique: str) -> None:
        model = night.whole(unique)
        night.api.delete("model-versions/delete", {"name": unique, "version": "1"})
        found = trace(night.api, f"runs:/{night.runs['validate']}/flights", direction="down")
        assert (len(found.models), found.versions) == (1, [])
        night.api.delete(f"logged-models/{model_id_of(model)}", {})
        assert trace(night.api, f"runs:/{night.runs['validate']}/flights", direction="down").models == []

    def test_a_cycle_ends(self, night: Night) -> None:
        made = night.step("first", makes={"a": "Dataset"})["a"]
        back = night.step("second", [made], {"b": "Dataset"})["b"]
        night.step("first", [back], {"a": "Dataset"}, try_number=2)
        night.step("second", [made.model_copy(update={"uri": made.uri.replace("try-1", "try-2")})], try_number=2)
        found = trace(night.api, made.uri, direction="down")
        assert sorted(names(found)) == ["first", "second"]
        assert found.gaps == (), "the depth had no part in it"

    def test_a_long_way_is_cut_and_says_how_to_go_on(self, night: Night) -> None:
        night.whole()
        found = trace(night.api, f"runs:/{night.runs['validate']}/flights", direction="down", depth_limit=1)
        assert names(found) == ["features"]
        assert [gap.reason.rpartition(": ")[2] for gap in found.gaps] == [
            f"airflow-ml lineage --down runs:/{night.runs['features']}/try-1/table.bin"
        ]

    def test_what_others_recorded_by_hand_is_followed_up(self, night: Night) -> None:
        """Their runs have no tags of ours, so nothing leads down to them."""
        night.step("first", makes={"a": "Dataset"})
        experiment = night.api.get("runs/get", run_id=night.runs["first"])["run"]["info"]["experiment_id"]
        run_id = night.api.post("runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]
        log_inputs(night.api, run_id, [dataset_from("a", night.runs["first"])])
        assert [each.run_id for each in trace(night.api, f"runs:/{run_id}").runs] == [run_id, night.runs["first"]]
        assert trace(night.api, f"runs:/{night.runs['first']}/a", direction="down").runs == []


class TestBetween:
    def test_only_what_lies_on_the_way_is_shown(self, night: Night, unique: str) -> None:
        night.whole(unique)
        found = between(night.api, f"runs:/{night.runs['validate']}/weather", f"models:/{unique}@champion")
        assert sorted(names(found)) == ["features", "train"]
        assert sorted(each.name for each in found.datasets) == ["table", "weather"], "and not the flights"
        assert found.start == tuple(each.id for each in found.datasets if each.name == "weather")

    def test_there_is_nothing_between_what_does_not_hang_together(self, night: Night) -> None:
        night.whole()
        apart = night.step("apart", makes={"x": "Dataset"})["x"]
        assert between(night.api, apart.uri, f"runs:/{night.runs['train']}").nodes == ()


class TestImpact:
    def test_what_serves_comes_first_also_after_a_rollback(self, night: Night, unique: str) -> None:
        night.whole(unique)
        raw = ArtifactRef(type="Dataset", name="flights", uri=f"runs:/{night.runs['validate']}/try-1/flights.bin")
        second = other(night, "second")
        read = raw.model_copy(update={"run_id": night.runs["validate"], "sha256": night.table.sha256 if night.table else None})
        second.register(unique, second.step("train", [read], {"model": "Model"})["model"])
        third = second.step("tune", [read], {"model": "Model"})["model"]
        ModelRegistry(night.api).rollback(unique)
        found = impact(night.api, raw.uri)
        assert [[(each.version, each.aliases) for each in model.versions] for model in found.models] == [
            [("2", ("previous-champion",))],
            [("1", ("champion",))],
            [],
        ]
        assert found.models[2].model.model_id == model_id_of(third)
        assert [(each.dag_id, each.task_id, each.runs) for each in found.tasks] == [
            (night.dag_id, "features", 1),
            (night.dag_id, "train", 2),
            (night.dag_id, "tune", 1),
        ]
        assert found.tasks[1].dag_run_ids == ("second", night.run_id)


class TestRequests:
    def test_a_way_up_costs_no_more_than_three_requests_per_level_however_wide_it_is(
        self, night: Night, counted: Counted
    ) -> None:
        raw = night.step("validate", makes={"raw": "Dataset"})["raw"]
        parts = [night.step("clean", [raw], {"part": "Dataset"}, map_index=each)["part"] for each in range(6)]
        listed = [part.model_copy(update={"name": f"parts[{index}]"}) for index, part in enumerate(parts)]
        model = night.step("join", listed, {"model": "Model"})["model"]
        found = trace(counted, model.uri)
        assert len(found.runs) == 8
        assert len(counted.sent) == 4, counted.sent  # the model, its run, the six of the mapped task at once, the first one

    def test_a_way_down_asks_once_for_the_readers_of_each_step(self, night: Night, counted: Counted) -> None:
        night.whole()
        trace(counted, f"runs:/{night.runs['validate']}", direction="down")
        assert counted.sent.count("runs/search") == 3, "those of validate, features, and the model"
        assert len(counted.sent) == 6, counted.sent

    def test_recording_costs_a_step_no_request_more(self, night: Night, counted: Counted) -> None:
        raw = night.step("validate", makes={"raw": "Dataset"}, rows=3)["raw"]
        watched = Night(counted, night.folder, night.dag_id, night.run_id)
        record = watched.open("features")
        record.inputs, record.status = [raw, outside()], "FINISHED"
        counted.sent.clear()
        Recorder(counted).send(record)
        assert counted.sent == ["runs/get", "runs/log-inputs", "runs/log-batch", "runs/update"]


class TestWhatATaskLogs:
    def test_a_run_that_was_told_what_it_has_read_is_found_from_there(self, night: Night, unique: str) -> None:
        table = night.step("prepare", makes={"table": "Dataset"}, rows=3)["table"]
        raw = f"s3://{unique}/raw, of monday.csv"
        experiment = night.api.get("runs/get", run_id=night.runs["prepare"])["run"]["info"]["experiment_id"]
        records = RunRecords(night.api)
        run_id = night.api.post("runs/create", {"experiment_id": experiment, "run_name": "notebook"})["run"]["info"]["run_id"]
        datasets = [table.to_json(), {"name": "the raw, all", "uri": raw, "digest": "7"}, {"name": "same", "uri": table.uri}]
        for some in (datasets[:1], datasets, datasets[1:]):
            records.log_datasets(run_id, some)
        for uri, edges in ((table.uri, ["same", "table"]), (raw, ["the raw, all"])):
            assert sorted(each.name for each in trace(night.api, uri, direction="down").edges) == edges
        assert names(trace(night.api, f"runs:/{run_id}")) == ["notebook", "prepare"]
        found = impact(night.api, table.uri)
        assert [(each.dag_id, each.task_id, each.runs) for each in found.tasks] == [("", "notebook", 1)]

    def test_a_step_keeps_what_it_has_read_itself(self, night: Night, unique: str) -> None:
        first = night.step("prepare", makes={"a": "Dataset", "b": "Dataset"})
        night.step("train", [first["a"]], {"model": "Model"})
        RunRecords(night.api).log_datasets(night.runs["train"], [first["b"].to_json()])
        for name in ("a", "b"):
            assert len(trace(night.api, first[name].uri, direction="down").models) == 1
