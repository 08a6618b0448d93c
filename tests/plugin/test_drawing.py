"""Lineage as a drawing: who sees what of it, and where each box stands."""

from __future__ import annotations

import itertools

import pytest

from airflow_ml_provider.models.lineage import DatasetNode, Edge, Gap, Graph, ModelNode, RunNode, Step, VersionNode
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.drawing import BOX_WIDTH, BOXES, draw, visible_part


def run(number: int, dag_id: str | None) -> RunNode:
    step = Step(dag_id=dag_id, dag_run_id="night", task_id=f"t{number}") if dag_id else None
    return RunNode(run_id=f"{number:032}", url="http://mlflow", name=f"t{number}", status="FINISHED", step=step)


COLLECT, TRAIN, BY_HAND = run(1, "theirs"), run(2, "mine"), run(3, None)
RAW = DatasetNode(name="raw", uri="s3://secret/raw", digest="1")
TABLE = DatasetNode(name="their secret name", uri="runs:/x", digest="2", numbers={"rows": 7}, run_id=COLLECT.run_id)
MODEL = ModelNode(model_id="m-" + "0" * 32, name="model", metrics={"auc": 0.7}, run_id=TRAIN.run_id)
VERSION = VersionNode(name="m", version="3", aliases=("champion",), tags={"airflow.dag_id": "mine"})
OTHER = VersionNode(name="theirs", version="1", tags={"airflow.dag_id": "theirs"})
NODES = (VERSION, OTHER, MODEL, TRAIN, TABLE, COLLECT, RAW, BY_HAND)
EDGES = (
    *(Edge(source=MODEL.id, target=each.id) for each in (VERSION, OTHER)),
    Edge(source=TRAIN.id, target=MODEL.id, name="model"),
    Edge(source=TABLE.id, target=TRAIN.id, name="table"),
    Edge(source=COLLECT.id, target=TABLE.id, name="their secret name"),
    Edge(source=RAW.id, target=COLLECT.id, name="raw"),
    Edge(source=RAW.id, target=BY_HAND.id),
)
GRAPH = Graph(asked="models:/m/3", start=(VERSION.id,), nodes=NODES, edges=EDGES)


def test_of_other_dags_only_what_ones_own_have_read_is_seen() -> None:
    seen = visible_part(GRAPH, lambda dag_id: dag_id == "mine")
    assert set(seen.by_id) == {VERSION.id, MODEL.id, TRAIN.id, TABLE.id}
    said = repr(draw(seen, Addresses(), "mine"))
    assert "secret" not in said
    assert "7 rows" not in said
    assert "table" in said, "the name that its reader has for it"


def test_a_version_of_ones_own_run_that_another_dag_has_registered_is_not_seen() -> None:
    edges = tuple(Edge(source=TRAIN.id, target=each.id) for each in (VERSION, OTHER))
    graph = Graph(asked="models:/theirs/1", start=(OTHER.id,), nodes=(TRAIN, VERSION, OTHER), edges=edges)
    assert set(visible_part(graph, lambda dag_id: dag_id == "mine").by_id) == {TRAIN.id, VERSION.id}


def test_who_may_read_all_sees_all_but_what_is_of_no_dag() -> None:
    assert set(visible_part(GRAPH, lambda _: True).by_id) == {each.id for each in NODES} - {BY_HAND.id}


def test_who_may_read_nothing_sees_nothing() -> None:
    assert visible_part(GRAPH, lambda _: False).nodes == ()


def test_no_line_goes_back_and_no_two_boxes_share_a_place() -> None:
    drawn = draw(GRAPH, Addresses(), "mine")
    places = {box.title: (box.x, box.y) for box in drawn.boxes}
    assert len(set(places.values())) == len(NODES)
    order = [places[each][0] for each in ("raw", "t1", "their secret name", "t2", "model", "m 3")]
    assert order == sorted(set(order))
    assert drawn.width == max(order) + BOX_WIDTH + order[0]
    assert len(drawn.lines) == len(EDGES)
    assert [box.title for box in drawn.boxes if box.chosen] == ["m 3"]


def test_boxes_lead_to_pages() -> None:
    links = {box.title: box.link for box in draw(GRAPH, Addresses("/below"), "mine").boxes}
    train = "/below/airflow-ml/dags/mine/run/step?run_id=night&task_id=t2&map_index=-1"
    assert links["t2"] == links["model"] == train
    assert links["m 3"] == "/below/airflow-ml/dags/mine/model?name=m&version=3"
    assert links["their secret name"].startswith("/below/airflow-ml/dags/theirs/")
    assert links["raw"] == ""


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_cycle_ends(length: int) -> None:
    runs = [run(number, "mine") for number in range(length)]
    edges = [Edge(source=runs[number].id, target=runs[(number + 1) % length].id) for number in range(length)]
    assert len(draw(Graph(asked="x", nodes=tuple(runs), edges=tuple(edges)), Addresses(), "mine").boxes) == length


def test_what_is_a_list_is_given_no_places() -> None:
    runs = [run(number, "mine") for number in range(BOXES + 1)]
    edges = [Edge(source=before.id, target=after.id) for before, after in itertools.pairwise(runs)]
    drawn = draw(Graph(asked="x", nodes=tuple(runs), edges=tuple(edges)), Addresses(), "mine")
    assert drawn.too_large
    assert [box.title for box in drawn.boxes] == [f"t{number}" for number in range(BOXES + 1)]
    assert len({(box.x, box.y) for box in drawn.boxes}) == 1, "to look for places takes the square of their number"


def test_what_is_gone_is_said_and_not_drawn() -> None:
    gone = Graph(
        asked="x",
        nodes=(TRAIN,),
        edges=(Edge(source="run:gone", target=TRAIN.id),),
        gaps=(Gap(id="run:gone", reason="run deleted"),),
    )
    drawn = draw(visible_part(gone, lambda _: True), Addresses(), "mine")
    assert (len(drawn.boxes), list(drawn.lines), list(drawn.gaps)) == (1, [], ["run deleted"])
