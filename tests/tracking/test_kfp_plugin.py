"""Which outputs the numbers are that KFP's MLflow plugin has written, of tasks that ran once and of tasks that ran often."""

from __future__ import annotations

from airflow_ml_provider.core.kfp_outputs import DeclaredOutput, DeclaredOutputs
from airflow_ml_provider.tracking.kfp_plugin import PluginRun, PluginTask, results_of_plugin


def declared(*outputs: str, looped: bool = False) -> DeclaredOutputs:
    return DeclaredOutputs(tuple(DeclaredOutput("train", each, "artifact", "Metrics", looped) for each in outputs))


def written(*metrics: dict[str, float]) -> PluginRun:
    return PluginRun("root", "1", tasks=tuple(PluginTask("train", str(number), each) for number, each in enumerate(metrics)))


def test_of_a_task_that_was_repeated_the_newest_numbers_count():
    (found,) = results_of_plugin(written({"auc": 0.1}, {"auc": 0.2}), declared("metrics")).outputs
    assert (found.metadata, found.value, found.loop) == ({"auc": 0.2}, 0.2, ())


def test_of_a_task_in_a_loop_all_are_told_without_an_order():
    some = results_of_plugin(written({"auc": 0.1}, {"auc": 0.2}, {}), declared("metrics", looped=True)).outputs
    assert [(each.metadata, each.loop) for each in some] == [({"auc": 0.1}, None), ({"auc": 0.2}, None)]


def test_of_a_loop_over_one_thing_the_place_is_known():
    (found,) = results_of_plugin(written({"auc": 0.1}), declared("metrics", looped=True)).outputs
    assert found.loop == (0,)


def test_of_two_tasks_of_one_name_in_nested_pipelines_none_is_chosen():
    some = results_of_plugin(written({"auc": 0.1}, {"auc": 0.2}), declared("metrics", "metrics")).outputs
    assert [each.loop for each in some] == [None, None]


def test_of_a_task_with_several_outputs_each_number_stands_by_itself():
    results = results_of_plugin(written({"auc": 0.1, "loss": 2.0}), declared("first", "second"))
    assert {each.name: each.value for each in results.outputs} == {"auc": 0.1, "loss": 2.0}
    assert "does not say which of the outputs ['first', 'second']" in results.notes[1]
