"""Accounts of Kubernetes with the rights that ``deploy/kubernetes`` gives, and no others: as such Airflow runs in these tests."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

WORKER, SCHEDULER = "airflow-worker", "airflow-scheduler"
LIVES_S = 4 * 3600
FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
Json = dict[str, Any]


def objects(name: str) -> list[Json]:
    """Read the objects of one file of ``deploy/kubernetes``."""
    import yaml  # type: ignore[import-untyped]

    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def roles(account: str) -> list[Json]:
    """Every role that an account has, with the binding that gives it."""
    given = objects("rbac.yaml") + objects("rbac-secrets.yaml")
    bindings = [each for each in given if each["kind"] == "RoleBinding" and account in {one["name"] for one in each["subjects"]}]
    names = {each["roleRef"]["name"] for each in bindings}
    return [each for each in given if each["kind"] == "Role" and each["metadata"]["name"] in names] + bindings


def rights(account: str = WORKER) -> list[Json]:
    """Give the rules of an account's roles."""
    return [rule for each in roles(account) if each["kind"] == "Role" for rule in each["rules"]]


def moved(given: Json, namespace: str) -> Json:
    """Give an object as it would be if everything were in one namespace."""
    subjects = [{**each, "namespace": namespace} for each in given.get("subjects", ())]
    return {**given, "metadata": {**given["metadata"], "namespace": namespace}, **({"subjects": subjects} if subjects else {})}


def make_account(core: Any, namespace: str, folder: Path, account: str = WORKER) -> Path:
    """Make an account with its rights in a namespace; give a kubeconfig with its token."""
    from kubernetes import utils

    core.create_namespaced_service_account(namespace, {"metadata": {"name": account}})
    for each in roles(account):
        utils.create_from_dict(core.api_client, moved(each, namespace))
    asked = {"spec": {"expirationSeconds": LIVES_S, "audiences": None}}
    token = core.create_namespaced_service_account_token(account, namespace, asked).status.token
    server = core.api_client.configuration
    authority = base64.b64encode(Path(server.ssl_ca_cert).read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": account,
        "contexts": [{"name": account, "context": {"cluster": account, "user": account, "namespace": namespace}}],
        "clusters": [{"name": account, "cluster": {"server": server.host, "certificate-authority-data": authority}}],
        "users": [{"name": account, "user": {"token": token}}],
    }
    place = folder / f"kubeconfig-{account}"
    place.write_text(json.dumps(config))
    return place
