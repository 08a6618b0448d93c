"""Pods without a cluster: each is a process of this machine, which runs what its container would, against a real MLflow server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.core.pod_adoption import has_ended
from airflow_ml_provider.exceptions import SupersededError
from airflow_ml_provider.models.pod import ContainerStatus, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.operators.pod_function import MLPodFunctionOperator
from airflow_ml_provider.operators.pod_try import PodTry

SERVER = [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}, "context": {"cluster": "x", "user": "x"}, "user": {}}]
KUBE_CONFIG = {"current-context": "x", "clusters": SERVER, "contexts": SERVER, "users": SERVER}
"""Of a cluster that nobody may ask anything."""


class Machine:
    """
    The pods of a namespace.

    :param folder: Where their volumes lie, one after the other.
    """

    namespace = "ml"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, PodSnapshot] = {}
        self.bodies: list[dict[str, Any]] = []
        """Of all that were ever made."""
        self.said: list[str] = []

    @property
    def volume(self) -> str:
        return str(self.folder / "volume")

    def create(self, body: Mapping[str, Any]) -> PodSnapshot:
        self.bodies.append(dict(body))
        meta, (container,) = body["metadata"], body["spec"]["containers"]
        code, message = self._run(container)
        ended = ContainerStatus(name=container["name"], state="terminated", exit_code=code, message=message, reason="Completed")
        pod = PodSnapshot(
            name=meta["name"],
            namespace=self.namespace,
            uid=f"uid-{len(self.bodies)}",
            labels=meta["labels"],
            phase="Failed" if code else "Succeeded",
            containers=[ended],
        )
        self.pods[pod.name] = pod
        return pod

    def _run(self, container: Mapping[str, Any]) -> tuple[int, str]:
        shutil.rmtree(self.volume, ignore_errors=True)
        told = self.folder / f"told-{len(self.bodies)}"
        told.touch()
        given = {each["name"]: each.get("value", "") for each in container.get("env") or []}
        given = {name: value.replace("$$", "$") for name, value in given.items()}
        variables = {"PATH": os.environ["PATH"], **given, "AIRFLOW_ML_TERMINATION_LOG": str(told)}
        ended = subprocess.run(
            [*container["command"], *container.get("args", [])],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        self.said.append(ended.stdout)
        return ended.returncode, told.read_text()

    def find(self, labels: Mapping[str, str], **_: Any) -> list[PodSnapshot]:
        return [each for each in self.pods.values() if labels.items() <= each.labels.items()]

    def delete(self, name: str, *, uid: str = "", grace_s: int | None = None) -> None:
        self.pods.pop(name, None)

    def label(self, name: str, labels: Mapping[str, str], *, uid: str = "") -> bool:
        self.pods[name] = self.pods[name].model_copy(update={"labels": {**self.pods[name].labels, **labels}})
        return True

    def events(self, *_: Any) -> list[Any]:
        return []

    def options(self, mlflow_url: str, **fields: Any) -> PodOptions:
        return PodOptions(folder=self.volume, python=sys.executable, mlflow_url=mlflow_url, **fields)


class Told(BaseTrigger):
    """A triggerer that has seen the end of a pod."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__()
        self.outcome = outcome

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.Told", {"outcome": self.outcome}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent(self.outcome)


class OnThisMachine:
    """Lets an operator make its pods on a machine; ``crashes`` of its workers are gone once their pod is made."""

    machine: ClassVar[Machine]
    crashes: ClassVar[int] = 0
    waits: ClassVar[bool] = False

    def _open(self, *given: Any) -> PodTry:
        attempt: PodTry = super()._open(*given)  # type: ignore[misc]  # the operator's
        attempt.submission.jobs = self.machine  # type: ignore[assignment]  # as far as it is asked
        start = attempt.start

        def started() -> Any:
            pod, plan = start()
            if OnThisMachine.crashes:
                OnThisMachine.crashes -= 1
                raise SupersededError("the worker is gone")
            if self.waits and isinstance(pod, PodSnapshot) and has_ended(pod):
                self._wait(pod, plan.try_number)
            return pod, plan

        attempt.start = started  # type: ignore[method-assign]  # between the pod and the waiting for it
        return attempt

    def _wait(self, pod: PodSnapshot, planned_by: int) -> None:
        """Defer as for a pod that runs, to a triggerer that sees its end at once."""
        from airflow_ml_provider.core.pods import PodWatch

        me: Any = self
        watch = PodWatch("base", None, capacity_timeout_s=1, startup_timeout_s=1, deadline=None, patience_s=1, now=0, uid=pod.uid)
        told = watch.on_pod(pod, 0)
        assert isinstance(told, PodOutcome)
        kept = {"planned_by": planned_by, "run": me.session.record.run.model_dump()}
        me.defer(trigger=Told(told.model_dump(mode="json")), method_name="execute_complete", kwargs=kept)


class PodHere(OnThisMachine, MLPodOperator):
    """A program in a pod that is a process of this machine."""


class FunctionHere(OnThisMachine, MLPodFunctionOperator):
    """The same for a function."""
