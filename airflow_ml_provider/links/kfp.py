"""Links to pages of Kubeflow Pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

    from airflow_ml_provider.models.kfp import PipelineRun


class _KfpLink(BaseOperatorLink):
    """Asked for in the worker when a try ends, so it costs the API server nothing."""

    name: ClassVar[str]
    kind: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  (Airflow's signature)
        """
        Return the page's address.

        :param operator: The operator that ran.
        :param ti_key: The task instance.
        :return: URL, empty while there is no such page.
        """
        return str(getattr(operator, "kfp_links", {}).get(self.kind, ""))


class KfpRunLink(_KfpLink):
    """The run."""

    name = "KFP run"
    kind = "run"


class KfpExperimentLink(_KfpLink):
    """The experiment of the run."""

    name = "KFP experiment"
    kind = "experiment"


class KfpPipelineLink(_KfpLink):
    """The pipeline that was run; none for a package whose spec travels with the run."""

    name = "KFP pipeline"
    kind = "pipeline"


def pages(
    ui_url: str, run: PipelineRun | None = None, *, experiment_id: str = "", pipeline_id: str = "", version_id: str = ""
) -> dict[str, str]:
    """
    Build the addresses of pages.

    :param ui_url: Root of the user interface, without a slash at the end.
    :param run: A run, whose experiment and pipeline are taken with it; None for none.
    :param experiment_id: Id of an experiment, empty for none.
    :param pipeline_id: Id of a pipeline, empty for none.
    :param version_id: Id of the pipeline's version, empty for none.
    :return: URL per kind of page.
    """
    found = {}
    if run is not None:
        found["run"] = f"{ui_url}/#/runs/details/{run.run_id}"
        experiment_id, pipeline_id, version_id = run.experiment_id, run.pipeline_id, run.version_id
    if experiment_id:
        found["experiment"] = f"{ui_url}/#/experiments/details/{experiment_id}"
    if pipeline_id:
        version = f"/version/{version_id}" if version_id else ""
        found["pipeline"] = f"{ui_url}/#/pipelines/details/{pipeline_id}{version}"
    return found
