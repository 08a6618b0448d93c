"""Asking Kubernetes for the workflows of a run, which the server itself may not know (an orphan is in no list)."""

from __future__ import annotations

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError

NOT_ALLOWED = (401, 403, 404)


def find_workflows(run_id: str, *, namespace: str | None, kubernetes_conn_id: str) -> list[str]:
    """
    Find workflows by the label that the server puts on them.

    :param run_id: The run.
    :param namespace: Namespace in which the server runs its workflows; None looks in all.
    :param kubernetes_conn_id: Airflow connection of the cluster; it needs the right to list ``workflows.argoproj.io``.
    :return: Their names; empty proves that no create of this run has started one.
    :raises ConfigError: the provider for Kubernetes is not installed, or the right is missing; a retry never helps.
    :raises RemoteUnavailableError: Kubernetes did not answer; a retry is safe.
    """
    try:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        from kubernetes.client import ApiException, CustomObjectsApi
        from urllib3.exceptions import HTTPError
    except ModuleNotFoundError as error:
        raise ConfigError(
            "exactly_once='workflows' asks Kubernetes, and its provider is not installed: "
            "pip install 'airflow-ml-provider[kubernetes]'."
        ) from error
    asked = f"Kubernetes (connection {kubernetes_conn_id!r})"
    try:
        api = CustomObjectsApi(KubernetesHook(conn_id=kubernetes_conn_id).get_conn())
        kind, label = ("argoproj.io", "v1alpha1"), f"pipeline/runid={run_id}"
        if namespace:
            answer = api.list_namespaced_custom_object(*kind, namespace, "workflows", label_selector=label)
        else:
            answer = api.list_cluster_custom_object(*kind, "workflows", label_selector=label)
    except ApiException as error:
        if error.status in NOT_ALLOWED:
            where = f"namespace {namespace!r}" if namespace else "all namespaces"
            raise ConfigError(
                f"connection {kubernetes_conn_id!r} may not list workflows.argoproj.io in {where}: {error.status} "
                f"{error.reason}. Give its account that right, name the workflows_namespace, or choose exactly_once='carrier'."
            ) from error
        raise RemoteUnavailableError(f"{asked} answered {error.status} {error.reason}.") from error
    except HTTPError as error:
        raise RemoteUnavailableError(f"{asked} did not answer: {error}") from error
    return [str(each["metadata"]["name"]) for each in answer["items"]]
