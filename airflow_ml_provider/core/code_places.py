"""
Where modules come from: what is the author's own, and by which name it is known on every worker.

Files are looked for as Python's import does. Nothing is imported or run.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import NamedTuple

from airflow_ml_provider.core.code_source import Import

_INSTALLED = {"site-packages", "dist-packages"}
_OURS = ("airflow", "airflow_ml_provider")


class Found(NamedTuple):
    """
    The file of a module.

    :param file: Its path.
    :param package: Package that imports with points in it start from.
    """

    file: str
    package: str


class Places:
    """
    Tells the author's own files from all else.

    Own is what lies below the DAG's folder, and what is imported from anywhere but the standard library, installed
    distributions, Airflow and this package: a folder beside that of the DAGs, on ``PYTHONPATH``.

    :param folder: The DAG's folder.
    :param home: File of the step's function, which is its author's own wherever it is.
    """

    def __init__(self, folder: Path, home: str) -> None:
        self.roots = tuple(dict.fromkeys([folder.absolute(), folder.resolve()]))
        self._home = home
        self._known: dict[str, str | None] = {}
        self._found: dict[str, list[Found]] = {}
        self._library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
        packages = [sys.modules[name] for name in _OURS if name in sys.modules]
        self._ours = [Path(each).resolve() for package in packages for each in getattr(package, "__path__", ())]

    def own(self, file: str | None) -> str | None:
        """
        Name a file of the author's.

        :param file: Path of the file.
        :return: Its path below the DAG's folder, or below the place that it is imported from; empty for the step's own file.
            None for anybody else's.
        """
        if not file or file.startswith("<"):
            return None
        if file == self._home:
            return ""
        if file not in self._known:
            self._known[file] = self._look(Path(file).absolute())
        return self._known[file]

    def own_module(self, module: ModuleType) -> str | None:
        """
        Name the file of a module of the author's.

        :param module: The module.
        :return: As :meth:`own`; for a package without a file, its folder.
        """
        file = getattr(module, "__file__", None)
        paths = [file] if file else [str(each) for each in getattr(module, "__path__", ())]
        return next((name for name in map(self.own, paths) if name is not None), None)

    def below(self, path: PurePath) -> str | None:
        """
        Name a path below the DAG's folder.

        :param path: Any path.
        :return: The way to it from the folder; None when it is elsewhere.
        """
        return next((path.relative_to(root).as_posix() for root in self.roots if path.is_relative_to(root)), None)

    def files_of(self, statement: Import, package: str | None) -> Iterator[Found]:
        """
        Find the author's files that an import loads, packages on the way included.

        :param statement: The import.
        :param package: Package of the module that it stands in.
        :return: The files.
        """
        module = statement.module
        if statement.level:
            parents = (package or "").split(".")
            base = parents[: len(parents) - statement.level + 1]
            module = ".".join([*base, module] if module else base)
        names = [module, *(f"{module}.{name}" for name in statement.names)]
        seen: dict[Found, None] = {}
        for name in names:
            seen |= dict.fromkeys(self._files(name))
        yield from seen

    def _files(self, name: str) -> list[Found]:
        if name not in self._found:
            self._found[name] = list(self._look_for(name))
        return self._found[name]

    def _look_for(self, name: str) -> Iterator[Found]:
        """Find the files of a module and of the packages that it is in."""
        parts = name.split(".")
        if not name or parts[0] in sys.stdlib_module_names or parts[0] in _OURS:
            return
        search: Sequence[str] | None = None
        for end in range(1, len(parts) + 1):
            file, search = _locate(".".join(parts[:end]), search, [str(root) for root in self.roots])
            own = file is not None and self.own(file) is not None
            if file is not None and own:
                yield Found(file, ".".join(parts[: end - (search is None)]))
            if search is None or (file is not None and not own):
                return

    def _look(self, file: Path) -> str | None:
        for root in self.roots:
            for path in (file, file.resolve()):
                if path.is_relative_to(root):
                    rest = path.relative_to(root)
                    alien = any(
                        path.is_relative_to(each) and not root.is_relative_to(each) for each in self._library + self._ours
                    )
                    return None if alien or _INSTALLED & set(rest.parts) else rest.as_posix()
        real = file.resolve()
        if _INSTALLED & {*file.parts, *real.parts} or any(real.is_relative_to(each) for each in self._library + self._ours):
            return None
        places = [Path(each).resolve() for each in sys.path if each]
        ways = [real.relative_to(each).as_posix() for each in places if real.is_relative_to(each)]
        return min(ways, key=len, default=real.name)


def _locate(name: str, search: Sequence[str] | None, roots: Sequence[str]) -> tuple[str | None, Sequence[str] | None]:
    """Find the file of a module, and where to look for modules in it; it is not loaded."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        inside = getattr(module, "__path__", None)
        return file, None if inside is None else list(inside)
    # A package is looked for in its parent; all else where Python does, then in the DAG's folder.
    for path in [search] if search is not None else [None, roots]:
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
            if spec is not None:
                inside = spec.submodule_search_locations
                return (spec.origin if spec.has_location else None), None if inside is None else list(inside)
    return None, None
