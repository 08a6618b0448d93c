"""
Histories that chance has made, recorded on a real MLflow by the code that steps use, and what is true of them.

What is true is kept beside it as plain facts, a line for each try: what it has read and made. The answers follow from these facts
alone, by going through all of them until nothing new is found; nothing is asked of MLflow, and no key is looked up.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.tracking.pod_record import IMAGE
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import now_ms
from tests.lineage.nights import Night

KINDS = ("worker", "worker", "retried", "mapped", "pod", "pipeline", "hit")


@dataclass(frozen=True)
class Thing:
    """
    Something that was made, or came from outside.

    :param ref: As the next step gets it.
    :param maker: Run and try; None for what came from outside, and for what a run has made that is gone for good.
    :param rows: What its metadata says.
    :param model_id: Its LoggedModel; empty for data.
    """

    ref: ArtifactRef
    maker: tuple[str, int] | None = None
    rows: int | None = None
    model_id: str = ""


@dataclass
class Try:
    """One try of one step: what it has read, by place, and what it has made or taken over."""

    run_id: str
    number: int
    dag_run: str
    label: str
    reads: list[str]
    makes: list[str] = field(default_factory=list)
    hit: bool = False
    facts: dict[tuple[str, str], str | float | None] = field(default_factory=dict)


class History:
    """
    A few nights of steps that read what there is, of any night, and make more.

    :param api: A real server.
    :param folder: For files.
    :param name: DAG, experiment and registered model.
    :param seed: Chance.
    """

    def __init__(self, api: MlflowApi, folder: Path, name: str, seed: int) -> None:
        self.api, self.folder, self.name = api, folder, name
        self.chance = random.Random(seed)  # noqa: S311  (no secret)
        self.things: dict[str, Thing] = {}
        self.tries: list[Try] = []
        self.versions: dict[str, str] = {}
        """Place of a model per number of its version."""
        self.aliases: dict[str, str] = {}
        """Number of a version per alias."""
        self.deleted: set[str] = set()
        """Runs in the bin."""
        self.gone: set[str] = set()
        """Places of models that were deleted."""
        self._bytes = 0

    # What happens

    def live(self, nights: int = 3, steps: int = 5) -> None:
        """Let nights go by, and then somebody tidy up."""
        for number in range(2):
            self._add(Thing(_ref(f"raw_{number}", f"s3://{self.name}/{number}.csv")))
        lost = f"{self.chance.getrandbits(64):016x}{os.urandom(8).hex()}"
        self._add(Thing(_ref("lost", f"runs:/{lost}/try-1/lost.csv", run_id=lost)))
        for number in range(nights):
            night = Night(self.api, self.folder, self.name, f"night-{number}", commit=str(number + 1) * 40)
            for step in range(steps):
                self._step(night, f"step_{step}", self.chance.choice(KINDS))
            self._register()
        self._tidy()

    def _step(self, night: Night, task: str, kind: str) -> None:
        if kind == "hit":
            earlier = [each for each in self.tries if each.label == task and each.makes and not each.hit]
            if earlier:
                self._try(night, task, taken=self.chance.choice(earlier))
                return
        for index in range(2) if kind == "mapped" else (-1,):
            if kind == "retried":
                # The first try may have made something, or nothing, before it failed; a cleared one had ended well.
                self._try(night, task, index, makes=self.chance.random() < 0.5)
            self._try(night, task, index, number=2 if kind == "retried" else 1, kind=kind)

    def _try(
        self,
        night: Night,
        task: str,
        index: int = -1,
        *,
        number: int = 1,
        kind: str = "worker",
        makes: bool = True,
        taken: Try | None = None,
    ) -> None:
        record = night.open(task, number, index)
        read = [self.things[each] for each in self.chance.sample(sorted(self.things), self.chance.randint(0, 3))]
        record.inputs = [each.ref.model_copy(update={"name": f"input_{place}"}) for place, each in enumerate(read)]
        record.params = {"max_iter": str(index + 10 * int(night.run_id[-1]) + 100 * number)}
        told = Try(record.run.run_id, number, night.run_id, record.attempt.identity.label, [each.ref.uri for each in read])
        if kind == "pod":
            record.tags[IMAGE] = f"app@{night.run_id}"
        if taken is None:
            made = self._outputs(record, kind) if makes else []
            record.metrics = [MetricPoint(key="loss", value=self.chance.random(), timestamp_ms=now_ms())]
        else:
            told.hit, told.makes = True, list(taken.makes)
            made = [(self._taken(each), None) for each in taken.makes]
            record.tags["airflow.cached_from"] = taken.run_id
        record.outputs = [output for output, _ in made]
        record.status, record.end_time_ms = "FINISHED", now_ms()
        loss = {("metric", each.key): each.value for each in record.metrics}
        known = {
            ("parameter", "max_iter"): record.params["max_iter"],
            ("code", ""): night.commit,
            ("image", ""): record.tags.get(IMAGE),
        }
        told.facts = {**known, **loss}
        Recorder(self.api).send(record)
        for output, rows in made if taken is None else ():
            assert output.stored is not None
            told.makes.append(output.stored.uri)
            self._add(Thing(output.stored, (record.run.run_id, number), rows, output.model_id or ""))
        self.tries.append(told)

    def _outputs(self, record: StepRecord, kind: str) -> list[tuple[OutputFile, int | None]]:
        made = []
        for place in range(self.chance.randint(0, 2)):
            what = "Model" if kind == "pipeline" or self.chance.random() < 0.3 else "Dataset"
            self._bytes += 1
            local = self.folder / record.run.run_id / f"{record.attempt.try_number}-{place}.bin"
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_text(f"{self.name} {self._bytes}")
            rows = self.chance.choice((None, 10, 1_000, 100_000)) if what == "Dataset" else None
            target = f"try-{record.attempt.try_number}/output_{place}.bin"
            if kind == "pipeline":  # what a run on Kubeflow Pipelines has made stays in its store
                record.tags["airflow.kfp.run_id"] = f"run-{self._bytes}"
                target = f"file://{self.folder}/store/{self._bytes}.bin"
            metadata = {} if rows is None else {"rows": rows}
            made.append((OutputFile(name=f"output_{place}", type=what, path=str(local), target=target, metadata=metadata), rows))
        return made

    def _taken(self, place: str) -> OutputFile:
        thing = self.things[place]
        return OutputFile(
            name=thing.ref.name, type=thing.ref.type, path="", target="", model_id=thing.model_id or None, stored=thing.ref
        )

    def _add(self, thing: Thing) -> None:
        self.things[thing.ref.uri] = thing

    def _register(self) -> None:
        """Make one of the models the champion, and go back to the one before it at times."""
        models = [place for place, each in self.things.items() if each.model_id and place not in self.versions.values()]
        registry = ModelRegistry(self.api)
        for place in self.chance.sample(models, min(2, len(models))):
            thing = self.things[place]
            source = f"models:/{thing.model_id}"
            version = registry.register(self.name, source, run_id=thing.maker[0] if thing.maker else "", model_id=thing.model_id)
            self.versions[version.version] = place
            registry.promote(self.name, version.version)
            before = self.aliases.get("champion")
            self.aliases |= {"champion": version.version} | ({"previous-champion": before} if before else {})
        if "previous-champion" in self.aliases and self.chance.random() < 0.5:
            registry.rollback(self.name)
            now, before = self.aliases["champion"], self.aliases["previous-champion"]
            self.aliases = {"champion": before, "previous-champion": now}

    def _tidy(self) -> None:
        runs = sorted({each.run_id for each in self.tries})
        self.deleted = set(self.chance.sample(runs, 3))
        for each in self.deleted:
            self.api.post("runs/delete", {"run_id": each})
        free = [place for place, each in self.things.items() if each.model_id and place not in self.versions.values()]
        for place in free[:1]:
            self.api.delete(f"logged-models/{self.things[place].model_id}", {})
            self.gone.add(place)

    # What is true

    def made_in(self, places: set[str]) -> set[tuple[str, int]]:
        """Name the tries from which things come, by going back from try to try."""
        found: set[tuple[str, int]] = set()
        while True:
            makers = {maker for each in places if self._is_there(each) and (maker := self.things[each].maker)}
            if makers <= found:
                return found
            found |= makers
            places = places | {place for each in self.tries if (each.run_id, each.number) in found for place in each.reads}

    def came_of(self, places: set[str]) -> tuple[set[tuple[str, int]], set[str]]:
        """Name the tries that have read things, or what came of them, and all that these have made."""
        known, tries = set(places), set[tuple[str, int]]()
        while True:
            reading = [each for each in self.tries if any(self._is_there(place) and place in known for place in each.reads)]
            more = {place for each in reading for place in each.makes}
            tries |= {(each.run_id, each.number) for each in reading}
            if more <= known:
                return tries, known
            known |= more

    def trained_on(self, rows: int) -> set[str]:
        """Name the models whose try has read data with more rows."""
        return {
            self.things[place].model_id
            for each in self.tries
            if not each.hit and any((self.things[read].rows or 0) > rows for read in each.reads)
            for place in each.makes
            if self.things[place].model_id and place not in self.gone
        }

    def _is_there(self, place: str) -> bool:
        """Say whether the way goes on: a LoggedModel that was deleted tells nothing, and its place in a store still does."""
        return place not in self.gone or not place.startswith("models:/")


def _ref(name: str, uri: str, run_id: str | None = None) -> ArtifactRef:
    return ArtifactRef(type="Dataset", name=name, uri=uri, sha256=hashlib.sha256(uri.encode()).hexdigest(), size=7, run_id=run_id)
