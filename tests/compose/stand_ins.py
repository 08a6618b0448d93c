"""
What the engine needs where no public image can be had: images of the same names, built from Debian and the package index.

They prove that the compose file, our images and the programs inside fit together. They do not prove the public images' own
start-up scripts, nor SeaweedFS and Mailpit themselves, whose places moto and aiosmtpd take.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.compose.engine import Engine

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).parent / "stand_ins"
DEBIAN = "airflow-ml/debian:1"
INCLUDED = "ca-certificates,python3,python3-venv,postgresql,redis-server"
TARGETS = {"postgres": "postgres", "valkey/valkey": "valkey", "chrislusf/seaweedfs": "objects", "axllent/mailpit": "mail"}
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
COMPOSE_RELEASE = "trixie"
"""The first Debian that has the compose plugin."""


def make(engine: Engine, cache: Path) -> None:
    """Build the stand-ins whose recipes or names are new; a minute and a half the first time, seconds after that."""
    if not engine.docker("images", "--quiet", DEBIAN).strip():
        _import_debian(engine, cache)
    context = cache / "context"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(RECIPES, context)
    shutil.copyfile(os.environ.get("SSL_CERT_FILE") or AUTHORITIES, context / AUTHORITIES.name)
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert python, "docker/Dockerfile names no PYTHON_IMAGE"
    wanted = {python[1]: "python"}
    for image in re.findall(r"^    image: (\S+)", (ROOT / "docker-compose.yaml").read_text(), re.MULTILINE):
        if target := TARGETS.get(image.partition(":")[0]):
            wanted[image] = target
    assert set(wanted.values()) == {"python", *TARGETS.values()}, f"an image without a stand-in, or the reverse: {wanted}"
    for image, target in wanted.items():
        engine.docker("build", "--quiet", "--network", "host", "--target", target, "--tag", image, str(context))


def _import_debian(engine: Engine, cache: Path) -> None:
    folder = cache / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    # In a mount namespace of its own: what it mounts goes with it.
    make_it = ["unshare", "--mount", "--propagation", "private", "debootstrap", "--variant=minbase", f"--include={INCLUDED}"]
    _run([*make_it, "bookworm", str(folder), _mirror()], engine.environment)
    shutil.rmtree(folder / "var/cache/apt/archives", ignore_errors=True)
    _run(["sh", "-c", f"tar -C {folder} -c . | docker import - {DEBIAN}"], engine.environment)
    shutil.rmtree(folder)


def lend_compose(cache: Path, cli: Path, environment: dict[str, str]) -> None:
    """
    See to it that ``docker compose`` works: this machine's plugin, or that of a newer Debian, which is installed nowhere.

    :param cache: Folder to keep the plugin in.
    :param cli: Configuration folder of ``docker``, to be made.
    :param environment: Environment that names it.
    """
    (cli / "cli-plugins").mkdir(parents=True)
    (cli / "config.json").write_text("{}")
    if subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True, check=False).returncode == 0:
        return
    plugin = cache / "docker-compose"
    if not plugin.exists():
        _fetch_compose(cache / "apt", plugin, environment)
    (cli / "cli-plugins/docker-compose").symlink_to(plugin)


def _fetch_compose(folder: Path, plugin: Path, environment: dict[str, str]) -> None:
    """Take the package of a newer Debian apart, with lists of its own: the machine's apt does not hear of it."""
    shutil.rmtree(folder, ignore_errors=True)
    for each in ("lists/partial", "cache/archives/partial"):
        (folder / each).mkdir(parents=True)
    keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    (folder / "sources.list").write_text(f"deb {keys} {_mirror()} {COMPOSE_RELEASE} main\n")
    settings = {"Etc::sourcelist": folder / "sources.list", "Etc::sourceparts": "/dev/null", "State::lists": folder / "lists"}
    options = [f"-oDir::{name}={value}" for name, value in (settings | {"Cache": folder / "cache"}).items()]
    _run(["apt-get", "-qq", *options, "update"], environment)
    _run(["apt-get", "-qq", *options, "download", "docker-compose"], environment, folder)
    _run(["sh", "-c", "dpkg-deb --fsys-tarfile docker-compose_*.deb | tar -x ./usr/libexec"], environment, folder)
    shutil.move(folder / "usr/libexec/docker/cli-plugins/docker-compose", plugin)
    shutil.rmtree(folder)


def _mirror() -> str:
    """Debian's archive as this machine's own apt knows it."""
    answer = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"], dict(os.environ)
    )
    if not answer.split():
        raise RuntimeError("This machine's apt knows no Debian archive: run apt-get update, or use --compose-engine=docker.")
    return answer.split()[0]


def _run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
