"""Cleaning up old MLflow runs, as a task."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.operators.mlflow import MlflowOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi


class MlflowCleanUpRunsOperator(MlflowOperator):
    """
    Deletes old runs, and their artifacts where the store allows; by default it only says what it would delete.

    A run goes with all that is nested below its top run, or stays with it. These stay whatever their age: a tree with a run that
    has not ended, with a registered version (with or without an alias), with a dataset or a model that a run which stays has
    read, or with the tag ``keep_tag``. Read and registered are looked for on the whole server.

    Deleted runs are hidden, not gone: ``MlflowRunActionOperator`` brings them back, until ``mlflow gc`` beside the server removes
    them for good, with the artifacts that are left (of stores that the server does not proxy, for example). What
    ``delete_artifacts`` has deleted, bytes and LoggedModels, does not come back.

    A retry plans anew and goes on with what is left.

    The XCom is ``{"dry_run", "count", "runs", "models", "kept", "artifacts_deleted", "artifacts_left_count", "artifacts_left",
    "only_gc", "url"}``: ids of the runs (the first 1,000), the number of runs that stay per reason, and the places whose bytes
    stay (the first 100).

    :param experiments: Names of the experiments; None means that of this DAG (``[ml] experiment``).
    :param older_than: Only what ended longer ago; None for any age, where ``keep_last`` says what stays.
    :param keep_last: How many of the newest top runs of each experiment stay, with all below them.
    :param filter_string: Only trees whose top run it finds, in MLflow's search language, ``attributes.status = 'FAILED'``.
    :param keep_tag: A tree in which a run has this tag, with any value, stays.
    :param delete_artifacts: Whether the bytes go too, and the LoggedModels with theirs.
    :param delete: Whether to delete; by default a dry run only says what would go.
    :param limit: Runs that go at most in one task, the newest first; the rest is for the next time.
    :param mlflow_conn_id: Connection of the MLflow server; its user must see all experiments, else what is read from elsewhere
        is not known.
    """

    template_fields: Sequence[str] = ("experiments", "filter_string", "keep_tag", "keep_last", "delete")

    def __init__(
        self,
        *,
        experiments: Sequence[str] | None = None,
        older_than: timedelta | None = None,
        keep_last: int | str = 0,
        filter_string: str = "",
        keep_tag: str = "airflow.keep",
        delete_artifacts: bool = False,
        delete: bool | str = False,
        limit: int = 1000,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.experiments = experiments
        self.older_than = older_than
        self.keep_last = keep_last
        self.filter_string = filter_string
        self.keep_tag = keep_tag
        self.delete_artifacts = delete_artifacts
        self.delete = delete
        self.limit = limit

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:
        """
        Plan, and delete where that is said.

        :param api: The server.
        :param context: Airflow's context.
        :return: What went and what stayed, as plain JSON.
        :raises ConfigError: neither an age nor a number says what stays, or an argument is wrong; nothing was deleted.
        :raises RemoteNotFoundError: there is no experiment of a name; nothing was deleted.
        """
        from airflow_ml_provider.operators.mlflow_runs import experiment_of
        from airflow_ml_provider.tracking.cleanup import CleanUp, Rules
        from airflow_ml_provider.tracking.experiments import Experiments
        from airflow_ml_provider.tracking.runs import now_ms

        keep_last, dry_run = self._keep_last(), not self._is_told_to()
        ids = Experiments(api).ids(self.experiments if self.experiments is not None else [experiment_of(context)])
        before = None if self.older_than is None else now_ms() - int(self.older_than.total_seconds() * 1000)
        rules = Rules(ids, before, keep_last, self.filter_string, self.keep_tag, self.limit)
        self.mlflow_page_url = api.server.experiment_page(ids[0] if len(ids) == 1 else "")
        report = CleanUp(api, rules).run(dry_run=dry_run, delete_artifacts=self.delete_artifacts)
        said = report.to_json() | {"url": self.mlflow_page_url}
        word = "would be deleted" if dry_run else "were deleted"
        self.log.info("%d runs %s; kept: %s. %s", said["count"], word, said["kept"], said["only_gc"])
        return said

    def _keep_last(self) -> int:
        try:
            keep_last = int(self.keep_last)
        except (TypeError, ValueError):
            keep_last = -1
        if keep_last < 0 or self.limit < 1 or (self.older_than is not None and self.older_than < timedelta(0)):
            raise ConfigError(
                f"task {self.task_id!r}: keep_last={self.keep_last!r:.80} must be a whole number from 0, limit={self.limit!r} at "
                f"least 1, and older_than={self.older_than!r} not negative."
            )
        if self.older_than is None and keep_last == 0:
            raise ConfigError(f"task {self.task_id!r} would delete every run: give older_than=, keep_last=, or both.")
        return keep_last

    def _is_told_to(self) -> bool:
        """Read a template's answer; what is not plainly true deletes nothing."""
        return str(self.delete).strip().lower() in {"true", "1"}
