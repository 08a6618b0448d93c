"""Records in MLflow that mean harm: what anybody could write there who may write at all, and what a page must only show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, StepIdentity
from airflow_ml_provider.tracking.lineage_tags import MADE, MARK, TRAINED
from airflow_ml_provider.tracking.runs import RunTree, as_pairs
from tests.plugin.nightly import png

SCRIPT = "window.hacked = top.hacked = 1; fetch('http://evil.test/'); alert(1)"
MARKUP = f'"><img src=x onerror="{SCRIPT}"><script>{SCRIPT}</script>'
TURNED = "txt.\u202egnp.exe"
HTML = (
    f"<!doctype html><html><body onload=\"{SCRIPT}\"><script>{SCRIPT}; top.location = 'http://evil.test/'</script></body></html>"
)
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" onload="{SCRIPT}"><script>{SCRIPT}</script><image href="http://evil.test/a.png"/></svg>'
FILES: dict[str, bytes] = {
    "good.png": png(20, 10),
    "page.html": HTML.encode(),
    "drawing.svg": SVG.encode(),
    "page.png": HTML.encode(),
    "drawing.png": SVG.encode(),
    "both.txt": b"\x00\x01\x02" * 5000,
    "half.gif": b"GIF8" + HTML.encode(),
    "table.csv": f"name,value\n{MARKUP.replace(',', ';')},=1+1\n{TURNED},2\n".encode(),
    "long.txt": b"A" * 3_000_000,
    "wide.csv": b",".join(b"a" * 1000 for _ in range(500)) + b"\n" + b"1,2\n" * 5000,
    "deep.json": b"[" * 30_000 + b"]" * 30_000,
    "garbage.json": bytes(range(256)) * 40,
    "<img src=x onerror=alert(1)>.txt": b"a name that means harm",
}


@dataclass(frozen=True)
class Records:
    """
    Where they are.

    :param dag_id: The DAG.
    :param run_id: The MLflow run with the files.
    :param pages: Paths of all pages about them, below that of the DAG.
    :param files: Paths of the files.
    """

    dag_id: str
    run_id: str
    pages: tuple[str, ...]
    files: tuple[str, ...]


def write(api: MlflowApi, dag_id: str) -> Records:
    """Write them."""
    identity = StepIdentity(dag_id=dag_id, run_id=MARKUP[:240], task_id=f"../../{MARKUP}"[:240])
    tags = {"airflow.run_type": "manual", "airflow.log_url": "javascript:alert(1)"}
    run = RunTree(api).open(dag_id, Attempt(identity=identity, try_number=1, ti_id=dag_id, dag_run_tags=tags, tags={}))
    root = run.artifact_uri.partition(":")[2].strip("/")
    for name, found in FILES.items():
        api.upload(f"{root}/{name}", iter([found]), len(found))
    model = api.post("logged-models", {"experiment_id": run.experiment_id, "name": "m", "source_run_id": run.run_id})["model"][
        "info"
    ]
    api.post("runs/outputs", {"run_id": run.run_id, "models": [{"model_id": model["model_id"], "step": 0}]})
    name = f"<script>{SCRIPT}</script>".replace("/", "").replace(":", "") + f" {TURNED} {dag_id}"
    api.post("registered-models/create", {"name": name})
    source = f"models:/{model['model_id']}"
    for _ in range(2):
        body = {"name": name, "source": source, "run_id": run.run_id, "model_id": model["model_id"]}
        api.post("model-versions/create", body, repeatable=False)
    made = [
        {"name": MARKUP, "type": MARKUP, "uri": f"runs:/{run.run_id}/page.html", "size": -1},
        {"name": TURNED, "type": "Artifact", "uri": "javascript:alert(1)"},
        {"name": "huge", "type": "Dataset", "uri": "s3://far/away", "size": True, "numbers": {"rows": 10**400}},
        {"name": "climbs", "type": "Artifact", "uri": f"runs:/{run.run_id}/../../x"},
    ]
    said = {f"{MADE}try-1/{number}": json.dumps(each) for number, each in enumerate(made)}
    said |= {
        "airflow.kfp.url": "javascript:alert(1)",
        "airflow.error": MARKUP,
        "airflow.state": MARKUP,
        "airflow.cache": f"miss: {MARKUP}",
    }
    said |= {"airflow.gate.decision": MARKUP, "airflow.gate.reasons": f"{MARKUP} {TURNED}", TRAINED: "m", MARK: "1"}
    params = as_pairs({"depth": MARKUP, "wide": "W" * 5000, "turned": TURNED})
    metrics = [{"key": "a", "value": "NaN", "timestamp": 1, "step": 0, "model_id": model["model_id"]}]
    api.post("runs/log-batch", {"run_id": run.run_id, "tags": as_pairs(said), "params": params, "metrics": metrics})
    asked = f"run_id={quote(identity.run_id, safe='')}"
    pages = (
        f"/run?{asked}",
        "",
        f"/run/others?{asked}",
        f"/run/step?{asked}&task_id={quote(identity.task_id, safe='')}&map_index=-1",
        f"/model?name={quote(name, safe='')}",
        f"/lineage?of={quote(source, safe='')}",
        *(f"/artifact?run={run.run_id}&path={quote(each, safe='')}" for each in FILES),
        f"/artifact?run={run.run_id}&path={quote('../../x', safe='')}",
        f"/model?name={quote(MARKUP[:200], safe='')}",
    )
    return Records(dag_id, run.run_id, pages, tuple(FILES))
