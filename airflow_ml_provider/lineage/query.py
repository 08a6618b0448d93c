"""
Questions about lineage: where something comes from, what came of it, and what lies between.

    graph = trace(api, "models:/flight-delays@champion")           # up: every step, its data, back to the raw data
    graph = trace(api, "s3://flights/2013.csv", direction="down")  # what was made of it, up to registered versions
"""

from __future__ import annotations

from typing import Literal

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.lineage.values import dataset_made, dataset_read, models_made, try_in
from airflow_ml_provider.lineage.walk_down import Downwards
from airflow_ml_provider.lineage.walk_up import Upwards
from airflow_ml_provider.lineage.work import DEPTH_LIMIT, Sheet, Tries
from airflow_ml_provider.models.lineage import Asked, DatasetNode, Graph, ModelNode
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.tracking.lineage_tags import MARK, key_of_digest, key_of_uri, made_by
from airflow_ml_provider.tracking.runs import Run, tags_of

Direction = Literal["up", "down", "both"]


def trace(
    api: MlflowApi, uri: str, *, direction: Direction = "up", depth_limit: int = DEPTH_LIMIT, reader: Reader | None = None
) -> Graph:
    """
    Follow a model or data back to where it comes from, or on to what came of it.

    :param api: The server.
    :param uri: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, ``models:/<model id>``, ``runs:/<run>/<path>``,
        ``runs:/<run>``, at least 12 digits of a sha256, or the URI of data as a step has read it.
    :param direction: ``up`` to what it comes from, ``down`` to what came of it, or ``both``.
    :param depth_limit: Steps from what was asked for to the farthest run that is looked at, 1 or more.
    :param reader: What has read from this server for another question before, and need not read it again.
    :return: The way. What is gone from MLflow on the way is a gap in it, not an error.
    :raises ConfigError: the URI has none of these forms; a retry never helps.
    :raises RemoteNotFoundError: what the URI names does not exist, or nobody has recorded it.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    question = _Question(reader or Reader(api), uri, depth_limit)
    question.find(Asked.parse(uri))
    if direction in {"up", "both"}:
        question.go_up()
    if direction in {"down", "both"}:
        question.go_down()
    return question.sheet.graph(uri, question.start)


def between(api: MlflowApi, source: str, target: str, *, depth_limit: int = DEPTH_LIMIT) -> Graph:
    """
    Show the ways that lead from one thing to another.

    :param api: The server.
    :param source: Where they begin: a URI, as for :func:`trace`.
    :param target: Where they end.
    :param depth_limit: Steps to the farthest run that is looked at, 1 or more.
    :return: All that is on a way; no nodes when there is none.
    :raises ConfigError: a URI has none of the known forms; a retry never helps.
    :raises RemoteNotFoundError: what a URI names does not exist.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    reader = Reader(api)
    begin = _Question(reader, source, depth_limit)
    begin.find(Asked.parse(source))
    whole = trace(api, target, depth_limit=depth_limit, reader=reader)
    known = [each for each in begin.start if each in whole.by_id]
    return whole.only(whole.below(*known), asked=f"{source} .. {target}", start=tuple(known))


