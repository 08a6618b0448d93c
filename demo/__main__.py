"""
``make demo``: two nights of retraining through a real Airflow and a real MLflow on this machine.

With ``--fail`` a third one, which fails, and the alert that somebody would get. Each part is in its own module.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from demo.bad_night import BadDelivery
from demo.catcher import AlertCatcher
from demo.errors import DemoError
from demo.failure import explain_failure
from demo.nights import DAG_ID, LAST_NIGHT, Night, Step, cached, choose_nights, in_order, steps
from demo.ports import port_from_environment
from demo.records import MlflowRecords, describe
from demo.screen import Screen
from demo.settings import DEMO_DAGS
from demo.signals import StopRequested, stop_on_signal
from demo.stack import LocalStack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from demo.airflow_api import AirflowApi

__all__ = ["main", "run_bad_night", "run_night", "run_nights"]

NIGHT_TIMEOUT_S = 1_800.0
ALERT_TIMEOUT_S = 60.0
ALERTS = 4
"""By each of two ways a first message, and one that closes it."""
ALERT_LINES = 12
STOPPED = 130
MODEL_URI = "models:/flight-delays@champion"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    :param arguments: Command line, by default that of this process.
    :return: Exit status: 0 when both nights succeeded and, with ``--fail``, the alert of the third arrived; 1 when something
        failed, 130 when stopped before that.
    """
    options = _parse(arguments)
    screen = Screen()
    status = STOPPED
    try:
        with stop_on_signal(), ExitStack() as opened:
            catcher = opened.enter_context(AlertCatcher(options.state_dir / "alerts")) if options.fail else None
            delivery = opened.enter_context(BadDelivery(options.state_dir / "delivery")) if options.fail else None
            environment = {**catcher.environment, **delivery.environment} if catcher and delivery else {}
            stack = opened.enter_context(_stack(options, screen, environment))
            run_nights(stack, screen)
            if catcher and delivery:
                run_bad_night(stack, screen, catcher, delivery)
            status = 0
            if not (options.once or options.fail):
                screen.say("\nCtrl-C stops everything.")
                _wait(stack)
    except StopRequested:
        pass
    except DemoError as error:
        screen.say(f"\nmake demo: {error}")
        return 1
    screen.say("Nothing of the demo is left running.")
    return status


def run_nights(stack: LocalStack, screen: Screen) -> None:
    """
    Run the next two nights and show what they made.

    :param stack: The running stack.
    :param screen: Where to show it.
    :raises DemoError: the DAG is not importable, a step failed, or there is no night left.
    """
    records = MlflowRecords(stack.mlflow_url)
    with stack.api() as api:
        api.wait_for_dag(DAG_ID)
        nights = choose_nights(api.dag_runs(DAG_ID))
        if not nights:
            raise DemoError(f"Every night up to {LAST_NIGHT} has been run: delete {stack.state_dir} to start over.")
        api.pause(DAG_ID, paused=False)
        order = in_order(api.tasks(DAG_ID))
        rows = [row for night in nights for row in run_night(stack, api, screen, night, order)]
        screen.results([(night, step, *_made(api, night, step, records)) for night, step in rows])
    screen.champion(champion := records.champion())
    if champion:
        _show_lineage(stack, screen)
    screen.say(f"\nAirflow  {stack.airflow_url}  login {stack.username}, password {stack.password}")
    screen.say(f"MLflow   {stack.mlflow_url}")


def run_night(stack: LocalStack, api: AirflowApi, screen: Screen, night: Night, order: Sequence[str]) -> list[tuple[Night, Step]]:
    """
    Send one night through the scheduler and show its progress.

    A run that an earlier demo left unfinished goes on; one that failed is cleared and runs again.

    :param stack: The running stack.
    :param api: Client of its Airflow.
    :param screen: Where to show the progress.
    :param night: Which night.
    :param order: Task ids in the order in which to show them.
    :return: The night, with its run, and each of its steps as it ended.
    :raises DemoError: a step failed; the message has its error and the place of its log.
    """
    night, state, found = _play(stack, api, screen, night, order)
    if state != "success":
        raise DemoError(explain_failure(stack.state_dir / "airflow/logs", DAG_ID, str(night.run_id), found))
    return [(night, step) for step in found]


def run_bad_night(stack: LocalStack, screen: Screen, catcher: AlertCatcher, delivery: BadDelivery) -> None:
    """
    Run a night whose data is broken, and show the alert that somebody would get.

    :param stack: The running stack.
    :param screen: Where to show it.
    :param catcher: Where the alert arrives.
    :param delivery: What breaks the data.
    :raises DemoError: the night did not fail, no alert has arrived by both ways, or there is no night left.
    """
    with stack.api() as api:
        nights = choose_nights(api.dag_runs(DAG_ID), 1)
        if not nights:
            raise DemoError(f"Every night up to {LAST_NIGHT} has been run: delete {stack.state_dir} to start over.")
        day, before = delivery.arrive(nights[0].day), len(catcher.caught)
        screen.say(f"\nThe night of {nights[0].day}, for which most flights of {day} have not been delivered:")
        _, state, _ = _play(stack, api, screen, nights[0], in_order(api.tasks(DAG_ID)))
    if state != "failed":
        raise DemoError(f"The night of {nights[0].day} was to fail, and ended as {state}.")
    _show_alert(stack, screen, catcher, before)


