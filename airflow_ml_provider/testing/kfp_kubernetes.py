"""The view of the workflows that the Kubernetes API would give."""

from __future__ import annotations

import re
from typing import Any

from airflow_ml_provider.testing.kfp_answers import dump, moment
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, Request, Workflow


def kubernetes(store: Store, request: Request) -> Answer:
    """
    Answer as the Kubernetes API would: the list of workflows of a namespace, by label.

    :param store: The tables.
    :param request: The request.
    :return: A WorkflowList, or a Status.
    """
    match = re.fullmatch(r"/apis/argoproj\.io/v1alpha1(?:/namespaces/([^/]+))?/workflows", request.path)
    if "kubernetes" in store.lost:
        return Answer(503, dump({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503}))
    if match is None or request.method != "GET":
        return Answer(404, dump({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}))
    labels = dict(
        each.split("=", 1) for each in request.query.get("labelSelector", "").replace("==", "=").split(",") if "=" in each
    )
    run_id = labels.get("pipeline/runid")
    chosen = store.workflows if run_id is None else store.workflows_by_run.get(run_id, [])
    items = [workflow_json(each) for each in chosen if not each.deleted and match.group(1) in {None, each.namespace}]
    head = {"apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowList", "metadata": {"resourceVersion": "1"}}
    return Answer(200, dump({**head, "items": items}))


def workflow_json(workflow: Workflow) -> dict[str, Any]:
    """
    Show a workflow as Kubernetes does.

    :param workflow: The object.
    :return: JSON, with what names it and how it stands.
    """
    labels = {"pipeline/runid": workflow.run_id} | ({"pipeline/persistedFinalState": "true"} if workflow.persisted else {})
    metadata: dict[str, Any] = {
        "name": workflow.name,
        "namespace": workflow.namespace,
        "uid": workflow.uid,
        "resourceVersion": str(workflow.version),
        "creationTimestamp": moment(int(workflow.created_at)),
        "labels": labels,
        "annotations": {"pipelines.kubeflow.org/run_name": workflow.display_name},
    }
    if workflow.recurring_run_id:
        labels["scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow"] = "true"
        labels["scheduledworkflows.kubeflow.org/scheduledWorkflowName"] = workflow.owner
        owner = {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": workflow.owner}
        metadata["ownerReferences"] = [
            {**owner, "uid": workflow.recurring_run_id, "controller": True, "blockOwnerDeletion": True}
        ]
    status = {"phase": workflow.phase, "startedAt": moment(int(workflow.created_at))}
    if workflow.finished_at is not None:
        status["finishedAt"] = moment(workflow.finished_at)
    spec = {"activeDeadlineSeconds": 0} if workflow.stopped else {}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": spec, "status": status}
