"""Runs of pipelines on this machine, by the SDK's local runner in an interpreter of its own."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_ml_provider.config import Settings
from airflow_ml_provider.core.kfp_local import LocalPlan, plan_local_run
from airflow_ml_provider.core.kfp_outputs import read_outputs
from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.interpreters import ChildProcess
from airflow_ml_provider.jobs.kfp_local_folders import RunFolders
from airflow_ml_provider.jobs.kfp_sdk import KfpSdk
from airflow_ml_provider.models.kfp import PipelineRun, PipelineTask, RunState
from airflow_ml_provider.models.kfp_package import PipelinePackage
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults, iterations_in

log = logging.getLogger(__name__)

TAIL_LINES = 40
"""Lines of a failed task's log in an error; a traceback has its place in them."""


@dataclass(frozen=True)
class LocalOutcome:
    """
    What became of a run on this machine.

    :param run: The run; its state is ``CANCELED`` where we ended it.
    :param results: Its outputs, and those of its tasks.
    :param folder: What its components have written.
    :param problem: What went wrong, empty for nothing: the task, and the end of its log.
    """

    run: PipelineRun
    results: KfpResults
    folder: Path
    problem: str = ""


class KfpLocal:
    """
    The runner of one task.

    :param settings: Where things are kept; None reads the section ``[ml]``.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.sdk = KfpSdk(settings, ChildProcess())
        self.settings = self.sdk.settings
        self._late = False

    def run(
        self,
        package: PipelinePackage,
        arguments: Mapping[str, Any],
        folder: Path,
        *,
        run_id: str,
        timeout_s: float | None = None,
    ) -> LocalOutcome:
        """
        Run a package to its end. Nothing that it has started is left, however it ends, nor when this process is killed.

        :param package: The pipeline.
        :param arguments: What ``check_arguments`` returned.
        :param folder: Folder of this run alone; made, and kept as ``[ml] kfp_local_keep_days`` says.
        :param run_id: Id of the run, for its record.
        :param timeout_s: Seconds after which it is ended, the making of interpreters included; None sets no limit.
        :return: What became of it; a run that fails is no error of this method.
        :raises ConfigError: the package has what cannot run here, or the folders cannot be written; a retry never helps.
        :raises RemoteUnavailableError: an interpreter could not be made; a retry is safe.
        """
        plan = plan_local_run(package, self.sdk.interpreter.version)
        for each in plan.notes:
            log.warning("%s", each)
        folders = RunFolders(Path(self.settings.kfp_local_root), self.settings.kfp_local_keep_days)
        folders.delete_old()
        following, began = _Following(), datetime.now(UTC)
        order = {"do": "run", "spec": dict(package.spec), "arguments": dict(arguments), "folder": str(folder)}
        with folders.held(folder, run_id), self._limited(timeout_s):
            said, code, tail = self._ask(order, plan, following)
        shutil.rmtree(folder / "tmp", ignore_errors=True)  # of a run that was ended
        state = self._state(said)
        problem = self._problem(state, said, code, tail, timeout_s)
        run = PipelineRun(
            run_id=run_id,
            name=package.name,
            state=state,
            created_at=began,
            finished_at=datetime.now(UTC),
            error=problem,
            tasks=tuple(_task(each, state) for each in said.get("tasks") or following.tasks.values()),
            parameters=dict(arguments),
            pipeline_root=(folder / "artifacts").as_uri(),
        )
        return LocalOutcome(run, _results(said, folder, package), folder, problem)

    def kill(self) -> None:
        """End the run with all that it has started; it is not started any more either."""
        self.sdk.child.kill()

    def _ask(self, order: Mapping[str, Any], plan: LocalPlan, following: _Following) -> tuple[dict[str, Any], int, str]:
        try:
            return self.sdk.ask({**order, "pythons": self._pythons(plan)}, following.take)
        except RemoteUnavailableError:
            if not self.sdk.child.killed:
                raise
            return {}, -signal.SIGKILL, ""  # while an interpreter was made

    def _state(self, said: Mapping[str, Any]) -> RunState:
        state = RunState.read(said.get("state"))
        if state.ended:
            return state
        return RunState.CANCELED if self.sdk.child.killed and not said else RunState.FAILED

    def _pythons(self, plan: LocalPlan) -> dict[str, str]:
        """Make the interpreters of the components, one after the other; equal ones are made once."""
        made = self.sdk.interpreter.component_python
        return {label: str(made(each.packages, each.bare)) for label, each in plan.packages.items()}

    @contextmanager
    def _limited(self, timeout_s: float | None) -> Iterator[None]:
        if timeout_s is None:
            yield
            return
        timer = threading.Timer(max(0.0, timeout_s), self._stop_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _stop_late(self) -> None:
        self._late = True
        self.kill()

    def _problem(self, state: RunState, said: Mapping[str, Any], code: int, tail: str, timeout_s: float | None) -> str:
        if state.good:
            return ""
        if state is RunState.CANCELED:
            why = f"after its timeout of {timeout_s:.0f} s" if self._late else "since the task was killed"
            return f"it was ended {why}, with all that it had started."
        failed = [each for each in said.get("tasks") or () if each["state"] == "FAILED"]
        if failed:
            return "\n".join(f"Task {each['name']} FAILED:\n{_end(each['error'])}" for each in failed)
        if said.get("error"):
            return f"the SDK's local runner failed: {_end(said.get('traceback') or said['error'])}"
        return f"the SDK's interpreter ended with code {code} and gave no answer. The last that it said:\n{tail}"


class _Following:
    """Says in the log which task has started and ended."""

    def __init__(self) -> None:
        self.tasks: dict[str, Mapping[str, Any]] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        name, state = event["name"], event["state"]
        self.tasks[name] = event
        if state == "RUNNING":
            log.info("Task %s started.", name)
        else:
            log.log(
                logging.INFO if state == "SUCCEEDED" else logging.ERROR, "Task %s %s after %.1f s.", name, state, event["seconds"]
            )


def _task(told: Mapping[str, Any], run: RunState) -> PipelineTask:
    name, state = str(told["name"]), RunState.read(told["state"])
    state = run if state is RunState.RUNNING else state  # it has ended with the run
    return PipelineTask(task_id=name, name=name, state=state, error=_end(str(told.get("error") or "")))


def _end(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-TAIL_LINES:])


def _results(said: Mapping[str, Any], folder: Path, package: PipelinePackage) -> KfpResults:
    outputs = [_output(each) for each in said.get("outputs") or ()]
    outputs.sort(key=lambda each: (each.group, each.task, each.name, each.loop))  # those of the pipeline first
    notes = [f"{len(outputs)} outputs below {folder}; that is all that the run has made."] if said else []
    return read_outputs(package.spec).gathered(outputs, notes, complete=bool(said))


def _output(told: Mapping[str, Any]) -> KfpOutput:
    """Name an output as on a server, by its task alone; the groups around that say which iteration of a loop it is of."""
    group, _, task = str(told["task"]).rpartition("/")
    loop = (*iterations_in(group), *told.get("loop", ()))
    return KfpOutput.model_validate({**told, "task": task, "group": group, "loop": loop, "source": "local"})
