"""
From data on to all that came of it, level by level: one search by key for each run, and one for each model, of a level.

A try counts, not a run: what a later try of a step has made does not come from what only an earlier one had read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import NamedTuple

from airflow_ml_provider.lineage.values import (
    dataset_made,
    dataset_read,
    inputs_of_try,
    model_elsewhere,
    model_node,
    models_made,
    step_of,
    try_in,
)
from airflow_ml_provider.lineage.work import Sheet, Tries
from airflow_ml_provider.models.lineage import DatasetNode, ModelNode, Node
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.tracking.lineage_tags import (
    MARK,
    OTHERS,
    key_of_digest,
    key_of_model,
    key_of_run,
    key_of_uri,
    made_by,
    name_in_tag,
    tries_in,
)
from airflow_ml_provider.tracking.runs import Run, run_id_of, tags_of

RUN_LIMIT = 10_000
"""Steps that one question goes on from; each costs a request."""


class Offer(NamedTuple):
    """
    Something whose readers are looked for.

    :param key: Of the tag that its readers have.
    :param datasets: What it is, where it is data.
    :param model: What it is, where it is a model.
    :param run_id: Run of which everything counts, since nobody has recorded what it made; empty for none.
    """

    key: str
    datasets: tuple[DatasetNode, ...] = ()
    model: ModelNode | None = None
    run_id: str = ""

    @property
    def uri(self) -> str:
        """What a user asks for to see more of it."""
        if self.model:
            return f"models:/{self.model.model_id}"
        return f"runs:/{self.run_id}" if self.run_id else self.datasets[0].uri or self.datasets[0].sha256 or ""

    @property
    def node_id(self) -> str:
        """Id of one of its nodes."""
        if self.model:
            return self.model.id
        return f"run:{self.run_id}" if self.run_id else self.datasets[0].id


class Downwards:
    """
    Walks down; each try of a run is gone on from once, so a cycle ends.

    :param sheet: Gets what is found.
    :param depth_limit: Steps to the farthest run that is looked at.
    """

    def __init__(self, sheet: Sheet, depth_limit: int) -> None:
        self.sheet = sheet
        self.depth_limit = depth_limit
        self._seen: set[tuple[str, int | None]] = set()
        self._offered: set[frozenset[str]] = set()

    def follow(self, runs: Tries, datasets: Iterable[DatasetNode], models: Iterable[ModelNode], keys: Iterable[str]) -> None:
        """
        Add all that came of something.

        :param runs: Runs of which everything counts: all that they have made.
        :param datasets: Data.
        :param models: Models.
        :param keys: Tags of those who have read the data; none means those of each of them.
        """
        some, asked = tuple(datasets), tuple(keys)
        offers = [Offer(each, some) for each in asked] or [Offer(_key(each), (each,)) for each in some]
        offers += self._models_on_offer(models)
        offers += self._made(self.sheet.reader.runs(runs), dict.fromkeys(runs))
        for depth in count(1):
            if not offers:
                return
            if depth > self.depth_limit or len(self._seen) > RUN_LIMIT:
                self._cut(offers, depth > self.depth_limit)
                return
            offers = self._step_down(offers)

    def _cut(self, offers: Iterable[Offer], deep: bool) -> None:
        why = f"farther than {self.depth_limit} steps" if deep else f"more than {RUN_LIMIT} steps"
        for each in offers:
            self.sheet.miss(
                each.node_id, f"what came of it was not looked at: {why}; go on with: airflow-ml lineage --down {each.uri}"
            )

    def _step_down(self, offers: list[Offer]) -> list[Offer]:
        """Add those that have read what is on offer, and what they have made; gives that."""
        arrived: dict[str, set[int]] = {}
        runs: dict[str, Run] = {}
        for offer, readers in zip(offers, self.sheet.reader.all_readers([each.key for each in offers]), strict=True):
            for run in readers:
                for number in self._arrive(offer, run):
                    if (run_id_of(run), number) not in self._seen:
                        self._seen.add((run_id_of(run), number))
                        arrived.setdefault(run_id_of(run), set()).add(number)
                        runs[run_id_of(run)] = run
        return self._made(runs, arrived)

    def _arrive(self, offer: Offer, run: Run) -> list[int]:
        """Connect what is on offer with a run that has read it; gives the tries that have."""
        tags, tries = tags_of(run), []
        for number, names in tries_in(tags.get(offer.key, "")).items():
            sources: list[tuple[Node, str]] = [(offer.model, names)] if offer.model else []
            sources = sources or _inputs(offer, run, number, set(names.split(",")))
            for node, name in sources:
                self.sheet.connect(self.sheet.add(node), self.sheet.add_run(run), name, step_of(tags, number))
                if offer.run_id:
                    self.sheet.expect_made(offer.run_id, node.id, try_in(getattr(node, "uri", None)))
            tries += [number] if sources else []
        return tries

    def _made(self, runs: Mapping[str, Run], tries: Mapping[str, set[int] | None]) -> list[Offer]:
        """Add what runs have made in some of their tries, or in all for None."""
        offers: list[Offer] = []
        models = self.sheet.reader.models(each for run in runs.values() for each in models_made(run))
        made_models: dict[str, ModelNode] = {}
        for run_id, run in runs.items():
            self.sheet.add_run(run)
            wanted = tries[run_id]
            offers += self._data_on_offer(run_id, run, wanted)
            for model_id in models_made(run):
                if model_id in models:
                    node = model_node(models[model_id])
                    # One that a cache hit took over has the try of the run that made it.
                    own = node.run_id == run_id and node.try_number is not None
                    if wanted is None or not own or node.try_number in wanted:
                        number = node.try_number if own else max(wanted or {0}) or None
                        self.sheet.add_models([model_id])
                        self.sheet.connect(f"run:{run_id}", node.id, node.name, step_of(tags_of(run), number))
                        made_models[model_id] = node
        return offers + self._models_on_offer(made_models.values())

    def _data_on_offer(self, run_id: str, run: Run, wanted: set[int] | None) -> list[Offer]:
        tags = tags_of(run)
        if MARK not in tags:
            return [Offer(key_of_run(run_id), run_id=run_id)]
        by_maker: dict[str, list[DatasetNode]] = {}
        for made in made_by(tags):
            if (wanted is None or made.try_number in wanted) and not model_id_of(made.facts["uri"]):
                node = dataset_made(made, run_id)
                self.sheet.connect(f"run:{run_id}", self.sheet.add(node), made.name, step_of(tags, made.try_number))
                by_maker.setdefault(node.run_id or run_id, []).append(node)
        return [Offer(key_of_run(maker), tuple(nodes)) for maker, nodes in by_maker.items() if self._is_new(nodes)]

    def _is_new(self, nodes: list[DatasetNode]) -> bool:
        """Say whether data has not been on offer yet: what a cache hit took over may have been."""
        offer = frozenset(each.id for each in nodes)
        new = offer not in self._offered
        self._offered.add(offer)
        return new

    def _models_on_offer(self, models: Iterable[ModelNode]) -> list[Offer]:
        """Add the versions of models; gives what their readers are looked for by."""
        new = {each.model_id: each for each in models if frozenset([each.id]) not in self._offered}
        self._offered |= {frozenset([each.id]) for each in new.values()}
        found = self.sheet.reader.models(new)
        for model_id, versions in self.sheet.reader.versions(found.values()).items():
            for version in versions:
                self.sheet.connect(new[model_id].id, self.sheet.add(version))
        offers = [Offer(key_of_model(each.model_id), model=each) for each in new.values()]
        for model_id, each in found.items():
            place = model_elsewhere(each)
            if place is not None and place.run_id:
                self.sheet.connect(new[model_id].id, self.sheet.add(place))
                offers += [Offer(key_of_run(place.run_id), (place,))] if self._is_new([place]) else []
        return offers


def _key(node: DatasetNode) -> str:
    if node.run_id:
        return key_of_run(node.run_id)
    return key_of_digest(node.sha256) if node.sha256 else key_of_uri(node.uri or "")


def _inputs(offer: Offer, run: Run, number: int, names: set[str]) -> list[tuple[Node, str]]:
    """Find what on offer a try has read under some names: by place, or by digest, of which MLflow keeps one source."""
    found: list[tuple[Node, str]] = []
    for each in inputs_of_try(run, number):
        node = dataset_read(each)
        if not {name_in_tag(node.name), OTHERS} & names:
            continue
        same = [known for known in offer.datasets if known.id == node.id]
        same = same or [known for known in offer.datasets if known.run_id != node.run_id and _equal(known, node)]
        if offer.run_id and node.run_id == offer.run_id:
            same = [node]
        found += [(same[0], node.name)] if same else []
    return found


def _equal(known: DatasetNode, read: DatasetNode) -> bool:
    return bool(known.sha256 and read.digest) and (known.sha256 or "").startswith(read.digest)
