"""``airflow-ml interpreters``: what is kept on this machine, and the end of what nobody has used for a time."""

from __future__ import annotations

import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.interpreters import Environments, Kept

DAY_S = 86_400.0
REQUIREMENTS_LENGTH = 60


def run(args: Namespace) -> int:
    """
    List the interpreters of this machine, or delete those that were not used for some days.

    :param args: ``unused_for``: days, None lists only; ``dry_run`` deletes nothing.
    :return: 0.
    :raises ConfigError: the days are less than one, or a folder cannot be read or deleted; a retry never helps.
    """
    if args.unused_for is not None and not args.unused_for >= 1:  # NaN neither
        raise ConfigError(f"--unused-for {args.unused_for}: a task may run in one. Give 1 day or more.")
    environments = Environments(Path(load_settings().interpreters).expanduser())
    kept, gone = environments.kept(), 0
    for each in kept:
        what = ""
        if args.unused_for is not None and time.time() - each.used_at > args.unused_for * DAY_S:
            what = "to delete  " if args.dry_run else "deleted  " if environments.remove(each) else "in use  "
        gone += each.size if what.startswith(("to", "deleted")) else 0
        print(what + _line(each))
    size = sum(each.size for each in kept)
    freed = f", {_mib(gone)} {'to free' if args.dry_run else 'freed'}" if args.unused_for is not None else ""
    print(f"{len(kept)} at {environments.root}: {_mib(size)}{freed}")
    return 0


def _line(each: Kept) -> str:
    used = datetime.fromtimestamp(each.used_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    words = each.requirements or "never finished"
    short = words if len(words) <= REQUIREMENTS_LENGTH else f"{words[:REQUIREMENTS_LENGTH]} ..."
    return f"{each.folder.name}  {_mib(each.size):>10}  last used {used}  {short}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
