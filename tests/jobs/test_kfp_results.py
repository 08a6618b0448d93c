"""What a pipeline server itself tells of a run's outputs, and how that it cannot is found out."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_server import KfpServer
from airflow_ml_provider.jobs.kfp_results import forget_servers, results_of_server, spec_of_run, takes_plugins
from airflow_ml_provider.models.kfp import PipelineRun
from airflow_ml_provider.testing import FakeKfpServer
from tests.kfp_stores import PIPELINE, ROOT


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    forget_servers()
    yield
    forget_servers()


@pytest.fixture
def newer() -> Iterator[FakeKfpServer]:
    """A server with the artifact API."""
    with FakeKfpServer(artifacts=True) as server:
        yield server


def api_of(server: FakeKfpServer) -> KfpApi:
    return KfpApi(KfpServer("kfp_default", server.url), Settings(http_timeout_s=5, http_retries=0))


def start(server: FakeKfpServer, **more: Any) -> str:
    body = {"display_name": "run", "pipeline_spec": PIPELINE, **more}
    run_id = str(httpx.post(f"{server.url}/apis/v2beta1/runs", json=body).raise_for_status().json()["run_id"])
    server.finish(run_id)
    return run_id


class Told:
    """A server that answers what a test says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.server = SimpleNamespace(url=f"http://{id(self)}.example")
        self.asked: list[Any] = []

    def get(self, path: str, **query: Any) -> Any:
        self.asked.append(query.get("page_token"))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def task(name: str, *, kind: str = "RUNTIME", artifacts: Any = (), parameters: Any = ()) -> dict[str, Any]:
    return {"name": name, "type": kind, "outputs": {"artifacts": list(artifacts), "parameters": list(parameters)}}


class TestAServerWithTheArtifactApi:
    def test_tells_files_numbers_and_parameters_with_their_places(self, newer):
        newer.makes("prepare", files={"data": {"part-0": b"1"}}, parameters={"Output": "prepared"})
        newer.makes(
            "train",
            files={"model": b"weights"},
            metrics={"metrics": {"auc": 0.9, "rows": 2}},
            parameters={"Output": 0.25},
            metadata={"model": {"framework": "none"}},
        )
        run_id = start(newer)
        with api_of(newer) as api:
            found = {each.label: each for each in results_of_server(api, run_id).outputs}
        assert found.keys() == {
            "loss", "best", "prepare.data", "prepare.Output", "train.model", "train.metrics", "train.Output"
        }  # fmt: skip
        model = found["train.model"]
        assert model.uri.startswith(f"{ROOT}/two-steps/{run_id}/train/")
        assert (model.type, model.metadata, model.source) == ("Model", {"framework": "none"}, "artifact-api")
        assert found["best"].uri == model.uri
        assert (found["train.metrics"].type, found["train.metrics"].metadata) == ("Metrics", {"auc": 0.9, "rows": 2})
        assert found["train.metrics"].uri == ""
        assert (found["loss"].value, found["train.Output"].value, found["prepare.Output"].value) == (0.25, 0.25, "prepared")

    def test_is_read_page_by_page(self):
        told = Told(
            {"tasks": [task("a", parameters=[{"parameter_key": "x", "value": 1}])], "next_page_token": "2"},
            {"tasks": [task("b", parameters=[{"parameter_key": "x", "value": [1]}])]},
        )
        found = results_of_server(told, "run").outputs
        assert [(each.label, each.type, each.value) for each in found] == [("a.x", "NUMBER_DOUBLE", 1), ("b.x", "LIST", [1])]
        assert told.asked == [None, "2"]

    def test_tells_which_iteration_of_which_loop_a_task_is_of(self):
        def of(task_id: str, parent: str = "", index: Any = None, **more: Any) -> dict[str, Any]:
            told = {"task_id": task_id, "parent_task_id": parent}
            return told | ({} if index is None else {"type_attributes": {"iteration_index": index}}) | more

        def runtime(parent: str, value: int) -> dict[str, Any]:
            return of(f"r{value}", parent, **task("add", parameters=[{"parameter_key": "x", "value": value}]))

        groups = [of("root", type="ROOT"), of("loop", "root", type="LOOP")]
        for outer in range(2):  # int64 is a text in JSON
            groups += [of(f"i{outer}", "loop", str(outer), type="DAG"), of(f"l{outer}", f"i{outer}", type="LOOP")]
            groups += [of(f"i{outer}{inner}", f"l{outer}", inner, type="DAG") for inner in range(11)]
        tasks = [runtime(f"i{outer}{inner}", outer * 11 + inner) for outer in range(2) for inner in range(11)]
        results = results_of_server(Told({"tasks": [*reversed(tasks), *groups]}), "run")
        assert [each.value for each in results.find_all("add.x")] == list(range(22))
        assert {each.loop for each in results.outputs} == {(outer, inner) for outer in range(2) for inner in range(11)}
        assert results.complete

    def test_tells_in_which_order_outputs_were_collected(self):
        some = [
            {
                "artifact_key": "models",
                "artifacts": [{"name": "m", "type": "Model", "uri": f"u{index}"}],
                "producer": {"iteration": index},
            }
            for index in ("1", "10", "0", "2")
        ]
        several = {
            "artifact_key": "parts",
            "artifacts": [{"name": "p", "type": "Dataset", "uri": f"p{each}"} for each in range(3)],
        }
        results = results_of_server(Told({"tasks": [task("root", kind="ROOT", artifacts=[*some, several])]}), "run")
        assert [each.uri for each in results.find_all("models")] == ["u0", "u1", "u2", "u10"]
        assert [each.uri for each in results.find_all("parts")] == ["p0", "p1", "p2"]

    @pytest.mark.parametrize("index", ["", "x", -1, 1.5, [], {}, True, "9" * 5000])
    def test_may_name_an_iteration_that_is_no_number(self, index):
        told = task("add", parameters=[{"parameter_key": "x", "value": 1, "producer": {"iteration": index}}])
        told |= {"task_id": "a", "type_attributes": {"iteration_index": index}}
        (found,) = results_of_server(Told({"tasks": [told]}), "run").outputs
        assert found.loop == ()

    def test_that_knows_no_task_of_an_older_run_does_not_claim_to_know_all(self):
        assert not results_of_server(Told({"tasks": []}), "run").complete

    def test_whose_tasks_are_their_own_parents_is_not_asked_for_ever(self):
        loop = [{"task_id": "a", "parent_task_id": "b"}, {"task_id": "b", "parent_task_id": "a"}]
        assert results_of_server(Told({"tasks": loop}), "run").outputs == ()

    def test_whose_pages_lead_to_themselves_is_not_asked_for_ever(self):
        page = {"tasks": [], "next_page_token": "2"}
        told = Told(page, page, page, page)
        results_of_server(told, "run")
        assert told.asked == [None, "2"]

    def test_tells_nothing_of_nested_graphs_and_of_logs(self):
        logs = {"artifact_key": "executor-logs", "artifacts": [{"name": "executor-logs", "type": "Artifact", "uri": "x"}]}
        model = {"artifact_key": "model", "artifacts": [{"name": "model", "type": "Model", "uri": "x"}]}
        manifest = {"artifact_key": "airflow_ml_manifest", "artifacts": [{"name": "m", "type": "Artifact", "uri": "x"}]}
        told = Told({"tasks": [task("loop", kind="LOOP", artifacts=[model]), task("train", artifacts=[logs, manifest, model])]})
        assert [each.label for each in results_of_server(told, "run").outputs] == ["train.model"]

    def test_keeps_kinds_of_metrics_without_numbers_apart(self):
        curve = {"name": "roc", "type": "ClassificationMetric", "metadata": {"confusionMatrix": {"rows": []}}}
        told = Told({"tasks": [task("train", artifacts=[{"artifact_key": "roc", "artifacts": [curve]}])]})
        (found,) = results_of_server(told, "run").outputs
        assert (found.type, found.metadata) == ("ClassificationMetrics", {"confusionMatrix": {"rows": []}})

    @pytest.mark.parametrize("name", ["../../etc", "a/b", "${x}", "{{ x }}", "\u202e", "x" * 5000, ""])
    def test_may_name_things_in_any_way(self, name):
        some = [{"artifact_key": name, "artifacts": [{"name": name, "type": "Model", "uri": name}]}]
        told = Told({"tasks": [task(name, artifacts=some, parameters=[{"parameter_key": name, "value": None}])]})
        assert {each.name for each in results_of_server(told, "run").outputs} == {name}


