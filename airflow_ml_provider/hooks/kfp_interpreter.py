"""The interpreter that has the SDK of Kubeflow Pipelines: what it must have, whether it is there, and the way to it."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_ml_provider.config import Settings
from airflow_ml_provider.interpreters import ChildProcess, Environments, Requirements

REMEDY = (
    "Check that this machine reaches a package index (PIP_INDEX_URL or UV_DEFAULT_INDEX names another), and that what [ml] "
    "kfp_requirements and the components' packages_to_install name is to be had there."
)
_PINNED = re.compile(r"kfp(?:\[[\w,-]*\])?==([\w.]+)")


class KfpInterpreter:
    """
    The interpreters that runs on this machine need: one with the SDK, and one for each set of packages of a component.

    :param settings: Where they are kept, and what the first of them has.
    :param child: Runs the installer; kill it to stop that.
    """

    def __init__(self, settings: Settings, child: ChildProcess | None = None) -> None:
        self.settings = settings
        self._environments = Environments(Path(settings.interpreters).expanduser(), child)

    @property
    def requirements(self) -> Requirements:
        """What the interpreter with the SDK has: pip is what a component may call, pydantic what ``as_kfp_component`` needs."""
        wanted = [*self.settings.kfp_requirements.split(), "pip", "pydantic>=2.11"]
        return Requirements("\n".join(wanted) + "\n", of=self.settings.kfp_requirements, remedy=REMEDY)

    @property
    def version(self) -> str:
        """Version of the SDK where it is pinned, else empty."""
        found = next(filter(None, (_PINNED.fullmatch(each) for each in self.settings.kfp_requirements.split())), None)
        return found[1] if found else ""

    def python(self) -> Path:
        """
        Give the interpreter with the SDK; make it when there is none.

        :return: Its path.
        :raises ConfigError: the folder cannot be written; a retry never helps.
        :raises RemoteUnavailableError: the installer failed; a retry is safe.
        """
        return self._environments.python(self.requirements)

    def component_python(self, packages: str, bare: str) -> Path:
        """
        Give an interpreter that has what a component installs for itself; make it when there is none.

        :param packages: A ``requirements.txt`` of its packages, options of pip included.
        :param bare: One of what it installs without the requirements of that: the SDK's own runtime.
        :return: Its path.
        :raises ConfigError: the folder cannot be written; a retry never helps.
        :raises RemoteUnavailableError: the installer failed; a retry is safe.
        """
        named, own = ([each for each in text.split("\n") if each and not each.startswith("-")] for text in (packages, bare))
        of = f"packages_to_install={named}" if named else f"the SDK's runtime of a component ({' '.join(own)})"
        return self._environments.python(Requirements(f"{packages}pip\n", bare=bare, of=of, remedy=REMEDY))

    def check(self) -> tuple[bool, str]:
        """
        Say whether pipelines can run here, without making anything.

        :return: Whether they can as far as is known, and a sentence.
        """
        wanted = self.settings.kfp_requirements
        if found := self._environments.ready(self.requirements):
            return True, f"Pipelines run on this machine, with {wanted} in {found.parents[2]}."
        if problem := self._environments.problem():
            return False, f"The interpreter with {wanted} cannot be made on this machine: {problem}"
        return True, (
            f"Pipelines run on this machine. The first of them makes the interpreter with {wanted}, with "
            f"{self._environments.installer}, below {self._environments.root}; that needs the package index."
        )
