"""From runs back to all that they come from, level by level: one search for the runs of a level, one for its models."""

from __future__ import annotations

from itertools import count

from airflow_ml_provider.lineage.values import dataset_read, inputs_of_try, step_of, try_in
from airflow_ml_provider.lineage.work import Sheet, Tries, last_try
from airflow_ml_provider.tracking.lineage_tags import models_read
from airflow_ml_provider.tracking.runs import Run, run_id_of, tags_of


class Upwards:
    """
    Walks up; each try of a run is read once, so a cycle ends.

    :param sheet: Gets what is found.
    :param depth_limit: Steps to the farthest run that is looked at.
    """

    def __init__(self, sheet: Sheet, depth_limit: int) -> None:
        self.sheet = sheet
        self.depth_limit = depth_limit
        self._seen: set[tuple[str, int | None]] = set()

    def follow(self, makers: Tries) -> None:
        """
        Add runs and all that lies behind them.

        :param makers: Tries per run.
        """
        level = makers
        for depth in count(1):
            if depth > self.depth_limit:
                self._cut(level)
                return
            level = self._step_up(level)
            if not level:
                return

    def _cut(self, level: Tries) -> None:
        for run_id in level:
            if f"run:{run_id}" not in self.sheet.nodes:
                reason = f"farther than {self.depth_limit} steps; go on with: airflow-ml lineage runs:/{run_id}"
                self.sheet.miss(f"run:{run_id}", reason)

    def _step_up(self, level: Tries) -> Tries:
        """Add one level; gives the runs behind it."""
        behind: Tries = {}
        fed: list[tuple[str, Run, int | None, str]] = []
        found = self.sheet.reader.runs(level)
        for run_id, tries in level.items():
            run = found.get(run_id)
            if run is None:
                why = self.sheet.reader.absence(run_id)
                self.sheet.miss(f"run:{run_id}", f"run {why}; what it had read is not known any more")
                continue
            self.sheet.add_run(run)
            for number in {last_try(run) if each is None else each for each in tries}:
                if (run_id, number) not in self._seen:
                    self._seen.add((run_id, number))
                    self._add_datasets(run, number, behind)
                    fed += [(model, run, number, name) for model, name in _models(run, number)]
        models = self.sheet.add_models(model for model, *_ in fed)
        for model_id, run, number, name in fed:
            self.sheet.connect(f"model:{model_id}", f"run:{run_id_of(run)}", name, step_of(tags_of(run), number))
            if (model := models.get(model_id)) and model.run_id:
                behind.setdefault(model.run_id, set()).add(model.try_number)
        return behind

    def _add_datasets(self, run: Run, number: int | None, behind: Tries) -> None:
        step = step_of(tags_of(run), number)
        # MLflow keeps no order among them.
        read = sorted((dataset_read(each) for each in inputs_of_try(run, number)), key=lambda each: (each.name, each.digest))
        for node in read:
            self.sheet.connect(self.sheet.add(node), f"run:{run_id_of(run)}", node.name, step)
            if node.run_id:
                self.sheet.expect_made(node.run_id, node.id, try_in(node.uri))
                behind.setdefault(node.run_id, set()).add(try_in(node.uri))


def _models(run: Run, number: int | None) -> list[tuple[str, str]]:
    """Name the models that a try has read, and the inputs; of what our tags do not name, the try is not known."""
    said = models_read(tags_of(run))
    ours = [(model, tries[number]) for model, tries in said.items() if number is not None and number in tries]
    others = {str(each["model_id"]) for each in run.get("inputs", {}).get("model_inputs", [])} - said.keys()
    return sorted(ours) + [(each, "") for each in sorted(others)]
