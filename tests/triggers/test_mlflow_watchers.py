"""The watchers of assets in a real triggerer, which is killed: ``airflow triggerer`` on a database, and no scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.triggers.mlflow import MlflowModelAliasTrigger, MlflowModelVersionTrigger
from tests.triggers.test_mlflow_events import Registry
from tests.triggers.test_mlflow_triggerer import _in_database
from tests.triggers.test_triggerer import _nobody_else_defers

__all__ = ["_in_database", "_nobody_else_defers"]

LIMIT_S = 90
ALIAS, VERSION = MlflowModelAliasTrigger.__name__, MlflowModelVersionTrigger.__name__


class Watchers:
    """Assets with a watcher each, of a DAG that is not paused; and what their triggerer writes."""

    def __init__(self, dag_id: str, **triggers: Any) -> None:
        self.names = {name: f"{dag_id}-{name}" for name in triggers}
        self._write_dag(dag_id, {self.names[name]: each for name, each in triggers.items()})

    def start(self) -> None:
        command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < end, (self.events(), self.memories())
            assert self.process.poll() is None
            time.sleep(0.2)

    def events(self) -> dict[str, list[str]]:
        """List the versions of the events, by the name of the watcher, in their order."""
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.utils.session import create_session

        with create_session() as session:
            rows: list[Any] = (
                session.query(AssetModel.name, AssetEvent.extra)
                .join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
                .order_by(AssetEvent.id)
                .all()
            )
        return {
            name: [extra["payload"]["version"] for asset, extra in rows if asset == full] for name, full in self.names.items()
        }

    def memories(self) -> dict[str, Any]:
        """Read what the watchers remember, by their name."""
        from airflow.models.asset import AssetModel
        from airflow.models.asset_state_store import AssetStateStoreModel
        from airflow.utils.session import create_session

        with create_session() as session:
            rows: list[Any] = (
                session.query(AssetModel.name, AssetStateStoreModel.value)
                .join(AssetStateStoreModel, AssetStateStoreModel.asset_id == AssetModel.id)
                .all()
            )
        return {name: json.loads(value) for name, full in self.names.items() for asset, value in rows if asset == full}

    def _write_dag(self, dag_id: str, triggers: dict[str, Any]) -> None:
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.models.dag import DagModel
        from airflow.providers.standard.operators.empty import EmptyOperator
        from airflow.sdk import DAG, Asset, AssetWatcher
        from airflow.utils.session import create_session

        from tests.airflow_releases import DagBag, sync_bag_to_db

        assets = [Asset(name, watchers=[AssetWatcher(name=name, trigger=each)]) for name, each in triggers.items()]
        with DAG(dag_id, schedule=assets) as dag:
            EmptyOperator(task_id="deploy")
        DagBundlesManager().sync_bundles_to_db()
        bag = DagBag(dag_folder=os.devnull)
        bag.bag_dag(dag)
        for _ in range(2):  # watchers are those of a DAG that is there and not paused
            sync_bag_to_db(bag, "dags-folder", None)
            with create_session() as session:
                session.query(DagModel).filter_by(dag_id=dag_id).update({"is_paused": False})


@pytest.mark.full
@pytest.mark.usefixtures("_nobody_else_defers", "_in_database")
def test_each_change_is_an_event_once_though_the_triggerer_is_killed(mlflow_api: MlflowApi, unique: str) -> None:
    registry = Registry(mlflow_api)
    name = registry.make(unique, versions=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        watchers = Watchers(
            unique[:150],
            alias=MlflowModelAliasTrigger(model=name, alias="champion", poll_interval_s=1),
            version=MlflowModelVersionTrigger(model=name, tags={"stage": "ready"}, poll_interval_s=1),
        )
        watchers.start()
        try:
            watchers.until(lambda: len(watchers.memories()) == 2)
            registry.move(name, "2")
            registry.tag(name, "1", "stage", "ready")
            watchers.until(lambda: watchers.events() == {"alias": ["2"], "version": ["1"]})
            watchers.until(
                lambda: watchers.memories()["alias"]["version"] == "2" and "1" in watchers.memories()["version"]["told"]
            )
            watchers.kill()
            registry.move(name, "1")
            registry.add(name, stage="ready")
            watchers.start()
            watchers.until(lambda: all(len(each) == 2 for each in watchers.events().values()))
            registry.move(name, "3")
            registry.add(name)
            watchers.until(lambda: watchers.memories()["alias"]["version"] == "3")
        finally:
            watchers.kill()
        assert watchers.events() == {"alias": ["2", "1", "3"], "version": ["1", "3"]}