class TestAServerWithoutIt:
    def test_is_asked_once(self, server, api):
        first, second = start(server), start(server)
        for run_id in (first, second, first):
            results = results_of_server(api, run_id)
            assert results.outputs == ()
            assert "has no artifact API" in results.notes[0]
        assert len([each for each in server.requests if each.path.endswith("/tasks")]) == 1

    def test_that_refuses_us_is_an_error_and_not_remembered(self):
        refused = ConfigError("no right")
        refused.status = 403
        told = Told(refused, {"tasks": []})
        with pytest.raises(ConfigError, match="no right"):
            results_of_server(told, "run")
        assert results_of_server(told, "run").notes == ("The server's artifact API knows 0 outputs.",)


class TestTheSpecOfARun:
    def test_is_its_own_where_it_carries_one(self, server, api):
        run = PipelineRun.from_answer(api.get(f"/apis/v2beta1/runs/{start(server)}"))
        asked = len(server.requests)
        assert spec_of_run(api, run)["pipelineInfo"]["name"] == "two-steps"
        assert len(server.requests) == asked

    def test_of_a_version_that_is_gone_is_empty(self, api):
        assert spec_of_run(api, PipelineRun(run_id="r", pipeline_id="p", version_id="v")) == {}
        assert spec_of_run(api, PipelineRun(run_id="r")) == {}


def test_plugins_are_not_asked_for_where_a_proxy_does_not_tell_the_release():
    assert takes_plugins(Told(ConfigError("404"))) is False


@pytest.mark.parametrize(
    ("tag", "takes"),
    [
        ("2.17.0", True),
        ("2.17.3", True),
        ("v2.18.0-rc.1", True),
        ("3.0", True),
        ("2.16.1", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_plugins_are_asked_for_where_the_release_is_known_to_take_it(tag, takes):
    told = Told({"tag_name": tag})
    assert takes_plugins(told) is takes
    assert takes_plugins(told) is takes  # remembered: there is no second answer
