"""Where the benchmarks run: a scratch folder, a real MLflow server, and an environment that holds what a user installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT_S = 3600


@dataclass(frozen=True)
class Lab:
    """
    What every benchmark needs.

    :param folder: Scratch folder, removed at the end.
    :param python: Interpreter of the processes that are measured.
    :param skinny: Whether that interpreter has mlflow-skinny alone, as this package's own dependencies bring it.
    :param url: A running MLflow server.
    :param store: Folder of its artifacts, emptied when they are large; None where it is not ours.
    :param quick: Small sizes and few rounds: shows that it runs, says nothing about time.
    """

    folder: Path
    python: str
    skinny: bool
    url: str
    store: Path | None
    quick: bool

    def rounds(self, full: int) -> int:
        """
        Say how often to measure.

        :param full: Rounds of a real run.
        :return: That, or 1 in a smoke test.
        """
        return 1 if self.quick else full

    @property
    def dags(self) -> Path:
        """Folder of DAG files."""
        folder = self.folder / "dags"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the processes that are measured: nothing of this machine's Airflow or MLflow settings."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "MLFLOW", "PYTHON"))}
        bundle = {"name": "bench", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle"}
        return kept | {
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle | {"kwargs": {"path": str(self.dags)}}]),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # as long a supervisor may sleep after its task has ended
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": self.url}),
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }

    def ask(self, module: str, question: dict[str, Any], python: str | None = None) -> Any:
        """
        Run one benchmark's own process and read its answer.

        :param module: Module with :func:`answer_with` in its main block.
        :param question: JSON for it.
        :param python: Another interpreter than the lab's.
        :return: JSON that it answered.
        """
        answer = self.folder / "answer.json"
        command = [python or self.python, "-m", module, json.dumps(question), str(answer)]
        with (self.folder / "processes.log").open("ab") as log:
            ended = subprocess.run(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log, check=False, timeout=LIMIT_S)
        if ended.returncode:
            tail = (self.folder / "processes.log").read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{module} ended with status {ended.returncode}:\n{tail}")
        return json.loads(answer.read_text())


def answer_with(work: Any) -> None:
    """
    Be the process that :meth:`Lab.ask` has started.

    :param work: Function from the question to the answer.
    """
    question, answer = sys.argv[1:]
    Path(answer).write_text(json.dumps(work(json.loads(question))))


def make_skinny(folder: Path) -> str | None:
    """
    Make an environment with this package and its own dependencies only, in the versions of the running one.

    :param folder: Where to.
    :return: Its interpreter; None where there is no uv, or the packages cannot be had.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=f"{ROOT}/.tools/bin:{ROOT}/.tools/lib/bin")
    if uv is None:
        return None
    python, pins = folder / "venv" / "bin" / "python", folder / "pins.txt"
    frozen = subprocess.run([uv, "pip", "freeze", "--exclude-editable", "-p", sys.executable], capture_output=True, text=True)  # noqa: PLW1510
    pins.write_text("".join(line + "\n" for line in frozen.stdout.splitlines() if "==" in line))
    install = [uv, "pip", "install", "-q", "-p", str(python), "-c", str(pins), "--compile-bytecode", "-e", str(ROOT)]
    for offline in (["--offline"], []):
        made = subprocess.run(
            [uv, "venv", "-q", "--clear", "--no-project", "-p", sys.executable, str(folder / "venv")], check=False
        )
        if made.returncode == 0 and subprocess.run([*install, *offline], check=False, capture_output=True).returncode == 0:
            return str(python)
    return None
