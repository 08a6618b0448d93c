"""Which outputs a compiled pipeline promises, and what the result of one of its tasks depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import did_you_mean, fits
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults

Kind = Literal["artifact", "parameter"]
LOGS = "executor-logs"
"""An output that KFP's launcher adds to each task; nobody has declared it."""
_FIELDS: tuple[tuple[Kind, str], ...] = (("artifact", "artifacts"), ("parameter", "parameters"))


@dataclass(frozen=True)
class DeclaredOutput:
    """
    One output that a task of a pipeline declares.

    :param task: Name of the task; tasks of nested pipelines stand beside the others, as in the run's files.
    :param name: Name of the output.
    :param kind: Whether it is an artifact or a parameter.
    :param type: KFP's type, of an artifact without ``system.``.
    :param looped: Whether the task stands in a loop, or makes a list of artifacts, so that there are several of it.
    """

    task: str
    name: str
    kind: Kind
    type: str
    looped: bool = False


@dataclass(frozen=True)
class DeclaredOutputs:
    """
    What a pipeline declares.

    :param tasks: Outputs of its tasks.
    :param own: Per output of the pipeline itself the outputs of tasks that it may be; several after a branch.
    """

    tasks: tuple[DeclaredOutput, ...] = ()
    own: Mapping[str, tuple[DeclaredOutput, ...]] = field(default_factory=dict)

    def of(self, task: str) -> list[DeclaredOutput]:
        """
        List the outputs of one task.

        :param task: Its name.
        :return: What it declares.
        """
        return [each for each in self.tasks if each.task == task]

    def with_own(self, found: Iterable[KfpOutput]) -> tuple[KfpOutput, ...]:
        """
        Put the outputs of the pipeline itself before those of its tasks.

        :param found: Outputs of tasks, and perhaps of the pipeline itself.
        :return: The same, the pipeline's own first: of a task in a loop all of it; one that several tasks may have made is left
            out where several did.
        """
        some = list(found)
        own = [each for each in some if not each.task]
        for name, producers in self.own.items():
            made = [each for each in some for one in producers if (each.task, each.name) == (one.task, one.name)]
            looped = len(producers) == 1 and producers[0].looped
            if not any(each.name == name for each in own) and (len(made) == 1 or looped):
                own += [each.model_copy(update={"name": name, "task": ""}) for each in made]
        return (*own, *(each for each in some if each.task))

    def gathered(self, found: Iterable[KfpOutput], notes: Iterable[str], *, complete: bool) -> KfpResults:
        """
        Put together what was found of a run.

        :param found: Outputs of tasks, and perhaps of the pipeline itself.
        :param notes: Sentences for the log.
        :param complete: Whether a source has told all that there is.
        :return: The outputs, the pipeline's own first, and which of them a loop over nothing has made none of.
        """
        results = KfpResults(outputs=self.with_own(found), notes=tuple(notes), complete=complete)
        names = {*self.own, *(each.name for each in self.tasks), *(f"{each.task}.{each.name}" for each in self.tasks)}
        empty = frozenset(each for each in names if complete and self._looped(each) and not results.named(each))
        return results.model_copy(update={"empty": empty})

    def _looped(self, name: str) -> bool:
        """Say whether every output that a name may mean is of a task in a loop."""
        meant = self.own.get(name) or [each for each in self.tasks if name in {each.name, f"{each.task}.{each.name}"}]
        return bool(meant) and all(each.looped for each in meant)


def read_outputs(spec: Mapping[str, Any]) -> DeclaredOutputs:
    """
    Read what a pipeline promises.

    :param spec: The pipeline spec, or what a server gives for one (``pipeline_spec`` beside ``platform_spec``).
    :return: Its outputs; nothing for what is no pipeline.
    """
    spec = spec.get("pipeline_spec") or spec
    root, components = _mapping(spec, "root"), _mapping(spec, "components")
    own = {
        name: tuple(_producers(_mapping(root, "dag"), components, kind, name, looped=False))
        for kind, plural in _FIELDS
        for name in _mapping(_mapping(root, "outputDefinitions"), plural)
    }
    return DeclaredOutputs(tuple(_walk(_mapping(root, "dag"), components, looped=False)), own)


def recipe_of(spec: Mapping[str, Any], task: str, parameters: Mapping[str, Any]) -> str:
    """
    Digest all that the result of a task depends on: its code, that of the tasks before it, and what these are given.

    Two runs with equal digests for a task would make the same of it, so that the server's cache may serve one from the other.

    :param spec: The pipeline spec.
    :param task: Name of a task.
    :param parameters: Value per parameter of the run.
    :return: 64 hexadecimal digits; of the whole pipeline, where the task is nested or has a nested one before it.
    """
    spec = spec.get("pipeline_spec") or spec
    root = _mapping(spec, "root")
    tasks = _mapping(_mapping(root, "dag"), "tasks")
    defaults = {
        name: each.get("defaultValue") for name, each in _mapping(_mapping(root, "inputDefinitions"), "parameters").items()
    }
    values, needed = defaults | dict(parameters), _with_all_before(tasks, task)
    components = {name: _component(spec, tasks[name]) for name in needed}
    if not needed or any("dag" in each for each in components.values()):
        return _digest([root, spec.get("components"), spec.get("deploymentSpec"), values])
    executors = _mapping(_mapping(spec, "deploymentSpec"), "executors")
    recipe = []
    for name in sorted(needed):
        inputs = _mapping(tasks[name], "inputs")
        used = [str(each.get("componentInputParameter") or "") for each in _mapping(inputs, "parameters").values()]
        given = {each: values.get(each) for each in used if each}
        recipe.append([name, inputs, components[name], executors.get(str(components[name].get("executorLabel") or "")), given])
    return _digest(recipe)


