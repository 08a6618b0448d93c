"""
What a compiled pipeline needs to run on this machine, and what in it cannot; pure.

A lightweight component is compiled to a shell command that installs its packages with pip each time it runs. Here the packages
are read out of it, so that an interpreter that has them can be made once and used again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.core.kfp_package import shown_source
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import PipelinePackage

EXECUTOR = "kfp.dsl.executor_main"
"""Module that runs the function of a lightweight component."""
WITH_VALUE = {"--index-url", "-i", "--extra-index-url", "--trusted-host", "--find-links", "-f", "--constraint", "-c", "-r"}
"""Options of pip that the next word belongs to."""
FOR_FILES = {"--index-url", "--extra-index-url", "--find-links"}
"""Those that a ``requirements.txt`` takes in the form in which uv and pip read it."""
_KFP = re.compile(r"kfp(?:\[[\w,-]*\])?(?:==([\w.]+))?")
_INSTALL = re.compile(r"python3? -m pip install (?P<words>.*?)(?=&&|\n|$)")
_ONLY_OLD_PYTHONS = re.compile(r"^typing-extensions.*python_version<")


@dataclass(frozen=True)
class ComponentPackages:
    """
    What a component installs for itself.

    :param packages: A ``requirements.txt``, empty for none.
    :param bare: One of what it installs without the requirements of that, which is the SDK itself.
    """

    packages: str = ""
    bare: str = ""


@dataclass(frozen=True)
class LocalPlan:
    """
    How a package runs here.

    :param packages: Per executor of the package what it installs; one that is not named runs with the SDK's interpreter.
    :param notes: What has no effect here, a sentence each.
    """

    packages: Mapping[str, ComponentPackages]
    notes: tuple[str, ...] = ()


def plan_local_run(package: PipelinePackage, version: str) -> LocalPlan:
    """
    Read what a package needs to run on this machine, and refuse what cannot.

    :param package: The pipeline.
    :param version: Version of the SDK in the interpreter that there is anyway; empty when it is not known.
    :return: The plan.
    :raises ConfigError: a component is a container, or an importer reads what is not on this machine; the message names all of
        them and says what to do. A retry never helps.
    """
    executors: Mapping[str, Any] = (package.spec.get("deploymentSpec") or {}).get("executors") or {}
    found = {label.removeprefix("exec-"): _problem(each) for label, each in executors.items()}
    problems = [f"- {name} {problem}" for name, problem in found.items() if problem]
    if problems:
        raise ConfigError(
            f"pipeline {package.name!r} ({shown_source(package.source)}) cannot run on this machine; nothing was started. Use "
            "the connection of a server for it, or mend:\n" + "\n".join(problems)
        )
    commands = {label: each["container"]["command"] for label, each in executors.items() if "container" in each}
    made = {label: _packages(each, version) for label, each in commands.items()}
    return LocalPlan({label: each for label, each in made.items() if each is not None}, tuple(_notes(package, executors)))


def _problem(executor: Mapping[str, Any]) -> str:
    """Say why an executor cannot run here; empty when it can."""
    if "importer" in executor:
        uri = str(((executor["importer"].get("artifactUri") or {}).get("constant")) or "")
        return refuse_uri(uri)
    if "container" not in executor:
        return f"is of a kind that the SDK's local runner does not know ({', '.join(executor) or 'nothing'})."
    command = [str(each) for each in executor["container"].get("command") or ()]
    if not any(EXECUTOR in each for each in command):
        image = executor["container"].get("image", "")
        return f"is a container component (image {image!r}), which has to run in its image. Write it as @dsl.component."
    if EXECUTOR in command:
        return "is a containerized Python component (target_image), whose code is in its image. Write it without target_image."
    return ""


def refuse_uri(uri: str) -> str:
    """
    Say why an importer cannot read an address here.

    :param uri: The address; empty where it is known only when the pipeline runs.
    :return: A sentence; empty for a path of this machine.
    """
    scheme, there, _ = uri.partition("://")
    if not there or scheme == "file":
        return ""
    return f"imports {shown_source(uri)}, and on this machine only files can be imported. Fetch it before, and import its path."


def _packages(command: list[str], version: str) -> ComponentPackages | None:
    """Read what a component installs; None where the SDK's interpreter has it all."""
    options, packages, bare = list[str](), list[str](), list[str]()
    for words in _installs(command):
        more, named = _split(words)
        options += [each for each in more if each not in options]
        (bare if "--no-deps" in words else packages).extend(each for each in named if not _ONLY_OLD_PYTHONS.match(each))
    own = [found for each in (*packages, *bare) if (found := _KFP.fullmatch(each))]
    others = len(packages) + len(bare) - len(own)
    if not others and all(each[1] in {None, version} or not version for each in own):
        return None
    if not own:  # it says that kfp is in its image
        bare = [f"kfp=={version}" if version else "kfp"]
    return ComponentPackages(*("".join(f"{each}\n" for each in (*options, *some)) if some else "" for some in (packages, bare)))


def _installs(command: list[str]) -> Iterator[list[str]]:
    """Give the words behind each ``pip install``, of the script that stands before the one that runs the function."""
    end = next(index for index, each in enumerate(command) if EXECUTOR in each)
    for script in command[:end]:
        for found in _INSTALL.finditer(script):
            yield shlex.split(found["words"])


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Part the options that matter from the packages."""
    options, named = [], []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word.startswith("-"):
            value = value if equals else next(rest, "") if name in WITH_VALUE else ""
            name = {"-i": "--index-url", "-f": "--find-links"}.get(name, name)
            if name in FOR_FILES:
                options.append(f"{name} {value}")
        else:
            named.append(word)
    return options, named


def _notes(package: PipelinePackage, executors: Mapping[str, Any]) -> Iterator[str]:
    """Say what the package asks for and does not get here."""
    platforms = (package.platform_spec or {}).get("platforms") or {}
    for label in sorted({name for each in platforms.values() for name in _platform_executors(each)}):
        yield f"{label.removeprefix('exec-')}: what it asks of Kubernetes (secrets, volumes, nodes) has no effect here."
    if any("resources" in (each.get("container") or {}) for each in executors.values()):
        yield "Limits and requests of CPU, memory and accelerators have no effect here."


def _platform_executors(platform: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (platform.get("deploymentSpec") or {}).get("executors")
    return found if isinstance(found, Mapping) else {}
