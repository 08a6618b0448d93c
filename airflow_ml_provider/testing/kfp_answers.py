"""The server's JSON: how values are shown, and how errors are told. Reads nothing and changes nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from airflow_ml_provider.testing.kfp_values import PHASES, Answer, Experiment, Node, Pipeline, RecurringRun, Run, Version

STATUS = {3: 400, 5: 404, 6: 409, 7: 403, 10: 409, 12: 501, 13: 500, 14: 503, 16: 401}
"""gRPC code and the HTTP status that the gateway makes of it."""

NO_END = "0001-01-01T00:00:00Z"


class KfpError(Exception):
    """
    An error as the server tells it.

    :param code: gRPC code.
    :param message: The long text, with the way it came.
    :param short: The text of ``details``; None leaves ``details`` out, as errors of the gateway itself do.
    """

    def __init__(self, code: int, message: str, short: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.short = short

    def answer(self) -> Answer:
        """
        Tell it.

        :return: The answer of the gateway.
        """
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.short is not None:
            body["details"] = [{"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.short}]
        told = Answer(STATUS[self.code], dump(body))
        if self.code == 16:  # noqa: PLR2004  (Unauthenticated)
            told.headers["Www-Authenticate"] = self.message.replace("\n", " ").encode("ascii", "replace").decode()
        return told


class PlainError(Exception):
    """
    An error of the paths beside the gateway: uploads, artifacts, logs.

    :param status: HTTP status.
    :param message: ``error_message``.
    :param kind: Content type, mostly a wrong one.
    :param bare: The body when it is no JSON at all.
    """

    def __init__(self, status: int, message: str, *, kind: str = "text/plain; charset=utf-8", bare: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.bare = bare

    def answer(self) -> Answer:
        """
        Tell it.

        :return: The answer; ``error_details`` holds a stack trace on a real server and the message here.
        """
        body = {"error_message": self.message, "error_details": self.message}
        return Answer(self.status, self.bare.encode() if self.bare else dump(body), self.kind)


def invalid(prefix: str, short: str) -> KfpError:
    """
    Make the error of an input that is refused.

    :param prefix: What was being done, with a colon and a space, or nothing.
    :param short: What is wrong.
    :return: A 400.
    """
    return KfpError(3, f"{prefix}Invalid input error: {short}", short)


def missing(prefix: str, kind: str, name: str) -> KfpError:
    """
    Make the error of something that is not there.

    :param prefix: What was being done.
    :param kind: ``Run``, ``Experiment`` and so on.
    :param name: Its id.
    :return: A 404.
    """
    short = f"{kind} {name} not found"
    return KfpError(5, f"{prefix}ResourceNotFoundError: {short}", short)


def internal(message: str) -> KfpError:
    """
    Make the error of a server that did not manage.

    :param message: What went wrong.
    :return: A 500.
    """
    return KfpError(13, message, "Internal Server Error")


def dump(value: Any) -> bytes:
    """
    Write JSON as the server does, without blanks and with letters as they are.

    :param value: What to write.
    :return: UTF-8.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def answer(value: Any) -> Answer:
    """
    Answer a request of the gateway that went well.

    :param value: JSON.
    :return: A 200.
    """
    return Answer(200, value if isinstance(value, bytes) else dump(value), gateway=True)


