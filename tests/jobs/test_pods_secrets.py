"""A Secret for one pod: made before it, owned by it, gone with it, and found by its labels when a crash came between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_ml_provider.core.pod_adoption import KEY, labels_of, pod_name
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.jobs.pod_secrets import PodSecrets
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.run import StepIdentity
from tests.jobs.pods_cluster import Answers, busybox, cluster_pods, on_cluster, status, until

FIRST, SECOND = Generation(clears=0), Generation(clears=0, renewals=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


@pytest.fixture
def step(cluster: PodJobs, unique: str) -> Iterator[StepIdentity]:
    step = StepIdentity(dag_id=unique, run_id="night", task_id="train")
    yield step
    for each in cluster.find({KEY: step.key}):
        cluster.delete(each.name, grace_s=0)


def there(cluster: PodJobs, name: str) -> bool:
    try:
        cluster.api.json("GET", f"/api/v1/namespaces/{cluster.namespace}/secrets/{name}")
    except RemoteNotFoundError:
        return False
    return True


def reading_pod(step: StepIdentity, name: str) -> Any:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}]
    return busybox('echo "$TOKEN"', name=name, labels=labels_of(step, FIRST), env=env)


@on_cluster
class TestRealCluster:
    def test_a_pod_reads_its_secret_which_goes_with_it(self, cluster: PodJobs, step: StepIdentity) -> None:
        from airflow_ml_provider.core.pod_log import LogCursor

        secrets = PodSecrets(cluster)
        secrets.create(step, FIRST, {"token": "old"})
        name = secrets.create(step, FIRST, {"token": "s3cret"})
        assert name == pod_name(step, FIRST)
        pod = cluster.create(reading_pod(step, name))
        secrets.give_to(pod)
        until(lambda: (found := cluster.look(name)) and found.phase == "Succeeded")
        assert cluster.read_log(name, "base", LogCursor()).endswith(b" s3cret\n"), "the newer create has overwritten it"
        assert secrets.sweep(step) == [], "it has an owner"
        cluster.delete(name)
        until(lambda: not there(cluster, name))
        secrets.give_to(pod)

    def test_what_a_crash_has_left_is_swept_and_what_a_pod_needs_is_not(self, cluster: PodJobs, step: StepIdentity) -> None:
        secrets = PodSecrets(cluster)
        needed, left = (secrets.create(step, each, {"token": "s3cret"}) for each in (FIRST, SECOND))
        cluster.create(reading_pod(step, needed))
        assert left not in secrets.sweep(), "without a task, only those that are old"
        assert secrets.sweep(step) == [left]
        assert there(cluster, needed)
        assert not there(cluster, left)
        assert left in (secrets.create(step, SECOND, {}), *secrets.sweep(older_than_s=0))
        cluster.api.json("DELETE", f"/api/v1/namespaces/{cluster.namespace}/secrets/{needed}")

    def test_a_bad_key_is_refused_without_the_value(self, cluster: PodJobs, step: StepIdentity) -> None:
        with pytest.raises(ConfigError, match="a bad key") as caught:
            PodSecrets(cluster).create(step, FIRST, {"a bad key": "s3cret"})
        assert "s3cret" not in str(caught.value)
        assert "czNjcmV0" not in str(caught.value)


def test_a_secret_that_a_pod_of_before_owned_is_nobodys_until_its_new_pod_is_there() -> None:
    step = StepIdentity(dag_id="d", run_id="r", task_id="t")
    with Answers() as server:
        server.prepared = [status(409, "already exists", "AlreadyExists"), (200, {})]
        jobs = server.jobs()
        name = PodSecrets(jobs).create(step, FIRST, {"token": "s3cret"})
        (_, _, _, made), (method, path, _, changed) = server.asked
        assert (method, path) == ("PATCH", f"/api/v1/namespaces/n/secrets/{name}")
        assert "ownerReferences" not in made["metadata"]
        assert changed["metadata"] == {**made["metadata"], "ownerReferences": None}, "null takes it away in a merge patch"
        jobs.close()


def test_values_that_do_not_fit_are_refused_before_anything_is_sent() -> None:
    with Answers() as server:
        step = StepIdentity(dag_id="d", run_id="r", task_id="t")
        with pytest.raises(ConfigError, match="1048577 bytes; Kubernetes takes 1048576"):
            PodSecrets(server.jobs()).create(step, FIRST, {"a": "x" * 1_048_577})
        assert server.asked == []