class _Question:
    """One question: what it is about, and what was found so far."""

    def __init__(self, reader: Reader, uri: str, depth_limit: int) -> None:
        self.reader, self.uri, self.depth_limit = reader, uri, depth_limit
        self.sheet = Sheet(reader)
        self.start: tuple[str, ...] = ()
        self.makers: Tries = {}
        """Runs that made what was asked for, with the tries."""
        self.keys: list[str] = []
        """Tags of those who have read what was asked for, where that is data."""
        self.runs: Tries = {}
        """Runs that were asked for as a whole."""

    def go_up(self) -> None:
        """Add what it comes from."""
        Upwards(self.sheet, self.depth_limit).follow(self.makers)

    def go_down(self) -> None:
        """Add what came of it."""
        walk = Downwards(self.sheet, self.depth_limit)
        datasets = [each for key in self.start if isinstance(each := self.sheet.nodes.get(key), DatasetNode)]
        models = [each for each in self.sheet.nodes.values() if isinstance(each, ModelNode) and self._is_asked(each)]
        self.start = tuple(dict.fromkeys([*(each.id for each in models), *self.start]))
        walk.follow(self.runs, datasets, models, self.keys)

    def find(self, asked: Asked) -> None:
        """
        Look up what was asked for.

        :param asked: What the URI names.
        """
        if asked.name:
            self._find_version(asked)
        elif asked.model_id:
            self._find_model(asked.model_id)
        elif asked.run_id:
            self._find_made(asked.run_id, asked.path or "")
        else:
            self.keys = [key_of_digest(asked.digest)] if asked.digest else [key_of_uri(asked.place or "")]
            self._find_read(asked)

    def _is_asked(self, model: ModelNode) -> bool:
        return model.id in self.start or any(edge.source == model.id and edge.target in self.start for edge in self.sheet.edges)

    def _find_version(self, asked: Asked) -> None:
        version = self.reader.version(asked.name or "", alias=asked.alias, number=asked.number)
        self.start = (self.sheet.add(version),)
        model_id = model_id_of(version.source)
        model = self.sheet.add_models([model_id]).get(model_id) if model_id else None
        if model is not None:
            self.sheet.connect(model.id, version.id)
        if model is not None and model.run_id:
            self._made_by(model.run_id, model.try_number, model.id)
        elif version.run_id:
            self._made_by(version.run_id, None, version.id)

    def _find_model(self, model_id: str) -> None:
        model = self.sheet.add_models([model_id]).get(model_id)
        if model is None:
            raise self._missing("model", model_id)
        self.start = (model.id,)
        if model.run_id:
            self._made_by(model.run_id, model.try_number, model.id)

    def _find_made(self, run_id: str, path: str) -> None:
        run = self.reader.runs([run_id]).get(run_id)
        if run is None:
            raise self._missing("run", run_id)
        if dataset := self._output(run, run_id, path):
            self.start = (self.sheet.add(dataset),)
            self._made_by(dataset.run_id or run_id, try_in(dataset.uri), dataset.id)
            return
        found = self.reader.models(models_made(run)) if path else {}
        named = [key for key, each in found.items() if each["info"].get("name") == path.strip("/")]
        if named:
            # MLflow's own runs:/<run>/<name> means the newest of that name.
            newest = max(named, key=lambda key: int(found[key]["info"].get("creation_timestamp_ms", 0)))
            self._find_model(newest)
            return
        self.start = (self.sheet.add_run(run),)
        self.makers, self.runs = {run_id: {None}}, {run_id: {None}}
        if path.strip("/") and MARK in tags_of(run):
            outputs = ", ".join(dict.fromkeys(each.name for each in made_by(tags_of(run)))) or "nothing"
            told = f"{path!r:.200} is not among what it has made ({outputs:.1000}); this is the whole step"
            self.sheet.miss(self.start[0], told)

    def _missing(self, what: str, key: str) -> RemoteNotFoundError:
        url = self.reader.api.server.url
        return RemoteNotFoundError(f"there is no {what} {key} in MLflow at {url}: never made, or {self.reader.absence(key)}.")

    def _output(self, run: Run, run_id: str, path: str) -> DatasetNode | None:
        """Find an output of a run by its path, or by its name, of the last try that made it."""
        wanted = path.strip("/")
        found = None
        for made in made_by(tags_of(run)):
            place = made.facts["uri"].removeprefix(f"runs:/{run_id}/").strip("/")
            inside = wanted.startswith(f"{place}/") and made.facts["uri"].endswith("/")
            if wanted and (inside or wanted in {place, made.name}) and not model_id_of(made.facts["uri"]):
                found = dataset_made(made, run_id)
        return found

    def _find_read(self, asked: Asked) -> None:
        """Find data by those who have read it."""
        for run in self.reader.readers(self.keys[0]):
            for each in run.get("inputs", {}).get("dataset_inputs", []):
                node = dataset_read(each)
                if _is_meant(node, asked):
                    self.sheet.add(node)
                    self._made_by(node.run_id, try_in(node.uri), node.id)
        self.start = tuple(self.sheet.nodes)
        if not self.start:
            said = f"sha256 {asked.digest}" if asked.digest else asked.place
            raise RemoteNotFoundError(
                f"no step on record in MLflow at {self.reader.api.server.url} has read {said:.300}. Steps are found "
                "that this release, or a later one, has recorded; the URI has to be that which the step was given."
            )

    def _made_by(self, run_id: str | None, try_number: int | None, node_id: str) -> None:
        if run_id:
            self.makers.setdefault(run_id, set()).add(try_number)
            self.sheet.expect_made(run_id, node_id, try_number)


def _is_meant(node: DatasetNode, asked: Asked) -> bool:
    if asked.digest:
        # MLflow's own column keeps 36 characters.
        whole = node.sha256 or node.digest
        return bool(whole) and (
            whole.startswith(asked.digest) or (len(whole) < len(asked.digest) and asked.digest.startswith(whole))
        )
    return (node.uri or "").rstrip("/") == (asked.place or "").rstrip("/")
