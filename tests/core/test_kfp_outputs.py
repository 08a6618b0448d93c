"""What a compiled pipeline promises, and what the result of a task depends on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from airflow_ml_provider.core.kfp_outputs import DeclaredOutput, read_outputs, recipe_of
from airflow_ml_provider.models.kfp_results import KfpOutput
from tests.kfp_stores import PIPELINE

MODEL = {"artifacts": {"model": {"artifactType": {"schemaTitle": "system.Model"}}}}


def nested(**task: Any) -> dict[str, Any]:
    """A pipeline whose only task is a graph of its own, which trains."""
    inner = {"artifacts": {"model": {"artifactSelectors": [{"outputArtifactKey": "model", "producerSubtask": "train"}]}}}
    outer = {"artifacts": {"best": {"artifactSelectors": [{"outputArtifactKey": "model", "producerSubtask": "group"}]}}}
    return {
        "components": {
            "comp-train": {"executorLabel": "exec-train", "outputDefinitions": MODEL},
            "comp-group": {
                "dag": {"tasks": {"train": {"componentRef": {"name": "comp-train"}}}, "outputs": inner},
                "outputDefinitions": MODEL,
            },
        },
        "root": {
            "dag": {"tasks": {"group": {"componentRef": {"name": "comp-group"}, **task}}, "outputs": outer},
            "outputDefinitions": {"artifacts": {"best": {"artifactType": {"schemaTitle": "system.Model"}}}},
        },
    }


class TestOutputs:
    def test_are_those_of_the_tasks_and_of_the_pipeline_itself(self):
        declared = read_outputs(PIPELINE)
        assert {(each.task, each.name, each.kind, each.type) for each in declared.tasks} == {
            ("prepare", "data", "artifact", "Dataset"),
            ("prepare", "Output", "parameter", "STRING"),
            ("train", "metrics", "artifact", "Metrics"),
            ("train", "model", "artifact", "Model"),
            ("train", "report", "artifact", "HTML"),
            ("train", "Output", "parameter", "NUMBER_DOUBLE"),
            ("train", "epochs", "parameter", "NUMBER_INTEGER"),
        }
        assert declared.own["best"] == (DeclaredOutput("train", "model", "artifact", "Model"),)
        assert declared.own["loss"] == (DeclaredOutput("train", "Output", "parameter", "NUMBER_DOUBLE"),)

    def test_of_nested_pipelines_are_followed_to_the_task_that_makes_them(self):
        declared = read_outputs(nested())
        assert declared.tasks == (DeclaredOutput("train", "model", "artifact", "Model"),)
        assert declared.own["best"] == declared.tasks

    def test_in_a_loop_are_many(self):
        declared = read_outputs(nested(parameterIterator={"items": {"raw": "[1, 2]"}}))
        assert [each.looped for each in (*declared.tasks, *declared.own["best"])] == [True, True]

    def test_of_branches_are_whichever_was_made(self):
        spec = copy.deepcopy(PIPELINE)
        selectors = [{"outputParameterKey": "Output", "producerSubtask": each} for each in ("prepare", "train")]
        spec["root"]["dag"]["outputs"]["parameters"]["loss"] = {"valueFromOneof": {"parameterSelectors": selectors}}
        declared = read_outputs(spec)
        made = KfpOutput(name="Output", task="train", kind="parameter", value=1.0, source="artifact-api")
        own, _ = declared.with_own([made])
        assert (own.label, own.value) == ("loss", 1.0)

    def test_of_both_branches_are_none_of_the_pipeline(self):
        declared = read_outputs(nested())
        twice = [KfpOutput(name="model", task="train", uri=each, source="pipeline-root") for each in ("a", "b")]
        assert [each.label for each in declared.with_own(twice)] == ["train.model", "train.model"]

    def test_of_a_loop_are_all_of_the_pipeline_and_none_where_it_ran_over_nothing(self):
        declared = read_outputs(nested(parameterIterator={"items": {"raw": "[1, 2]"}}))
        made = [KfpOutput(name="model", task="train", uri=each, source="local", loop=[int(each)]) for each in "10"]
        results = declared.gathered(made, ["x"], complete=True)
        assert [(each.label, each.uri) for each in results.find_all("best")] == [("best", "0"), ("best", "1")]
        assert results.empty == frozenset()
        assert declared.gathered([], [], complete=True).empty == {"best", "model", "train.model"}
        assert declared.gathered([], [], complete=False).empty == frozenset()
        assert read_outputs(nested()).gathered([], [], complete=True).empty == frozenset()

    def test_that_are_lists_of_artifacts_are_many(self):
        spec = nested()
        spec["components"]["comp-train"]["outputDefinitions"] = {"artifacts": {"model": {"isArtifactList": True}}}
        assert [each.looped for each in read_outputs(spec).tasks] == [True]

    @pytest.mark.parametrize("spec", [{}, {"root": None}, {"root": {"dag": {"tasks": {"a": {}}}}}, {"components": []}])
    def test_of_what_is_no_pipeline_are_none(self, spec):
        assert read_outputs(spec).tasks == ()


class TestARecipe:
    def test_changes_with_what_the_task_and_those_before_it_are_given(self):
        def recipe(task: str, **parameters: Any) -> str:
            return recipe_of(PIPELINE, task, parameters)

        assert recipe("prepare", lr=1) == recipe("prepare", lr=2)
        assert recipe("prepare", rows=1) != recipe("prepare", rows=2)
        assert recipe("train", rows=1) != recipe("train", rows=2)
        assert recipe("train", lr=1) != recipe("train", lr=2)
        assert recipe("train", lr=0.1) == recipe("train")  # the default

    def test_changes_with_the_code_of_the_task_and_of_those_before_it(self):
        other = copy.deepcopy(PIPELINE)
        other["deploymentSpec"]["executors"]["exec-prepare"]["container"]["image"] = "busybox:2"
        for task in ("prepare", "train"):
            assert recipe_of(other, task, {}) != recipe_of(PIPELINE, task, {})
        other = copy.deepcopy(PIPELINE)
        other["deploymentSpec"]["executors"]["exec-train"]["container"]["image"] = "busybox:2"
        assert recipe_of(other, "prepare", {}) == recipe_of(PIPELINE, "prepare", {})
        assert recipe_of(other, "train", {}) != recipe_of(PIPELINE, "train", {})

    def test_of_a_nested_task_is_that_of_the_whole_pipeline(self):
        assert recipe_of(nested(), "train", {"a": 1}) != recipe_of(nested(), "train", {"a": 2})