def check_wanted(declared: DeclaredOutputs, wanted: StepSignature, source: str) -> None:
    """
    Refuse outputs that a pipeline cannot have, before it is run.

    :param declared: What it declares.
    :param wanted: What the task declares.
    :param source: The pipeline, for the message.
    :raises ConfigError: one is not there, or is of another type; a retry never helps.
    """
    numbers = any(each.type == "Metrics" for each in declared.tasks)
    for name, each in wanted.outputs.items():
        made = [one for one in declared.tasks if name in {one.name, f"{one.task}.{one.name}"}]
        made = list(declared.own.get(name, ())) or made
        if not made and not (numbers and each.artifact is None):
            known = {one.name for one in declared.tasks} | declared.own.keys()
            raise ConfigError(f"outputs[{name!r}]: the pipeline {source} has no output {name!r}.{did_you_mean(name, known)}")
        for one in made:
            if problem := _refusal(each, one):
                raise ConfigError(f"outputs[{name!r}]={_written(each)}: task {one.task!r} of the pipeline {source} {problem}")


def _refusal(wanted: StepParameter, made: DeclaredOutput) -> str:
    """Say why what a task makes cannot be what is wanted; empty when it can."""
    if wanted.artifact is None:
        return ""
    if made.kind == "parameter":
        return f"returns it as a parameter ({made.type}). Give float, int, str, bool, list or dict."
    if not fits(wanted.artifact, type_of(made.type)):
        return f"makes a {made.type}. Give {type_of(made.type)}."
    if wanted.many and not made.looped:
        return f"stands in no loop and makes one. Give {wanted.artifact.type_name}."
    return ""


def _written(wanted: StepParameter) -> str:
    name = wanted.artifact.type_name if wanted.artifact else str(wanted.annotation)
    return f"list[{name}]" if wanted.many else name


def type_of(kind: str) -> str:
    """
    Name the artifact type of ours that stands for one of KFP's.

    :param kind: KFP's type, without ``system.``.
    :return: Ours.
    """
    return kind if kind in {"Dataset", "Model", "Metrics"} else "Artifact"


def _walk(dag: Mapping[str, Any], components: Mapping[str, Any], *, looped: bool) -> Iterator[DeclaredOutput]:
    """Go through the tasks, those of nested pipelines, branches and loops too."""
    for name, task in _mapping(dag, "tasks").items():
        component = _mapping(components, str(_mapping(task, "componentRef").get("name") or ""))
        repeated = looped or "parameterIterator" in task or "artifactIterator" in task
        if "dag" in component:
            yield from _walk(_mapping(component, "dag"), components, looped=repeated)
            continue
        for kind, plural in _FIELDS:
            for output, definition in _mapping(_mapping(component, "outputDefinitions"), plural).items():
                yield DeclaredOutput(name, output, kind, _type(kind, definition), repeated or _is_list(definition))


def _producers(
    dag: Mapping[str, Any], components: Mapping[str, Any], kind: Kind, name: str, *, looped: bool
) -> Iterator[DeclaredOutput]:
    """Follow an output of a graph to the tasks that make it."""
    outputs = _mapping(dag, "outputs")
    if kind == "artifact":
        selectors = _mapping(_mapping(outputs, "artifacts"), name).get("artifactSelectors") or ()
    else:
        one = _mapping(_mapping(outputs, "parameters"), name)
        selectors = [one["valueFromParameter"]] if "valueFromParameter" in one else ()
        selectors = selectors or _mapping(one, "valueFromOneof").get("parameterSelectors") or ()
    for each in selectors:
        key = str(each.get("outputArtifactKey") or each.get("outputParameterKey") or "")
        task = _mapping(_mapping(dag, "tasks"), str(each.get("producerSubtask") or ""))
        component = _mapping(components, str(_mapping(task, "componentRef").get("name") or ""))
        repeated = looped or "parameterIterator" in task or "artifactIterator" in task
        if "dag" in component:
            yield from _producers(_mapping(component, "dag"), components, kind, key, looped=repeated)
        else:
            plural = dict(_FIELDS)[kind]
            definition = _mapping(_mapping(_mapping(component, "outputDefinitions"), plural), key)
            many = repeated or _is_list(definition)
            yield DeclaredOutput(str(each.get("producerSubtask")), key, kind, _type(kind, definition), many)


def _with_all_before(tasks: Mapping[str, Any], task: str) -> set[str]:
    """Name a task and all that run before it; nothing for a task that is not of this graph."""
    found: set[str] = set()
    todo = [task] if task in tasks else []
    while todo:
        name = todo.pop()
        found.add(name)
        inputs = _mapping(tasks[name], "inputs")
        given = [*_mapping(inputs, "parameters").values(), *_mapping(inputs, "artifacts").values()]
        sources = [each.get("taskOutputParameter") or each.get("taskOutputArtifact") or {} for each in given]
        todo += [each["producerTask"] for each in sources if each.get("producerTask") in tasks.keys() - found]
    return found


def _component(spec: Mapping[str, Any], task: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(_mapping(spec, "components"), str(_mapping(task, "componentRef").get("name") or ""))


def _type(kind: Kind, definition: Mapping[str, Any]) -> str:
    if kind == "parameter":
        return str(definition.get("parameterType") or "")
    return str(_mapping(definition, "artifactType").get("schemaTitle") or "system.Artifact").removeprefix("system.")


def _is_list(definition: Any) -> bool:
    return isinstance(definition, Mapping) and bool(definition.get("isArtifactList"))


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
