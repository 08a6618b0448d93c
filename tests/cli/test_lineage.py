"""``airflow-ml lineage``: what is printed, for people and for programs."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from airflow_ml_provider.cli.lineage import LineageTree, as_dot
from airflow_ml_provider.cli.main import main
from airflow_ml_provider.models.lineage import DatasetNode, Edge, Gap, Graph, ModelNode, Node, RunNode, Step, VersionNode
from tests.lineage.nights import COMMIT, Night, outside

NODE_KEYS = {
    "version": {"kind", "id", "name", "version", "aliases", "source", "run_id", "created", "tags"},
    "model": {"kind", "id", "model_id", "name", "sha256", "size", "created", "metrics", "run_id", "try_number"},
    "dataset": {"kind", "id", "name", "uri", "digest", "sha256", "size", "numbers", "run_id"},
    "run": {
        *("kind", "id", "run_id", "url", "name", "status", "deleted", "step", "logical_date", "log_url", "git_commit", "image"),
        *("cached_from", "started", "ended", "params", "metrics"),
    },
}
STEP_KEYS = {"dag_id", "dag_run_id", "task_id", "map_index", "try_number"}


def drawn(graph: Graph, *, down: bool = False) -> str:
    screen = io.StringIO()
    Console(file=screen, width=200, highlight=False).print(LineageTree(graph, down=down).render())
    return screen.getvalue()


def graph_of(*nodes: Node, edges: tuple[tuple[str, str], ...] = (), gaps: tuple[Gap, ...] = ()) -> Graph:
    made = tuple(Edge(source=source, target=target) for source, target in edges)
    return Graph(asked="asked", start=(nodes[0].id,), nodes=nodes, edges=made, gaps=gaps)


def run_of(run_id: str, name: str = "train", **fields: object) -> RunNode:
    return RunNode.model_validate({"run_id": run_id, "url": "u", "name": name, "status": "FINISHED"} | fields)


class TestTheTree:
    def test_it_leads_from_the_champion_to_the_raw_data(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = night.whole(unique, rows=12_345)
        assert main(["lineage", f"models:/{unique}@champion"]) == 0
        out = capsys.readouterr().out
        words = [
            *(f"models:/{unique}@champion", f"{unique} version 1  @champion", (model.sha256 or "")[:12]),
            *("train  finished", "max_iter=300", "loss=0.25", COMMIT, "tasks/train"),
            *(
                "table  12,345 rows, ",
                "sha256",
                "features  finished",
                "flights  ",
                "sha256",
                "validate  finished",
                "day=2013-12-30",
            ),
            *("a source: it has read no artifact", "weather  ", "sha256", "validate (see above)"),
        ]
        place = 0
        for word in words:
            assert word in out[place:], f"{word!r} does not follow in\n{out}"
            place = out.index(word, place)

    def test_down_it_leads_from_the_raw_data_to_the_champion(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        assert main(["lineage", "--down", f"runs:/{night.runs['validate']}/flights"]) == 0
        out = capsys.readouterr().out
        places = [
            out.index(word)
            for word in ("flights  ", "features  ", "table  ", "train  ", "model  ", f"{unique} version 1  @champion")
        ]
        assert places == sorted(places)

    def test_a_pipe_gets_neither_colours_nor_wrapped_lines(
        self, night: Night, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        model = night.whole()
        assert main(["lineage", model.uri]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        logs = [line for line in out.splitlines() if " log http" in line]
        assert len(logs) == 3
        assert all(line.endswith("?try_number=1") for line in logs), "wrapped, cut, or filled with blanks"

    def test_what_is_of_a_later_try_is_said(self, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
        model = night.step("train", [outside()], {"model": "Model"}, {"max_iter": "300"}, {"loss": 0.5})["model"]
        night.step("train", [outside()], {}, {"max_iter": "400"}, {"loss": 0.25}, try_number=2)
        for uri, max_iter, words in (
            (model.uri, "300", "try 1 (state, metrics and code are those of try 2)\n"),
            (f"runs:/{night.runs['train']}", "400", "try 2\n"),
        ):
            assert main(["lineage", uri]) == 0
            out = capsys.readouterr().out
            assert (f"max_iter={max_iter}\n" in out, f", {words}" in out) == (True, True), out

    def test_what_is_missing_is_said_where_it_is_missing(self) -> None:
        read = DatasetNode(name="table", digest="1", run_id="gone", uri="runs:/gone/x")
        gaps = (Gap(id="run:gone", reason="deleted for good"), Gap(id="model:m-1", reason="no such model"))
        edges = ((read.id, "run:r"), ("run:gone", read.id), ("model:m-1", "run:r"))
        text = drawn(graph_of(run_of("r", deleted=True), read, edges=edges, gaps=gaps))
        assert "deleted in MLflow, where it can be restored" in text
        assert re.search(r"table  digest 1\n.*gone: deleted for good", text)
        assert "m-1: no such model" in text

    def test_a_deleted_model_is_named_although_no_step_leads_to_it(self) -> None:
        version = VersionNode(name="flights", version="2", source="models:/m-1")
        text = drawn(graph_of(version, gaps=(Gap(id="model:m-1", reason="deleted"),)))
        assert "nobody has recorded which run made it" in text
        assert "m-1: deleted" in text

    def test_a_cycle_is_drawn_once(self) -> None:
        model = ModelNode(model_id="m-1", name="model", run_id="b")
        first, second = run_of("a", "first"), run_of("b", "second")
        edges = ((model.id, first.id), (second.id, model.id), (first.id, second.id), (model.id, second.id))
        text = drawn(graph_of(first, second, model, edges=edges))
        assert "first (see above)" in text
        assert "model m-1 (see above)" in text

    def test_what_others_wrote_cannot_move_the_cursor_or_colour_the_screen(self) -> None:
        text = drawn(graph_of(run_of("r", "[red]a\x1b[2Jb\nc", params={"k": "x" * 100 + "\r"})))
        assert "[red]a [2Jb c  finished" in text
        assert f"k={'x' * 58}..." in text

    def test_of_many_metrics_some_are_shown(self) -> None:
        assert "m19=19, 3 more (--json)\n" in drawn(graph_of(run_of("r", metrics={f"m{n:02}": n for n in range(23)})))

    def test_sizes_are_said_as_people_say_them(self) -> None:
        sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 2_000_000: "2.0 MB", 3_000_000_000: "3.0 GB"}
        for size, words in sizes.items():
            text = drawn(graph_of(ModelNode(model_id="m-1", name="model", sha256="a" * 64, size=size)))
            assert f"{words}, sha256 aaaaaaaaaaaa" in text


class TestTheJson:
    def test_its_form_is_that_of_version_2(self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Programs read it: add keys if need be, and raise the version to change or remove one."""
        night.whole(unique)
        assert main(["lineage", f"models:/{unique}@champion", "--json"]) == 0
        text = capsys.readouterr().out
        found = json.loads(text)
        assert set(found) == {"version", "asked", "start", "nodes", "edges", "gaps"}
        assert (found["version"], found["asked"], found["gaps"]) == (2, f"models:/{unique}@champion", [])
        assert found["start"] == [f"version:{unique}/1"]
        for node in found["nodes"]:
            assert set(node) == NODE_KEYS[node["kind"]]
        assert {node["kind"] for node in found["nodes"]} == NODE_KEYS.keys()
        train = next(node for node in found["nodes"] if node["id"] == f"run:{night.runs['train']}")
        assert set(train["step"]) == STEP_KEYS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", train["started"])
        (read,) = [edge for edge in found["edges"] if edge["target"] == train["id"]]
        assert read == {
            "source": f"dataset:{night.table and night.table.uri}",
            "target": train["id"],
            "name": "table",
            "step": train["step"],
        }
        assert Graph.model_validate_json(text).model_dump_json(indent=2) + "\n" == text

    def test_what_is_not_known_is_null(self, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
        model = night.step("train", [outside()], {"model": "Model"})["model"]
        assert main(["lineage", model.uri, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [node["run_id"] for node in found["nodes"] if node["kind"] == "dataset"] == [None]


class TestDot:
    NODES = (
        run_of("r", 'say "hi"\\', step=Step(dag_id="d", dag_run_id="n", task_id="t")),
        DatasetNode(name="raw\n", uri="s3://b/k", sha256="a" * 64, numbers={"rows": 3}),
    )

    def test_names_of_others_stay_inside_their_quotes(self) -> None:
        edges = ((self.NODES[1].id, "run:r"), ("run:gone", self.NODES[1].id))
        text = as_dot(graph_of(*self.NODES, edges=edges, gaps=(Gap(id="run:gone", reason="deleted"),)))
        assert text.startswith("digraph lineage {")
        assert r'"run:r" [shape=box, label="say \"hi\"\\\nd n\nfinished ", penwidth=2];' in text
        assert r'label="raw \n3 rows\nsha256 aaaaaaaaaaaa\ns3://b/k"' in text
        assert '"run:gone" [shape=box, style=dashed, color=red, label="run:gone: deleted"];' in text
        assert '"dataset:s3://b/k#aaaaaaaaaaaa" -> "run:r" [label=""];' in text

    def test_the_command_prints_it(self, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
        model = night.step("train", [outside()], {"model": "Model"})["model"]
        assert main(["lineage", model.uri, "--dot"]) == 0
        assert capsys.readouterr().out.count(" -> ") == 2


class TestWhatGoesWrong:
    def test_an_unknown_alias_is_one_line_and_status_1(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        night.whole(unique)
        assert main(["lineage", f"models:/{unique}@nobody"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"airflow-ml: .*nobody not found.*\n", err)

    def test_a_missing_connection_says_how_to_add_it(self, airflow_db: None, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["lineage", "models:/m@champion", "--conn-id", "not_there"]) == 1
        assert re.fullmatch(
            r"airflow-ml: there is no connection 'not_there'\. Add it: airflow connections add .*\n", capsys.readouterr().err
        )
