"""
What OpenLineage's listener asks our operators, and what of its ids we hand on; without that provider nothing of it is imported.

The listener asks once a task has ended, in a process of its own: all that it is told was gathered before (``lineage/facts.py``).
"""

from __future__ import annotations

import logging
import sys
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from airflow_ml_provider.models.kfp import RunState
from airflow_ml_provider.models.pod import PodEnd

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

    from airflow_ml_provider.lineage.facts import StepFacts
    from airflow_ml_provider.lineage.openlineage import Told

log = logging.getLogger(__name__)

LISTENER = "airflow.providers.openlineage.plugins.listener"
KFP_RUN, KFP_URL, KFP_STATE = "airflow.kfp.run_id", "airflow.kfp.url", "airflow.kfp.state"
"""Tags of a nested run that waits for a pipeline run."""
KUBERNETES = "kubernetes"


class OpenLineageMixin:
    """What all operators have that are on record: the methods that OpenLineage's listener looks for."""

    facts: StepFacts | None = None
    """What is told of the task; None before it has ended."""

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """
        Say what the task has read and made.

        :param task_instance: As the listener gives it.
        :return: An ``OperatorLineage``, empty where nothing is known.
        """
        return _lineage(self.facts, task_instance)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """
        Say what a task has read that has failed, and what it has stored before.

        :param task_instance: As the listener gives it.
        :return: As :meth:`get_openlineage_facets_on_complete`.
        """
        return _lineage(self.facts, task_instance)


def is_active() -> bool:
    """
    Say whether OpenLineage's listener is loaded, as in processes of an Airflow that has the provider and a transport for it.

    :return: Whether events are sent.
    """
    return LISTENER in sys.modules


def parent_variables(task_instance: Any) -> dict[str, str]:
    """
    Name a task as the parent of what runs in its pod, in the environment in which OpenLineage's integrations look for it.

    :param task_instance: The running task.
    :return: Value per variable; none where OpenLineage is not active.
    """
    if not is_active():
        return {}
    try:
        from airflow.providers.openlineage.plugins.macros import lineage_parent_id, lineage_root_parent_id

        return {
            "OPENLINEAGE_PARENT_ID": str(lineage_parent_id(task_instance)),
            "OPENLINEAGE_ROOT_PARENT_ID": str(lineage_root_parent_id(task_instance)),
        }
    except Exception as error:  # noqa: BLE001  (a pod without it is better than none)
        log.info("The pod is not told who its parent is for OpenLineage: %s", error)
        return {}


def _lineage(facts: StepFacts | None, task_instance: Any) -> Any:
    from airflow.providers.openlineage.extractors import OperatorLineage

    if facts is None:
        return OperatorLineage()
    from airflow_ml_provider.lineage.openlineage import remote_run, told

    found = told(facts)
    facets = found.run_facets
    if (remote := _remote(facts)) is not None:
        facets = facets | remote_run(remote.system, remote.run_id)
        if remote.good is not None:
            _emit_remote(facts, found, task_instance, remote)
    return OperatorLineage(inputs=found.inputs, outputs=found.outputs, run_facets=facets)


class _Remote(NamedTuple):
    """The pod or the pipeline run that this try has waited for; ``good`` is None where it has not ended, as far as is known."""

    system: str
    run_id: str
    good: bool | None


def _remote(facts: StepFacts) -> _Remote | None:
    """Read from what this try has noted: the tags in MLflow may be those of an earlier one."""
    from airflow_ml_provider.tracking.pod_record import END, POD

    noted = facts.record.tags if facts.record else {}
    if facts.cached_from:
        return None
    if noted.get(KFP_RUN):
        where, state = urlsplit(noted.get(KFP_URL, "")), RunState.read(noted.get(KFP_STATE))
        return _Remote(f"kfp://{where.netloc.rpartition('@')[2] or 'local'}", noted[KFP_RUN], state.good if state.ended else None)
    if noted.get(END) and facts.tags.get(POD):
        end = PodEnd(noted[END])
        return _Remote(KUBERNETES, facts.tags[POD], None if end is PodEnd.UNREACHABLE else end is PodEnd.SUCCEEDED)
    return None


def _emit_remote(facts: StepFacts, found: Told, task_instance: Any, remote: _Remote) -> None:
    """Tell of the run elsewhere as a run of its own, whose parent is the task."""
    try:
        from airflow.providers.openlineage.plugins.listener import get_openlineage_listener

        adapter = get_openlineage_listener().adapter
        for event in _events(facts, found, task_instance, remote):
            adapter.emit(event)
    except Exception as error:  # noqa: BLE001  (the task has ended; its own event is still to come)
        log.warning("OpenLineage is not told of %s %s: %s", remote.system, remote.run_id, error)


def _events(facts: StepFacts, found: Told, task_instance: Any, remote: _Remote) -> list[RunEvent]:
    from airflow.providers.openlineage import conf
    from airflow.providers.openlineage.plugins import macros
    from openlineage.client.event_v2 import Job, Run, RunEvent
    from openlineage.client.event_v2 import RunState as State
    from openlineage.client.facet_v2 import job_type_job

    from airflow_ml_provider.lineage.openlineage import remote_run
    from airflow_ml_provider.lineage.openlineage_facets import PRODUCER

    system, run_id, good = remote
    kind = "pod" if system == KUBERNETES else "pipeline"
    job_type = job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration=system.partition(":")[0].upper(), jobType=kind.upper(), producer=PRODUCER
    )
    job = Job(conf.namespace(), f"{macros.lineage_job_name(task_instance)}.{kind}", {"jobType": job_type})
    run = Run(_uuid(conf.namespace(), system, run_id), {"parent": _parent(task_instance), **remote_run(system, run_id)})
    begun = facts.run["info"].get("start_time") if facts.run else None
    ended = facts.record.end_time_ms if facts.record else None
    moments = {State.START: begun, State.COMPLETE if good else State.FAIL: ended}
    return [
        RunEvent(
            eventTime=_when(moment),
            eventType=state,
            run=run,
            job=job,
            inputs=found.inputs,
            outputs=found.outputs,
            producer=PRODUCER,
        )
        for state, moment in moments.items()
    ]


def _parent(task_instance: Any) -> Any:
    from airflow.providers.openlineage import conf
    from airflow.providers.openlineage.plugins import macros
    from openlineage.client.facet_v2 import parent_run

    from airflow_ml_provider.lineage.openlineage_facets import PRODUCER

    root = parent_run.Root(
        run=parent_run.RootRun(runId=macros.lineage_root_run_id(task_instance)),
        job=parent_run.RootJob(
            namespace=macros.lineage_root_job_namespace(task_instance), name=macros.lineage_root_job_name(task_instance)
        ),
    )
    return parent_run.ParentRunFacet(
        run=parent_run.Run(runId=macros.lineage_run_id(task_instance)),
        job=parent_run.Job(namespace=conf.namespace(), name=macros.lineage_job_name(task_instance)),
        root=root,
        producer=PRODUCER,
    )


def _uuid(namespace: str, system: str, run_id: str) -> str:
    """Name the run as OpenLineage names runs: that of a pipeline is a UUID already; a pod's name is of its cluster alone."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{namespace}/{system}/{run_id}"))


def _when(moment_ms: Any) -> str:
    at = datetime.fromtimestamp(float(moment_ms) / 1000, UTC) if moment_ms else datetime.now(UTC)
    return at.isoformat()
