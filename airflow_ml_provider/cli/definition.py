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
MODEL_URIS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID, runs:/RUN_ID/PATH"
DATA_URIS = "runs:/RUN_ID/PATH, 12 or more digits of its sha256, or the URI that a step was given, as s3://bucket/key"


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


def _json(otherwise: str = "") -> Option:
    return Option(("--json",), {"action": "store_true", "help": f"print JSON{otherwise and f' instead of {otherwise}'}"})


def _asked(name: str, metavar: str, words: str) -> Option:
    return Option((name,), {"metavar": metavar, "help": words})


def _targets(who: str) -> tuple[Option, ...]:
    """Say where alerts go."""
    smtp = {"metavar": "CONN", "default": "smtp_default", "help": "connection of the mail server (default: %(default)s)"}
    return (
        Option(("--slack",), {"metavar": "CONN", "help": f"connection that {who} posts by, of type slackwebhook or slack"}),
        Option(("--email",), {"metavar": "ADDR", "action": "append", "help": f"address that {who} sends to; more than once"}),
        Option(
            ("--slack-channel",),
            {"metavar": "CHANNEL", "help": "channel for a connection of type slack (default: that of the connection)"},
        ),
        Option(("--smtp-conn-id",), smtp),
    )


COMMANDS = (
    Command(
        "alert",
        "show what alerts look like, or send samples of them",
        "With preview, write a sample of each kind of alert to files and print which. With test, send them, and say what was "
        "not sent and why.",
        (
            Option(("action",), {"choices": ("preview", "test"), "help": "preview or test"}),
            Option(("--folder",), {"metavar": "DIR", "help": "where preview writes (default: a new temporary folder)"}),
            *_targets("test"),
        ),
    ),
    Command(
        "cache",
        "say why a cached step ran or did not, list what is kept, or delete of it",
        "With explain, say of the newest run of a task (or of the DAG run named) which earlier run its result is of, or which "
        "part of its key has changed. With ls, list the results that caches keep. With clear, delete of them; without --yes, say "
        "what would be deleted. Runs and artifacts stay.",
        (
            Option(("action",), {"choices": ("explain", "ls", "clear"), "help": "explain, ls or clear"}),
            Option(("dag_id",), {"metavar": "DAG", "nargs": "?", "help": "DAG, for explain"}),
            Option(("task_id",), {"metavar": "TASK", "nargs": "?", "help": "task, for explain"}),
            Option(("run_id",), {"metavar": "RUN", "nargs": "?", "help": "DAG run, for explain (default: the newest)"}),
            Option(("--map-index",), {"metavar": "N", "type": int, "help": "instance of a mapped task, for explain"}),
            Option(("--dag",), {"metavar": "DAG", "help": "list or delete results of this DAG"}),
            Option(("--task",), {"metavar": "TASK", "help": "of this task"}),
            Option(
                ("--model",),
                {"metavar": "MODEL", "help": "that are this model: NAME, models:/NAME/VERSION, models:/NAME@ALIAS or its id"},
            ),
            Option(("--older-than",), {"metavar": "DAYS", "type": float, "help": "made longer ago than so many days"}),
            Option(("--stale",), {"action": "store_true", "help": "that can never be used again, as their run was deleted"}),
            Option(("--yes",), {"action": "store_true", "help": "let clear delete"}),
            Option(("--experiment",), {"metavar": "NAME", "help": "MLflow experiment to look at (default: all)"}),
            _conn_id(),
        ),
    ),
    Command(
        "diff",
        "show what differs between two models",
        "Show what differs between two models: data, parameters, code, images and metrics of all steps up to the raw data. What "
        "is the same is not shown.",
        (
            _asked("before", "A", f"the one before: {MODEL_URIS}"),
            _asked("after", "B", "the one after"),
            Option(("--exit-code",), {"action": "store_true", "help": "end with status 3 when something differs"}),
            _json(),
            _conn_id(),
        ),
    ),
    Command(
        "impact",
        "show what has to be made again if data was wrong",
        "Show which models were trained on some data, or on what was made of it, with their versions and aliases, and which "
        "steps of which DAGs came between.",
        (_asked("dataset", "DATASET", f"the data: {DATA_URIS}"), _json(), _conn_id()),
    ),
    Command(
        "interpreters",
        "list the interpreters that are kept on this machine, or delete unused ones",
        "List the interpreters of [ml] interpreters on this machine, with their size and when a task has last asked for them. "
        "With --unused-for, delete those that nobody has asked for in so many days; a task that needs one makes it again.",
        (
            Option(
                ("--unused-for",), {"metavar": "DAYS", "type": float, "help": "delete those unused for so many days, at least 1"}
            ),
            Option(("--dry-run",), {"action": "store_true", "help": "say what would be deleted, and delete nothing"}),
        ),
    ),
    Command(
        "kfp",
        "compile a pipeline, run it here or on a server, or upload it",
        "Of a @dsl.pipeline function in a Python file, or of a compiled package: compile writes the package, run runs it on this "
        "machine or on a server and waits, upload makes it a version of its pipeline. The SDK is in an interpreter of its own, "
        "which the first call makes. The result alone is on standard output.",
        (
            Option(("action",), {"choices": ("compile", "run", "upload"), "help": "compile, run or upload"}),
            Option(("file",), {"metavar": "FILE", "help": "Python file, compiled package, or its address"}),
            Option(("-f", "--function"), {"metavar": "NAME", "help": "pipeline function in the file (default: its only one)"}),
            Option(("-o", "--output"), {"metavar": "FILE", "help": "what compile writes (default: standard output)"}),
            Option(
                ("-a", "--argument"),
                {"metavar": "NAME=VALUE", "action": "append", "help": "argument of a run; more than once. JSON, but for texts"},
            ),
            Option(("--arguments",), {"metavar": "JSON", "help": "arguments of a run, as one JSON object"}),
            Option(
                ("--connection",),
                {
                    "metavar": "ID",
                    "help": "Airflow connection of the server (default: run on this machine, upload to kfp_default)",
                },
            ),
            Option(("--name",), {"metavar": "N", "help": "name of the uploaded pipeline (default: its own)"}),
        ),
    ),
    Command(
        "lineage",
        "show where a model comes from, or what came of data",
        "Show the way from a model back to the raw data: every step, its parameters and metrics, and every artifact between. "
        "With --down, show what was made of data or of a model, up to registered versions.",
        (
            _asked("uri", "URI", f"what to follow: {MODEL_URIS}, or data: {DATA_URIS}"),
            Option(("--down",), {"action": "store_true", "help": "show what came of it, and not what it comes from"}),
            Option(
                ("--depth",),
                {"metavar": "STEPS", "type": int, "default": 50, "help": "steps to the farthest run that is shown (default: 50)"},
            ),
            _json("a tree"),
            Option(("--dot",), {"action": "store_true", "help": "print a graph for Graphviz's dot instead of a tree"}),
            _conn_id(),
        ),
    ),
    Command(
        "models",
        "list models, and what they were trained on",
        "List the models that steps have made, the newest first, with what their training steps have read, and their versions. "
        "With --trained-on, those alone that have read data of which the condition is true; that data has a star.",
        (
            Option(
                ("--trained-on",),
                {
                    "metavar": "CONDITION",
                    "help": "as 'rows > 10000', several with and between; of name, digest, uri, size, numbers in the metadata",
                },
            ),
            Option(
                ("--limit",),
                {"metavar": "N", "type": int, "default": 50, "help": "as many models at most, 0 for all (default: 50)"},
            ),
            _json(),
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
        "Swap the champion and the one before it. A second call swaps them back. With --slack or --email, tell people of it.",
        (
            Option(("name",), {"metavar": "NAME", "help": "registered model"}),
            Option(("--alias",), {"default": "champion", "help": "alias of the champion (default: %(default)s)"}),
            Option(
                ("--previous-alias",),
                {"default": "previous-champion", "help": "alias of the one before it (default: %(default)s)"},
            ),
            *_targets("rollback"),
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
