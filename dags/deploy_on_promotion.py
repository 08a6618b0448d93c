"""
Deploy the champion of flight-delays when it moves, whoever moved it: a gate, a rollback, a person in MLflow.

A deployment is shown here by a folder: one for each version, and a link ``current`` that is moved in one step.
"""

# [START deploy_on_promotion]
import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_ml_provider import Input, Model
from airflow_ml_provider.triggers.mlflow import MlflowModelAliasTrigger

MODEL, ALIAS = "flight-delays", "champion"
PLACE = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "deployments" / MODEL

watcher = AssetWatcher(name="champion", trigger=MlflowModelAliasTrigger(model=MODEL, alias=ALIAS))
champion = Asset(f"{MODEL}-{ALIAS}", watchers=[watcher])


@task
def read_move(triggering_asset_events: Any = None) -> dict[str, str]:
    """Say what to deploy: the newest move, if there were several; by hand, what the alias stands for now."""
    events = triggering_asset_events.get(champion) if triggering_asset_events else None
    if events:
        move = max(events, key=lambda each: each.timestamp).extra["payload"]
        print(f"{MODEL}@{ALIAS}: {move['previous_version'] or 'none'} -> {move['version']}, tags {move['tags']}")
        version = move["version"]
    else:
        from airflow_ml_provider.hooks.mlflow import MlflowHook

        with MlflowHook().api() as api:
            version = api.get("registered-models/alias", name=MODEL, alias=ALIAS)["model_version"]["version"]
    return {"uri": f"models:/{MODEL}/{version}", "version": str(version)}


@task.ml(retries=2)
def deploy(model: Input[Model], version: str, place: str) -> None:
    """Write the model to a folder of its own, whole or not at all; a second try finds what the first has done."""
    import shutil
    import tempfile
    from hashlib import sha256

    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"version-{version}-{sha256(model.uri.encode()).hexdigest()[:8]}"  # a model made again begins at 1 again
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            copy = shutil.copytree if Path(model.path).is_dir() else shutil.copy2
            copy(model.path, f"{scratch}/model")
            Path(scratch, "model").rename(target)
    link = folder / f".{target.name}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(folder / "current")
    print(f"Deployed to {target}.")


@dag(schedule=[champion], start_date=pendulum.datetime(2013, 1, 1), max_active_runs=1)
def deploy_on_promotion() -> None:
    move: Any = read_move()
    deploy(model=move["uri"], version=move["version"], place=str(PLACE))


deploy_on_promotion()
# [END deploy_on_promotion]
