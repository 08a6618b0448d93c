"""A pipeline on the worker's machine under a real executor: whoever is killed, nothing that it has started is left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from demo.processes import snapshot
from tests.jobs.test_kfp_local import PIPELINES, all_gone, compiled, pids_in
from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.full, pytest.mark.timeout(900)]
DAG = "kfp_local_here"


def packages(folder: Path) -> list[str]:
    """What sleeps, for the first try, and what ends by itself for the next."""
    files = [folder / f"{name}.yaml" for name in ("sleeps", "counted-or-not")]
    files[0].write_text(json.dumps(compiled("sleeps").spec))
    files[1].write_text(json.dumps(compiled("packages").spec))
    return [str(each) for each in files]


@pytest.mark.parametrize("victims", ["task", "supervisor", "both", "mark"])
def test_a_worker_that_is_killed_leaves_no_process_and_the_next_try_runs_anew(site: Site, tmp_path: Path, victims: str) -> None:
    assert PIPELINES.exists()
    note = tmp_path / "note"
    environment = {
        "AIRFLOW_CONN_KFP_HERE": '{"conn_type": "kfp", "host": "local://"}',
        "AIRFLOW__ML__INTERPRETERS": os.environ["AIRFLOW__ML__INTERPRETERS"],
        "AIRFLOW__ML__KFP_LOCAL_ROOT": str(tmp_path / "ml-kfp"),
    }
    conf = {"environment": environment, "note": str(note), "pipelines": packages(tmp_path)}
    run_id = site.start(DAG, conf=conf)
    pids = pids_in(note)
    task = int(until("the worker", lambda: site.worker(DAG, run_id, "run")))
    supervisor = snapshot()[task].parent
    if victims == "mark":
        with site.writing():
            site.airflow.set_task_state(DAG, run_id, "run", "failed")
    if victims in {"supervisor", "both"}:
        os.kill(supervisor, signal.SIGKILL)
    if victims in {"task", "both"}:
        os.kill(task, signal.SIGKILL)
    until("the end of what was started", lambda: all_gone(pids), 60)
    until("the end of the worker", lambda: task not in snapshot(), 60)
    assert site.finish(DAG, run_id) == ("failed" if victims == "mark" else "success")
