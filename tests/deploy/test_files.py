"""deploy/: what its files say, and that they agree with each other, with the pages and with the images. No cluster, no Helm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.cluster.account import SCHEDULER, WORKER, objects, rights, roles

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VALUES = {each.stem: yaml.safe_load(each.read_text()) for each in (DEPLOY / "helm").glob("*.yaml")}
MANIFESTS = sorted(each.name for each in (DEPLOY / "kubernetes").glob("*.yaml"))
PAGE = (ROOT / "docs/kubernetes.md").read_text()


def walked(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every value below, with the names that lead to it."""
    if isinstance(found, dict | list):
        for key, each in found.items() if isinstance(found, dict) else enumerate(found):
            yield from walked(each, (*path, str(key)))
    else:
        yield path, found


def documented() -> list[tuple[str, list[str]]]:
    """The table of docs/pods.md of what workers and triggerer need."""
    lines = (ROOT / "docs/pods.md").read_text().splitlines()
    start = lines.index("| Resource | Verbs | For |") + 2
    rows = [line.split("|")[1:3] for line in lines[start : lines.index("", start)]]
    return [(resource.strip(" `"), [each.strip() for each in verbs.split(",")]) for resource, verbs in rows]


def test_the_rights_of_workers_are_the_table_of_the_page_row_by_row() -> None:
    assert [(*each["resources"], each["verbs"]) for each in rights(WORKER)] == documented()
    assert rights(WORKER) == rights("airflow-triggerer")


def test_secrets_are_within_reach_only_by_the_file_that_says_so() -> None:
    assert not any("secrets" in rule["resources"] for each in objects("rbac.yaml") for rule in each.get("rules", ()))
    assert [each["metadata"]["name"] for each in objects("rbac-secrets.yaml")] == ["airflow-ml-secrets"] * 2


def test_rights_are_of_one_namespace_and_name_what_they_are_for() -> None:
    given = [each for name in ("rbac.yaml", "rbac-secrets.yaml", "rbac-kfp.yaml") for each in objects(name)]
    assert {each["kind"] for each in given} == {"Role", "RoleBinding"}
    assert "*" not in [value for each in given for _, value in walked(each)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_object_says_where_it_belongs(name: str) -> None:
    spaces = {each["metadata"]["name"] for each in objects("namespaces.yaml")}
    assert spaces == {"airflow", "ml-steps", "mlflow"}
    spaces |= {"team-a"} if name == "rbac-kfp.yaml" else set()  # one of Kubeflow's, which makes its own
    for each in objects(name):
        if each["kind"] not in {"Namespace", "Pod"}:
            assert each["metadata"]["namespace"] in spaces
        assert {one["namespace"] for one in each.get("subjects", ())} <= spaces


def test_the_accounts_that_have_rights_are_those_that_the_chart_makes() -> None:
    airflow = VALUES["airflow"]
    made = {airflow[each]["serviceAccount"]["name"] for each in ("scheduler", "workers", "triggerer")}
    assert made == {SCHEDULER, WORKER, "airflow-triggerer"}
    assert all(roles(each) for each in made)
    assert not airflow["allowPodLaunching"]
    assert not airflow["allowJobLaunching"]
    (pod,) = objects("worker-pod.yaml")
    assert pod["spec"]["serviceAccountName"] == WORKER


def test_no_value_is_a_secret_and_every_secret_is_one_that_the_page_makes() -> None:
    (pod,) = objects("worker-pod.yaml")
    found = [place for each in (*VALUES.values(), pod) for place in walked(each)]
    secret = re.compile(r"(?i)(pass|password|secretKey|fernetKey|jwtSecret|token)$")
    assert [path for path, value in found if secret.search(path[-1]) and isinstance(value, str)] == []
    names = {value for path, value in found if {"secretKeyRef", "secretRef"} & {*path} and path[-1] == "name"}
    names |= {value for path, value in found if path[-1].endswith("SecretName")}
    names |= {value for path, value in found if path[-1] == "name" and re.match(r"existing.*Secret$", path[-2])}
    names |= set(re.findall(r"secretRef: {name: ([\w-]+)}", VALUES["airflow"]["extraEnvFrom"]))
    of_steps = "mlflow-login"
    assert names | {of_steps} == set(re.findall(r"create secret generic ([\w-]+)", PAGE))


def test_nothing_runs_as_root_or_with_capabilities() -> None:
    (pod,) = objects("worker-pod.yaml")
    assert pod["spec"]["securityContext"] == VALUES["airflow"]["securityContexts"]["pod"]
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == VALUES["airflow"]["securityContexts"]["containers"]
    user = int(re.search(r"useradd --uid (\d+) --gid 0", (ROOT / "docker/Dockerfile").read_text())[1])  # type: ignore[index]
    users = {value for each in (*VALUES.values(), pod) for path, value in walked(each) if path[-1] in {"runAsUser", "uid"}}
    assert users == {user, 999}  # the broker's image has one of its own


def test_a_task_has_its_connections_and_no_key_of_airflow() -> None:
    (pod,) = objects("worker-pod.yaml")
    text = yaml.safe_dump(pod)
    assert "airflow-connections" in text
    assert not [each for each in ("airflow-database", "airflow-keys", "airflow-broker", "airflow-admin") if each in text]


def test_the_token_for_kubeflow_is_where_the_connection_looks_for_it() -> None:
    from airflow_ml_provider.hooks import kfp_server

    (pod,) = objects("worker-pod.yaml")
    for spec in (pod["spec"], VALUES["airflow"]["triggerer"], VALUES["airflow-celery"]["workers"]):
        volumes = spec.get("volumes", spec.get("extraVolumes"))
        (token,) = [each["projected"]["sources"][0]["serviceAccountToken"] for each in volumes if each["name"] == "kfp-token"]
        mounts = spec.get("extraVolumeMounts") or spec["containers"][0]["volumeMounts"]
        (place,) = [each["mountPath"] for each in mounts if each["name"] == "kfp-token"]
        assert (f"{place}/{token['path']}", token["audience"]) == (kfp_server.TOKEN_FILE, kfp_server.AUDIENCE)


def test_versions_are_those_of_the_images() -> None:
    from airflow_ml_provider import __version__

    locked = (ROOT / "docker/airflow.txt").read_text()
    assert VALUES["airflow"]["airflowVersion"] == re.search(r"(?m)^apache-airflow==([\d.]+)", locked)[1]  # type: ignore[index]
    assert {VALUES["airflow"]["images"]["airflow"]["tag"], VALUES["mlflow"]["image"]["tag"]} == {__version__}


def test_every_file_is_on_the_page() -> None:
    assert [each.name for each in DEPLOY.rglob("*.yaml") if f"`{each.relative_to(ROOT)}`" not in PAGE] == []
