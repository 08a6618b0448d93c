"""What a pipeline run gave back: its outputs, from whichever source had them, as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.exceptions import ConfigError

Source = Literal["local", "artifact-api", "mlflow-plugin", "pipeline-root", "manifest"]
"""Where an output was found: on this machine, in the server's artifact API, by its MLflow plugin, in files, in our manifest."""
MOST_NAMES = 20
"""How many names an error lists."""
_SAYS = {
    "local": "this machine says",
    "artifact-api": "the server says",
    "mlflow-plugin": "KFP's MLflow plugin says",
    "pipeline-root": "the files below the pipeline root say",
    "manifest": "the files below the pipeline root say",
}
_ITERATION = re.compile(r"(?:^|/)for-loop-\d+-iteration-(\d+)(?=/|$)")


def iterations_in(group: str) -> tuple[int, ...]:
    """
    Read which iterations of loops a group of tasks is, from its name on this machine.

    :param group: Its path, ``for-loop-1-iteration-0/for-loop-2-iteration-3``.
    :return: Numbers from 0, that of the outermost loop first; none outside of loops.
    """
    return tuple(map(int, _ITERATION.findall(group)))


class KfpOutput(BaseModel):
    """
    One output of a pipeline run.

    :param name: Name of the output, as the pipeline or the component declares it.
    :param task: Task that made it; empty for an output of the pipeline itself.
    :param kind: ``artifact`` for what has a file or metadata, ``parameter`` for a JSON value.
    :param type: Of an artifact KFP's type without ``system.`` (``Model``); of a parameter KFP's type name (``NUMBER_DOUBLE``).
    :param uri: Where its bytes are, empty when that is not known.
    :param path: A file or folder of this machine, empty for none.
    :param metadata: What the component wrote beside the file; the numbers of ``Metrics`` are here.
    :param value: Value of a parameter; of ``Metrics`` with one number, that number; else None.
    :param sha256: 64 hexadecimal digits over its bytes, empty when nobody has recorded one.
    :param size: Its bytes, the sum over a folder; None when that is not known.
    :param source: Where it was found.
    :param loop: Which iteration of the loops around its task made it, outermost first and from 0; empty outside of loops, None
        where it is of a loop and its source does not tell of which iteration. Also the place in a list that a task has made.
    :param group: Groups of tasks that its task is in, as the runner of this machine names them; empty for none.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    task: str = ""
    kind: Literal["artifact", "parameter"] = "artifact"
    type: str = ""
    uri: str = ""
    path: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)
    value: Any = None
    sha256: str = ""
    size: int | None = None
    source: Source
    loop: tuple[int, ...] | None = ()
    group: str = ""

    @property
    def label(self) -> str:
        """``task.name``, or the bare name of an output of the pipeline."""
        return f"{self.task}.{self.name}" if self.task else self.name

    @property
    def full_label(self) -> str:
        """The same with the groups around the task and the iterations, so that no two outputs of a run share it."""
        told = len(iterations_in(self.group))
        place = "".join(f"[{each}]" for each in (self.loop or ())[told:])
        return f"{self.group}/{self.label}{place}" if self.group else f"{self.label}{place}"

    @property
    def file_name(self) -> str:
        """Last part of its path or URI, the output's name when there is neither."""
        return PurePosixPath(self.path or self.uri.rstrip("/")).name or self.name


class KfpResults(BaseModel):
    """
    All that was found of a run's outputs.

    :param outputs: What was found, those of the pipeline itself first.
    :param notes: Sentences for the log: what was found where, what is missing, and what to turn on for it.
    :param complete: Whether a source has told all that there is, so that what was not found was not made.
    :param empty: Names of outputs of which there is none since the loop that makes them ran over nothing.
    """

    model_config = ConfigDict(frozen=True)

    outputs: tuple[KfpOutput, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = False
    empty: frozenset[str] = frozenset()

    @property
    def labels(self) -> str:
        """The names of all outputs, for an error; of many the first ones."""
        return _names(self.outputs)

    def find(self, name: str) -> KfpOutput:
        """
        Find one output: the pipeline's own of that name first, then ``task.name``, then ``name`` where a single task has it.

        :param name: ``name``, or ``task.name``.
        :return: The output.
        :raises ConfigError: there is none, or several tasks have one; the message names the candidates. A retry never helps.
        """
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        if not found:
            raise ConfigError(f"the run has no output {name!r}. It has: {self.labels}.")
        if len({each.label for each in found}) == 1 and any(each.loop != () for each in found):
            raise ConfigError(
                f"output {name!r} of the run is there {len(found)} times, since its task stands in a loop. Take all of them, in "
                f"the order of the iterations: {{{name!r}: {_list_of(found[0])}}}."
            )
        raise ConfigError(
            f"output {name!r} of the run is not clear, since {len(found)} have that name: {_names(found)}. Name one with its "
            "task, or make it an output of the pipeline."
        )

    def find_all(self, name: str) -> list[KfpOutput]:
        """
        Find an output of a task that stands in a loop: all of it.

        :param name: As for :meth:`find`.
        :return: One for each iteration that made it, in their order, that of the outermost loop first; none where there is none.
        :raises ConfigError: several tasks have one, or the source does not tell the order; a retry never helps.
        """
        found = self.named(name)
        if len({each.label for each in found}) > 1:
            return [self.find(name)]  # which says what is not clear
        places = {each.loop for each in found}
        if len(found) > 1 and (None in places or len(places) < len(found)):
            raise ConfigError(
                f"output {name!r} of the run is there {len(found)} times, since its task runs several times, and "
                f"{_SAYS[found[0].source]} not which iteration of a loop made which, so there is no order. A server with the "
                "artifact API and a run by local:// tell it; elsewhere collect them in a component of the pipeline "
                "(dsl.Collected) and take what that makes."
            )
        return sorted(found, key=lambda each: each.loop or ())

    def named(self, name: str) -> list[KfpOutput]:
        """
        List the outputs that a name may mean.

        :param name: As for :meth:`find`.
        :return: Those of the pipeline, else those of the task that is named too, else those of any task.
        """
        own = [each for each in self.outputs if not each.task and each.name == name]
        exact = [each for each in self.outputs if each.task and each.label == name]
        bare = [each for each in self.outputs if each.task and each.name == name]
        return own or exact or bare


def _list_of(output: KfpOutput) -> str:
    """Write the declaration of a list of an output."""
    if output.kind == "parameter":
        return "list"
    return f"list[{output.type if output.type in {'Dataset', 'Model', 'Metrics'} else 'Artifact'}]"


def _names(outputs: Iterable[KfpOutput]) -> str:
    """List labels for an error."""
    labels = sorted({each.label for each in outputs})
    more = f" and {len(labels) - MOST_NAMES} more" if len(labels) > MOST_NAMES else ""
    return (", ".join(labels[:MOST_NAMES]) or "none") + more
