"""``airflow-ml lineage``: what is printed, for people and for programs."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from airflow_ml_provider.cli.lineage import LineageTree
from airflow_ml_provider.cli.main import main
from airflow_ml_provider.models.lineage import DatasetRead, Gap, Lineage, LoggedModel, ModelVersion, StepRun
from tests.lineage.nights import COMMIT, Night, outside

VERSION_KEYS = {"name", "version", "aliases", "source", "run_id", "created", "tags"}
MODEL_KEYS = {"model_id", "name", "sha256", "size", "created", "metrics", "run_id"}
DATASET_KEYS = {"name", "digest", "uri", "sha256", "size", "run_id"}
AIRFLOW_KEYS = {"dag_id", "dag_run_id", "task_id", "map_index", "try_number", "logical_date", "log_url", "git_commit"}
RUN_KEYS = {"run_id", "url", "name", "status", "deleted", "started", "ended", "params", "metrics", "datasets", "models"}


def drawn(lineage: Lineage) -> str:
    screen = io.StringIO()
    Console(file=screen, width=200, highlight=False).print(LineageTree(lineage).render())
    return screen.getvalue()


class TestTheTree:
    def test_it_leads_from_the_champion_to_the_raw_data(
        self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = night.whole(unique)
        assert main(["lineage", f"models:/{unique}@champion"]) == 0
        out = capsys.readouterr().out
        words = [
            *(f"models:/{unique}@champion", f"{unique} version 1  @champion", (model.sha256 or "")[:12]),
            *("train  finished", "max_iter=300", "loss=0.25", COMMIT, "tasks/train"),
            *("table  sha256", "features  finished", "flights  sha256", "validate  finished", "day=2013-12-30"),
            *("a source: it has read no artifact", "weather  sha256", "validate (see above)"),
        ]
        place = 0
        for word in words:
            assert word in out[place:], f"{word!r} does not follow in\n{out}"
            place = out.index(word, place)

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

    def test_what_is_missing_is_said_where_it_is_missing(self) -> None:
        read = DatasetRead(name="table", digest="1", run_id="gone")
        step = StepRun(run_id="r", url="u", name="train", status="FINISHED", deleted=True, datasets=(read,), models=("m-1",))
        gaps = (Gap(id="gone", reason="deleted for good"), Gap(id="m-1", reason="no such model"))
        text = drawn(Lineage(uri="runs:/r/model", run_id="r", steps=(step,), gaps=gaps))
        assert "deleted in MLflow, where it can be restored" in text
        assert re.search(r"table  digest 1\n.*gone: deleted for good", text)
        assert "m-1: no such model" in text

    def test_a_deleted_model_is_named_although_no_step_leads_to_it(self) -> None:
        version = ModelVersion(name="flights", version="2", source="models:/m-1")
        text = drawn(Lineage(uri="models:/flights/2", model_version=version, gaps=(Gap(id="m-1", reason="deleted"),)))
        assert "nobody has recorded which run made it" in text
        assert "m-1: deleted" in text

    def test_a_cycle_is_drawn_once(self) -> None:
        model = LoggedModel(model_id="m-1", name="model", run_id="b")
        read = DatasetRead(name="x", digest="1", run_id="a")
        steps = (
            StepRun(run_id="a", url="u", name="first", status="FINISHED", models=("m-1",)),
            StepRun(run_id="b", url="u", name="second", status="FINISHED", datasets=(read,), models=("m-1",)),
        )
        text = drawn(Lineage(uri="runs:/a", run_id="a", steps=steps, models=(model,)))
        assert "first (see above)" in text
        assert "model m-1 (see above)" in text

    def test_what_others_wrote_cannot_move_the_cursor_or_colour_the_screen(self) -> None:
        step = StepRun(run_id="r", url="u", name="[red]a\x1b[2Jb\nc", status="FINISHED", params={"k": "x" * 100 + "\r"})
        text = drawn(Lineage(uri="runs:/r", run_id="r", steps=(step,)))
        assert "[red]a [2Jb c  finished" in text
        assert f"k={'x' * 58}..." in text

    def test_of_many_metrics_some_are_shown(self) -> None:
        step = StepRun(run_id="r", url="u", name="train", status="FINISHED", metrics={f"m{n:02}": n for n in range(23)})
        assert "m19=19, 3 more (--json)\n" in drawn(Lineage(uri="runs:/r", run_id="r", steps=(step,)))

    def test_sizes_are_said_as_people_say_them(self) -> None:
        model = LoggedModel(model_id="m-1", name="model", sha256="a" * 64)
        sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 2_000_000: "2.0 MB", 3_000_000_000: "3.0 GB"}
        for size, words in sizes.items():
            text = drawn(Lineage(uri="u", model=model.model_copy(update={"size": size})))
            assert f"sha256 aaaaaaaaaaaa, {words}" in text


class TestTheJson:
    def test_its_form_is_that_of_version_1(self, night: Night, unique: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Programs read it: add keys if need be, and raise the version to change or remove one."""
        night.whole(unique)
        assert main(["lineage", f"models:/{unique}@champion", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert set(found) == {"version", "uri", "model_version", "model", "run_id", "steps", "models", "gaps"}
        assert (found["version"], found["uri"], found["models"], found["gaps"]) == (1, f"models:/{unique}@champion", [], [])
        assert set(found["model_version"]) == VERSION_KEYS
        assert set(found["model"]) == MODEL_KEYS
        train = found["steps"][0]
        assert set(train) == RUN_KEYS | AIRFLOW_KEYS
        assert set(train["datasets"][0]) == DATASET_KEYS
        assert found["run_id"] == train["run_id"] == night.runs["train"]
        assert train["datasets"][0]["run_id"] == found["steps"][1]["run_id"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", train["started"])

    def test_what_is_not_known_is_null(self, night: Night, capsys: pytest.CaptureFixture[str]) -> None:
        model = night.step("train", [outside()], {"model": "Model"})["model"]
        assert main(["lineage", model.uri, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["model_version"] is None
        assert found["steps"][0]["datasets"][0]["run_id"] is None


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
