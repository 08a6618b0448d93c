"""What a compiled pipeline needs on this machine, read from its own commands."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.core.kfp_local import ComponentPackages, plan_local_run
from airflow_ml_provider.core.kfp_package import read_spec
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import PipelinePackage

RUNS = ["sh", "-ec", "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path x", "def f(): ..."]
ONE, TWO = "https://one", "https://two"
KFP = "'kfp==2.17.0' '--no-deps' 'typing-extensions>=3.7.4,<5; python_version<\"3.9\"'"


def installs(*words: str) -> list[str]:
    """A command as the compiler writes it."""
    lines = " && ".join(f"python3 -m pip install --quiet --no-warn-script-location {each}" for each in words)
    check = 'if ! [ -x "$(command -v pip)" ]; then\n    python3 -m ensurepip || apt-get install python3-pip\nfi\n\n'
    return ["sh", "-c", f'\n{check}PIP_DISABLE_PIP_VERSION_CHECK=1 {lines} && "$0" "$@"\n', *RUNS]


def package(executors: dict[str, Any], **platform: Any) -> PipelinePackage:
    spec = {
        "pipelineInfo": {"name": "p"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": {}}},
        "deploymentSpec": {"executors": executors},
    }
    whole = {"pipeline_spec": spec, "platform_spec": {"platforms": platform}} if platform else spec
    return read_spec(whole, source="p.yaml")


def packages_of(command: list[str], version: str = "2.17.0") -> ComponentPackages | None:
    return plan_local_run(package({"exec-f": {"container": {"image": "python", "command": command}}}), version).packages.get(
        "exec-f"
    )


@pytest.mark.parametrize("command", [installs(KFP), RUNS, installs("'kfp==2.17.0'"), installs("'kfp'")])
def test_what_the_sdks_interpreter_has_already_needs_no_other(command: list[str]) -> None:
    assert packages_of(command) is None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["'scikit-learn==1.7.2' 'numpy<3,>=2'", KFP], ("scikit-learn==1.7.2\nnumpy<3,>=2\n", "kfp==2.17.0\n")),
        ([KFP.replace("2.17.0", "2.7.0")], ("", "kfp==2.7.0\n")),
        (["'kfp[kubernetes]==2.16.0' 'six'"], ("kfp[kubernetes]==2.16.0\nsix\n", "")),
        (["'a; python_version<\"4\"'", KFP], ('a; python_version<"4"\n', "kfp==2.17.0\n")),
        (["'git+https://host.example/a.git@v1#egg=a'"], ("git+https://host.example/a.git@v1#egg=a\n", "kfp==2.17.0\n")),
        (
            [f"--index-url {ONE} --extra-index-url={TWO} --trusted-host {ONE} 'a'", KFP],
            (
                f"--index-url {ONE}\n--extra-index-url {TWO}\na\n",
                f"--index-url {ONE}\n--extra-index-url {TWO}\nkfp==2.17.0\n",
            ),
        ),
    ],
)
def test_what_a_component_installs_is_read_from_its_command(words: list[str], wanted: tuple[str, str]) -> None:
    assert packages_of(installs(*words)) == ComponentPackages(*wanted)


def test_a_component_that_names_an_index_for_the_sdk_alone_runs_with_ours() -> None:
    assert packages_of(installs(f"--index-url {ONE} --trusted-host {ONE} {KFP}")) is None


def test_with_an_sdk_that_is_not_pinned_any_release_of_it_will_do() -> None:
    assert packages_of(installs(KFP), version="") is None
    assert packages_of(installs("'six'"), version="") == ComponentPackages("six\n", "kfp\n")


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ({"container": {"image": "alpine", "command": ["echo"]}}, "f is a container component (image 'alpine')"),
        ({"container": {"image": "mine"}}, "f is a container component (image 'mine')"),
        (
            {"container": {"image": "mine", "command": ["python3", "-m", "kfp.dsl.executor_main"]}},
            "f is a containerized Python component (target_image)",
        ),
        ({"importer": {"artifactUri": {"constant": "gs://user:secret@b/x"}}}, "f imports gs://b/x, and on this machine"),
        ({"customJob": {}}, "f is of a kind that the SDK's local runner does not know (customJob)."),
    ],
)
def test_what_cannot_run_here_is_refused(executor: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_local_run(package({"exec-f": executor}), "2.17.0")
    assert f"\n- {said}" in str(caught.value)


@pytest.mark.parametrize("uri", ["file:///a/b", "/a/b", "relative", ""])
def test_an_importer_of_a_path_is_not(uri: str) -> None:
    assert plan_local_run(package({"exec-f": {"importer": {"artifactUri": {"constant": uri}}}}), "2.17.0").packages == {}


def test_what_has_no_effect_here_is_noted() -> None:
    container = {"container": {"image": "python", "command": RUNS, "resources": {"cpuLimit": 1}}}
    asks = {"deploymentSpec": {"executors": {"exec-f": {"secretAsEnv": []}}}}
    first, second = plan_local_run(package({"exec-f": container}, kubernetes=asks), "2.17.0").notes
    assert first.startswith("f: what it asks of Kubernetes (secrets, volumes, nodes) has no effect")
    assert second.startswith("Limits and requests")
