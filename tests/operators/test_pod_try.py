"""Starting and finishing a try of a step in a pod: a real MLflow server, pods in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.core.pod_adoption import labels_of, pod_name
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.jobs.pod_submission import PodSubmission
from airflow_ml_provider.models.pod import ContainerStatus, PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_step import StepManifest, StepMessage, StepWritten
from airflow_ml_provider.models.run import Attempt, StepIdentity, StepRecord
from airflow_ml_provider.operators.pod_try import PodTry, Prepared
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking import pod_record
from airflow_ml_provider.tracking.pod_record import StepPlan
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import status_of, tags_of

BODY: dict[str, Any] = {"metadata": {"labels": {"try_number": "2"}}, "spec": {"volumes": []}}
SHA = hashlib.sha256(b"w").hexdigest()


class Pods:
    """The pods of a namespace, in memory."""

    namespace = "ml"

    def __init__(self) -> None:
        self.pods: dict[str, PodSnapshot] = {}
        self.bodies: list[dict[str, Any]] = []
        self.refuse: Exception | None = None
        self.on_create: Callable[[], None] = lambda: None
        self.api: Any = None

    def create(self, body: Mapping[str, Any]) -> PodSnapshot:
        self.on_create()
        if self.refuse:
            raise self.refuse
        self.bodies.append(dict(body))
        meta = body["metadata"]
        return self.put(PodSnapshot(name=meta["name"], namespace="ml", uid=f"uid-{len(self.bodies)}", labels=meta["labels"]))

    def put(self, pod: PodSnapshot) -> PodSnapshot:
        return self.pods.setdefault(pod.name, pod)

    def find(self, labels: Mapping[str, str], **_: Any) -> list[PodSnapshot]:
        return [each for each in self.pods.values() if labels.items() <= each.labels.items()]

    def delete(self, name: str, *, uid: str = "", grace_s: int | None = None) -> None:
        self.pods.pop(name, None)

    def label(self, name: str, labels: Mapping[str, str], *, uid: str = "") -> PodSnapshot:
        self.pods[name] = self.pods[name].model_copy(update={"labels": {**self.pods[name].labels, **labels}})
        return self.pods[name]

    def end(self, name: str, code: int = 0, **fields: Any) -> None:
        """Let the program of a pod end, and another container beside it fail: so the pod has failed."""
        codes = {"base": code, "checker": 3}
        all_of = [ContainerStatus(name=each, state="terminated", exit_code=codes[each]) for each in codes]
        self.pods[name] = self.pods[name].model_copy(update={"phase": "Failed", "containers": all_of, **fields})


class Memory(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Lab:
    """Tries of one task instance, one after the other."""

    def __init__(self, api: MlflowApi, folder: Path, dag_id: str) -> None:
        self.api = api
        self.folder = folder
        self.identity = StepIdentity(dag_id=dag_id, run_id="r", task_id="train")
        self.pods = Pods()
        self.memory = Memory()
        self.prepared: list[float | None] = []

    def session(self, number: int) -> StepSession:
        attempt = Attempt(identity=self.identity, try_number=number, ti_id=f"ti-{number}")
        recorder = Recorder(self.api)
        run = recorder.tree.open(self.identity.dag_id, attempt)
        record = StepRecord(conn_id="mlflow_default", attempt=attempt, run=run)
        return StepSession(self.api, Settings(patience_s=1), record, self.folder)

    def attempt(self, number: int = 1, clears: int = 0, memory: Memory | None = None, **limits: Any) -> PodTry:
        session = self.session(number)

        def prepare(raised_gib: float | None) -> Prepared:
            self.prepared.append(raised_gib)
            outputs = pod_record.plan_outputs(session.recorder, session.record, {"model": "Model", "table": "Dataset"}, None)
            plan = StepPlan(try_number=number, outputs=outputs, params={"depth": "3"}, memory_gib=raised_gib or 2)
            return Prepared(plan, {"metadata": {"labels": {"try_number": str(number)}}, "spec": {}})

        submission = PodSubmission(
            jobs=self.pods,  # type: ignore[arg-type]  # in memory
            memory=self.memory if memory is None else memory,
            identity=self.identity,
            clears=clears,
            patience_s=1,
            sleep=lambda _: None,
        )
        return PodTry(session, submission, prepare, **limits)

    def tell(self, attempt: PodTry, state: Any = "succeeded", number: int | None = None, **fields: Any) -> StepMessage:
        """Store what the container of a try would have; give its termination message."""
        number = number or attempt.number
        code = 0 if state == "succeeded" else 1
        text = StepManifest(try_number=number, state=state, exit_code=code, **fields).model_dump_json()
        local = self.folder / "manifest.json"
        local.write_text(text)
        attempt.session.recorder.store.store(attempt.session.record.run.artifact_uri, f"try-{number}/manifest.json", local)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return StepMessage(try_number=number, state=state, exit_code=code, manifest=True, sha256=digest)

    def tags(self, attempt: PodTry) -> dict[str, str]:
        return tags_of(attempt.session.recorder.tree.get(attempt.session.record.run.run_id))

    def models(self, attempt: PodTry) -> dict[str, str]:
        """Status of the LoggedModels of the step by the try that made them."""
        record = attempt.session.record
        body = {"experiment_ids": [record.run.experiment_id], "filter": f"source_run_id = '{record.run.run_id}'"}
        found = self.api.post("logged-models/search", body).get("models", [])
        tried = [{each["key"]: each["value"] for each in model["info"]["tags"]}["airflow.try_number"] for model in found]
        return {number: model["info"]["status"].removeprefix("LOGGED_MODEL_") for number, model in zip(tried, found, strict=True)}


ALL = {
    "model": StepWritten(type="Model", sha256=SHA, size=1, file="model.pkl"),
    "table": StepWritten(type="Dataset", sha256=SHA, size=1, file="table.csv"),
}


def ended(end: PodEnd = PodEnd.SUCCEEDED, **fields: Any) -> PodOutcome:
    return PodOutcome(end=end, pod="train-1", namespace="ml", uid="uid-1", node="gpu-7", message="Pod ml/train-1: x.", **fields)


@pytest.fixture
def lab(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> Lab:
    return Lab(mlflow_api, tmp_path, unique)


class TestStarting:
    def test_everything_that_the_pods_end_needs_is_on_record_before_it_exists(self, lab: Lab) -> None:
        attempt = lab.attempt()
        pod, plan = attempt.start()
        name = pod_name(lab.identity, Generation(clears=0))
        assert isinstance(pod, PodSnapshot)
        assert pod.name == name
        assert pod.labels == {"try_number": "1", **labels_of(lab.identity, Generation(clears=0))}
        assert lab.attempt(1).read_plan(1) == plan
        tags = lab.tags(attempt)
        assert (tags["airflow.pod"], tags["airflow.pod.waiting"]) == (f"ml/{name}", "1/0")
        assert lab.models(attempt) == {"1": "PENDING"}

    def test_a_retry_takes_up_the_pod_that_runs_with_what_it_was_given(self, lab: Lab) -> None:
        _, given = lab.attempt(1).start()
        pod, plan = lab.attempt(2).start()
        assert (pod.uid, plan) == ("uid-1", given)
        assert lab.prepared == [None]
        assert len(lab.pods.bodies) == 1

    @pytest.mark.parametrize("remembers", [True, False], ids=["with a state store", "before Airflow 3.3"])
    def test_a_retry_takes_the_result_of_a_pod_that_is_gone(self, lab: Lab, remembers: bool) -> None:
        first = lab.attempt(1)
        first.start()
        lab.tell(first, outputs=ALL)
        lab.pods.pods.clear()
        second = lab.attempt(2, memory=None if remembers else Memory())
        outcome, plan = second.start()
        assert isinstance(outcome, PodOutcome)
        assert (outcome.gone, plan.try_number, len(lab.pods.bodies)) == (True, 1, 1)
        verdict, _, _ = second.record(outcome, plan)
        assert verdict.succeeded
        second.session.succeed()
        assert second.session.outputs()["outputs"]["table"]["path"] == "try-1/table.csv"
        assert lab.models(second) == {"1": "READY"}

    @pytest.mark.parametrize("state", ["failed", "terminated"])
    def test_a_pod_that_is_gone_and_had_failed_is_made_anew(self, lab: Lab, state: str) -> None:
        first = lab.attempt(1)
        first.start()
        lab.tell(first, state, outputs=ALL)
        lab.pods.pods.clear()
        pod, plan = lab.attempt(2).start()
        assert isinstance(pod, PodSnapshot)
        assert (plan.try_number, len(lab.pods.bodies)) == (2, 2)

    @pytest.mark.parametrize("remembers", [True, False], ids=["with a state store", "before Airflow 3.3"])
    def test_a_pod_that_has_failed_is_no_success_though_it_had_stored_everything(self, lab: Lab, remembers: bool) -> None:
        first = lab.attempt(1)
        before, _ = first.start()
        assert isinstance(before, PodSnapshot)
        lab.tell(first, outputs=ALL)
        lab.pods.end(before.name)
        pod, plan = lab.attempt(2, memory=None if remembers else Memory()).start()
        assert isinstance(pod, PodSnapshot)
        assert (plan.try_number, len(lab.pods.bodies)) == (2, 2)
        assert before.uid not in {each.uid for each in lab.pods.pods.values()}

    def test_a_failed_pod_that_was_put_away_is_not_asked_for_by_a_try_that_made_none(self, lab: Lab) -> None:
        first = lab.attempt(1)
        before, _ = first.start()
        assert isinstance(before, PodSnapshot)
        lab.tell(first, outputs=ALL)
        lab.pods.end(before.name)
        second = lab.attempt(2)
        second._prepare = lambda _: pytest.fail("the worker is gone")
        with pytest.raises(pytest.fail.Exception):
            second.start()
        assert lab.pods.pods == {}
        pod, plan = lab.attempt(3).start()
        assert isinstance(pod, PodSnapshot)
        assert (plan.try_number, len(lab.pods.bodies)) == (3, 2)

    def test_one_that_was_evicted_after_it_had_stored_everything_is_and_is_put_away(self, lab: Lab) -> None:
        first = lab.attempt(1)
        before, _ = first.start()
        assert isinstance(before, PodSnapshot)
        lab.tell(first, outputs=ALL)
        lab.pods.end(before.name, 137, reason="Evicted", message="the node was low on memory")
        second = lab.attempt(2)
        outcome, plan = second.start()
        assert isinstance(outcome, PodOutcome)
        assert (outcome.end, plan.try_number, len(lab.pods.bodies), lab.pods.pods) == (PodEnd.EVICTED, 1, 1, {})
        assert second.record(outcome, plan)[0].succeeded

    def test_a_clear_runs_the_step_again_whatever_is_on_record(self, lab: Lab) -> None:
        first = lab.attempt(1)
        first.start()
        lab.tell(first, outputs=ALL)
        lab.pods.pods.clear()
        pod, plan = lab.attempt(2, clears=1).start()
        assert isinstance(pod, PodSnapshot)
        assert plan.try_number == 2

    @pytest.mark.parametrize("by", [1, 2], ids=["an earlier try's, whose create came late", "its own"])
    def test_a_secret_is_given_to_the_pod_that_is_there(self, lab: Lab, by: int) -> None:
        owners: list[Any] = []
        if by == 1:
            lab.attempt(1).start()
            late, lab.pods.pods = lab.pods.pods, {}
            lab.memory.clear()
            lab.pods.on_create = lambda: lab.pods.pods.update(late)
        lab.pods.api = SimpleNamespace(
            json=lambda method, _, body: owners.append((method, body["metadata"].get("ownerReferences")))
        )
        attempt = lab.attempt(2)
        attempt._prepare = lambda _: Prepared(StepPlan(try_number=2), BODY, secret={"token": "s3cret"})
        pod, plan = attempt.start()
        assert (plan.try_number, isinstance(pod, PodSnapshot)) == (by, True)
        (made, nobodys), (given, (owner,)) = owners
        assert (made, nobodys, given, owner["uid"]) == ("POST", None, "PATCH", pod.uid)

    def test_models_of_a_pod_that_cannot_be_made_are_taken_back(self, lab: Lab) -> None:
        lab.pods.refuse = ConfigError("no such priority class")
        attempt = lab.attempt()
        with pytest.raises(ConfigError, match="no such priority class"):
            attempt.start()
        assert lab.models(attempt) == {"1": "UPLOAD_FAILED"}


class TestFinishing:
    def test_a_success_is_on_record_with_its_outputs(self, lab: Lab) -> None:
        attempt = lab.attempt()
        _, plan = attempt.start()
        told = lab.tell(attempt, outputs=ALL, unsent=[("loss", 0.5, 1000, 0)], params={"seed": "1"}, checkpoint="2-1/x")
        verdict, manifest, _ = attempt.record(ended(told=told, exit_code=0), plan)
        assert verdict.succeeded
        assert manifest is not None
        attempt.session.succeed()
        run = attempt.session.recorder.tree.get(attempt.session.record.run.run_id)
        assert status_of(run) == "FINISHED"
        assert {each["key"]: each["value"] for each in run["data"]["params"]} == {"depth": "3", "seed": "1"}
        assert {each["key"]: each["value"] for each in run["data"]["metrics"]} == {"loss": 0.5}
        tags = tags_of(run)
        wanted = {"airflow.pod.node": "gpu-7", "airflow.pod.end": "succeeded", "airflow.pod.exit_code": "0"}
        wanted |= {"airflow.pod.waiting": "", "airflow.pod.checkpoint": "2-1/x"}
        assert wanted.items() <= tags.items()
        outputs = attempt.session.outputs()
        assert outputs["outputs"]["model"]["uri"] == f"models:/{plan.outputs['model'].model_id}/model.pkl"
        assert lab.models(attempt) == {"1": "READY"}

    def test_a_failed_step_keeps_its_metrics_and_what_it_had_stored(self, lab: Lab) -> None:
        attempt = lab.attempt()
        _, plan = attempt.start()
        told = lab.tell(attempt, "failed", outputs={"table": ALL["table"]}, unsent=[("loss", 0.5, 1000, 0)], error="ValueError")
        verdict, _, _ = attempt.record(ended(PodEnd.FAILED, told=told, exit_code=1), plan)
        assert not verdict.succeeded
        attempt.session.fail(RuntimeError("x"), "failed")
        run = attempt.session.recorder.tree.get(attempt.session.record.run.run_id)
        assert status_of(run) == "FAILED"
        assert {each["key"]: each["value"] for each in run["data"]["metrics"]} == {"loss": 0.5}
        assert list(attempt.session.outputs()["outputs"]) == ["table"]
        assert lab.models(attempt) == {"1": "UPLOAD_FAILED"}

    def test_no_manifest_is_no_success(self, lab: Lab) -> None:
        attempt = lab.attempt()
        _, plan = attempt.start()
        verdict, manifest, _ = attempt.record(ended(exit_code=0), plan)
        assert (verdict.succeeded, verdict.missing, manifest) == (False, ("model", "table"), None)

    def test_a_manifest_that_was_changed_is_not_believed(self, lab: Lab) -> None:
        attempt = lab.attempt()
        _, plan = attempt.start()
        told = lab.tell(attempt, outputs=ALL).model_copy(update={"sha256": "0" * 64})
        with pytest.raises(ArtifactError, match="was changed in the store"):
            attempt.record(ended(told=told), plan)

    def test_a_step_out_of_memory_gets_more_the_next_time_up_to_the_limit(self, lab: Lab) -> None:
        limits: dict[str, Any] = {"memory_on_oom": 2.0, "memory_limit_gib": 5.0}
        for number, wanted in ((1, "4"), (2, "5"), (3, None)):
            attempt = lab.attempt(number, **limits)
            _, plan = attempt.start()
            attempt.record(ended(PodEnd.OUT_OF_MEMORY, exit_code=137), plan)
            attempt.session.fail(RuntimeError("x"), "up_for_retry")
            lab.pods.pods.clear()
            assert attempt.session.record.tags.get("airflow.pod.memory_gib") == wanted
        assert lab.prepared == [None, 4.0, 5.0]

    def test_memory_stays_as_it_is_where_nobody_asked(self, lab: Lab) -> None:
        attempt = lab.attempt()
        _, plan = attempt.start()
        attempt.record(ended(PodEnd.OUT_OF_MEMORY, exit_code=137), plan)
        assert "airflow.pod.memory_gib" not in attempt.session.record.tags
