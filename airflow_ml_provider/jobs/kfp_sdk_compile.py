"""Compiling a pipeline function, in the SDK's interpreter; a part of :mod:`kfp_sdk_main`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


class _RefusedError(Exception):
    """What is wrong with the file, in our words; no traceback says more."""


def work(order: dict[str, Any], _: Any) -> dict[str, Any]:
    """
    Import what the order names and compile its pipeline.

    :param order: ``file`` or ``module``, ``function`` (empty for the only pipeline), ``paths`` to import from, and ``target``,
        the file to write.
    :return: ``compiled``, or ``error`` and ``traceback`` (of the user's own lines), and ``name`` of a module that is missing.
    """
    from kfp import compiler

    sys.path += [each for each in order["paths"] if each not in sys.path]
    file = order["file"]
    try:
        module = _from_file(Path(file)) if file else importlib.import_module(order["module"])
        file = file or str(getattr(module, "__file__", ""))
        compiler.Compiler().compile(_pipeline(module, order["function"], file or order["module"]), package_path=order["target"])
    except _RefusedError as error:
        return {"error": str(error), "traceback": ""}
    except (Exception, SystemExit) as error:  # noqa: BLE001  (of the user's file, whatever it is)
        said = {"error": f"{type(error).__name__}: {error}", "traceback": _own_lines(error, file)}
        return said | ({"missing": error.name or ""} if isinstance(error, ModuleNotFoundError) else {})
    return {"compiled": True}


def _from_file(file: Path) -> ModuleType:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise _RefusedError("is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _pipeline(module: ModuleType, name: str, where: str) -> Any:
    from kfp.dsl import base_component, graph_component

    made = {key: each for key, each in vars(module).items() if isinstance(each, graph_component.GraphComponent)}
    if name:
        found = vars(module).get(name)
        if isinstance(found, base_component.BaseComponent):
            return found
        what = "has no" if found is None else "has no pipeline, but a plain"
        raise _RefusedError(f"{what} {name!r}. Decorate it with @dsl.pipeline. Its pipelines are: {_names(made)}.")
    own = {key: each for key, each in made.items() if getattr(each, "pipeline_func", each).__module__ == module.__name__}
    if len(own) == 1:
        return next(iter(own.values()))
    if own:
        raise _RefusedError(f"has {len(own)} pipelines: {_names(own)}. Say which: {Path(where).name}:{next(iter(own))}")
    raise _RefusedError("has no pipeline. Decorate a function with @dsl.pipeline.")


def _names(pipelines: dict[str, Any]) -> str:
    return ", ".join(sorted(pipelines)) or "none"


def _own_lines(error: BaseException, file: str) -> str:
    """Write the traceback from the user's file on; all of it where the file is not in it, as for an error of its syntax."""
    told = traceback.TracebackException.from_exception(error)
    first = next((index for index, frame in enumerate(told.stack) if frame.filename == file), None)
    if first is not None:
        del told.stack[:first]
    elif isinstance(error, SyntaxError) or not file:
        told.stack.clear()
    return "".join(told.format())
