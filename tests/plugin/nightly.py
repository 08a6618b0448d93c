"""A DAG as people have one: data, a model with a picture, a gate, a promotion. Its steps take no time, so that tests do not."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import dag

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator

CARRIERS = (("UA", 58665, 12.1), ("B6", 54635, 13.0), ("EV", 54173, 19.9), ("DL", 48110, 9.2), ("AA", 32729, 8.6))


def png(width: int = 520, height: int = 180) -> bytes:
    """Draw bars, without a library."""
    bars = [int(height * late / 22) for _, _, late in CARRIERS]
    rows = bytearray()
    for y in range(height):
        rows += b"\0"
        for x in range(width):
            bar, inside = divmod(x * len(bars), width)[0], (x * len(bars) % width) / width
            rows += b"\x1d\x4e\xd8" if 0.15 < inside < 0.85 and height - y < bars[bar] else b"\xff\xff\xff"

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")


def make_dag(dag_id: str, model_name: str, auc: float) -> Any:
    """
    Make the DAG as it is on one night.

    :param dag_id: Its id.
    :param model_name: Name in the registry.
    :param auc: What the model of this night reaches.
    :return: The DAG.
    """

    @ml_task(cache=True)
    def collect(flights: Output[Dataset]) -> None:
        flights.path += ".csv"
        flights.metadata["rows"] = len(CARRIERS)
        lines = [f"{carrier},{number},{late}\n" for carrier, number, late in CARRIERS]
        Path(flights.path).write_text("".join(["carrier,flights,late_minutes\n", *lines]))

    @ml_task
    def train(
        table: Input[Dataset],
        max_iter: int,
        auc: float,
        model: Output[Model],
        metrics: Output[Metrics],
        late: Output[Artifact],
        settings: Output[Artifact],
    ) -> None:
        metrics.log_metric("rows", len(Path(table.path).read_text().splitlines()) - 1)
        for step in range(5):
            metrics.log_metric("loss", 0.6 - auc * step / 10, step=step)
        metrics.log_metric("auc", auc)
        Path(model.path).write_text(f"a model of {max_iter} trees, {auc}")
        late.path += ".png"
        Path(late.path).write_bytes(png())
        settings.path += ".json"
        Path(settings.path).write_text(json.dumps({"learning_rate": 0.06, "columns": ["carrier", "flights"]}))

    @dag(dag_id=dag_id, schedule=None, start_date=pendulum.datetime(2024, 1, 1))
    def nightly() -> None:
        fit = train(table=collect()["flights"], max_iter=120, auc=auc)
        gate = ModelGateOperator(
            task_id="gate",
            challenger=fit["model"],
            champion=f"models:/{model_name}@champion",
            metrics=fit["metrics"],
            rules=["auc >= 0.7"],
        )
        gate >> PromoteModelOperator(task_id="promote", name=model_name, model=fit["model"])

    return nightly()
