"""
A real Airflow and a real MLflow server on this machine, for the demo and the tests.

Loopback only, SQLite, every component in a session of its own, all state in one folder. What runs on the stack is not
decided here.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from demo.airflow_api import AirflowApi
from demo.component import Component, last_lines, launch
from demo.errors import DemoError
from demo.ports import HOST, free_ports
from demo.processes import ProcessId, family, is_alive, signal_all, stop
from demo.settings import DEMO_DAGS, PORT_NAMES, commands, prepare_folders, stack_environment
from demo.signals import deferred
from demo.state import StackState, StateFolder

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["COMPONENTS", "LocalStack", "Report"]

AIRFLOW_JOBS = ("scheduler", "dag-processor", "triggerer")
SERVERS = ("api-server", "mlflow")
COMPONENTS = (*AIRFLOW_JOBS, *SERVERS)

Report = Callable[[str, str, float], None]
"""Called with a component, what became of it (``starting``, ``ready``, ``stopped``) and the seconds since its start."""


def _silent(_component: str, _event: str, _seconds: float) -> None:
    pass


class LocalStack:
    """
    Airflow's scheduler, DAG processor, triggerer and API server, and an MLflow server.

    A context manager: entering starts, leaving stops. When its process is killed, a keeper process ends the rest.

    :param state_dir: Folder of databases, logs, artifacts and secrets; reused when it is there already.
    :param dags: Folders with DAG files, by default those of this repository.
    :param environment: Variables to add for every process; they win over the stack's own.
    :param airflow_port: Port of the API server and user interface; by default that of the last run, or any free one.
    :param mlflow_port: Port of the MLflow server, likewise.
    :param start_timeout_s: Seconds that all components together have to become healthy.
    :param report: Told what happens while starting and stopping.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        dags: Sequence[Path] = (DEMO_DAGS,),
        environment: Mapping[str, str] | None = None,
        airflow_port: int | None = None,
        mlflow_port: int | None = None,
        start_timeout_s: float = 300.0,
        report: Report = _silent,
    ) -> None:
        self._folder = StateFolder(state_dir)
        self._dags = [Path(folder).resolve() for folder in dags]
        self._extra = dict(environment or {})
        self._wanted = {"airflow": airflow_port, "mlflow": mlflow_port}
        self._start_timeout_s = start_timeout_s
        self._report = report
        self._components: dict[str, Component] = {}
        self._state = StackState()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client()
        self.environment: dict[str, str] = {}
        """Whole environment of every process of the stack, filled by :meth:`start`; for tools that should see it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def state_dir(self) -> Path:
        """Folder of databases, logs, artifacts and secrets."""
        return self._folder.path

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's user interface and API, without a slash at the end."""
        return f"http://{HOST}:{self._state.ports['airflow']}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's user interface and API, without a slash at the end."""
        return f"http://{HOST}:{self._state.ports['mlflow']}"

    @property
    def username(self) -> str:
        """Name to log in with at Airflow."""
        return "admin"

    @property
    def password(self) -> str:
        """Password of :attr:`username`, made by Airflow at the first start of its API server."""
        file = self.state_dir / "airflow/simple_auth_manager_passwords.json.generated"
        return str(json.loads(file.read_text(encoding="utf-8"))[self.username])

    def api(self) -> AirflowApi:
        """
        Make a client of Airflow's REST API that logs in by itself.

        :return: The client; close it, or use it in a ``with`` statement.
        """
        return AirflowApi(self.airflow_url, self.username, self.password)

    def log_file(self, component: str) -> Path:
        """
        Give the place of a component's output.

        :param component: One of :data:`COMPONENTS`, or ``migrate``.
        :return: The file, which exists once the component was started.
        """
        return self.state_dir / "logs" / f"{component}.log"

    def start(self) -> None:
        """
        Start everything and wait until all of it is healthy; whatever goes wrong, nothing is left running.

        :raises DemoError: a component ended or did not become healthy in time, a stack already runs in this folder, or
            no port is free.
        """
        self._folder.lock()
        try:
            self._prepare()
            deadline = time.monotonic() + self._start_timeout_s
            self._launch("mlflow")
            self._migrate(deadline)
            for name in ("api-server", *AIRFLOW_JOBS):
                self._launch(name)
            self._wait_ready(COMPONENTS, deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """
        End every process of the stack; harmless when nothing runs.

        The jobs go first, while the servers can still be told how their tasks ended. A signal to end that comes
        meanwhile waits.

        :raises DemoError: a process cannot be ended.
        """
        with deferred():
            stubborn: set[ProcessId] = set()
            # Everything is in the databases by then: a server that is slow to leave only costs time.
            for wave, grace_s in ((("migrate", *AIRFLOW_JOBS), 5.0), (SERVERS, 2.5)):
                running = [self._components[name] for name in wave if name in self._components]
                stubborn |= stop([component.identity for component in running], grace_s=grace_s)
                for component in running:
                    self._forget(component)
            # Orphans of components that were killed and started again.
            stubborn |= stop(self._state.processes.values(), grace_s=2.0, within=self.state_dir)
            self._state.processes.clear()
            self._end_keeper()
            self._client.close()
            self._folder.unlock()
        if stubborn:
            pids = " ".join(str(process.pid) for process in stubborn)
            raise DemoError(f"Processes {pids} cannot be ended: end them by hand (kill -9 {pids}).")

    def processes(self, component: str) -> set[ProcessId]:
        """
        Find the live processes of a component, with all that they have started.

        :param component: One of :data:`COMPONENTS`.
        :return: The processes, empty when it does not run.
        """
        started = self._components.get(component)
        return family([started.identity]) if started else set()

    def is_running(self, component: str) -> bool:
        """
        Say whether a component's first process is alive.

        :param component: One of :data:`COMPONENTS`.
        :return: Whether it is.
        """
        started = self._components.get(component)
        return started is not None and is_alive(started.identity)

    def require_alive(self) -> None:
        """
        Check that no component has ended by itself.

        :raises DemoError: one has; the message has its last lines and the place of its log.
        """
        for component in self._components.values():
            component.require_alive()

    def send_signal(self, component: str, signum: int) -> None:
        """
        Send a signal to every process of a component: ``SIGSTOP`` makes it hang, ``SIGCONT`` go on.

        :param component: One of :data:`COMPONENTS`.
        :param signum: Signal number.
        """
        signal_all(self.processes(component), signum)

    def kill(self, component: str, *, whole: bool = True) -> None:
        """
        Kill a component at once (``SIGKILL``) and wait until it is gone.

        :param component: One of :data:`COMPONENTS`.
        :param whole: Kill all of its processes; otherwise the first one alone, its children live on as they do when a
            scheduler is killed.
        """
        started = self._components[component]
        signal_all(self.processes(component) if whole else [started.identity], signal.SIGKILL)
        started.process.wait()
        deadline = time.monotonic() + 10
        while whole and self.processes(component) and time.monotonic() < deadline:
            time.sleep(0.05)

    def restart(self, component: str, *, keep_orphans: bool = False, timeout_s: float = 120.0) -> None:
        """
        End what is left of a component and start it again at the same port, then wait until it is healthy.

        :param component: One of :data:`COMPONENTS`.
        :param keep_orphans: Leave alone what a killed first process has left behind, such as the workers of a scheduler
            in the middle of a task; :meth:`stop` ends it.
        :param timeout_s: Seconds to wait.
        :raises DemoError: it ended or did not become healthy in time.
        """
        before = self._components.get(component)
        if before and keep_orphans and not self.is_running(component):
            self._forget(before)
            self._state.processes[f"{component} {before.identity.pid}"] = before.identity
        elif before:
            stop([before.identity], grace_s=4.0)
            self._forget(before)
        self._launch(component)
        self._wait_ready([component], time.monotonic() + timeout_s)

    def run(self, *command: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """
        Run a command in the stack's environment, such as ``airflow providers list``.

        :param command: Program and arguments; the programs of this virtual environment come first.
        :param timeout_s: Seconds after which it is killed.
        :return: Its status and output.
        :raises DemoError: there is no such program, or it took too long.
        """
        # The environment's PATH is for the child: the program is looked up in ours unless the place is given.
        own = Path(sys.executable).parent / command[0]
        program = str(own) if own.exists() else command[0]
        try:
            return subprocess.run(
                [program, *command[1:]],
                cwd=self.state_dir,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DemoError(f"{' '.join(command)}: {error}") from error

    def _prepare(self) -> None:
        left = self._folder.clean_up()
        if left:
            self._report(", ".join(left), "left by an earlier demo, ended", 0.0)
        last = self._folder.load()
        ports = {name: port for name, port in self._wanted.items() if port}
        others = [name for name in PORT_NAMES if name not in ports]
        chosen = free_ports(len(others), [last.ports.get(name) for name in others], without=ports.values())
        ports |= dict(zip(others, chosen, strict=True))
        self._state = StackState(secrets.token_hex(8), {}, ports)
        prepare_folders(self.state_dir)
        self._client = httpx.Client(timeout=10, trust_env=False)
        self.environment = stack_environment(self.state_dir, ports, self._dags, self._extra)
        self._folder.save(self._state)
        self._start_keeper()

    def _start_keeper(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "demo.keeper", str(self.state_dir), self._state.token],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end_keeper(self) -> None:
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()
            self._keeper.wait()
            self._keeper = None

    def _launch(self, name: str) -> None:
        log = self.log_file(name)
        if name not in self._components and log.exists():
            log.replace(log.with_suffix(".previous.log"))
        command = commands(self.state_dir, self._state.ports)[name]
        # Interrupted in between, it would run without anybody knowing of it.
        with deferred():
            self._components[name] = launch(name, command, self.environment, log, self.state_dir)
            self._state.processes[name] = self._components[name].identity
            self._folder.save(self._state)
        self._report(name, "starting", 0.0)

    def _forget(self, component: Component, event: str = "stopped") -> None:
        component.process.wait()
        self._components.pop(component.name, None)
        self._state.processes.pop(component.name, None)
        self._folder.save(self._state)
        self._report(component.name, event, time.time() - component.started_at)

    def _migrate(self, deadline: float) -> None:
        """Bring Airflow's database up to date, unless this very version has done so: it takes ten seconds each time."""
        stamp = self.state_dir / "airflow/migrated"
        current = version("apache-airflow-core")
        if stamp.exists() and stamp.read_text(encoding="utf-8") == current:
            return
        self._launch("migrate")
        migration = self._components["migrate"]
        try:
            status = migration.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise DemoError(f"airflow db migrate took too long. Its log: {migration.log}") from None
        if status:
            raise DemoError(f"airflow db migrate failed:\n{last_lines(migration.log)}\nWhole log: {migration.log}")
        stamp.write_text(current, encoding="utf-8")
        self._forget(migration, "ready")

    def _wait_ready(self, names: Iterable[str], deadline: float) -> None:
        waiting = list(names)
        while waiting:
            health = self._airflow_health()
            for name in list(waiting):
                component = self._components[name]
                component.require_alive()
                if self._is_ready(component, health):
                    waiting.remove(name)
                    self._report(name, "ready", time.time() - component.started_at)
            if waiting and time.monotonic() > deadline:
                first = self._components[waiting[0]]
                tail = f"{last_lines(first.log)}\nWhole log: {first.log}"
                raise DemoError(f"{', '.join(waiting)} did not become healthy in time. {first.name} said:\n{tail}")
            time.sleep(0.3)

    def _airflow_health(self) -> dict[str, dict[str, str | None]]:
        try:
            answer = self._client.get(f"{self.airflow_url}/api/v2/monitor/health")
            return dict(answer.json()) if answer.status_code == httpx.codes.OK else {}
        except (httpx.TransportError, ValueError):
            return {}

    def _answers(self, url: str, timeout_s: float = 10) -> bool:
        try:
            return self._client.get(url, timeout=timeout_s).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _is_ready(self, component: Component, health: Mapping[str, Mapping[str, str | None]]) -> bool:
        if component.name == "mlflow":
            return self._answers(f"{self.mlflow_url}/health")
        if component.name == "api-server":
            # The first call of a task builds that part of the server, which takes longer than a task waits by default.
            return bool(health) and self._answers(f"{self.airflow_url}/execution/health", timeout_s=60)
        key = component.name.replace("-", "_")
        job = health.get(key) or {}
        beat = job.get(f"latest_{key}_heartbeat")
        # The last heartbeat of the process before this one would still look healthy for half a minute.
        fresh = beat is not None and datetime.fromisoformat(beat).timestamp() >= component.started_at
        return fresh and job.get("status") == "healthy"
