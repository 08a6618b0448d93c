"""
What a DAG author writes: one line that has failures told to people by Slack and e-mail.

::

    default_args={"on_failure_callback": ml_alert(slack="slack_ml", email="ml-team@example.com")}

    @dag(..., **ml_alerts(slack="slack_ml", email="ml-team@example.com", late_after=timedelta(hours=3)))

The notifier is called by Airflow in three processes, and by our operators. It never raises to its caller, and it returns
within ``[ml] alert_timeout_s``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseNotifier
from pydantic import ValidationError

from airflow_ml_provider.core.model_names import check_name
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.alert import AlertKind, AlertRules

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.models.alert import Channel
    from airflow_ml_provider.notifications.send import Sent, Targets
    from airflow_ml_provider.notifications.tell import Options

log = logging.getLogger(__name__)

SLOT_REMEDY = (
    'ml_alert tells of failures: it belongs in on_failure_callback, and with kind="retry" in on_retry_callback. Success is told '
    "by ml_alerts, in the arguments of the DAG."
)
_ADDRESS = re.compile(r"[^\s@,;<>\"]+@[^\s@,;<>\"]+")


class MLAlertNotifier(BaseNotifier):
    """
    Tells people of failures, lateness and recovery; made by :func:`ml_alert` and :func:`ml_alerts`.

    All arguments are plain JSON, since Airflow stores those of a deadline's callback.

    :param slack: Connection of type ``slackwebhook`` or ``slack``; None for no Slack.
    :param email: One address or several; None for no e-mail.
    :param slack_channel: Channel for a bot's token; None takes the connection's extra ``channel``.
    :param smtp_conn_id: Connection of the mail server.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param model: Name of the registered model whose champion is told; None takes what the DAG has promoted last.
    :param rules: Which alerts are wanted, as JSON of :class:`~airflow_ml_provider.models.alert.AlertRules`; None for its
        defaults.
    :param kind: What every call is about; None finds it in the context.
    :param context: Given by Airflow where it awaits the notifier.
    :raises ConfigError: an argument does not fit; a retry never helps.
    """

    def __init__(
        self,
        slack: str | None = None,
        email: str | Sequence[str] | None = None,
        *,
        slack_channel: str | None = None,
        smtp_conn_id: str = "smtp_default",
        mlflow_conn_id: str = "mlflow_default",
        model: str | None = None,
        rules: Mapping[str, Any] | None = None,
        kind: AlertKind | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        if context is not None:
            self.context = context
        self.slack = slack
        self.email = _addresses(email)
        self.slack_channel = slack_channel
        self.smtp_conn_id = smtp_conn_id
        self.mlflow_conn_id = mlflow_conn_id
        self.model = model
        self.rules = _plain(rules) or {}
        self.kind = kind
        self._check()

    def __call__(self, *args: Any) -> None:
        """
        Tell, as Airflow calls a callback; what goes wrong is in the log.

        :param args: Airflow's context.
        """
        try:
            super().__call__(*args)
        except Exception:  # whatever it is, nobody's task or DAG run fails for an alert
            log.exception("An alert was not sent.")

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """
        Render nothing: no argument is a template, and a DAG as ``dag.test()`` gives it to callbacks cannot render.

        :param context: Airflow's context.
        :param jinja_env: Airflow's environment for templates.
        """

    def notify(self, context: Context) -> None:
        """
        Tell of what the context says, and return within the bound.

        :param context: Airflow's context, of whichever process.
        """
        try:
            from airflow_ml_provider.notifications.context import misplaced, read_source
            from airflow_ml_provider.notifications.tell import tell

            if self.kind is None and (slot := misplaced(context)):
                log.warning("An alert is not sent: %s=ml_alert(...) is called where nothing has failed. %s", slot, SLOT_REMEDY)
                return
            source = read_source(context, self.kind)
            if self.kind is None and source.kind == "retry" and self.options.rules.retry is None:
                log.warning('An alert is not sent: retries are off. Write on_retry_callback=ml_alert(..., kind="retry").')
            tell(source, self.options, closed=self._closed_channels(context))
        except Exception:
            log.exception("An alert was not sent.")

    async def async_notify(self, context: Context) -> None:
        """
        Tell from an event loop, which goes on meanwhile; as :meth:`notify`.

        :param context: Airflow's context.
        """
        from asgiref.sync import sync_to_async

        # asyncio.to_thread has no way back to this loop, by which the triggerer reads connections.
        await sync_to_async(self.notify, thread_sensitive=False)(context)

    def announce(self, kind: AlertKind, context: Context, *, why: str = "", model: str = "", detail: str = "") -> list[Sent]:
        """
        Tell of something from inside a running task: ``gate_rejected``, ``promoted``. Never raises.

        :param kind: What it is about.
        :param context: The running task's context.
        :param why: The reason in plain words.
        :param model: What it was about: ``flight-delays version 4``.
        :param detail: More of it, as long as it is.
        :return: What became of it, per channel; none where the kind is off.
        """
        try:
            from airflow.providers.common.compat.sdk import redact

            from airflow_ml_provider.notifications.context import read_source
            from airflow_ml_provider.notifications.tell import tell

            source = replace(read_source(context, kind), place="task", why=str(redact(why)), detail=str(redact(detail)))
            return tell(source, self.options, model=model)
        except Exception:
            log.exception("An alert was not sent.")
            return []

    @property
    def targets(self) -> Targets:
        """Where it sends."""
        from airflow_ml_provider.notifications.send import Targets

        return Targets(self.slack or "", tuple(self.email), self.slack_channel or "", self.smtp_conn_id)

    @property
    def options(self) -> Options:
        """What the user asked for."""
        from airflow_ml_provider.notifications.tell import Options

        return Options(self.targets, self.mlflow_conn_id, self.model or "", AlertRules.model_validate(self.rules))

    def to_json(self) -> dict[str, Any]:
        """
        Write the arguments that make the same notifier again.

        :return: Plain JSON.
        """
        return {
            "slack": self.slack,
            "email": self.email,
            "slack_channel": self.slack_channel,
            "smtp_conn_id": self.smtp_conn_id,
            "mlflow_conn_id": self.mlflow_conn_id,
            "model": self.model,
            "rules": self.rules,
        }

    def _closed_channels(self, context: Context) -> frozenset[Channel]:
        """List where the DAG's own callback tells of the end, so that one task may speak for all of the DAG run there."""
        others = _notifiers(getattr(context.get("dag"), "on_failure_callback", None))
        return frozenset(
            channel
            for channel in self.targets.channels
            for each in others
            if each.kind in (None, "dag_failed")
            and channel in each.channels_of("dag_failed")
            and each.targets.of(channel) == self.targets.of(channel)
        )

    def channels_of(self, kind: AlertKind) -> set[Channel]:
        """
        Say where alerts of one kind go.

        :param kind: The kind.
        :return: Channels that were given and that the kind's rule names; none where the kind is off.
        """
        rule = AlertRules.model_validate(self.rules).of(kind)  # asked when the DAG is parsed, so nothing is loaded for it
        given = {"slack": self.slack, "email": self.email}
        return {each for each in rule.channels if given[each]} if rule else set()

    def _check(self) -> None:
        for name in ("slack", "slack_channel", "smtp_conn_id", "mlflow_conn_id"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name.endswith("conn_id")):
                raise ConfigError(f"{name}={value!r} of an alert must be one name, as text.")
        if not self.slack and not self.email:
            raise ConfigError('an alert needs somebody to tell: slack="<connection>", email="<address>", or both.')
        if self.slack_channel and not self.slack:
            raise ConfigError(f"slack_channel={self.slack_channel!r} needs slack=, the connection with the bot's token.")
        if self.email and not self.smtp_conn_id:
            raise ConfigError("smtp_conn_id of an alert must not be empty: it names the connection of the mail server.")
        for each in self.email:
            _check_address(each)
        if self.model is not None:
            check_name(self.model)
        try:
            AlertRules.model_validate(self.rules)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(each) for each in first["loc"])
            raise ConfigError(f"rules of an alert: {place}: {first['msg']}. It is {first['input']!r}.") from error


