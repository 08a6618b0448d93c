#!/usr/bin/env python
"""
Writes the parts of the pages that the code knows better: ``.venv/bin/python scripts/docs_tables.py``.

A part stands between ``<!-- begin: name -->`` and ``<!-- end: name -->``; what is between them is replaced. A test asserts
that the pages are what this makes.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from airflow_ml_provider import exceptions
from airflow_ml_provider.cli.definition import COMMANDS, Command
from airflow_ml_provider.config import SECTION, Settings
from airflow_ml_provider.core.pod_adoption import GENERATION, KEY, MANAGED, READ
from airflow_ml_provider.core.pod_failures import ERRORS, REMEDIES
from airflow_ml_provider.core.scoring import METRICS
from airflow_ml_provider.core.states import DAG_RUN_STATUS, TASK_STATUS, task_status
from airflow_ml_provider.hooks.mlflow_connection import EXTRAS as MLFLOW_EXTRAS
from airflow_ml_provider.models.alert import AlertRule, AlertRules
from airflow_ml_provider.models.cache import Cache
from airflow_ml_provider.models.gate import PairedComparison
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.resources import GpuRequest
from airflow_ml_provider.notifications.alerts import ml_alert, ml_alerts
from airflow_ml_provider.operators import mlflow_cleanup, mlflow_experiments, mlflow_models, mlflow_predict, mlflow_runs
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.kfp_recurring import KfpCreateRecurringRunOperator, KfpRecurringRunOperator
from airflow_ml_provider.operators.kfp_resources import (
    KfpCreateExperimentOperator,
    KfpRunActionOperator,
    KfpUploadPipelineOperator,
)
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.operators.pod_checks import REFUSED
from airflow_ml_provider.operators.pod_end import is_final
from airflow_ml_provider.operators.pod_retry import retry_delay
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.operators.step import MLStepOperator
from airflow_ml_provider.provider_info import get_provider_info
from airflow_ml_provider.sensors import mlflow as mlflow_sensors
from airflow_ml_provider.sensors.kfp import KfpRunSensor
from airflow_ml_provider.tracking.reconcile import AT_WORK
from airflow_ml_provider.triggers.kfp import KfpRunEventTrigger
from airflow_ml_provider.triggers.mlflow import MlflowModelAliasTrigger, MlflowModelVersionTrigger

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_PART = re.compile(r"(?P<begin><!-- begin: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end: (?P=name) -->)", re.DOTALL)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
_MARK = re.compile(r"^ *# \[(?:START|END) \w+\]\n", re.MULTILINE)
_PARAM = re.compile(r"^:param (\w+): (.*?)(?=^:|^\S|\Z)", re.DOTALL | re.MULTILINE)

_RAISES = re.compile(r"^:raises (\w+): (.*?)(?=^:|\Z)", re.DOTALL | re.MULTILINE)
MLFLOW_PREFIX = "airflow_ml_provider.operators.mlflow_"

LEFT_OPEN = "left open"
TASK_NOTES = {
    None: "Not scheduled yet, or cleared; the next try opens the run again.",
    "restarting": "Cleared while it ran.",
    "deferred": "No step of this package defers; the state may be that of a subclass.",
    "up_for_retry": "This try failed; the next one opens the run again.",
    "skipped": "A step that skips itself ends FINISHED. One found open was stopped: a timeout of the DAG run, a mark by hand.",
    "failed": "In an ended DAG run, a run that its step left FINISHED becomes FAILED too.",
    "upstream_failed": "It had run before, and was cleared together with what failed.",
    "removed": "The task, or this index of a mapped task, is no more.",
}
POD_LABELS = {
    KEY: "Whose it is: the `airflow.key` of the nested run in MLflow.",
    GENERATION: "Which of its pods: number of Airflow's `max_tries`, and how many were made anew since, `1-0`.",
    MANAGED: "`true`: made by this package.",
    READ: "`true` once a task has read its end; no later try takes it up. Only pods that are kept have it.",
}
TELLING_ROWS = {
    "Parsing a DAG file": ["10 steps, fresh process, processor time", "10 steps, forked process, wall time"],
    "A typed step that does nothing": ["one step, wall time", "one step, processor time"],
    "Metric points": ["10,000 points, wall time"],
    "A large artifact": [
        "1024 MiB up, against the raw client",
        "1024 MiB down, against the raw client",
        "up, peak memory of our process",
    ],
    "Steps in pods": [
        "tasks that wait in a worker, time until the last has ended",
        "tasks that wait in the triggerer, time until the last has ended",
        "tasks that wait in the triggerer, requests to Kubernetes",
    ],
    "Watching the model registry": ["1,000 models, requests"],
    "Pipelines on this machine": ["3 components"],
    "Lineage": ["the way up from the champion: time on 100,000 runs, beside 1,000"],
    "The cache of steps": ["SQLite, a hit, requests of a decision", "a night of three steps, step time"],
}
"""Of the results of the benches, by section: how the rows begin that the page about performance shows."""
POD_REMEDIES = {
    exceptions.PodOutOfMemoryError: "Raise `memory_gib`, set `memory_on_oom`, or let the step need less.",
    exceptions.StepStoreError: "A retry can help. Look whether MLflow answers from inside of the cluster.",
}
DAG_RUN_NOTES = {
    "queued": "Also a finished DAG run that was cleared: its first step opens the run again.",
    "deleted": "Not Airflow's word: Airflow knows the DAG, and no such run of it.",
}


def render(text: str) -> str:
    """
    Fill the parts of a page.

    :param text: The page.
    :return: The page with its parts as the code has them now.
    :raises KeyError: the page has a part that nothing makes.
    """
    return _PART.sub(lambda found: f"{found['begin']}{PARTS[found['name']]()}\n{found['end']}", text)


def main() -> None:
    """Write all pages."""
    for page in PAGES:
        text = page.read_text()
        if (made := render(text)) != text:
            # In one step: whoever reads the page meanwhile, another call of this for example, must not find half of it.
            new = page.with_name(f".{page.name}.{os.getpid()}")
            new.write_text(made)
            new.replace(page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    Write a Markdown table.

    :param head: Titles of the columns.
    :param rows: Cells; line breaks and bars are taken care of.
    :return: The table, without a line break at the end.
    """
    lines = [head, ["---"] * len(head), *([cell(each) for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """
    Write reST text as one cell of Markdown.

    :param text: Text of a docstring or a description.
    :return: One line.
    """
    plain = _ROLE.sub(r"`\1`", text.partition("::\n")[0]).replace("``", "`")
    return " ".join(plain.split()).replace("|", "\\|")


def _options() -> str:
    def row(name: str) -> list[str]:
        field = Settings.model_fields[name]
        limits = ", ".join(filter(None, map(_limit, field.metadata)))
        variable = f"`AIRFLOW__{SECTION.upper()}__{name.upper()}`"
        return [f"`{name}`", f"`{field.default}`", limits, variable, field.description or ""]

    head = ["Option", "Default", "Limits", "Environment variable", "Meaning"]
    return table(head, [row(name) for name in Settings.model_fields])


def _limit(bound: Any) -> str:
    words = {"ge": "at least {:g}", "gt": "more than {:g}", "le": "at most {:g}", "min_length": "not empty"}
    if getattr(bound, "allow_inf_nan", True) is False:
        return "finite"
    return ", ".join(said.format(getattr(bound, name)) for name, said in words.items() if hasattr(bound, name))


def _connection() -> str:
    kind = next(each for each in get_provider_info()["connection-types"] if each["connection-type"] == "mlflow")
    shown = kind["ui-field-behaviour"]
    meanings = {
        "host": "URL of the MLflow server, with a path if need be. No credentials in it.",
        "login": "User of basic authentication. Empty: no authentication, or a bearer token.",
        "password": "Password; without a login it is sent as a bearer token.",
        "schema": "`http` or `https`, for a host that is a bare name; `http` by default.",
        "port": "Port, for a host without one.",
    }
    labels = dict.fromkeys(shown["placeholders"], "Airflow's own") | dict.fromkeys(shown["hidden-fields"], "not in the form")
    labels |= shown["relabeling"]
    rows = [[f"`{name}`", labels[name], meaning] for name, meaning in meanings.items() if name in labels]
    return table(["Field", "Label in the form", "Meaning"], rows)


def _arguments(of: type, without: Sequence[str] = ()) -> str:
    said = dict(_PARAM.findall(inspect.getdoc(of) or ""))
    declared = inspect.signature(of).parameters.values()
    rows = [
        [f"`{each.name}`", _default(each.default), said[each.name]]
        for each in declared
        if each.kind is each.KEYWORD_ONLY and each.name in said and each.name not in without
    ]
    return table(["Argument", "Default", "Meaning"], rows)


def _alert_arguments() -> str:
    """Describe both functions in one table: what either takes, and what only the one for DAGs does."""
    said, more = (dict(_PARAM.findall(inspect.getdoc(each) or "")) for each in (ml_alert, ml_alerts))
    own = inspect.signature(ml_alert).parameters
    of_dag = {
        name: each for name, each in inspect.signature(ml_alerts).parameters.items() if name not in own and name != "options"
    }
    rows = [[f"`{name}`", "both", f"`{each.default!r}`", said[name]] for name, each in own.items()]
    rows += [[f"`{name}`", "`ml_alerts`", f"`{each.default!r}`", more[name]] for name, each in of_dag.items()]
    return table(["Argument", "Of", "Default", "Meaning"], rows)


def _alert_rules() -> str:
    said, rules = dict(_PARAM.findall(inspect.getdoc(AlertRules) or "")), AlertRules()

    def row(name: str) -> list[str]:
        rule: AlertRule | None = getattr(rules, name)
        where = ", ".join(rule.channels) if rule else "nowhere"
        return [f"`{name}`", said[name], rule.severity if rule else "", where]

    return table(["Kind", "What it tells", "Severity", "Goes to"], [row(name) for name in AlertRules.model_fields])


def _fields(of: type[BaseModel]) -> str:
    said: dict[str, str] = {}
    for each in reversed(of.__mro__):
        said |= dict(_PARAM.findall(inspect.cleandoc(each.__doc__ or "")))
    rows = [[f"`{name}`", _field_default(field), said[name]] for name, field in of.model_fields.items()]
    return table(["Argument", "Default", "Meaning"], rows)


def _field_default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"


def _summaries(*classes: type) -> str:
    rows = [[f"`{each.__name__}`", f"`{each.__module__}`", (inspect.getdoc(each) or "").partition("\n")[0]] for each in classes]
    return table(["Class", "Module", "What it does"], rows)


def _default(value: object) -> str:
    return "required" if value is inspect.Parameter.empty else f"`{value!r}`"


def _metrics() -> str:
    rows = [[f"`{name}`", "higher" if each.greater_is_better else "lower", each.labels] for name, each in METRICS.items()]
    return table(["Metric", "Better is", "Labels"], rows)


def _commands() -> str:
    def row(command: Command) -> list[str]:
        return [f"`airflow-ml {command.name}`", " ".join(map(_usage, command.options)), command.description]

    def _usage(option: Any) -> str:
        name, settings = max(option.flags, key=len), option.settings
        if not name.startswith("-"):
            written = "|".join(settings.get("choices", ())) or settings.get("metavar", name)
            return {"?": f"`[{written}]`", "+": f"`{written} ...`"}.get(settings.get("nargs", ""), f"`{written}`")
        if settings.get("action") == "store_true":
            return f"`[{name}]`"
        value = settings.get("default") or settings.get("metavar") or name.strip("-").upper()
        return f"`[{name} {value}]`"

    return table(["Command", "Arguments (with defaults)", "What it does"], [row(each) for each in COMMANDS])


def _task_states() -> str:
    def row(state: str | None) -> list[str]:
        waiting, ended = (_when_open(state, of) for of in ("running", "success"))
        return [f"`{state or 'none'}`", TASK_STATUS[state], waiting, ended, TASK_NOTES.get(state, "")]

    head = ["Airflow's task state", "Stands for", "Found open, DAG run goes on", "Found open, DAG run has ended", "Note"]
    return table(head, [row(state) for state in TASK_STATUS])


def _when_open(state: str | None, dag_run_state: str) -> str:
    status = task_status(state, dag_run_state)
    return LEFT_OPEN if state in AT_WORK or status == "RUNNING" else status


def _dag_run_states() -> str:
    rows = [[f"`{state}`", status, DAG_RUN_NOTES.get(state or "", "")] for state, status in DAG_RUN_STATUS.items()]
    return table(["Airflow's DAG-run state", "Parent run", "Note"], rows)


def _errors() -> str:
    found = [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, exceptions.AirflowMLError)]
    return table(["Error", "What it says"], [[f"`{each.__name__}`", inspect.getdoc(each) or ""] for each in found])


def _pod_errors() -> str:
    """One row for each error of a pod, the ones that a retry can mend last."""

    def row(kind: type[exceptions.PodError]) -> list[str]:
        ends = [end for end, error in ERRORS.items() if error is kind]
        remedy = POD_REMEDIES.get(kind) or " ".join(REMEDIES[end] for end in ends)
        return [f"`{kind.__name__}`", (inspect.getdoc(kind) or "").partition(". ")[0] + ".", remedy, _tried_again(kind)]

    found = [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, exceptions.PodError)]
    return table(["Error", "What happened", "Remedy", "Tried again"], map(row, found[1:]))


def _tried_again(kind: type[exceptions.PodError]) -> str:
    error = kind("")
    if kind is exceptions.PodOutOfMemoryError:
        return "at once, where `memory_on_oom` gives more; else never"
    if kind is exceptions.PodFailedError:
        return "for the codes of `retry_exit_codes`, 137 and 143, as `retries` says; else never"
    if is_final(error):
        return "never"
    delay = retry_delay(error)
    if delay is None:
        return "as `retries` and `retry_delay` say"
    return f"after {delay.total_seconds() / 60:.0f} minutes" if delay else "at once"


def _mlflow_extras() -> str:
    def row(name: str) -> list[str]:
        meaning, _, default = MLFLOW_EXTRAS[name].meaning.rpartition(" Default: ")
        return [f"`{name}`", MLFLOW_EXTRAS[name].title, default.rstrip("."), meaning]

    return table(["Extra", "Label in the form", "Default", "Meaning"], map(row, MLFLOW_EXTRAS))


def _pod_labels() -> str:
    return table(["Label", "Value"], [[f"`{name}`", meaning] for name, meaning in POD_LABELS.items()])


def _refused_arguments() -> str:
    rows = [[f"`{name}`", reason[:1].upper() + reason[1:]] for name, (_, reason) in REFUSED.items()]
    return table(["Argument of KubernetesPodOperator", "Why it cannot be given"], rows)


MLFLOW_OPERATORS = (mlflow_experiments, mlflow_runs, mlflow_models, mlflow_predict, mlflow_cleanup)
"""The modules of operators about MLflow itself, in the order of the page."""


def _mlflow_operators() -> str:
    """One row for each operator: what it needs, gives, does again and raises, as its docstrings say."""

    def row(of: Any) -> list[str]:
        paragraphs = [" ".join(each.split()) for each in (inspect.getdoc(of) or "").split("\n\n")]
        said = [next(each for each in paragraphs if each.startswith(start)) for start in ("The XCom is", "A retry")]
        return [f"`{of.__name__}`", _needs(of), *said, _raised(getattr(of, "act", of.execute))]

    head = ["Operator", "Needs", "Returns", "What a retry does", "Raises"]
    return table(head, [row(each) for module in MLFLOW_OPERATORS for each in vars(module).values() if _is_mlflow_operator(each)])


MLFLOW_SENSORS = (
    mlflow_sensors.MlflowRunSensor,
    mlflow_sensors.MlflowMetricSensor,
    mlflow_sensors.MlflowModelAliasSensor,
    mlflow_sensors.MlflowModelVersionSensor,
)


def _mlflow_sensors() -> str:
    """One row for each sensor: what it needs, waits for and gives, when it fails, and what it does again."""

    def row(of: Any) -> list[str]:
        needs = _said(of, "It needs ").removeprefix("It needs ").rstrip(".") or _needs(of)
        starts = ("Waits ", "The XCom is", "The task fails when ", "A retry")
        return [f"`{of.__name__}`", needs, *(_said(of, each) for each in starts)]

    return table(["Sensor", "Needs", "Succeeds", "Returns", "Fails", "What a retry does"], map(row, MLFLOW_SENSORS))


def _mlflow_triggers() -> str:
    """One row for each trigger of events: what it needs, when it fires, what it tells, and what a restart does."""

    def row(of: Any) -> list[str]:
        starts = ("Fires ", "The payload is", "A restart")
        return [f"`{of.__name__}`", _needs(of), *(_said(of, each) for each in starts), _raised(of)]

    head = ["Trigger", "Needs", "Fires", "Tells", "What a restart does", "Raises"]
    return table(head, map(row, (MlflowModelAliasTrigger, MlflowModelVersionTrigger)))


def _said(of: type, start: str) -> str:
    """Find the paragraph of a class's docstring, or of the classes above it, that begins so; empty for none."""
    texts = [inspect.cleandoc(each.__doc__ or "") for each in of.__mro__]
    paragraphs = (" ".join(each.split()) for text in texts for each in text.split("\n\n"))
    return next((each for each in paragraphs if each.startswith(start)), "")


def _needs(of: Any) -> str:
    declared = inspect.signature(of).parameters.values()
    needs = [f"`{each.name}`" for each in declared if each.default is each.empty and each.kind is each.KEYWORD_ONLY]
    return ", ".join(needs) or "nothing"


def _is_mlflow_operator(of: object) -> bool:
    return inspect.isclass(of) and of.__module__.startswith(MLFLOW_PREFIX) and hasattr(of, "execute")


def _raised(of: Callable[..., Any]) -> str:
    text = inspect.getdoc(of) or ""
    return "<br>".join(f"`{name}`: {why.strip().rstrip('.')}" for name, why in _RAISES.findall(text))


def _region(file: str, name: str, language: str = "python") -> Callable[[], str]:
    """Show part of a file that the tests run; ``py`` for one that is no DAG file, which a page's snippets are together."""

    def code() -> str:
        text = (ROOT / file).read_text()
        found = re.search(rf"^ *# \[START {name}\]\n(.*?)^ *# \[END {name}\]", text, re.DOTALL | re.MULTILINE)
        if found is None:
            raise KeyError(f"{file} has no region {name}")
        return f"```{language}\n{dedent(_MARK.sub('', found[1])).rstrip()}\n```"

    return code


def _performance() -> str:
    """Take the rows that say most from the results of the benches."""
    sections = dict(
        re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "benchmarks/RESULTS.md").read_text(), re.DOTALL | re.MULTILINE)
    )
    rows = []
    for section, starts in TELLING_ROWS.items():
        lines = [[each.strip() for each in line.split("|")[1:-1]] for line in sections[section].splitlines() if line[:1] == "|"]
        rows += [next(line for line in lines if line[0].startswith(start)) for start in starts]
    return table(["What", "Ours", "Beside it", "Result", "Aim"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "mlflow-operators": _mlflow_operators,
    "mlflow-operator-list": lambda: _summaries(
        *(each for module in MLFLOW_OPERATORS for each in vars(module).values() if _is_mlflow_operator(each))
    ),
    "mlflow-sensors": _mlflow_sensors,
    "mlflow-triggers": _mlflow_triggers,
    "deploy-on-promotion": _region("dags/deploy_on_promotion.py", "deploy_on_promotion"),
    "first-steps": _region("dags/first_steps.py", "first_steps"),
    "models-as-assets": _region("dags/models_as_assets.py", "models_as_assets"),
    "mlflow-by-hand": _region("dags/mlflow_by_hand.py", "mlflow_by_hand"),
    "night-alerts": _region("dags/nightly_flight_delays.py", "alerts", "py"),
    "night-cache": _region("dags/nightly_flight_delays.py", "cache", "py"),
    "night-gate": _region("dags/nightly_flight_delays.py", "gate", "py"),
    "night-scores": _region("dags/nightly_flight_delays.py", "scores", "py"),
    "performance": _performance,
    "options": _options,
    "mlflow-extras": _mlflow_extras,
    "connection": _connection,
    "step-arguments": lambda: _arguments(MLStepOperator, without=["python_callable"]),
    "cache-policy": lambda: _fields(Cache),
    "gate-arguments": lambda: _arguments(ModelGateOperator),
    "comparison-arguments": lambda: _fields(PairedComparison),
    "kfp-training": _region("dags/kfp_training.py", "kfp_training"),
    "churn-steps": _region("tests/components/churn_steps.py", "churn_steps", "py"),
    "churn-pipeline": _region("tests/components/churn.py", "churn_pipeline", "py"),
    "kfp-run-arguments": lambda: _arguments(KfpRunPipelineOperator),
    "kfp-run-options": lambda: _fields(KfpRunOptions),
    "kfp-operators": lambda: _summaries(
        *(KfpUploadPipelineOperator, KfpCreateExperimentOperator, KfpRunActionOperator),
        *(KfpCreateRecurringRunOperator, KfpRecurringRunOperator, KfpRunSensor, KfpRunEventTrigger),
    ),
    "gpu-training": _region("dags/gpu_training.py", "gpu_training"),
    "gpu-request": lambda: _fields(GpuRequest),
    "pod-arguments": lambda: _arguments(MLPodOperator),
    "pod-options": lambda: _fields(PodOptions),
    "pod-refused-arguments": _refused_arguments,
    "pod-errors": _pod_errors,
    "pod-labels": _pod_labels,
    "alert-arguments": _alert_arguments,
    "alert-rules": _alert_rules,
    "promotion-arguments": lambda: _arguments(PromoteModelOperator),
    "metrics": _metrics,
    "commands": _commands,
    "task-states": _task_states,
    "dag-run-states": _dag_run_states,
    "errors": _errors,
}
"""What makes each part."""


if __name__ == "__main__":
    main()
