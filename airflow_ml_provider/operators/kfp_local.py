"""A pipeline run on the worker itself, for a ``local://`` connection: nothing of it is left when the task ends."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_ml_provider.core.kfp_outputs import check_wanted, read_outputs
from airflow_ml_provider.core.kfp_package import check_arguments, read_package, shown_source
from airflow_ml_provider.exceptions import ConfigError, RemoteJobError
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.run import StepIdentity

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.core.signature import StepSignature
    from airflow_ml_provider.hooks.kfp_server import KfpServer
    from airflow_ml_provider.jobs.kfp_local import KfpLocal, LocalOutcome
    from airflow_ml_provider.models.kfp_package import PipelinePackage
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

UNREAD_OPTIONS = ("pipeline_root", "service_account", "plugins_input", "namespace", "results_root")
"""Options that a server reads, and nobody here."""
SUPERVISED_S = 1.0
"""Seconds between two looks at whether the process that watches over the task is there."""


class RunsPipeline(Protocol):
    """What is read of the operator."""

    task_id: str
    pipeline: str
    arguments: Mapping[str, Any] | None
    kfp_conn_id: str
    deferrable: bool | None
    options: KfpRunOptions | None
    session: StepSession | None

    @property
    def signature(self) -> StepSignature:
        """What the task declares of the run's outputs."""
        ...

    def before_run(self, package: PipelinePackage, arguments: Mapping[str, Any]) -> None:
        """Hear of a pipeline and its checked arguments before it runs; may raise."""
        ...


def server_of(kfp_conn_id: str) -> KfpServer | None:
    """
    Read a connection.

    :param kfp_conn_id: The connection.
    :return: Its server; None where it stands for this machine, ``local://``.
    :raises AirflowFailException: there is no such connection, or it is unusable; there is no retry.
    """
    from airflow_ml_provider.hooks.kfp import KfpHook

    try:
        server = KfpHook(kfp_conn_id).server()
    except ConfigError as error:
        raise AirflowFailException(str(error)) from error
    return None if server.local else server


class LocalTask:
    """
    The run of one try. Each try runs anew: there is nothing outside of the worker that it could find again.

    :param operator: The task.
    """

    def __init__(self, operator: RunsPipeline) -> None:
        from airflow_ml_provider.jobs.kfp_local import KfpLocal

        self._operator = operator
        self._local: KfpLocal = KfpLocal()

    def execute(self, context: Context, deadline: float | None) -> dict[str, Any]:
        """
        Run the pipeline to its end, put it on record, and hand on its outputs.

        :param context: Airflow's context.
        :param deadline: Epoch seconds at which it is ended; None for never.
        :return: Keys of the run and of its outputs, as from a server.
        :raises AirflowFailException: the package, an argument or an output is wrong, or the package cannot run here; there is no
            retry.
        :raises RemoteJobError: the run failed or was ended; a retry runs it anew.
        :raises RemoteUnavailableError: an interpreter could not be made, or the package's place did not answer; a retry is safe.
        """
        try:
            return self._answer(self._run(context, deadline))
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error

    def kill(self) -> None:
        """End what runs, with all that it has started."""
        self._local.kill()

    def _answer(self, outcome: LocalOutcome) -> dict[str, Any]:
        from airflow_ml_provider.jobs.kfp_connected import run_reference
        from airflow_ml_provider.operators.kfp_delivery import deliver
        from airflow_ml_provider.operators.kfp_record import note_run

        run, url = outcome.run, outcome.folder.as_uri()
        note_run(self._operator.session, run, url, self._operator.arguments)
        if not run.state.good:
            raise RemoteJobError(f"pipeline {run.name} {run.state} on this machine: {outcome.problem}")
        for each in outcome.results.outputs:
            log.info("Output %s (%s): %s", each.full_label, each.type, each.path or each.value or each.metadata)
        where = f"run {run.run_id} on this machine"
        return run_reference(run, url) | deliver(outcome.results, self._operator.signature, self._operator.session, where)

    def _run(self, context: Context, deadline: float | None) -> LocalOutcome:
        from airflow_ml_provider.jobs.kfp_connected import dag_folder, defers

        operator, ti = self._operator, context["ti"]
        if defers(operator.deferrable):
            log.info("deferrable=True: the run is on this machine (connection %r), so this worker waits.", operator.kfp_conn_id)
        unread = [name for name in UNREAD_OPTIONS if getattr(operator.options, name, None)]
        if unread:
            log.info("options %s are read by a server only, and have no effect on this machine.", ", ".join(unread))
        package = self._package(dag_folder(context))
        if operator.arguments is not None and not isinstance(operator.arguments, Mapping):
            raise ConfigError(f"arguments={operator.arguments!r:.200} is no dict of values by name.")
        check_wanted(read_outputs(package.spec), operator.signature, package.source)
        arguments = check_arguments(package, operator.arguments or {})
        operator.before_run(package, arguments)
        run_id = str(uuid.uuid4())
        folder = self._folder(ti, run_id)
        log.info("Pipeline %s runs on this machine, below %s", package.name, folder)
        timeout_s = None if deadline is None else deadline - time.time()
        with self._while_supervised():
            return self._local.run(package, arguments, folder, run_id=run_id, timeout_s=timeout_s)

    @contextmanager
    def _while_supervised(self) -> Iterator[None]:
        """End the run when the worker above this process is gone: Airflow counts the task as lost then, and starts it anew."""
        supervisor, over = os.getppid(), threading.Event()

        def watch() -> None:
            while not over.wait(SUPERVISED_S):
                if os.getppid() != supervisor:
                    self.kill()
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _package(self, folder: Path | None) -> PipelinePackage:
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.jobs.kfp_compile import compile_function
        from airflow_ml_provider.jobs.kfp_source import fetch_package, is_function, is_package

        pipeline, settings = str(self._operator.pipeline), self._local.settings
        if not is_package(pipeline):
            raise ConfigError(
                f"pipeline {pipeline!r} names a registered pipeline, and connection {self._operator.kfp_conn_id!r} has no server "
                "that would know it (host 'local://'). Give the package, 'pipelines/churn.yaml', or the function, "
                "'pipelines/churn.py:churn': both run on a server too."
            )
        if is_function(pipeline):
            content = compile_function(pipeline, relative_to=folder, settings=settings, child=self._local.sdk.child)
        else:
            shown = shown_source(pipeline)
            content = patiently(f"read {shown}", lambda: fetch_package(pipeline, relative_to=folder), settings.patience_s)
        return read_package(content, source=pipeline)

    def _folder(self, ti: Any, run_id: str) -> Path:
        map_index = -1 if ti.map_index is None else ti.map_index
        identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=map_index)
        root = Path(self._local.settings.kfp_local_root).expanduser().absolute()
        return root / identity.path / f"{ti.try_number}-{run_id[:8]}"