def ml_alert(
    slack: str | None = None,
    email: str | Sequence[str] | None = None,
    *,
    slack_channel: str | None = None,
    smtp_conn_id: str = "smtp_default",
    mlflow_conn_id: str = "mlflow_default",
    model: str | None = None,
    rules: AlertRules | Mapping[str, Any] | None = None,
    kind: Literal["retry"] | None = None,
) -> MLAlertNotifier:
    """
    Make the callback that tells of failed tasks, for ``default_args={"on_failure_callback": ...}``.

    Tasks of one id that fail together are told once. For retries, put another one in ``on_retry_callback`` with
    ``kind="retry"``; a rule for ``retry`` has no effect in ``on_failure_callback``, which Airflow does not call for them.

    :param slack: Connection of type ``slackwebhook`` or ``slack``; None for no Slack.
    :param email: One address or several; None for no e-mail.
    :param slack_channel: Channel for a bot's token; None takes the connection's extra ``channel``.
    :param smtp_conn_id: Connection of the mail server.
    :param mlflow_conn_id: Connection of the MLflow server, for what only the records say.
    :param model: Name of the registered model whose champion is told; None takes what the DAG has promoted last.
    :param rules: Which alerts are wanted; None for the defaults of :class:`~airflow_ml_provider.models.alert.AlertRules`.
    :param kind: Of :func:`ml_alert` alone: ``retry`` makes the callback for ``on_retry_callback``, and switches that kind on.
        None tells of failures.
    :return: The callback.
    :raises ConfigError: an argument does not fit; a retry never helps.
    """
    wanted = _plain(rules)
    if kind not in (None, "retry"):
        raise ConfigError(f'kind={kind!r} of ml_alert must be None or "retry". The other kinds come by ml_alerts.')
    if kind == "retry" and (wanted or {}).get("retry") is None:
        wanted = (wanted or {}) | {"retry": {"severity": "warning"}}
    return MLAlertNotifier(
        slack,
        email,
        slack_channel=slack_channel,
        smtp_conn_id=smtp_conn_id,
        mlflow_conn_id=mlflow_conn_id,
        model=model,
        rules=wanted,
        kind=kind,
    )


