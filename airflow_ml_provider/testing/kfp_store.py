"""The tables of the fake server and their indexes. Rows of runs stand apart from workflows, as they do on a real server."""

from __future__ import annotations

import json
import threading
import uuid
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable

from airflow_ml_provider.testing.kfp_answers import internal
from airflow_ml_provider.testing.kfp_filter import Predicate, Query, collated
from airflow_ml_provider.testing.kfp_values import PLANE, Experiment, Pipeline, RecurringRun, Run, Version, Workflow

REFUSED = "dial tcp mysql.example:3306: connect: connection refused"
FINISHED = {"GREATER_THAN": bisect_right, "GREATER_THAN_EQUALS": bisect_left}
LAST = "\U0010ffff"


class Store:
    """
    Everything that the server keeps.

    :param clock: Seconds since 1970.
    :param multi_user: Whether experiments and runs belong to namespaces.
    """

    def __init__(self, clock: Callable[[], float], *, multi_user: bool) -> None:
        self.clock = clock
        self.multi_user = multi_user
        self.lock = threading.RLock()
        self.experiments: dict[str, Experiment] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.versions: dict[str, Version] = {}
        self.recurring: dict[str, RecurringRun] = {}
        self.runs: dict[str, Run] = {}
        self.workflows: list[Workflow] = []
        self.workflows_by_run: dict[str, list[Workflow]] = defaultdict(list)
        self.finished: list[tuple[int, str]] = []
        self.groups: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.placed: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {}
        self.lost: set[str] = set()
        self.new_id: Callable[[str], str] = lambda _: str(uuid.uuid4())
        if not multi_user:
            self.default_experiment()

    @property
    def now(self) -> int:
        """Whole seconds since 1970, as the database keeps them."""
        return int(self.clock())

    def add_experiment(self, name: str, description: str, namespace: str) -> Experiment:
        """
        Write an experiment.

        :param name: Its name.
        :param description: What it is for.
        :param namespace: Where it belongs, empty in single-user mode.
        :return: The row.
        """
        row = Experiment(self.new_id("experiment"), name, self.now, description, namespace)
        self.experiments[row.experiment_id] = row
        return row

    def default_experiment(self) -> Experiment:
        """
        Find the experiment of runs that name none.

        :return: ``Default``, made anew when it was deleted.
        """
        found = next((each for each in self.experiments.values() if each.display_name == "Default"), None)
        about = "All runs created without specifying an experiment will be grouped here."
        return found or self.add_experiment("Default", about, "")

    def add_run(self, run: Run) -> None:
        """
        Write a run, or fail as the database does.

        :param run: The row.
        :raises KfpError: 500 for an id that is there already, a text that is too long, or a 4-byte character.
        """
        if "database" in self.lost:
            raise internal(
                f"Failed to create a new run: {CREATE}Failed to create a new transaction to create run: invalid connection"
            )
        table = f"Failed to create a new run: {CREATE}Failed to store run {run.display_name} to table: "
        for column, text in (("DisplayName", run.display_name), ("Description", run.description)):
            if len(text) > 255:  # noqa: PLR2004  (width of the column)
                raise internal(f"{table}Error 1406 (22001): Data too long for column '{column}' at row 1")
        for column, text in _texts(run):
            if any(ord(sign) > PLANE for sign in text):
                where = f"for column `mlpipeline`.`run_details`.`{column}` at row 1"
                raise internal(f"{table}Error 1366 (22007): Incorrect string value: '{_bytes(text)}' {where}")
        if run.run_id in self.runs:
            raise DuplicateError(f"{table}Error 1062 (23000): Duplicate entry '{run.run_id}' for key 'PRIMARY'")
        self.put_run(run)

    def put_run(self, run: Run) -> None:
        """
        Write a run without a check.

        :param run: The row.
        """
        self.runs[run.run_id] = run
        experiment = self.experiments.get(run.experiment_id)
        if experiment is not None:
            experiment.last_run_created_at = run.created_at
        self.touch(run)

    def touch(self, run: Run) -> None:
        """
        Bring the indexes up to date after a row has changed.

        :param run: The row.
        """
        self._forget(run.run_id)
        run.text = None
        groups = (
            ("run_id", collated(run.run_id)),
            ("state", run.state),
            ("experiment_id", run.experiment_id),
            ("recurring_run_id", run.recurring_run_id),
            ("key", _key(run.recurring_run_id, run.display_name)),
        )
        for each in groups:
            self.groups[each].add(run.run_id)
        if run.finished_at:
            insort(self.finished, (run.finished_at, run.run_id))
        self.placed[run.run_id] = run.finished_at, groups

    def _forget(self, run_id: str) -> None:
        finished, groups = self.placed.pop(run_id, (0, ()))
        for each in groups:
            self.groups[each].discard(run_id)
            if not self.groups[each]:
                del self.groups[each]
        if finished:
            del self.finished[bisect_left(self.finished, (finished, run_id))]

    def drop_run(self, run_id: str) -> Run:
        """
        Delete a row.

        :param run_id: Its id.
        :return: What it was.
        """
        self._forget(run_id)
        return self.runs.pop(run_id)

    def keyed(self, recurring_run_id: str, display_name: str) -> Run | None:
        """
        Find a run by the key of a create with a recurring run.

        :param recurring_run_id: The recurring run.
        :param display_name: Name; letter case and blanks at the end do not count.
        :return: The run, None for none.
        """
        found = sorted(self.groups.get(("key", _key(recurring_run_id, display_name)), ()))
        return self.runs[found[0]] if found else None

    def candidates(self, query: Query) -> Iterable[Run]:
        """
        Find the runs that a query can let through, by the best of the indexes.

        :param query: The query.
        :return: Runs, a few too many rather than one too few.
        """
        choices = [ids for ids in (self._narrow(each) for each in query.predicates) if ids is not None]
        if not choices:
            return self.runs.values()
        return [self.runs[each] for each in min(choices, key=len)]

    def _narrow(self, predicate: Predicate) -> list[str] | None:
        field, value, operation = predicate.column.field, predicate.value, predicate.operation
        if field == "finished_at" and operation in FINISHED and isinstance(value, int) and value >= 0:
            at = FINISHED[operation](self.finished, (value, LAST if operation == "GREATER_THAN" else ""))
            return [run_id for _, run_id in self.finished[at:]]
        if operation not in {"EQUALS", "IN"}:
            return None
        wanted = value if operation == "IN" else (value,)
        if not all(isinstance(each, str) for each in wanted):
            return None
        if field == "run_id":
            return [each for name in {collated(each) for each in wanted} for each in self.groups.get((field, name), ())]
        if field in {"experiment_id", "recurring_run_id", "state"}:
            keys = {one.strip().upper() if field == "state" else one for one in wanted}
            return [run_id for each in keys for run_id in self.groups.get((field, each), ())]
        return None

    def add_workflow(self, workflow: Workflow) -> None:
        """
        Keep a workflow.

        :param workflow: The object.
        """
        self.workflows.append(workflow)
        self.workflows_by_run[workflow.run_id].append(workflow)

    def check_database(self, doing: str, *, twice: bool = False) -> None:
        """
        Fail while the database is away.

        :param doing: What was tried.
        :param twice: Whether the server tells the reason two times.
        :raises KfpError: 500.
        """
        if "database" in self.lost:
            raise internal(f"{doing}: {REFUSED}: {REFUSED}" if twice else f"{doing}: {REFUSED}")


CREATE = "Failed to create a run: InternalServerError: "


class DuplicateError(Exception):
    """A row with that id is there already; a create without a recurring run answers it with 500."""


def _key(recurring_run_id: str, display_name: str) -> str:
    return f"{recurring_run_id}/{collated(display_name)}" if recurring_run_id else ""


def _texts(run: Run) -> list[tuple[str, str]]:
    texts = [("DisplayName", run.display_name), ("Description", run.description)]
    parameters = json.dumps((run.runtime_config or {}).get("parameters"), ensure_ascii=False)
    # The manifest holds the parameters as JSON within JSON.
    return [*texts, ("PipelineRuntimeManifest", json.dumps(parameters, ensure_ascii=False))]


def _bytes(text: str) -> str:
    at = next(index for index, sign in enumerate(text) if ord(sign) > PLANE)
    data = text[at:].encode()
    shown = "".join(chr(each) if 32 <= each < 127 else f"\\x{each:02X}" for each in data[:6])  # noqa: PLR2004  (printable)
    return shown + ("..." if len(data) > 6 else "")  # noqa: PLR2004  (MariaDB shows six bytes)
