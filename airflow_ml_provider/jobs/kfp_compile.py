"""Compiling a ``@dsl.pipeline`` function in the SDK's interpreter, from a file or by import."""

from __future__ import annotations

import site
import sys
import sysconfig
import tempfile
from pathlib import Path

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.interpreters import ChildProcess
from airflow_ml_provider.jobs.kfp_sdk import KfpSdk
from airflow_ml_provider.jobs.kfp_source import FUNCTION

PACKAGE = Path(__file__).resolve().parents[1]


def compile_function(
    text: str, *, relative_to: Path | None, settings: Settings | None = None, child: ChildProcess | None = None
) -> bytes:
    """
    Compile a pipeline function.

    The file is read by an interpreter that has the SDK and nothing of the worker; its folder, the DAG's and what else the
    worker imports from, but for installed packages, can be imported from; of those it has ``airflow_ml_provider``, for
    :func:`~airflow_ml_provider.components.as_kfp_component`.

    :param text: ``file.py``, which has one pipeline, ``file.py:function`` or ``package.module:function``.
    :param relative_to: Folder of the DAG file, or the file, where a relative path starts and imports look first; None refuses
        such paths.
    :param settings: Where the interpreter is kept; None reads the section ``[ml]``.
    :param child: Runs the compiler; kill it to stop that.
    :return: The package, as the SDK writes it.
    :raises ConfigError: there is no such file or pipeline, or it cannot be compiled: its own traceback says why. A retry never
        helps.
    :raises RemoteUnavailableError: the interpreter could not be made; a retry is safe.
    """
    found = FUNCTION.fullmatch(text)
    if found is None:
        raise ConfigError(f"pipeline {text!r} is no pipeline function. Write file.py:function or package.module:function.")
    beside = relative_to.parent if relative_to and relative_to.is_file() else relative_to
    file = _file(found["file"], beside) if found["file"] else ""
    sdk = KfpSdk(settings, child)
    with tempfile.TemporaryDirectory(prefix="airflow-ml-kfp-") as folder:
        target, ours = Path(folder) / "pipeline.yaml", Path(folder) / "ours"
        ours.mkdir()
        (ours / PACKAGE.name).symlink_to(PACKAGE)  # for as_kfp_component, without what else is installed beside it
        order = {"do": "compile", "file": file, "module": found["module"] or "", "function": found["one"] or found["two"] or ""}
        paths = [*([str(beside)] if beside else []), *_paths(), str(ours)]
        said, code, tail = sdk.ask(order | {"paths": paths, "target": str(target)})
        if said.get("compiled"):
            return target.read_bytes()
    raise ConfigError(_problem(text, said, code, tail, sdk.settings))


def _file(name: str, beside: Path | None) -> str:
    path = Path(name)
    if not path.is_absolute():
        if beside is None:
            raise ConfigError(f"the path {name!r} is relative, and there is no DAG file to look beside. Give an absolute path.")
        path = beside / path
    if not path.is_file():
        raise ConfigError(
            f"the pipeline file {name!r} is not there (looked for {path}). Give a path relative to the DAG file's folder, or an "
            "absolute one, and check that the DAG bundle on the worker holds it."
        )
    return str(path.resolve())


def _paths() -> list[str]:
    """List where the worker imports from, without what is installed there: it is of another interpreter."""
    installed = {*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("stdlib", "platstdlib"))}
    own = (str(Path(each).resolve()) for each in sys.path if each and Path(each).is_dir())
    return [each for each in own if not any(each == one or each.startswith(f"{one}/") for one in installed)]


def _problem(text: str, said: dict[str, str], code: int, tail: str, settings: Settings) -> str:
    if not said:
        ended = f"the SDK's interpreter ended with code {code}"
        return f"pipeline {text!r} was not compiled: {ended}. The last that it said:\n{tail}"
    if (missing := said.get("missing")) and f"{text.partition(':')[0]}.".startswith(f"{missing}."):
        return (
            f"pipeline {text!r} cannot be compiled: there is no module {missing!r} beside the DAG file, nor where the worker "
            "imports from otherwise. Check the name, or name the file: pipelines/churn.py:churn."
        )
    if missing:
        return (
            f"pipeline {text!r} cannot be compiled: its file imports {missing!r}, which the SDK's interpreter does not have. "
            "Import it inside the component that needs it, put a module of your own beside the DAG file, or name its package in "
            f"[ml] kfp_requirements (now {settings.kfp_requirements!r}).\n{said.get('traceback', '')}"
        )
    if said.get("traceback"):
        return f"pipeline {text!r} cannot be compiled: {said['error']}\n{said['traceback']}"
    return f"pipeline {text!r} cannot be compiled: it {said['error']}"
