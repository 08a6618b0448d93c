"""
The user's own ``mlflow.log_*`` and ``autolog`` calls inside a step land in the step's run, with no line written for it.

The real client is imported by the user or not at all: its environment is set, and the run becomes the active one in the
moment in which ``mlflow`` is imported (at once, where it is imported already).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

USERS_CHOICE = {"MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"}
"""Variables that are left alone where the worker's environment sets them."""
_AUTHENTICATION = (
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH"),
    "MLFLOW_WORKSPACE",
)
_TLS = {"MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH"}
"""MLflow takes one of them: where the connection says one, the environment's other must go."""


@contextmanager
def active_run(environment: Mapping[str, str], run_id: str, experiment_id: str, try_number: int) -> Iterator[None]:
    """
    Make a run the active one of this process while a step's function runs.

    Leaving neither ends the run nor changes its status: that is the recorder's, who knows how the step ended.

    :param environment: What configures the client, from ``MlflowHook.client_environment``.
    :param run_id: The step's nested run.
    :param experiment_id: Its experiment.
    :param try_number: Which try this is; from the second on, a parameter whose value has changed becomes a tag of the try.
    """
    before = dict(os.environ)
    wanted = {key: value for key, value in environment.items() if not (key in USERS_CHOICE and key in before)}
    hidden = {*_AUTHENTICATION, *(_TLS if _TLS & wanted.keys() else ())}
    for key in hidden:
        os.environ.pop(key, None)  # another connection's login must not be sent to this server
    os.environ.update(wanted | {"MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": experiment_id})
    activation = _Activation(run_id, try_number)
    finder = _OnImport(activation)
    if "mlflow" in sys.modules:
        activation.start()
    else:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        activation.stop()
        for key in {*environment, *hidden, "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"}:
            os.environ.pop(key, None)
            if key in before:
                os.environ[key] = before[key]


class _OnImport(MetaPathFinder):
    """Finds ``mlflow`` as ever, and activates the run after its import."""

    def __init__(self, activation: _Activation) -> None:
        self.activation = activation

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002  (the protocol)
        if name != "mlflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_activate(module: ModuleType) -> None:
            load(module)
            self.activation.start()

        spec.loader.exec_module = load_and_activate  # type: ignore[method-assign]
        return spec


class _Activation:
    """The step's run as the active one of the real client; what it needs of MLflow's private names stands here alone."""

    def __init__(self, run_id: str, try_number: int) -> None:
        self.run_id = run_id
        self.try_number = try_number
        self.store: Any = None

    def start(self) -> None:
        """Make the run active; whatever goes wrong must not fail the user's import."""
        import mlflow

        try:
            active = mlflow.start_run(run_id=self.run_id)
            self._share(active)
            if self.try_number > 1:
                self._keep_changed_params()
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not fail the user's import)
            log.warning("The step's MLflow run could not be made the active one: %s. It is tried again at the next call.", error)

    def stop(self) -> None:
        """Send what waits and forget the active runs, without the status that ``mlflow.end_run`` would set."""
        fluent: Any = sys.modules.get("mlflow.tracking.fluent")
        if fluent is None:
            return
        try:
            fluent.flush_async_logging()
        except Exception as error:  # noqa: BLE001  (the user's asynchronous logging failed; the step did not)
            log.warning("What the step logged asynchronously could not be sent: %s", error)
        self._unshare(fluent)
        fluent._active_run_stack.get().clear()
        if self.store is not None:
            del self.store.log_batch, self.store.log_param

    def _share(self, active: Any) -> None:
        """
        Make the run the active one of threads and child processes too.

        MLflow's stack of active runs is one per thread, so a new thread is given this run to start with. The variable
        stays set for child processes; this process must not see it, or mlflow.start_run(nested=True) would open this run
        again instead of one below it.
        """
        fluent: Any = importlib.import_module("mlflow.tracking.fluent")
        os.environ["MLFLOW_RUN_ID"] = self.run_id
        fluent.MLFLOW_RUN_ID.get = fluent.MLFLOW_RUN_ID.unset = lambda: None
        fluent._active_run_stack.default_factory = lambda: [active]

    def _unshare(self, fluent: Any) -> None:
        for name in ("get", "unset"):
            vars(fluent.MLFLOW_RUN_ID).pop(name, None)
        fluent._active_run_stack.default_factory = list
        fluent._active_run_stack.reset()

    def _keep_changed_params(self) -> None:
        """
        Let a retry log a parameter anew: MLflow never changes one, and its refusal would fail every further try.

        The two methods are replaced on this one store object, and only while the step runs.
        """
        from mlflow.entities import RunTag
        from mlflow.tracking._tracking_service.utils import _get_store

        self.store = store = _get_store()
        log_batch, prefix = store.log_batch, f"try-{self.try_number}.param."

        def log_batch_kept(run_id: str, metrics: Sequence[Any], params: Sequence[Any], tags: Sequence[Any]) -> None:
            known = store.get_run(run_id).data.params if params else {}
            changed = [each for each in params if known.get(each.key, each.value) != each.value]
            moved = [RunTag(prefix + each.key, each.value) for each in changed]
            log_batch(run_id, metrics, [each for each in params if each not in changed], [*tags, *moved])

        store.log_batch = log_batch_kept
        store.log_param = lambda run_id, param: log_batch_kept(run_id, [], [param], [])
