"""
Entry point of ``airflow-ml``: argparse and nothing else until the command is known.

Standard output is for what was asked; what Airflow logs goes to standard error. Exit status: 0 done, 1 an error of ours
in one line, 2 bad usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from airflow_ml_provider.cli.definition import COMMANDS, SUMMARY, Command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPTED = 130
"""What a shell reports of a command that Ctrl-C has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    :param argv: Arguments, without the name of the program; None takes those of the process.
    :return: Exit status.
    """
    args = build_parser().parse_args(argv)
    return perform(args.command, args)


def build_parser() -> argparse.ArgumentParser:
    """
    Make the parser of ``airflow-ml``.

    :return: A parser whose result has the ``command``.
    """
    parser = argparse.ArgumentParser(prog="airflow-ml", description=SUMMARY)
    parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(command.name, help=command.help, description=command.description)
        for option in command.options:
            one.add_argument(*option.flags, **option.settings)
        one.set_defaults(command=command)
    return parser


def perform(command: Command, args: argparse.Namespace) -> int:
    """
    Import a command and run it.

    :param command: Which.
    :param args: Its parsed arguments.
    :return: Exit status.
    """
    from airflow_ml_provider.exceptions import AirflowMLError

    try:
        status = _load(command)(args)
        sys.stdout.flush()
    except AirflowMLError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, head or less, has seen enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def complain(error: object) -> None:
    """
    Print an error in one line.

    :param error: What went wrong, and the remedy.
    """
    print("airflow-ml:", " ".join(str(error).split()), file=sys.stderr)


def _load(command: Command) -> Callable[[argparse.Namespace], int]:
    """Import a command; whatever Airflow writes meanwhile, and logs from now on, goes to standard error."""
    import logging
    from contextlib import redirect_stdout
    from importlib import import_module

    with redirect_stdout(sys.stderr):
        run: Callable[[argparse.Namespace], int] = import_module(command.module).run
    for handler in logging.getLogger().handlers:  # under `airflow ml` the handlers are older than we are
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request
    return run


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from airflow_ml_provider import __version__

        print("airflow-ml", __version__)
        parser.exit()