@lru_cache(maxsize=4096)
def moment(seconds: int) -> str:
    """
    Write a time.

    :param seconds: Since 1970.
    :return: RFC 3339 in UTC, whole seconds.
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def filled(**fields: Any) -> dict[str, Any]:
    """
    Leave out what is empty, as the server's JSON does.

    :param fields: Names and values.
    :return: The fields that hold something.
    """
    return {name: value for name, value in fields.items() if value not in (None, "", 0, [], {}) or value is False}


def version_reference(pipeline_id: str, version_id: str) -> dict[str, str] | None:
    """
    Show which version something was made from.

    :param pipeline_id: Pipeline, empty for an inline spec.
    :param version_id: Its version.
    :return: The reference, None for an inline spec.
    """
    return filled(pipeline_id=pipeline_id, pipeline_version_id=version_id) or None


def run_json(run: Run) -> dict[str, Any]:
    """
    Show a run, the same in a get, a list and the answer of a create.

    :param run: The row.
    :return: JSON.
    """
    return filled(
        experiment_id=run.experiment_id,
        run_id=run.run_id,
        display_name=run.display_name,
        storage_state=run.storage_state,
        description=run.description,
        pipeline_version_reference=version_reference(run.pipeline_id, run.pipeline_version_id),
        pipeline_spec=run.pipeline_spec,
        runtime_config=run.runtime_config,
        service_account=run.service_account,
        created_at=moment(run.created_at),
        scheduled_at=moment(run.scheduled_at),
        finished_at=moment(run.finished_at),
        state=run.state,
        run_details={"task_details": [task_json(run.run_id, each) for each in run.nodes]} if run.nodes else None,
        recurring_run_id=run.recurring_run_id,
        state_history=run.state_history,
        plugins_input=run.plugins_input,
        plugins_output=run.plugins_output,
    )


def run_text(run: Run) -> bytes:
    """
    Show a run, and remember the text until the row changes.

    :param run: The row.
    :return: JSON as UTF-8.
    """
    if run.text is None:
        run.text = dump(run_json(run))
    return run.text


def task_json(run_id: str, node: Node) -> dict[str, Any]:
    """
    Show a node as an item of ``task_details``.

    :param run_id: Its run.
    :param node: The node.
    :return: JSON; without ``state`` for a task that was left out.
    """
    return filled(
        run_id=run_id,
        task_id=node.task_id,
        display_name=node.name,
        create_time=moment(node.started_at),
        start_time=moment(node.started_at),
        end_time=moment(node.finished_at) if node.finished_at is not None else NO_END,
        state=PHASES[node.phase],
        state_history=[filled(update_time=moment(at), state=state) for at, state in node.history],
        child_tasks=[{"pod_name": each} for each in node.children],
    )


def experiment_json(experiment: Experiment) -> dict[str, Any]:
    """
    Show an experiment.

    :param experiment: The row.
    :return: JSON.
    """
    return filled(
        experiment_id=experiment.experiment_id,
        display_name=experiment.display_name,
        description=experiment.description,
        created_at=moment(experiment.created_at),
        namespace=experiment.namespace,
        storage_state=experiment.storage_state,
        last_run_created_at=moment(experiment.last_run_created_at),
    )


def pipeline_json(pipeline: Pipeline) -> dict[str, Any]:
    """
    Show a pipeline.

    :param pipeline: The row.
    :return: JSON.
    """
    return filled(
        pipeline_id=pipeline.pipeline_id,
        display_name=pipeline.display_name,
        name=pipeline.name,
        description=pipeline.description,
        created_at=moment(pipeline.created_at),
        namespace=pipeline.namespace,
    )


def version_json(version: Version) -> dict[str, Any]:
    """
    Show a version with its whole spec.

    :param version: The row.
    :return: JSON.
    """
    return filled(
        pipeline_id=version.pipeline_id,
        pipeline_version_id=version.pipeline_version_id,
        display_name=version.display_name,
        name=version.name,
        description=version.description,
        created_at=moment(version.created_at),
        package_url={"pipeline_url": version.package_url} if version.package_url else None,
        pipeline_spec=version.spec,
    )


def recurring_json(recurring: RecurringRun) -> dict[str, Any]:
    """
    Show a recurring run.

    :param recurring: The row.
    :return: JSON; ``max_concurrency`` is an int64 and so a string.
    """
    return filled(
        recurring_run_id=recurring.recurring_run_id,
        display_name=recurring.display_name,
        description=recurring.description,
        pipeline_version_reference=version_reference(recurring.pipeline_id, recurring.pipeline_version_id),
        pipeline_spec=recurring.pipeline_spec,
        runtime_config=recurring.runtime_config,
        service_account=recurring.service_account,
        max_concurrency=str(recurring.max_concurrency),
        trigger=recurring.trigger,
        mode="ENABLE" if recurring.enabled else "DISABLE",
        created_at=moment(recurring.created_at),
        updated_at=moment(recurring.updated_at),
        status=recurring.status,
        no_catchup=recurring.no_catchup or None,
        namespace=recurring.namespace,
        experiment_id=recurring.experiment_id,
    )
