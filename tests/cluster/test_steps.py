"""Steps in pods on a real cluster, whatever becomes of them: the task's end is the truth, and nothing is left or doubled."""

from __future__ import annotations

import contextlib
import hashlib
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from airflow_ml_provider.tracking.runs import status_of, tags_of
from tests.cluster.actions import Play
from tests.cluster.conftest import Stage
from tests.cluster.dags.pod_cases import CASES, LINES, PLAYED, WAYS, task_id
from tests.cluster.directors import GIVEN
from tests.cluster.kube import Kube, Seen, needs
from tests.site import Site, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
GROUPS = list(dict.fromkeys(case.group for case in CASES.values()))
IN_ORDER = sorted(PLAYED, key=lambda each: GROUPS.index(CASES[each[0]].group))
FAULTS = {"away", "node"}


def played(stage: Stage, name: str, way: str) -> Play:
    """See to it that a case is played, and wait for its end; what went wrong with playing it is told."""
    case = CASES[name]
    commands = {*case.needs, *(("FAULT",) if case.group in FAULTS else ())}
    needs(*((f"CLUSTER_{each}", GIVEN[each]) for each in sorted(commands)))
    group = stage.group(case.group)
    group.acts[name, way].result(400)
    group[name, way].ended()
    return group[name, way]


def never_two(pods: list[Seen]) -> bool:
    """Whether each pod was over before the next was made."""
    return all((one.over_at or one.gone_at or 1e12) <= other.made_at for one, other in pairwise(pods))


def metrics_of(run: Any) -> dict[str, float]:
    return {each["key"]: each["value"] for each in run["data"].get("metrics", [])}


@pytest.mark.parametrize(("name", "way"), IN_ORDER, ids=[f"{name}-{way}" for name, way in IN_ORDER])
def test_a_step_ends_as_it_has_to_with_the_reason_told_and_nothing_left(stage: Stage, name: str, way: str) -> None:
    play = played(stage, name, way)
    case, ended = play.case, play.ended()
    missing = partial(play.unsaid, CASES[name].told_in)
    with contextlib.suppress(TimeoutError):  # a person ends a task at once, and the triggerer hears of it after that
        until("the reason in the log", lambda: not missing(), 30, pause_s=1)
    log = play.log(CASES[name].told_in)
    assert ended == (case.state, case.tries), log
    assert missing() == [], log
    with contextlib.suppress(TimeoutError):  # nor does the worker, which closes the run
        until("the run's end", lambda: status_of(play.site.run_of(play.dag_id, play.task)) == case.run, 30, pause_s=1)
    run = play.site.run_of(play.dag_id, play.task)
    assert status_of(run) == case.run
    assert metrics_of(run) | case.metrics == metrics_of(run)
    assert play.site.airflow.xcom(play.dag_id, play.run_id, play.task) is None or case.state == "success"
    assert len(play.pods) == case.pods, play.pods
    assert never_two(play.pods)
    for each in play.pods:
        play.gone(each)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_program_stores_is_on_record_and_read_by_a_later_step(stage: Stage, way: str) -> None:
    play = played(stage, "writes", way)
    assert result(play, "read_writes") == {"weights": 7, "loss": pytest.approx(1 / 3), "report": "5"}
    references = play.site.airflow.xcom(play.dag_id, play.run_id, play.task)
    assert references["outputs"].keys() == {"model", "metrics", "report"}
    assert references["outputs"]["report"]["sha256"] == hashlib.sha256(b"5").hexdigest()
    assert tags_of(play.site.run_of(play.dag_id, play.task))["airflow.pod.end"] == "succeeded"


@pytest.mark.parametrize("way", WAYS)
def test_what_a_function_stores_is_read_by_a_later_step(stage: Stage, way: str) -> None:
    assert result(played(stage, "function", way), "read_function") == "0.5"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("beside", "5"),
        ("resumes", "half way"),
        ("killed", "all of it"),
        ("unread", "all of it"),
        ("unread_killed", "all of it"),
        ("ends_meanwhile", "all of it"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_no_result_is_lost_whose_upload_had_finished(stage: Stage, name: str, said: str, way: str) -> None:
    if way not in CASES[name].ways:
        return
    assert result(played(stage, name, way), f"read_{name}") == said


def result(play: Play, reader: str) -> Any:
    """Give what a later step has read."""
    task = task_id(reader, play.way)
    play.until(f"the end of {task}", lambda: play.site.task_state(play.dag_id, play.run_id, task)[0] == "success", 120)
    return play.site.airflow.xcom(play.dag_id, play.run_id, task)


@pytest.mark.parametrize("way", WAYS)
def test_each_line_of_a_log_is_in_the_tasks_log_once_and_in_order(stage: Stage, way: str) -> None:
    play = played(stage, "writes", way)
    answer = play.site.airflow.task_log(play.dag_id, play.run_id, play.task)
    events = [str(each.get("event", "")) if isinstance(each, dict) else str(each) for each in answer["content"]]
    assert [each for each in events if "[base] line " in each] == [f"[base] line {number}" for number in range(LINES)]


@pytest.mark.parametrize("way", WAYS)
def test_twenty_pods_at_once_give_twenty_results(site: Site, kube: Kube, stage: Stage, way: str) -> None:
    gates, task = stage.gates, f"many_{way}"
    if "many" not in stage.runs:
        stage.runs["many"] = site.start("pods_many")
    run_id = stage.runs["many"]
    until("twenty programs at their gates", lambda: all(gates.reached(f"{task}/{number}/go") for number in range(20)), 300)
    if way == "defers":
        until("all deferred", lambda: all(site.heard(run_id, task, 1, number) for number in range(20)), 60)
    for number in range(20):
        gates.open(f"{task}/{number}/go")

    def states() -> list[str]:
        return [each["state"] for each in site.instances("pods_many", run_id) if each["task_id"] == task]

    until("their ends", lambda: set(states()) <= {"success", "failed"}, 300, pause_s=1)
    assert states() == ["success"] * 20
    for number in range(20):
        (pod,) = kube.watcher.pods("pods_many", task, number)
        assert metrics_of(site.run_of("pods_many", f"{task}[{number}]")) == {"number": number}
        until("the end of its pod", lambda pod=pod: pod.gone_at is not None, 60)


def test_the_example_of_the_field_runs_from_end_to_end(stage: Stage, site: Site) -> None:
    needs(("CLUSTER_GPUS", GIVEN["GPUS"]))
    stage.group("together")
    run_id = site.start("gpu_training")
    assert site.finish("gpu_training", run_id) == "success"
    assert site.airflow.xcom("gpu_training", run_id, "evaluate")["accuracy"] > 0.9


def test_no_pod_and_no_secret_is_left_in_the_end(kube: Kube, stage: Stage) -> None:
    seen = list(kube.watcher.seen.values())
    if not seen:
        pytest.skip("nothing was played")
    until("nothing left", lambda: all(each.gone_at is not None for each in kube.watcher.seen.values()), 60)
    kinds = {each.kind for each in seen}
    assert kinds == {"pods", "secrets"} or "together" not in stage.groups
