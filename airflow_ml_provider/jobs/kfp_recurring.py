"""
Recurring runs by name: one definition is on, whoever asks for it, and however often.

The server has no key for them: each create makes another, under the same name too. So a new one is made switched off, and what is
there is put in order in passes, each of which looks anew and does one thing; two tasks that do so at once come to the same end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.core.kfp_schedule import plain_trigger
from airflow_ml_provider.exceptions import RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import RECURRING, KfpCatalog
from airflow_ml_provider.models.kfp import PipelineRun

log = logging.getLogger(__name__)
LOST_OBJECT = "scheduledworkflows.kubeflow.org"
"""What the server complains of when Kubernetes does not have it; such a row cannot be switched any more, only deleted."""
PASSES = 50
"""More than there is to do, unless somebody else undoes it all the time."""


@dataclass(frozen=True)
class RecurringRun:
    """
    A recurring run as the server told it at one moment.

    :param recurring_run_id: Its id, which the server chose.
    :param name: Display name; others may have the same.
    :param enabled: Whether it starts runs.
    :param created_at: When it was made; text that sorts.
    :param experiment_id: Experiment of its runs.
    :param answer: The server's JSON.
    """

    recurring_run_id: str
    name: str
    enabled: bool
    created_at: str
    experiment_id: str
    answer: Mapping[str, Any]

    @classmethod
    def from_answer(cls, data: Mapping[str, Any]) -> RecurringRun:
        """
        Read the server's JSON.

        :param data: JSON object.
        :return: The recurring run.
        """
        return cls(
            recurring_run_id=str(data["recurring_run_id"]),
            name=str(data.get("display_name") or ""),
            enabled=data.get("mode") == "ENABLE",
            created_at=str(data.get("created_at") or ""),
            experiment_id=str(data.get("experiment_id") or ""),
            answer=data,
        )

    def differences(self, body: Mapping[str, Any]) -> list[str]:
        """
        Compare it with a definition.

        :param body: JSON as for a create. Its description is not compared, nor a service account that it does not name.
        :return: What differs, named as the operator's arguments are; empty for the same.
        """
        there, wanted = _definition(self.answer), _definition(body)
        wanted["service_account"] = wanted["service_account"] or there["service_account"]  # the server fills in its own
        return [name for name, value in wanted.items() if value != there[name]]


class KfpRecurringRuns:
    """
    The recurring runs of one server.

    :param catalog: The server.
    """

    def __init__(self, catalog: KfpCatalog) -> None:
        self.catalog = catalog
        self.api = catalog.api

    def look(self, recurring_run_id: str) -> RecurringRun | None:
        """
        Ask for one.

        :param recurring_run_id: Its id.
        :return: The recurring run, None when there is none.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        try:
            return RecurringRun.from_answer(self.api.get(f"{RECURRING}/{recurring_run_id}"))
        except RemoteNotFoundError:
            return None

    def named(self, name: str) -> list[RecurringRun]:
        """
        Find those of a name.

        :param name: Display name, letter by letter: the server itself does not tell letter case apart.
        :return: The recurring runs, the oldest first; in the same order for everybody.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        found = [RecurringRun.from_answer(each) for each in self.catalog.recurring_runs(name)]
        return sorted((each for each in found if each.name == name), key=lambda each: (each.created_at, each.recurring_run_id))

    def establish(self, body: Mapping[str, Any], *, enabled: bool) -> RecurringRun:
        """
        See to it that a definition is there once, and that nothing else of its name is on.

        What has another definition is switched off and not deleted: Kubernetes would delete the workflows of its runs with it.

        :param body: JSON of the recurring run, without ``mode``.
        :param enabled: Whether it shall start runs.
        :return: The recurring run.
        :raises ConfigError: the server refuses it, and everything is as it was; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        own = ""
        for _ in range(PASSES):
            there = self.named(str(body["display_name"]))
            same = [each for each in there if not each.differences(body)]
            kept = next((each for each in same if each.enabled), same[0] if same else None)
            if kept is None:
                own = self.catalog.create_recurring_run({**body, "mode": "DISABLE"})
                log.info("Recurring run %s (%r) was made.", own, body["display_name"])
            elif other := next((each for each in there if each.enabled and each is not kept), None):
                self._retire(other, kept, body)
            elif own not in {"", kept.recurring_run_id}:
                log.info(
                    "Recurring run %s was made by somebody else at the same time; ours, %s, goes.", kept.recurring_run_id, own
                )
                self.catalog.delete_recurring_run(own)  # it was never on, so it has no runs
                own = ""
            elif kept.enabled is not enabled:
                own = "" if own == kept.recurring_run_id else own  # from now on it may have runs
                self._switch_or_drop(kept, on=enabled)
            else:
                return kept
        raise RemoteUnavailableError(
            f"recurring run {body['display_name']!r} did not come to rest: something else changes those of its name all the "
            "time. A retry is safe."
        )

    def switch(self, recurring_run_id: str, *, on: bool) -> None:
        """
        Let it start runs, or not; runs that were started go on.

        :param recurring_run_id: Its id.
        :param on: Whether it shall.
        :raises RemoteNotFoundError: there is no such recurring run.
        :raises RemoteUnavailableError: the server did not do it, or did not say so; a retry is safe.
        """
        self.api.post(f"{RECURRING}/{recurring_run_id}:{'enable' if on else 'disable'}")

    def delete(self, one: RecurringRun, jobs: KfpJobs, *, even_if_active: bool) -> list[PipelineRun]:
        """
        Delete one, unless a run of it is active: Kubernetes deletes the workflows of its runs with it.

        It is switched off first, and stays so: with a quick schedule some run would always be active.

        :param one: The recurring run; one that is gone meanwhile is left so.
        :param jobs: Runs of the server.
        :param even_if_active: Delete it all the same; its active runs stay RUNNING for ever.
        :return: The active runs that are in the way; empty when it was deleted.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        if not even_if_active:
            if not self._switch_or_drop(one, on=False):
                return []
            if active := jobs.active_of(one.recurring_run_id):
                return active
        self.catalog.delete_recurring_run(one.recurring_run_id)
        return []

    def _retire(self, other: RecurringRun, kept: RecurringRun, body: Mapping[str, Any]) -> None:
        why = other.differences(body)
        log.warning(
            "Recurring run %s, which has the name %r too (%s), is disabled in favour of %s. It is not deleted: Kubernetes would "
            "delete the workflows of its runs with it.",
            other.recurring_run_id,
            other.name,
            f"other {', '.join(why)}" if why else "a twin",
            kept.recurring_run_id,
        )
        self._switch_or_drop(other, on=False)

    def _switch_or_drop(self, one: RecurringRun, *, on: bool) -> bool:
        """Switch it; False for one that is gone, or was dropped because Kubernetes has lost it, the workflows of its runs too."""
        try:
            self.switch(one.recurring_run_id, on=on)
        except RemoteNotFoundError:
            return False
        except RemoteUnavailableError as error:
            if not (LOST_OBJECT in str(error) and "not found" in str(error)):
                raise
            log.warning("Kubernetes has lost recurring run %s, and its runs with it. It is deleted.", one.recurring_run_id)
            self.catalog.delete_recurring_run(one.recurring_run_id)
            return False
        return True


def _definition(data: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is compared, the same for what we send and for what the server tells."""
    config, version = data.get("runtime_config") or {}, data.get("pipeline_version_reference") or {}
    return {
        "pipeline": (version.get("pipeline_id"), version.get("pipeline_version_id")),
        "arguments": config.get("parameters") or {},
        "pipeline_root": config.get("pipeline_root") or "",
        "schedule": plain_trigger(data.get("trigger")),
        "max_concurrency": int(data.get("max_concurrency") or 0),
        "catchup": not data.get("no_catchup"),
        "experiment": data.get("experiment_id"),
        "plugins_input": data.get("plugins_input") or {},
        "service_account": data.get("service_account") or "",
    }
