"""Every question, about everything in histories that chance has made, against the plain facts of these."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.difference import diff
from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import between, trace
from airflow_ml_provider.lineage.trained import trained_on
from tests.lineage.histories import History, Try

SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 9))]


@pytest.fixture
def history(mlflow_api: MlflowApi, tmp_path: Path, unique: str, request: pytest.FixtureRequest) -> History:
    made = History(mlflow_api, tmp_path, unique, request.param)
    made.live()
    return made


@pytest.mark.parametrize("history", SEEDS, indirect=True)
def test_each_question_is_answered_as_the_facts_are(history: History) -> None:
    for place in history.things:
        check_up(history, place)
        check_down(history, place)
    check_models(history)
    check_versions(history)


def check_up(history: History, place: str) -> None:
    thing = history.things[place]
    if place in history.gone or thing.maker is None:
        return
    found = trace(history.api, f"models:/{thing.model_id}" if thing.model_id else place)
    expected = history.made_in({place})
    assert {each.run_id for each in found.runs} == {run for run, _ in expected}, place
    assert {each.run_id for each in found.runs if each.deleted} == {run for run, _ in expected} & history.deleted
    read = {read for each in history.tries if (each.run_id, each.number) in expected for read in each.reads}
    lost = {each.ref.run_id for name, each in history.things.items() if each.ref.name == "lost" and name in read}
    assert {each.id for each in found.gaps if each.id.startswith("run:")} == {f"run:{each}" for each in lost}
    outside = {name for name in read if name.startswith("s3:")}
    assert {each.uri for each in found.datasets if each.run_id is None} == outside


def check_down(history: History, place: str) -> None:
    thing, (tries, came) = history.things[place], history.came_of({place})
    if place in history.gone or (thing.maker is None and not tries):
        return
    asked = f"models:/{thing.model_id}" if thing.model_id else place
    if thing.maker is None and place.startswith("runs:"):
        asked = thing.ref.sha256 or ""  # its run is gone, its bytes are known by those who have read them
    found = impact(history.api, asked)
    models = {history.things[each].model_id: each for each in came - {place} if history.things[each].model_id}
    models = {key: each for key, each in models.items() if each not in history.gone}
    assert {each.model.model_id for each in found.models} == models.keys(), asked
    assert sum(each.runs for each in found.tasks) == len({run for run, _ in tries}), asked
    versions = {each.version: set(each.aliases) for model in found.models for each in model.versions}
    assert versions == {
        number: {alias for alias, each in history.aliases.items() if each == number}
        for number, each in history.versions.items()
        if each in models.values()
    }


def check_models(history: History) -> None:
    for rows in (0, 10, 999, 1_000, 100_000):
        found = trained_on(history.api, f"rows > {rows}", limit=None).graph
        own = {each.model_id for each in found.models if (run := found.by_id.get(f"run:{each.run_id}")) and is_own(history, run)}
        assert own == history.trained_on(rows)


def is_own(history: History, run: object) -> bool:
    step = getattr(run, "step", None)
    return step is not None and step.dag_id == history.name


def check_versions(history: History) -> None:
    """Compare champion and the one before it, and what two tries of a step have made; show what is between them and the raw data."""
    check_difference(history, *(history.versions[history.aliases[alias]] for alias in ("previous-champion", "champion")))
    for two in combinations(history.things.keys() - history.gone, 2):
        makers = [history.things[place].maker or ("", 0) for place in two]
        if makers[0][0] == makers[1][0] and makers[0][1] != makers[1][1]:
            check_difference(history, *sorted(two))
    champion = history.versions[history.aliases["champion"]]
    for raw in (each for each in history.things if each.startswith("s3:")):
        if raw in {place for some in by_label(history, champion).values() for each in some for place in each.reads}:
            way = between(history.api, raw, f"models:/{history.name}@champion")
            on_the_way = history.made_in({champion}) & history.came_of({raw})[0]
            assert {each.run_id for each in way.runs} >= {run for run, _ in on_the_way}


def check_difference(history: History, *places: str) -> None:
    """Compare two things where a step is once on both ways."""
    ways = [by_label(history, each) for each in places]
    models = [history.things[each].model_id for each in places]
    found = diff(history.api, *(f"models:/{model}" if model else place for model, place in zip(models, places, strict=True)))
    for label in {label for way in ways for label, some in way.items() if len(some) == 1}:
        some = [way.get(label, []) for way in ways]
        if [len(each) for each in some] != [1, 1]:
            continue
        told = {(each.what, each.name): (each.before, each.after) for each in found.changes if each.where == label}
        facts = facts_of(history, *(each[0] for each in some))
        expected = {
            key: (facts[0].get(key), facts[1].get(key))
            for key in facts[0].keys() | facts[1].keys()
            if facts[0].get(key) != facts[1].get(key)
        }
        assert {key: each for key, each in told.items() if key[0] != "data" and "trained_on" not in key[1]} == expected, label
        data = [{f"input_{place}": history.things[each].ref.sha256 for place, each in enumerate(one[0].reads)} for one in some]
        differs = {name for name in data[0].keys() | data[1].keys() if data[0].get(name) != data[1].get(name)}
        assert {name for kind, name in told if kind == "data"} == differs


def facts_of(history: History, *tries: Try) -> list[dict[tuple[str, str], Any]]:
    """Take the facts of tries that are compared; of one that a later try has taken over from, MLflow knows the parameters alone."""
    last = {each.run_id: each.number for each in history.tries}
    whole = all(last[each.run_id] == each.number for each in tries)
    return [{key: value for key, value in each.facts.items() if whole or key[0] == "parameter"} for each in tries]


def by_label(history: History, place: str) -> dict[str, list[Try]]:
    """Name the tries on the way to something by their step."""
    found: dict[str, list[Try]] = {}
    made_in = history.made_in({place})
    for each in history.tries:
        if (each.run_id, each.number) in made_in:
            found.setdefault(each.label, []).append(each)
    return found
