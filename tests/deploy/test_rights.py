"""deploy/kubernetes on a real API server: it takes every object, and an account with these rights can do that and no more."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.account import moved, objects, rights
from tests.cluster.kube import Kube

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    "pods", "pods/log", "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/eviction",
    "events", "secrets", "configmaps", "serviceaccounts", "serviceaccounts/token", "persistentvolumeclaims", "services", "nodes",
)  # fmt: skip
MANIFESTS = ("rbac.yaml", "rbac-secrets.yaml", "rbac-kfp.yaml", "network.yaml", "spool.yaml", "worker-pod.yaml")


def may(client: Any, namespace: str, resource: str, verb: str, group: str = "") -> bool:
    """What ``kubectl auth can-i`` asks."""
    from kubernetes.client import AuthorizationV1Api

    whole, _, part = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": whole, "subresource": part}
    review = AuthorizationV1Api(client).create_self_subject_access_review({"spec": {"resourceAttributes": asked}})
    return bool(review.status.allowed)


def given(rules: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(resource, verb) for each in rules for resource in each["resources"] for verb in each["verbs"]}


def test_a_worker_may_do_what_the_manifest_says_and_nothing_else(cluster: Kube, as_worker: Any) -> None:
    allowed = {each for each in product(RESOURCES, VERBS) if may(as_worker, cluster.namespace, *each)}
    assert allowed == given(rights())
    # All rules that it has, but those that everybody has.
    from kubernetes.client import AuthorizationV1Api

    answer = AuthorizationV1Api(as_worker).create_self_subject_rules_review({"spec": {"namespace": cluster.namespace}})
    rules = [each.to_dict() for each in answer.status.resource_rules if not each.resources[0].startswith("selfsubject")]
    assert {group for each in rules for group in each["api_groups"]} == {""}
    assert given(rules) == given(rights())


@pytest.mark.parametrize(
    ("group", "resource", "verb"),
    [
        ("rbac.authorization.k8s.io", "roles", "create"),
        ("rbac.authorization.k8s.io", "rolebindings", "create"),
        ("batch", "jobs", "create"),
        ("apps", "deployments", "patch"),
        ("networking.k8s.io", "networkpolicies", "delete"),
    ],
)
def test_a_worker_may_not_widen_its_rights(cluster: Kube, as_worker: Any, group: str, resource: str, verb: str) -> None:
    assert not may(as_worker, cluster.namespace, resource, verb, group)


def test_a_workers_rights_end_with_the_namespace(as_worker: Any) -> None:
    assert not [each for each in product(RESOURCES, VERBS) if may(as_worker, "default", *each)]
    assert not may(as_worker, "", "pods", "list")


def test_the_scheduler_of_kubernetes_executor_may_handle_pods_alone(cluster: Kube, scheduler_config: Path) -> None:
    from kubernetes import config

    with config.new_client_from_config(str(scheduler_config)) as client:
        allowed = {each for each in product(RESOURCES, VERBS) if may(client, cluster.namespace, *each)}
    assert allowed == {("pods", verb) for verb in VERBS} - {("pods", "update"), ("pods", "deletecollection")}


@pytest.mark.usefixtures("worker_config")
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_api_server_takes_every_object_and_knows_every_field(cluster: Kube, name: str) -> None:
    """``kubectl apply --dry-run=server``, where pods must not run as root or with rights."""
    from kubernetes import utils

    for each in objects(name):
        there = moved(each, cluster.namespace)
        there["metadata"]["name"] += "-dry"
        (made,) = utils.create_from_dict(cluster.core.api_client, there, dry_run="All", field_validation="Strict")
        assert made.metadata.name == there["metadata"]["name"]
        assert made.metadata.uid


def test_the_api_server_takes_the_namespaces(cluster: Kube) -> None:
    for each in objects("namespaces.yaml"):
        made = cluster.core.create_namespace(each, dry_run="All", field_validation="Strict")
        assert made.metadata.labels.items() >= each["metadata"]["labels"].items()
