"""
A Docker engine for the tests of ``docker-compose.yaml``: one of their own from Debian's packages, or the one at hand.

The own one has a socket, data and networks of its own, is ended with the tests by its process id, and leaves nothing
behind but its cache: images, so that a later run need not build them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.compose import stand_ins

CACHE = Path(
    os.environ.get("AIRFLOW_ML_COMPOSE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "airflow-ml-compose"
)
"""Where images are kept between runs; some gigabytes, and may be deleted while no test runs."""
PROGRAMS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
START_LIMIT_S = 60
STOP_LIMIT_S = 90


class EngineError(Exception):
    """The engine did not start, or did not go without a trace."""


def lacking(kind: str) -> str | None:
    """
    Say what this machine lacks for the tests.

    :param kind: ``stand-ins`` or ``docker``, as ``--compose-engine`` says.
    :return: One sentence, None when nothing is missing.
    """
    if kind == "docker":
        return None if shutil.which("docker") else "needs a Docker Engine: docker is not installed"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for a Docker engine of its own (or --compose-engine=docker, to use yours)"
    missing = [f"{program} (Debian's package {package})" for program, package in PROGRAMS.items() if not shutil.which(program)]
    return f"needs {', '.join(missing)}" if missing else None


class Engine:
    """
    A Docker engine, and the environment in which ``docker`` speaks to it.

    :param kind: ``stand-ins``: an engine of its own, whose public images are stand-ins made here; ``docker``: yours, which
        pulls the real ones.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "AIRFLOW", "MLFLOW"))
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.kind == "stand-ins":
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.kind == "stand-ins":
            self._stop()

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run one command of ``docker`` and give its output."""
        command = ["docker", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise EngineError(f"{' '.join(command)}: {done.stderr[-3000:]}")
        return done.stdout

    def _start(self) -> None:
        cache = CACHE.expanduser().resolve()
        cache.mkdir(parents=True, exist_ok=True)
        self._lock = (cache / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineError(
                f"Another run uses {cache}: wait for it, or set AIRFLOW_ML_COMPOSE_CACHE to another folder."
            ) from None
        # A short path: that of a socket has at most 108 letters.
        self._folder = Path(tempfile.mkdtemp(prefix="aml-engine-", dir="/tmp"))
        self._data = cache / "data"
        self.environment |= {
            "DOCKER_HOST": f"unix://{self._folder}/docker.sock",
            "DOCKER_CONFIG": str(self._folder / "cli"),
            "DOCKER_BUILDKIT": "0",  # Debian's package has the classic builder alone
            "BUILD_NETWORK": "host",  # its networks reach nothing outside
        }
        stand_ins.lend_compose(cache, self._folder / "cli", self.environment)
        self._launch()
        self._clear()  # what an interrupted run has left
        stand_ins.make(self, cache)

    def _launch(self) -> None:
        """Start the engine; it ends with this process, however that ends, and touches no rule of the machine's firewall."""
        place = ["--data-root", str(self._data), "--exec-root", str(self._folder / "run"), "--pidfile", str(self._folder / "pid")]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        command = ["setpriv", "--pdeathsig", "TERM", "dockerd", "--host", self.environment["DOCKER_HOST"], *place, *network]
        self._log = self._folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + START_LIMIT_S
        while not self.docker("info", "--format", "{{.ServerVersion}}", check=False).strip():
            if self._process.poll() is not None or time.monotonic() > until:
                raise EngineError(f"dockerd did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.3)

    def _clear(self) -> None:
        """Delete every container, network and volume; all of them are ours."""
        if containers := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", "--volumes", *containers, check=False)  # one may be on its way
        self.docker("network", "prune", "--force")
        if volumes := self.docker("volume", "ls", "--quiet").split():
            self.docker("volume", "rm", "--force", *volumes)
        # Layers that no image uses are what a build starts from: only those that have not been needed for long go.
        self.docker("image", "prune", "--force", "--filter", "until=336h")

    def _stop(self) -> None:
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._clear()
        finally:
            self._process.terminate()
            self._process.wait(STOP_LIMIT_S)
            self._process = None
            for mount in reversed(self._mounts()):  # its own, which it forgets
                subprocess.run(["umount", mount], check=False)
            if left := self._mounts() + self._processes():
                raise EngineError(f"The engine has left {left}.")
            shutil.rmtree(self._folder)
            self._lock.close()

    def _mounts(self) -> list[str]:
        """Mounts below the engine's folders, outer ones first."""
        ours = (str(self._folder), str(self._data))
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        return [each for each in mounts if each.startswith(ours)]

    def _processes(self) -> list[str]:
        """Command lines that name the engine's folder."""
        found = []
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found.append(each.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return [each for each in found if str(self._folder) in each]
