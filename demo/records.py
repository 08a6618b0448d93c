"""What MLflow holds about a night: read over its REST API and put into words for the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Champion", "MlflowRecords", "describe", "metrics_text", "size_text"]

MODEL_NAME = "flight-delays"
ALIAS = "champion"
SHOWN_METRICS = 4
SHOWN_CHARACTERS = 110


@dataclass(frozen=True)
class Champion:
    """
    The model that serves.

    :param version: Its version in the registry.
    :param source: Where the registry says that it is.
    :param run_id: MLflow run that made it.
    :param metrics: What was measured of it, by name.
    """

    version: str
    source: str
    run_id: str
    metrics: Mapping[str, float]


class MlflowRecords:
    """
    A reader of an MLflow server.

    :param url: Its address, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def run_metrics(self, run_id: str) -> dict[str, float]:
        """
        Read the last value of each metric of a run.

        :param run_id: The run.
        :return: Values by name, empty when there is no such run.
        """
        run = self._get("runs/get", run_id=run_id) or {}
        found = _metrics(run.get("run", {}).get("data", {}).get("metrics", []))
        # What a model was trained on is there to be asked for: airflow-ml models --trained-on 'rows > 10000'.
        return {name: value for name, value in found.items() if not name.startswith("trained_on.")}

    def made_in(self, value: Any) -> str | None:
        """
        Say which DAG run has made what a step pushed; for a step that was cached, an earlier one.

        :param value: What it pushed as its return value.
        :return: Id of the DAG run; None where no run is named.
        """
        run_id = value.get("run_id") if isinstance(value, dict) and isinstance(value.get("outputs"), dict) else None
        run = (self._get("runs/get", run_id=str(run_id)) or {}).get("run", {}) if run_id else {}
        tags = {tag["key"]: tag.get("value") for tag in run.get("data", {}).get("tags", [])}
        return tags.get("airflow.run_id")

    def champion(self) -> Champion | None:
        """
        Read which model is the champion.

        :return: The champion, None when there is none yet.
        """
        answer = self._get("registered-models/alias", name=MODEL_NAME, alias=ALIAS)
        if answer is None:
            return None
        version = answer["model_version"]
        source, run_id = str(version.get("source", "")), str(version.get("run_id", ""))
        return Champion(str(version["version"]), source, run_id, self._model_metrics(source, run_id))

    def _model_metrics(self, source: str, run_id: str) -> dict[str, float]:
        model = self._get(f"logged-models/{source.removeprefix('models:/')}") if source.startswith("models:/m-") else None
        found = _metrics((model or {}).get("model", {}).get("data", {}).get("metrics", []))
        return found or (self.run_metrics(run_id) if run_id else {})

    def _get(self, path: str, **query: str) -> dict[str, Any] | None:
        try:
            answer = httpx.get(f"{self._url}/api/2.0/mlflow/{path}", params=query, timeout=30, trust_env=False)
        except httpx.TransportError as error:
            raise DemoError(f"MLflow at {self._url} cannot be reached: {error!r}.") from error
        # A missing alias is a 400, anything else that is missing a 404.
        if answer.status_code == httpx.codes.NOT_FOUND or ("not found" in answer.text.lower()[:300] and answer.is_error):
            return None
        if answer.is_error:
            raise DemoError(f"MLflow answered {answer.status_code} to {path}: {answer.text[:300]}")
        return dict(answer.json())


def describe(value: Any, records: MlflowRecords) -> str:
    """
    Put into words what a step made.

    :param value: What it pushed as its return value: the reference to its outputs, or any JSON.
    :param records: Where its metrics are.
    :return: One line or two.
    """
    if isinstance(value, dict) and isinstance(value.get("outputs"), dict):
        made = ", ".join(_output(name, output) for name, output in value["outputs"].items())
        numbers = metrics_text(records.run_metrics(str(value["run_id"]))) if value.get("run_id") else ""
        return "\n".join(filter(None, [made, numbers]))
    if value is None:
        return ""
    if isinstance(value, dict) and "decision" in value:
        return f"{value['decision']}: {' '.join(value.get('reasons', []))}"
    if isinstance(value, dict) and {"name", "version", "alias"} <= value.keys():
        before = f", before it version {value['previous_version']}" if value.get("previous_version") else ""
        return f"{value['name']} version {value['version']} is {value['alias']}{before}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def metrics_text(metrics: Mapping[str, float], limit: int = SHOWN_METRICS) -> str:
    """
    Put metrics into one line.

    :param metrics: Values by name.
    :param limit: How many to show.
    :return: The line, empty without metrics.
    """
    shown = [f"{name} {value:.4g}" for name, value in sorted(metrics.items())[:limit]]
    rest = len(metrics) - len(shown)
    return ", ".join([*shown, f"{rest} more"] if rest > 0 else shown)


def size_text(size: float) -> str:
    """
    Say a size as people do.

    :param size: Bytes.
    :return: Such as ``1.4 MB`` (powers of 1000).
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004 - the step between the units
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _output(name: str, output: Mapping[str, Any]) -> str:
    size = output.get("size")
    facts = [str(output.get("type", "")), size_text(size) if isinstance(size, int) and size else ""]
    return f"{name} ({', '.join(filter(None, facts))})"


def _metrics(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in sorted(entries, key=lambda entry: int(entry.get("step", 0))):
        found[str(entry["key"])] = float(entry["value"])
    return found