def ml_alerts(
    slack: str | None = None,
    email: str | Sequence[str] | None = None,
    *,
    late_after: timedelta | None = None,
    default_args: Mapping[str, Any] | None = None,
    on_failure_callback: Any = None,
    on_success_callback: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Make the arguments of ``@dag`` that have everything told: tasks, the DAG run's end, lateness, recovery.

    Each DAG run that fails is told twice: when its first task fails, and at its end with the count and the list.

    :param slack: As for :func:`ml_alert`.
    :param email: As for :func:`ml_alert`.
    :param late_after: Time after which a DAG run that has not ended is told as late, from the moment in which it was queued;
        None for never. Airflow 3.3.2 cannot clear a DAG run before that time is up (apache/airflow#70368).
    :param default_args: The DAG's own ``default_args``; callbacks that are in there are called too, and first.
    :param on_failure_callback: The DAG's own, one or several, which are called too, and first.
    :param on_success_callback: The DAG's own, one or several, which are called too, and first.
    :param options: The other arguments of :func:`ml_alert`.
    :return: Keyword arguments for ``@dag(...)`` or ``DAG(...)``.
    :raises ConfigError: an argument does not fit; a retry never helps.
    """
    if options.pop("kind", None) is not None:
        raise ConfigError('kind= is for ml_alert. Here a rule says it: rules={"retry": {"severity": "warning"}}.')
    of_task = ml_alert(slack, email, **options)
    plain = of_task.to_json()
    merged = dict(default_args or {})
    _add(merged, "on_failure_callback", of_task)
    if of_task.channels_of("retry"):
        _add(merged, "on_retry_callback", MLAlertNotifier(**plain, kind="retry"))
    found: dict[str, Any] = {"default_args": merged}
    _put(found, "on_failure_callback", on_failure_callback, MLAlertNotifier(**plain, kind="dag_failed"))
    _put(found, "on_success_callback", on_success_callback, MLAlertNotifier(**plain, kind="recovered"))
    if late_after is not None and of_task.channels_of("late"):
        found["deadline"] = _deadline(late_after, plain)
    return found


def alerts_of(task: Any) -> list[MLAlertNotifier]:
    """
    Find the notifiers among the failure callbacks of a task and of its DAG, one for each set of targets.

    :param task: An operator, as the running task has it.
    :return: The notifiers; empty where nobody asked for alerts.
    """
    found = _notifiers(getattr(task, "on_failure_callback", None))
    if task.has_dag():
        found += _notifiers(task.dag.on_failure_callback)
    first: dict[Targets, MLAlertNotifier] = {}
    for each in found:
        first.setdefault(each.targets, each)
    return list(first.values())


def _notifiers(callbacks: Any) -> list[MLAlertNotifier]:
    listed = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    return [each for each in listed if isinstance(each, MLAlertNotifier)]


def _check_address(address: object) -> None:
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise ConfigError(f"email={address!r} is no e-mail address. Write it as ml-team@example.com, several as a list.")


def _add(arguments: dict[str, Any], name: str, notifier: MLAlertNotifier) -> None:
    """Put a callback behind those that are there."""
    there = arguments.get(name)
    listed = [] if there is None else list(there) if isinstance(there, list | tuple) else [there]
    arguments[name] = [*listed, notifier]


def _put(found: dict[str, Any], name: str, own: Any, notifier: MLAlertNotifier) -> None:
    """Set a callback of the DAG: its own ones, and ours where its kind is on."""
    if own is not None:
        found[name] = list(own) if isinstance(own, list | tuple) else [own]
    if notifier.kind and notifier.channels_of(notifier.kind):
        _add(found, name, notifier)


def _addresses(email: object) -> list[Any]:
    if isinstance(email, str) or email is None:
        return [email] if email else []
    if isinstance(email, set | frozenset):  # has no order, and claims need the same one in each process
        return sorted(email, key=str)
    if isinstance(email, list | tuple):
        return list(email)
    raise ConfigError(f"email={email!r} is no e-mail address. Write it as ml-team@example.com, several as a list.")


def _plain(rules: object) -> dict[str, Any] | None:
    if isinstance(rules, AlertRules):
        return rules.model_dump(mode="json")
    if rules is None:
        return None
    if not isinstance(rules, Mapping):
        raise ConfigError(f'rules={rules!r} of an alert must be AlertRules, or a mapping: {{"retry": {{"severity": "info"}}}}.')
    return {name: rule.model_dump(mode="json") if hasattr(rule, "model_dump") else rule for name, rule in rules.items()}


def _deadline(late_after: timedelta, arguments: dict[str, Any]) -> Any:
    from airflow.sdk.definitions import deadline

    if not isinstance(late_after, timedelta) or late_after <= timedelta(0):
        raise ConfigError(f"late_after={late_after!r} must be a timedelta of more than 0, timedelta(hours=3).")
    callback = deadline.AsyncCallback  # type: ignore[attr-defined]  # where it is in every release since 3.1
    return deadline.DeadlineAlert(
        reference=deadline.DeadlineReference.DAGRUN_QUEUED_AT,
        interval=late_after,
        callback=callback(MLAlertNotifier, kwargs=arguments | {"kind": "late"}),
    )
