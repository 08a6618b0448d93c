"""Experiments, pipelines and recurring runs, against the fake server over HTTP."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.models.kfp_package import PipelinePackage
from tests.jobs.conftest import SPEC


def package_of(image: str = "busybox:1.36") -> PipelinePackage:
    spec = copy.deepcopy(SPEC)
    spec["deploymentSpec"]["executors"]["exec-step"]["container"]["image"] = image
    return read_package(json.dumps(spec), source="one-step.yaml")


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call them all at the same moment."""
    start, results = threading.Barrier(len(calls)), [None] * len(calls)

    def call(number: int) -> None:
        start.wait()
        results[number] = calls[number]()

    threads = [threading.Thread(target=call, args=(each,)) for each in range(len(calls))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return results


def paths(server, method: str) -> list[str]:
    return [each.path.rpartition("v2beta1/")[2] for each in server.requests if each.method == method]


class TestAnExperiment:
    def test_is_made_once(self, catalog, server):
        first = catalog.experiment("churn", "who leaves")
        assert catalog.experiment("churn") == first
        assert catalog.experiment_id("churn") == first.experiment_id
        assert (first.name, first.description, first.archived) == ("churn", "who leaves", False)
        assert paths(server, "POST") == ["experiments"]

    @pytest.mark.parametrize("name", ["CHURN", "100% + more", 'a "quoted" name', "größer"])
    def test_is_found_whatever_its_name(self, catalog, name):
        made = catalog.experiment_id(name)
        assert catalog.experiment_id(name.lower()) == made

    def test_is_one_for_tasks_that_want_it_at_once(self, catalog, server):
        made = at_once(*[lambda: catalog.experiment_id("churn")] * 4)
        assert len(set(made)) == 1
        assert len([each for each in server.store.experiments.values() if each.display_name == "churn"]) == 1

    def test_of_another_task_that_was_faster_is_taken(self, catalog, server):
        server.fault("slow", method="POST", path="experiments$", seconds=0.5)
        theirs = threading.Timer(0.1, lambda: KfpCatalog(catalog.api).experiment_id("churn"))
        theirs.start()
        ours = catalog.experiment("churn")
        theirs.join()
        assert 409 in [each.status for each in server.requests]
        assert [each.experiment_id for each in server.store.experiments.values() if each.display_name == "churn"] == [
            ours.experiment_id
        ]

    def test_whose_answer_was_lost_is_found(self, catalog, server):
        server.fault("lost-after", method="POST", path="experiments$")
        with pytest.raises(RemoteUnavailableError):
            catalog.experiment("churn")
        assert catalog.experiment("churn").name == "churn"
        assert paths(server, "POST") == ["experiments"]

    def test_that_was_put_away_can_be_brought_back(self, catalog, api):
        found = catalog.experiment("churn")
        api.post(f"/apis/v2beta1/experiments/{found.experiment_id}:archive")
        assert catalog.experiment("churn").archived
        catalog.unarchive_experiment(found.experiment_id)
        assert not catalog.experiment("churn").archived


class TestAPackage:
    def test_is_uploaded_once(self, catalog, server):
        package = package_of()
        first = catalog.upload(package)
        assert catalog.upload(package) == first
        assert (first.name, len(server.store.versions)) == ("one-step", 1)  # the server names a pipeline's first version after it
        second = catalog.upload(other := package_of("busybox:1.37"))
        assert (second.pipeline_id, second.name) == (first.pipeline_id, f"sha256-{other.digest[:16]}")
        assert (catalog.upload(other), catalog.upload(package)) == (second, first)
        assert paths(server, "POST") == ["pipelines/upload", "pipelines/upload_version"]

    def test_whose_pipeline_somebody_has_made_of_another_content_is_named_by_its_digest(self, catalog, server):
        catalog._upload_first("one-step", package_of("busybox:1.37"))
        package = package_of()
        assert catalog.upload(package).name == f"sha256-{package.digest[:16]}"
        assert len(server.store.versions) == 2

    def test_whose_first_version_is_none_that_is_known_here_is_named_by_its_digest(self, catalog, server):
        pipeline_id = catalog._upload_first("one-step", package_of())
        (first,) = server.store.versions.values()
        first.spec = {"kind": "Workflow"}
        package = package_of()
        made = catalog.upload(package)
        assert (made.pipeline_id, made.name) == (pipeline_id, f"sha256-{package.digest[:16]}")

    def test_with_another_content_is_another_version_of_the_same_pipeline(self, catalog):
        one, two = catalog.upload(package_of("busybox:1.36")), catalog.upload(package_of("busybox:1.37"))
        assert one.pipeline_id == two.pipeline_id
        assert one.version_id != two.version_id

    def test_can_have_another_name(self, catalog):
        assert catalog.upload(package_of(), name="Größer / 100%").pipeline_id == catalog.version("Größer / 100%").pipeline_id

    def test_under_a_name_that_was_given_is_compared(self, catalog):
        first = catalog.upload(package_of(), version="v1")
        assert catalog.upload(package_of(), version="v1").version_id == first.version_id
        with pytest.raises(ConfigError, match=r"version 'v1' with another content.*give another name"):
            catalog.upload(package_of("busybox:1.37"), version="v1")

    @pytest.mark.parametrize("version", ["v1", None])
    @pytest.mark.parametrize("number", [1e-05, 1e300, 1e17, 1.0, 2**60])
    def test_with_any_number_is_found_again(self, catalog, server, number, version):
        spec = copy.deepcopy(SPEC)
        definition = {"parameterType": "NUMBER_DOUBLE", "defaultValue": number, "isOptional": True}
        spec["root"]["inputDefinitions"] = {"parameters": {"rate": definition}}
        package = read_package(json.dumps(spec), source="one-step.yaml")
        first = catalog.upload(package, version=version)
        before = len(server.store.versions)
        assert catalog.upload(package, version=version) == first
        assert len(server.store.versions) == before

    def test_may_be_uploaded_by_many_at_once(self, catalog, server):
        made = at_once(*[lambda: catalog.upload(package_of())] * 4)
        assert len({each.version_id for each in made}) == 1
        assert len(server.store.pipelines) == 1

    @pytest.mark.parametrize("path", ["upload$", "upload_version$"])
    @pytest.mark.parametrize("kind", ["lost-before", "lost-after", "status-503"])
    def test_whose_answer_was_lost_is_uploaded_or_found(self, catalog, server, path, kind):
        if path == "upload_version$":
            catalog.upload(package_of("busybox:1.35"))
        server.fault(kind, method="POST", path=path)
        with pytest.raises(RemoteUnavailableError):
            catalog.upload(package_of())
        made = catalog.upload(package_of())
        assert len(server.store.versions) == (2 if path == "upload_version$" else 1)
        assert [each.pipeline_version_id for each in server.store.versions.values() if each.name == made.name] == [
            made.version_id
        ]
        assert len(server.store.pipelines) == 1

    def test_that_the_server_refuses_is_a_config_error(self, catalog):
        with pytest.raises(ConfigError, match="128"):
            catalog.upload(package_of(), name="n" * 200)


class TestARegisteredPipeline:
    def test_is_taken_in_its_newest_version(self, catalog, server):
        catalog.upload(package_of("busybox:1.36"))
        server.store.clock = lambda: time.time() + 5  # stamps are whole seconds
        newest = catalog.upload(package_of("busybox:1.37"))
        assert catalog.version("one-step").version_id == newest.version_id
        assert catalog.version("one-step", newest.name).spec == newest.spec

    def test_that_is_not_there_is_told_with_what_is(self, catalog):
        catalog.upload(package_of(), version="v1")
        with pytest.raises(RemoteNotFoundError, match=r"no pipeline 'two-step'.*It has: 'one-step'"):
            catalog.version("two-step")
        with pytest.raises(RemoteNotFoundError, match=r"no version 'v2'. It has: .*'v1'"):
            catalog.version("one-step", "v2")


class TestRecurringRuns:
    def test_of_a_name_are_found_page_by_page(self, catalog):
        reference = catalog.upload(package_of()).reference
        body = {"display_name": "nightly", "pipeline_version_reference": reference, "max_concurrency": "1"}
        made = {catalog.create_recurring_run(body) for _ in range(201)}
        assert set(catalog.carriers("nightly")) == made

    def test_are_deleted_twice_without_a_word(self, catalog):
        reference = catalog.upload(package_of()).reference
        one = catalog.create_recurring_run(
            {"display_name": "nightly", "pipeline_version_reference": reference, "max_concurrency": "1"}
        )
        catalog.delete_recurring_run(one)
        catalog.delete_recurring_run(one)
        assert catalog.carriers("nightly") == []


class TestWithUsers:
    def test_what_is_shared_is_found_and_what_is_ours_comes_first(self):
        from airflow_ml_provider.config import Settings
        from airflow_ml_provider.hooks.kfp import KfpApi
        from airflow_ml_provider.hooks.kfp_server import KfpServer, UserHeaderAuth
        from airflow_ml_provider.testing import FakeKfpServer

        with FakeKfpServer(multi_user=True, tokens={"secret": "ada"}) as server:
            known = KfpServer("kfp_default", server.url, auth=UserHeaderAuth("ada"))
            with KfpApi(known, Settings(http_timeout_s=5, http_retries=0)) as api:
                shared, ours = KfpCatalog(api), KfpCatalog(api, "team")
                theirs = shared.upload(package_of())
                assert ours.version("one-step").pipeline_id == theirs.pipeline_id
                own = ours.upload(package_of())
                assert own.pipeline_id != theirs.pipeline_id
                assert ours.version("one-step").pipeline_id == own.pipeline_id
                assert ours.experiment_id("churn") == ours.experiment_id("churn")
