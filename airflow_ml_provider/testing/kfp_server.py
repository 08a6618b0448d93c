"""The fake server that users see: starts and stops it, tells it what becomes of runs, and shows what happened."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from airflow_ml_provider.testing.kfp_catalog import Catalog
from airflow_ml_provider.testing.kfp_engine import Engine, Fate
from airflow_ml_provider.testing.kfp_faults import Fault, Faults
from airflow_ml_provider.testing.kfp_gate import Gate, Rights
from airflow_ml_provider.testing.kfp_http import Listener
from airflow_ml_provider.testing.kfp_plugin import MlflowPlugin
from airflow_ml_provider.testing.kfp_results import Made, Results, WriteFile
from airflow_ml_provider.testing.kfp_rights import Rights as PathRights
from airflow_ml_provider.testing.kfp_routes import Routes
from airflow_ml_provider.testing.kfp_runs import LostError, Runs
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, Request, Run, Workflow

GRACE_S = 120.0
GAP_S = 0.02
PARTS = {"database", "kubernetes", "kubernetes-hanging", "mlflow"}


class FakeKfpServer:
    """
    A Kubeflow Pipelines API server (v2beta1) on loopback, without Kubernetes, that does what a test tells it.

    It keeps **workflows** (what really runs) apart from **runs** (rows that the API shows), as a real server does, so that a test
    can count what a lost answer left behind. Nothing happens to a run by itself until :meth:`auto` says so, or :meth:`finish`.

    :param port: Port on 127.0.0.1, 0 for a free one.
    :param multi_user: Whether users are told apart and runs belong to namespaces.
    :param tokens: Bearer tokens that are accepted, as a mapping to the user's name, or just the tokens; None asks for none. In
        single-user mode they are asked for as by a gateway in front of the server.
    :param rights: Namespaces that each user may use, in multi-user mode, as names or as a mapping to ``edit`` or ``view``; None
        lets every user use every namespace.
    :param mlflow: Whether the server's MLflow plugin is on and fills ``plugins_output``; no MLflow is asked, unless its URL is
        given here: then it gets the runs that the plugin, the driver and the launcher would make.
    :param artifacts: Whether the server has the task and artifact API of newer servers (kubeflow/pipelines #13986).
    :param store: Writes the files of tasks into an object store: called with a URI below the pipeline root
        (``minio://mlpipeline/v2/artifacts/<pipeline>/<run>/<task>/<uuid>/<output>``) and bytes. None writes none.
    :param requests_per_second: Rate above which requests wait, with a burst of twice as many; None for no limit. It holds for
        every request but healthz in multi-user mode, and for creates alone otherwise, as on a real server.
    :param latency_s: Seconds that each answer takes at least.
    :param grace_s: Age in seconds above which an orphaned workflow is deleted when it is reported.
    :param clock: Seconds since 1970; give your own to let time pass by hand. Stamps are whole seconds.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        multi_user: bool = False,
        tokens: Mapping[str, str] | Iterable[str] | None = None,
        rights: Rights | None = None,
        mlflow: bool | str = False,
        artifacts: bool = False,
        store: WriteFile | None = None,
        requests_per_second: float | None = None,
        latency_s: float = 0.0,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.port = port
        self.latency_s = latency_s
        self.requests: list[Request] = []
        self.store = Store(clock, multi_user=multi_user)
        self.engine = Engine(self.store, grace_s)
        self.gate = Gate(self.store, tokens, rights, requests_per_second)
        catalog = Catalog(self.store)
        self._runs = Runs(self.store, self.engine, catalog, GAP_S)
        self._results = Results(self.store, store)
        self.engine.final.append(self._results.end)
        rights_of_paths = PathRights(self.store, self.gate)
        served = self._results if artifacts else None
        self._routes = Routes(self.store, self.engine, self._runs, catalog, rights_of_paths, served)
        if mlflow:
            plugin = MlflowPlugin(self.store, mlflow if isinstance(mlflow, str) else "", self._results)
            self._runs.plugin = plugin.begin
            self.engine.final.append(plugin.end)
        self._faults = Faults()
        self._stopping = threading.Event()
        self._listener: Listener | None = None

    def __enter__(self) -> FakeKfpServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> list[Run]:
        """Rows of runs, oldest first: what the API shows."""
        with self.store.lock:
            self.engine.advance()
            return list(self.store.runs.values())

    @property
    def workflows(self) -> list[Workflow]:
        """Every workflow that was ever started, oldest first, deleted ones too: what really ran."""
        with self.store.lock:
            self.engine.advance()
            return list(self.store.workflows)

    @property
    def orphans(self) -> list[Workflow]:
        """Workflows that are there without a row that tells of them."""
        return [each for each in self.workflows if not each.deleted and each.run_id not in self.store.runs]

    def workflows_of(self, run_id: str) -> list[Workflow]:
        """
        Find what was started under an id.

        :param run_id: Id of the run.
        :return: Workflows, oldest first; more than one means that the work ran twice.
        """
        return [each for each in self.workflows if each.run_id == run_id]

    def start(self) -> None:
        """Begin to serve; nothing when it serves already."""
        if self._listener is None:
            self._stopping.clear()
            self._listener = Listener(self.port, self._handle, self.store.clock)
            self.port = self._listener.server_address[1]

    def stop(self) -> None:
        """End; every connection is cut, hanging ones too."""
        self._stopping.set()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def down(self) -> None:
        """Refuse connections and cut those that are open, as a killed server does; workflows go on."""
        self.stop()

    def up(self) -> None:
        """Serve again on the same port, with everything that was there."""
        self.start()

    def lose(self, *parts: str) -> None:
        """
        Take a part of the surroundings away until :meth:`restore`.

        :param parts: ``database``, ``kubernetes``, ``kubernetes-hanging`` (rights cannot be checked, 503) or ``mlflow``.
        :raises ValueError: another part.
        """
        if set(parts) - PARTS:
            raise ValueError(f"{parts!r}: only {sorted(PARTS)} can be lost")
        self.store.lost |= set(parts)

    def restore(self) -> None:
        """Give back what :meth:`lose` took; reports that could not be made meanwhile are made now."""
        with self.store.lock:
            self.engine.advance()
            self.store.lost.clear()
            self.engine.catch_up()

    def refuse_token(self, token: str, reason: str = "[invalid bearer token, service account token has expired]") -> None:
        """
        Let a token be refused from now on, as an expired one is.

        :param token: The token.
        :param reason: What the server says of it.
        """
        self.gate.refused[token] = reason

    def auto(
        self,
        seconds: float | None = 0.5,
        state: str = "SUCCEEDED",
        *,
        failed_task: str | None = None,
        error: str = "",
        log: str = "",
        late_s: float = 0.0,
        pipeline: str | None = None,
    ) -> None:
        """
        Say what becomes of workflows that are started from now on; each is RUNNING after half of the time.

        A terminated one ends after the same time, as FAILED.

        :param seconds: From the start to the end, None to leave them until told.
        :param state: ``SUCCEEDED`` or ``FAILED``, or what another server may say (``CANCELED``, ``SKIPPED``).
        :param failed_task: The task that fails, None for the first.
        :param error: What the engine says of it, which the API never shows.
        :param log: What its container wrote.
        :param late_s: From the end to the report of it; the row then shows a finish time that has passed.
        :param pipeline: Name of the pipeline (``pipelineInfo.name``) that it holds for, None for all others.
        """
        self._set_fate(None if seconds is None else Fate(seconds, state, failed_task, error, log, late_s), pipeline)

    def script(self, *steps: tuple[float, str], log: str = "", pipeline: str | None = None) -> None:
        """
        Say through which states workflows go that are started from now on; they may go backwards.

        :param steps: Seconds after the start and a state, in order: ``(0.1, "RUNNING"), (0.5, "FAILED")``.
        :param log: What their containers wrote.
        :param pipeline: Name of the pipeline that it holds for, None for all others.
        """
        self._set_fate(Fate(steps[-1][0], steps[-1][1], log=log, steps=steps), pipeline)

    def _set_fate(self, fate: Fate | None, pipeline: str | None) -> None:
        with self.store.lock:
            if pipeline is None:
                self.engine.fate = fate
            else:
                self.engine.fates[pipeline] = fate

    def makes(
        self,
        task: str,
        *,
        files: Mapping[str, bytes | Mapping[str, bytes]] | None = None,
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        uris: Mapping[str, str] | None = None,
    ) -> None:
        """
        Say what a task leaves behind in runs that end well from now on.

        :param task: Name of the task.
        :param files: Per artifact its bytes, or bytes per relative path for a folder.
        :param metrics: Per output of type ``Metrics`` its numbers; they are in no file.
        :param parameters: Value per output parameter.
        :param metadata: Per artifact what the component has put into its metadata.
        :param uris: Per artifact the place that the component has given it itself; no file is written for it.
        """
        with self.store.lock:
            self._results.makes[task] = Made(files or {}, metrics or {}, parameters or {}, metadata or {}, uris or {})

    def cached(self, *tasks: str) -> None:
        """
        Let tasks of workflows that are started from now on be served from the cache: with what they left in an earlier run.

        :param tasks: Names of tasks; none for no task any more.
        """
        with self.store.lock:
            self.engine.cached = frozenset(tasks)

    def finish(
        self,
        run_id: str,
        state: str = "SUCCEEDED",
        failed_task: str | None = None,
        error: str = "",
        log: str = "",
        *,
        finished_at: float | None = None,
    ) -> None:
        """
        End a workflow now, and report it.

        :param run_id: Id of the run, or name of a workflow.
        :param state: How it ends; a terminated one that fails was stopped.
        :param failed_task: The task that fails, None for the one that runs, or the first.
        :param error: What the engine says of it, which the API never shows.
        :param log: What its container wrote.
        :param finished_at: When it ended by the engine's clock, None for now.
        :raises LookupError: there is no such workflow.
        """
        with self.store.lock:
            self.engine.advance()
            workflow = self._workflow(run_id)
            self.engine.move(workflow, state, failed_task, error, log, at=finished_at)
            self.engine.quietly(workflow)

    def report(self, run_id: str, state: str | None = None) -> None:
        """
        Let the agent report a workflow, whatever it said before: states may go backwards.

        :param run_id: Id of the run, or name of a workflow.
        :param state: State to report, also one that only other servers use (``PAUSED``); None for how the workflow stands, where
            one that was told to stop has failed.
        :raises LookupError: there is no such workflow.
        :raises KfpError: what the server answers to the report of an orphan.
        """
        with self.store.lock:
            self.engine.advance()
            workflow = self._workflow(run_id)
            if state is not None:
                self.engine.move(workflow, state)
            elif workflow.stopped and not workflow.ended:
                self.engine.move(workflow, "FAILED")
            self.engine.report(workflow)

    def remove_workflow(self, run_id: str) -> None:
        """
        Delete the Workflow objects of a run behind the server's back; the row is never reported again.

        :param run_id: Id of the run, or of a recurring run for its ScheduledWorkflow object, and all Workflow objects with it.
        """
        with self.store.lock:
            self.engine.advance()
            if run_id in self.store.recurring:
                self.store.recurring[run_id].object_gone = True
                self.engine.collect_ownerless()
            for each in self.store.workflows_by_run.get(run_id, ()):
                each.deleted = True

    def fault(
        self, kind: str, *, method: str | None = None, path: str | None = None, times: int = 1, seconds: float = 0.0
    ) -> None:
        """
        Order a fault for the next requests that fit.

        ``status-503`` (any number): answered so, nothing done. ``reset``: the connection is cut, nothing done. ``hang``: no
        answer, nothing done. ``slow``: done and answered after ``seconds``. ``lost-before``, ``lost-after``: the connection is
        cut before or after it was done. ``lost-between``: a create makes the workflow and no row, and the connection is cut.
        ``orphan-500``: the same, answered 500. ``hang-after``: done, and answered after ``seconds``.

        :param kind: What happens.
        :param method: Method that it waits for, None for any.
        :param path: Regular expression searched in the path; None for any, or for creates of runs with ``lost-...``,
            ``orphan-500`` and ``hang-after``.
        :param times: How often it strikes.
        :param seconds: How long it hangs, 0 for until the server stops.
        :raises ValueError: the kind is not known.
        """
        self._faults.add(kind, method, path, times, seconds)

    def clear_faults(self) -> None:
        """Take back every fault that has not struck."""
        self._faults.clear()

    def _workflow(self, name: str) -> Workflow:
        run = self.store.runs.get(name)
        if run is not None and run.workflow is not None:
            return run.workflow
        named = [each for each in self.store.workflows if each.name == name]
        found: list[Workflow] = [*self.store.workflows_by_run.get(name, ()), *named]
        if not found:
            raise LookupError(f"there is no workflow of run {name!r} and none of that name")
        return found[0]

    def _handle(self, request: Request) -> Answer | None:
        self.requests.append(request)
        found = self._answer(request)
        request.status = found.status if found else None
        return found

    def _answer(self, request: Request) -> Answer | None:
        fault = self._faults.take(request)
        if self.latency_s:
            self._stopping.wait(self.latency_s)
        if fault is not None:
            return self._struck(fault, request)
        return self._serve(request)

    def _struck(self, fault: Fault, request: Request) -> Answer | None:
        if fault.kind.startswith("status-"):
            return Answer(int(fault.kind.removeprefix("status-")), b"upstream error\n", "text/plain")
        if fault.kind in {"reset", "lost-before"}:
            return None
        if fault.kind in {"hang", "slow"}:
            self._stopping.wait(fault.seconds or None)
            return self._serve(request) if fault.kind == "slow" else None
        found = self._serve(request, strike=fault.kind)
        if fault.kind == "hang-after":
            self._stopping.wait(fault.seconds or None)
        return None if fault.kind in {"lost-after", "lost-between"} or self._stopping.is_set() else found

    def _serve(self, request: Request, strike: str = "") -> Answer | None:
        refused = self.gate.check(request, self._stopping.wait, time.monotonic)
        if refused is not None:
            return refused
        with self.store.lock:
            self.engine.advance()
        try:
            return self._routes.answer(request, strike=strike)
        except LostError:
            return None
        except Exception:  # noqa: BLE001  (a thread of ours: a defect of the fake must be seen by whoever asked)
            return Answer(500, f"the fake server itself failed:\n{traceback.format_exc()}".encode(), "text/plain")