def _show_alert(stack: LocalStack, screen: Screen, catcher: AlertCatcher, before: int) -> None:
    """Wait for the first message and for the one that closes it, by each way, and show where they lie."""
    deadline = time.monotonic() + ALERT_TIMEOUT_S
    while len(catcher.caught) < before + ALERTS and time.monotonic() < deadline:
        stack.require_alive()
        time.sleep(0.2)
    caught = catcher.caught[before:]
    missing = {"email", "slack"} - {each.channel for each in caught}
    if missing:
        raise DemoError(f"No alert has arrived by {' and '.join(sorted(missing))} within {ALERT_TIMEOUT_S:.0f} s.")
    screen.say("\nWhat people get, by Slack and by e-mail:")
    for each in caught:
        screen.say(f"  {each.title}")
        for file in each.files:
            screen.say(f"    {file}")
    text = next(each.text for each in caught if each.channel == "email")
    screen.say("\nThe first lines of the first e-mail:\n")
    for line in text.splitlines()[:ALERT_LINES]:
        screen.say(f"    {line}".rstrip())


def _play(
    stack: LocalStack, api: AirflowApi, screen: Screen, night: Night, order: Sequence[str]
) -> tuple[Night, str, list[Step]]:
    """Send one night through the scheduler, show its progress, and say how it ended."""
    if night.run_id is None:
        night = replace(night, run_id=api.trigger(DAG_ID, logical_date=night.logical_date)["dag_run_id"])
    elif night.state == "failed":
        api.clear(DAG_ID, str(night.run_id))
    run_id = str(night.run_id)
    found: list[Step] = []
    with screen.night(night) as progress:

        def look() -> None:
            stack.require_alive()
            found[:] = steps(api.task_instances(DAG_ID, run_id), order, datetime.now(UTC))
            progress.show(found)

        run = api.wait_for_run(DAG_ID, run_id, timeout_s=NIGHT_TIMEOUT_S, on_poll=look)
    return night, str(run["state"]), found


def _made(api: AirflowApi, night: Night, step: Step, records: MlflowRecords) -> tuple[str, str]:
    """Say of a step whether it was cached, and what it made."""
    if step.state != "success":
        return "", ""
    value = api.xcom(DAG_ID, str(night.run_id), step.task_id, map_index=step.map_index)
    made_in = records.made_in(value)
    earlier = made_in is not None and made_in != night.run_id
    return cached(api.task_instances(DAG_ID, str(made_in)), step) if earlier else "", describe(value, records)


def _show_lineage(stack: LocalStack, screen: Screen) -> None:
    answer = stack.run("airflow-ml", "lineage", MODEL_URI)
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip()[-1_000:]
        raise DemoError(f"`airflow-ml lineage {MODEL_URI}` failed with status {answer.returncode}:\n{said}")
    screen.say(f"\nFrom the champion back to the raw data (airflow-ml lineage {MODEL_URI}):\n{answer.stdout.rstrip()}")


def _wait(stack: LocalStack) -> None:
    while True:
        stack.require_alive()
        time.sleep(1)


def _stack(options: argparse.Namespace, screen: Screen, environment: Mapping[str, str]) -> LocalStack:
    airflow_port, mlflow_port = port_from_environment("DEMO_AIRFLOW_PORT"), port_from_environment("DEMO_MLFLOW_PORT")
    if airflow_port and airflow_port == mlflow_port:
        raise DemoError(f"DEMO_AIRFLOW_PORT and DEMO_MLFLOW_PORT are both {airflow_port}: give two ports.")
    screen.say(f"Starting Airflow and MLflow (about half a minute; state and logs in {options.state_dir}) ...")
    return LocalStack(
        options.state_dir,
        dags=[options.dags],
        environment=environment,
        airflow_port=airflow_port,
        mlflow_port=mlflow_port,
        report=screen.component,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description="Two nights of retraining on this machine.")
    parser.add_argument("--once", action="store_true", help="end by itself, with status 0 or 1")
    parser.add_argument("--fail", action="store_true", help="let a third night fail, show the alert, and end by itself")
    parser.add_argument("--state-dir", type=Path, default=DEMO_DAGS.parent / ".demo", help="folder to keep state in")
    parser.add_argument("--dags", type=Path, default=DEMO_DAGS, help="folder with the DAG file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
