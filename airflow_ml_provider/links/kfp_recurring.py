"""The link to a recurring run of Kubeflow Pipelines."""

from __future__ import annotations

from airflow_ml_provider.links.kfp import _KfpLink


class KfpRecurringRunLink(_KfpLink):
    """The recurring run, with the runs that it has started."""

    name = "KFP recurring run"
    kind = "recurring_run"


def recurring_run_page(ui_url: str, recurring_run_id: str) -> str:
    """
    Build the address of a recurring run's page.

    :param ui_url: Root of the user interface, without a slash at the end.
    :param recurring_run_id: Its id.
    :return: URL.
    """
    return f"{ui_url}/#/recurringrun/details/{recurring_run_id}"
