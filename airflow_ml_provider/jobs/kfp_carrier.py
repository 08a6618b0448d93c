"""
The recurring run that a create is sent with under ``exactly_once="carrier"``: the server takes it as a key.

It is off, has no trigger, and bears the run's id as its name. It must stay as long as its run may still run: Kubernetes deletes
the workflow with it, and then nobody reports the run's end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_notes import RunNotes

log = logging.getLogger(__name__)
SHARED = ("experiment_id", "pipeline_version_reference", "runtime_config", "service_account")
"""What a carrier has of its run."""


class Carriers:
    """
    The carriers of one task instance.

    :param jobs: Runs of the server.
    :param catalog: The rest of the server.
    :param notes: Where those are noted that must be deleted later.
    :param patience_s: Seconds to wait for a server that is away.
    """

    def __init__(self, jobs: KfpJobs, catalog: KfpCatalog, notes: RunNotes, patience_s: float) -> None:
        self.jobs = jobs
        self.catalog = catalog
        self.notes = notes
        self.patience_s = patience_s

    def find_or_make(self, run_id: str, body: Mapping[str, Any]) -> str:
        """
        Give the carrier of a run that is about to be created.

        :param run_id: The run.
        :param body: JSON of the create.
        :return: Id of the recurring run. One whose answer was lost is found by its name; a second would be off as well.
        :raises ConfigError: the server refuses it; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        carrier = {key: body[key] for key in SHARED if key in body}
        carrier |= {"display_name": run_id, "max_concurrency": "1", "mode": "DISABLE", "no_catchup": True}

        def there() -> str:
            return next(iter(self.catalog.carriers(run_id)), "") or self.catalog.create_recurring_run(carrier)

        return patiently("make the carrier", there, self.patience_s)

    def exist(self, run_id: str) -> bool:
        """
        Ask whether a run has a carrier, so that its create may have been sent.

        :param run_id: The run.
        :return: Whether it has.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        return bool(patiently("look for the carrier", lambda: self.catalog.carriers(run_id), self.patience_s))

    def delete_later(self, run_id: str) -> None:
        """
        Note a run that was given up before its end, so that its carrier is deleted with that of a later run.

        :param run_id: The run.
        """
        self.notes.set_left([*self.notes.left, run_id])

    def delete(self, run_id: str) -> None:
        """
        Delete the carrier of a run that is over for good, and those of runs given up before that are over by now.

        What cannot be deleted is told in the log, and fails nothing.

        :param run_id: The run.
        """
        try:
            self._drop(run_id)
            noted = self.notes.left
            later = [each for each in noted if each != run_id and not self._drop_if_over(each)]
            if later != noted:
                self.notes.set_left(later)
        except (RemoteUnavailableError, ConfigError) as error:
            log.warning("The carrier of run %s, a disabled recurring run of that name, is left behind: %s", run_id, error)

    def _drop(self, run_id: str) -> None:
        for each in self.catalog.carriers(run_id):
            self.catalog.delete_recurring_run(each)

    def _drop_if_over(self, run_id: str) -> bool:
        run = self.jobs.look(run_id)
        if run is not None and not run.state.ended:
            return False
        self._drop(run_id)
        return True
