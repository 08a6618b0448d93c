"""What can be said of the run operator's arguments when the DAG is parsed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp import KfpRunOptions

if TYPE_CHECKING:
    from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator

AGENT_S = 10.0
"""Seconds; 3 were seen between an orphan with a carrier and its run."""


def check_run_operator(operator: KfpRunPipelineOperator) -> None:
    """
    Refuse at parse time what could never work.

    :param operator: The operator, its arguments set.
    :raises ConfigError: something is wrong or contradicts something else; names the argument; a retry never helps.
    """
    task_id, options = operator.task_id, operator.options or KfpRunOptions()
    check_choice(task_id, "on_retry", operator.on_retry, ("resume", "new"))
    check_choice(task_id, "exactly_once", operator.exactly_once, ("look", "carrier", "workflows"))
    for each in operator.leave_running:
        check_choice(task_id, "leave_running", each, ("clear", "success"))
    check_given(task_id, "pipeline", operator.pipeline)
    timeout = operator.timeout
    if timeout is not None and not (isinstance(timeout, timedelta) and timeout > timedelta(0)):
        raise ConfigError(f"task {task_id!r}: timeout={timeout!r} is no positive timedelta.")
    if operator.exactly_once == "carrier" and options.settle_s < AGENT_S:
        raise ConfigError(
            f"task {task_id!r}: options.settle_s={options.settle_s} is shorter than the {AGENT_S:.0f} s in which "
            "the server's agent makes a run of an orphan. Give more; the default is 120."
        )
    check_registered(operator)
    operator.check_outlets(options.mlflow_conn_id)


def check_registered(operator: KfpRunPipelineOperator) -> None:
    """
    Refuse a carrier for a package that shall not be registered; of a template it is known when it has been rendered.

    :param operator: The operator.
    :raises ConfigError: it asks for both; a retry never helps.
    """
    from airflow_ml_provider.jobs.kfp_source import is_package

    options = operator.options or KfpRunOptions()
    if operator.exactly_once == "carrier" and not options.register_package and is_package(str(operator.pipeline)):
        raise ConfigError(
            f"task {operator.task_id!r}: exactly_once='carrier' needs a registered version, and options.register_package is "
            "False. Leave it out, or name a registered pipeline."
        )
