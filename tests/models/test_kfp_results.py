"""Finding one output among all that a pipeline run gave back, and reading the XCom that tells of it."""

from __future__ import annotations

import json

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults, iterations_in
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs


def output(label: str, **more: object) -> KfpOutput:
    task, _, name = label.rpartition(".")
    return KfpOutput.model_validate({"name": name, "task": task, "source": "artifact-api"} | more)


class TestFind:
    def test_takes_the_pipelines_own_output_before_those_of_tasks(self):
        results = KfpResults(outputs=(output("train.model", uri="task"), output("model", uri="own")))
        assert results.find("model").uri == "own"
        assert results.find("train.model").uri == "task"

    def test_takes_a_bare_name_where_one_task_has_it(self):
        results = KfpResults(outputs=(output("train.model", uri="it"), output("prepare.data")))
        assert results.find("model").uri == "it"

    def test_names_the_candidates_where_several_tasks_have_it(self):
        results = KfpResults(outputs=(output("a.model"), output("b.model"), output("c.data")))
        with pytest.raises(ConfigError, match=r"2 have that name: a\.model, b\.model\. Name one with its task"):
            results.find("model")

    def test_names_what_there_is_where_nobody_has_it(self):
        with pytest.raises(ConfigError, match=r"no output 'x'\. It has: a\.model\."):
            KfpResults(outputs=(output("a.model"),)).find("x")
        with pytest.raises(ConfigError, match="It has: none"):
            KfpResults().find("x")

    def test_lists_a_bounded_number_of_names(self):
        results = KfpResults(outputs=tuple(output(f"task.o{number:03}") for number in range(500)))
        with pytest.raises(ConfigError) as error:
            results.find("x")
        assert "and 480 more" in str(error.value)
        assert len(str(error.value)) < 500

    def test_does_not_choose_between_the_iterations_of_a_loop(self):
        results = KfpResults(outputs=tuple(output("train.model", type="Model", uri=each, loop=[int(each)]) for each in "01"))
        for name in ("model", "train.model"):
            with pytest.raises(ConfigError, match=r"is there 2 times, .* Take all of them, .*list\[Model\]"):
                results.find(name)


class TestFindAll:
    def test_gives_the_iterations_in_their_order_whatever_the_order_in_which_they_came(self):
        loops = [(1, 0), (0, 10), (0, 9), (1,)]
        results = KfpResults(outputs=tuple(output("train.model", uri=str(each), loop=each) for each in loops[:3]))
        assert [each.loop for each in results.find_all("model")] == [(0, 9), (0, 10), (1, 0)]

    @pytest.mark.parametrize(
        ("loops", "source"), [((None, None), "pipeline-root"), (((), ()), "mlflow-plugin"), (((0,), (0,)), "manifest")]
    )
    def test_says_who_does_not_tell_the_order_and_what_to_do(self, loops, source):
        some = tuple(output("train.model", source=source, loop=each) for each in loops)
        with pytest.raises(ConfigError, match=r"say[s]? not which iteration .*A server with the artifact API .*dsl\.Collected"):
            KfpResults(outputs=some).find_all("model")

    def test_does_not_mix_tasks(self):
        some = (output("a.model", loop=[0]), output("b.model", loop=[1]))
        with pytest.raises(ConfigError, match=r"2 have that name: a\.model, b\.model"):
            KfpResults(outputs=some).find_all("model")

    def test_gives_nothing_where_there_is_nothing(self):
        assert KfpResults().find_all("model") == []


@pytest.mark.parametrize(
    ("group", "loop"),
    [
        ("for-loop-2-iteration-1", (1,)),
        ("outer/for-loop-1-iteration-0/condition-2/for-loop-10-iteration-12/inner", (0, 12)),
        ("my-for-loop-1-iteration-3", ()),
        ("inner-iteration-1", ()),
        ("", ()),
    ],
)
def test_the_iterations_are_read_from_the_loops_of_a_path_alone(group, loop):
    assert iterations_in(group) == loop


def test_no_two_outputs_of_a_run_share_a_full_label():
    some = [
        output("write.table", group="for-loop-1-iteration-0", loop=[0]),
        output("write.table", group="for-loop-1-iteration-1", loop=[1]),
        output("merged", loop=[0]),
        output("merged", loop=[1]),
    ]
    assert [each.full_label for each in some] == [
        "for-loop-1-iteration-0/write.table", "for-loop-1-iteration-1/write.table", "merged[0]", "merged[1]"
    ]  # fmt: skip


def test_an_output_is_plain_json_and_comes_back_equal():
    made = output("train.metrics", type="Metrics", metadata={"auc": 0.9}, value=0.9)
    assert KfpOutput.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    ("uri", "path", "name"),
    [("s3://b/k/model", "", "model"), ("s3://b/k/data/", "", "data"), ("", "/tmp/x/m.pkl", "m.pkl"), ("", "", "model")],
)
def test_the_file_name_is_the_last_part_of_its_place(uri, path, name):
    assert output("train.model", uri=uri, path=path).file_name == name


class TestTheXCom:
    OUTPUTS = StepOutputs.of("nested", {"model": ArtifactRef(type="Model", name="model", uri="s3://b/model")})

    def test_of_a_run_elsewhere_is_read_with_the_nested_mlflow_run(self):
        told = {"version": 1, "run_id": "kfp-run", "state": "SUCCEEDED", "url": "u", "mlflow_run_id": "nested"}
        told |= {"outputs": self.OUTPUTS.to_json()["outputs"], "values": {"auc": 0.9}}
        read = StepOutputs.from_json(told)
        assert read.run_id == "nested"
        assert read.pick("auc") == 0.9
        assert read.pick("model") == {"version": 1, "type": "Model", "name": "model", "uri": "s3://b/model", "run_id": "nested"}

    def test_without_a_digest_has_none_and_not_an_empty_one(self):
        assert self.OUTPUTS.to_json()["outputs"]["model"] == {"type": "Model", "uri": "s3://b/model"}
        assert self.OUTPUTS.ref("model").sha256 is None

    def test_without_a_record_names_no_run(self):
        read = StepOutputs.from_json(
            {"version": 1, "run_id": "kfp", "mlflow_run_id": "", "outputs": self.OUTPUTS.to_json()["outputs"]}
        )
        assert read.ref("model").run_id is None

    def test_gives_a_list_of_references_for_an_output_of_a_loop_in_their_order(self):
        refs = {
            f"model[{each}]": ArtifactRef(type="Model", name="model", uri=f"s3://b/{each}") for each in (1, 10, 0, *range(2, 10))
        }
        told = StepOutputs.of("nested", refs).model_copy(update={"values": {"none": []}}).to_json()
        read = StepOutputs.from_json(json.loads(json.dumps(told, sort_keys=True)))
        assert [each["uri"] for each in read.pick("model")] == [f"s3://b/{each}" for each in range(11)]
        assert read.pick("none") == []

    def test_names_what_was_made_where_something_else_is_asked_for(self):
        read = self.OUTPUTS.model_copy(update={"values": {"auc": 1.0}})
        with pytest.raises(ConfigError, match=r"made no output 'x'; it made \['auc', 'model'\]"):
            read.pick("x")
