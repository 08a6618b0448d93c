"""
The commands, in one table for ``airflow-ml`` and ``airflow ml``.

Imported at every ``airflow`` call, so it imports nothing heavy: what a command does is imported when it is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

SUMMARY = "Models, runs and artifacts that airflow-ml-provider has recorded in MLflow."
CONN_ID = "mlflow_default"


class Option(NamedTuple):
    """
    One argument of a command.

    :param flags: Names; a single one without dashes is a positional argument.
    :param settings: More arguments of ``ArgumentParser.add_argument``, of those that Airflow's ``Arg`` takes too.
    """

    flags: tuple[str, ...]
    settings: dict[str, Any]


class Command(NamedTuple):
    """
    One command.

    :param name: Its name; ``airflow_ml_provider.cli.<name>.run(args)`` does it and returns the exit status.
    :param help: One line.
    :param description: What it does, and what it leaves.
    :param options: Its arguments.
    """

    name: str
    help: str
    description: str
    options: tuple[Option, ...]

    @property
    def module(self) -> str:
        """Module that has its ``run``."""
        return f"airflow_ml_provider.cli.{self.name}"


def _conn_id(default: str | None = CONN_ID, words: str = "(default: %(default)s)") -> Option:
    return Option(("--conn-id",), {"default": default, "help": f"Airflow connection of the MLflow server {words}"})


COMMANDS = (
    Command(
        "lineage",
        "show the way from a model back to the raw data",
        "Show the way from a model back to the raw data: every step, its parameters and metrics, and every artifact between.",
        (
            Option(
                ("uri",),
                {
                    "metavar": "MODEL_URI",
                    "help": "models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/PATH",
                },
            ),
            Option(("--json",), {"action": "store_true", "help": "print JSON instead of a tree"}),
            _conn_id(),
        ),
    ),
    Command(
        "reconcile",
        "settle MLflow runs whose tasks ended unseen",
        "Settle the MLflow runs of tasks that were killed, marked by hand or deleted, by what Airflow says of them now.",
        (
            Option(("--dry-run",), {"action": "store_true", "help": "say what would be done, and do nothing"}),
            Option(("--experiment",), {"help": "MLflow experiment to look at, by name (default: all)"}),
            _conn_id(),
        ),
    ),
    Command(
        "resend",
        "send what a step could not send to MLflow",
        "Send records that steps have kept in the spool while MLflow was away. A record that is through is removed; one "
        "that is not stays.",
        (
            Option(
                ("paths",), {"metavar": "PATH", "nargs": "+", "help": "folder or URI of a record, as the task's log names it"}
            ),
            _conn_id(None, "(default: that of the record)"),
        ),
    ),
    Command(
        "rollback",
        "swap the champion and the one before it",
        "Swap the champion and the one before it. A second call swaps them back.",
        (
            Option(("name",), {"metavar": "NAME", "help": "registered model"}),
            Option(("--alias",), {"default": "champion", "help": "alias of the champion (default: %(default)s)"}),
            Option(
                ("--previous-alias",),
                {"default": "previous-champion", "help": "alias of the one before it (default: %(default)s)"},
            ),
            _conn_id(),
        ),
    ),
)


def get_commands() -> list[Any]:
    """
    List the commands for ``airflow ml``.

    :return: Airflow's group of commands.
    """
    from airflow.cli import cli_config

    arg: Callable[..., Any] = cli_config.Arg  # it has no types

    actions = [
        cli_config.ActionCommand(
            name=command.name,
            help=command.help,
            description=command.description,
            func=_action(command),
            args=tuple(arg(option.flags, **option.settings) for option in command.options),
        )
        for command in COMMANDS
    ]
    return [cli_config.GroupCommand(name="ml", help=SUMMARY, subcommands=actions)]


def _action(command: Command) -> Callable[[Namespace], None]:
    """Wrap a command as Airflow calls it: the exit status is raised."""

    def action(args: Namespace) -> None:
        from airflow_ml_provider.cli.main import perform

        raise SystemExit(perform(command, args))

    action.__name__ = command.name
    return action
