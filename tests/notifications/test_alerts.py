"""What a DAG author writes: arguments, what is refused, and what ``@dag`` gets."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.alert import AlertRule, AlertRules
from airflow_ml_provider.notifications.alerts import MLAlertNotifier, alerts_of, ml_alert, ml_alerts


def ours(*_: Any) -> None:
    """A callback of the user's."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs somebody"),
        ({"email": "nobody"}, "'nobody' is no e-mail"),
        ({"email": ["a@b.c", "x y@b.c"]}, "'x y@b.c'"),
        ({"email": "a@b.c\r\nBcc: d@e.f"}, "no e-mail"),
        ({"email": "a@b.c", "slack_channel": "#x"}, "needs slack="),
        ({"slack": "s", "model": "a/b"}, "registered model"),
        ({"slack": "s", "rules": {"task_faild": None}}, "task_faild"),
        ({"slack": "s", "rules": {"late": {"severity": "loud"}}}, "loud"),
        ({"slack": "s", "rules": "retry"}, "rules='retry'"),
        ({"slack": ["s"]}, r"slack=\['s'\]"),
        ({"slack": 5}, "slack=5"),
        ({"slack": "s", "slack_channel": 5}, "slack_channel=5"),
        ({"email": "a@b.c", "smtp_conn_id": None}, "smtp_conn_id=None"),
        ({"email": "a@b.c", "smtp_conn_id": ""}, "smtp_conn_id"),
        ({"slack": "s", "mlflow_conn_id": None}, "mlflow_conn_id=None"),
        ({"email": {"a@b.c": 1}}, "no e-mail"),
        ({"email": 5}, "no e-mail"),
        ({"slack": "s", "kind": "promoted"}, "kind='promoted'"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ml_alert(**arguments)


def test_addresses_without_an_order_get_one() -> None:
    assert ml_alert(email={"d@e.f", "a@b.c"}).email == ["a@b.c", "d@e.f"]  # type: ignore[arg-type]


def test_a_callback_for_retries_switches_them_on_unless_a_rule_says_how() -> None:
    assert ml_alert("s", kind="retry").options.rules.retry == AlertRule(severity="warning")
    ours = AlertRules(retry=AlertRule(severity="info"), late=None)
    assert ml_alert("s", kind="retry", rules=ours).options.rules == ours
    with pytest.raises(ConfigError, match="kind="):
        ml_alerts("s", kind="retry")


@pytest.mark.parametrize("theirs", [ours, [ours]])
def test_the_dag_s_own_callbacks_stay(theirs: Any) -> None:
    found = ml_alerts("s", on_failure_callback=theirs, on_success_callback=theirs)
    for name, kind in (("on_failure_callback", "dag_failed"), ("on_success_callback", "recovered")):
        assert found[name][0] is ours
        assert [each.kind for each in found[name][1:]] == [kind]
    off = ml_alerts("s", on_failure_callback=theirs, rules={"dag_failed": None, "recovered": None})
    assert off["on_failure_callback"] == [ours]
    assert "on_success_callback" not in off


@pytest.mark.parametrize("channels", [[], ["email"]])
def test_a_kind_that_goes_to_no_channel_that_was_given_is_not_called_for(channels: list[str]) -> None:
    rule = {"severity": "info", "channels": channels}
    found = ml_alerts("s", late_after=timedelta(hours=3), rules=dict.fromkeys(("dag_failed", "recovered", "late", "retry"), rule))
    assert found.keys() == {"default_args"}
    assert "on_retry_callback" not in found["default_args"]


@pytest.mark.parametrize(
    ("rules", "closed"),
    [
        (None, {"slack", "email"}),
        ({"dag_failed": {"severity": "info", "channels": ["slack"]}}, {"slack"}),
        ({"dag_failed": {"severity": "info", "channels": []}}, set()),
        ({"dag_failed": None}, set()),
    ],
)
def test_each_channel_is_closed_by_itself(rules: Any, closed: set[str]) -> None:
    with DAG("night", schedule=None, **ml_alerts("s", "a@b.c", rules=rules)) as dag:
        BaseOperator(task_id="train")
    assert ml_alert("s", "a@b.c")._closed_channels({"dag": dag}) == closed
    assert ml_alert("other", "a@b.c")._closed_channels({"dag": dag}) == closed - {"slack"}


@pytest.mark.parametrize("late_after", [timedelta(0), timedelta(hours=-1), 3])
def test_a_span_that_is_none_is_refused(late_after: Any) -> None:
    with pytest.raises(ConfigError, match="late_after"):
        ml_alerts("s", late_after=late_after)


def test_the_arguments_are_plain_json_and_make_the_same_notifier_again() -> None:
    rules = AlertRules(retry=AlertRule(severity="info", channels=("slack",)), late=None)
    first = ml_alert("s", "a@b.c", slack_channel="#c", model="m", rules=rules)
    again = MLAlertNotifier(**json.loads(json.dumps(first.to_json())))
    assert again.options == first.options
    assert again.options.rules == rules


def test_all_of_it_is_asked_for_by_one_line() -> None:
    found = ml_alerts("s", "a@b.c", late_after=timedelta(hours=3))
    assert [each.kind for each in found["default_args"]["on_failure_callback"]] == [None]
    assert [each.kind for each in found["on_failure_callback"]] == ["dag_failed"]
    assert [each.kind for each in found["on_success_callback"]] == ["recovered"]
    assert found["deadline"].interval == timedelta(hours=3)
    assert found["deadline"].callback.kwargs["kind"] == "late"
    assert "on_retry_callback" not in found["default_args"]
    assert json.loads(json.dumps(found["deadline"].callback.kwargs)) == found["deadline"].callback.kwargs


def test_a_kind_that_is_off_is_not_called_for() -> None:
    off = {"dag_failed": None, "recovered": None, "late": None, "retry": {"severity": "info"}}
    found = ml_alerts("s", late_after=timedelta(hours=3), rules=off)
    assert found.keys() == {"default_args"}
    assert found["default_args"]["on_retry_callback"][0].kind == "retry"


@pytest.mark.parametrize("theirs", [ours, [ours]])
def test_the_author_s_own_arguments_stay(theirs: Any) -> None:
    given = {"retries": 3, "on_failure_callback": theirs}
    merged = ml_alerts("s", default_args=given)["default_args"]
    assert merged["retries"] == 3
    assert merged["on_failure_callback"][0] is ours
    assert len(merged["on_failure_callback"]) == 2
    assert given == {"retries": 3, "on_failure_callback": theirs}


def test_a_dag_takes_it_and_airflow_stores_it() -> None:
    from tests.airflow_releases import DagSerialization

    with DAG("night", schedule=None, **ml_alerts("s", late_after=timedelta(hours=3))) as dag:
        BaseOperator(task_id="train")
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    assert DagSerialization.from_dict(stored).deadline is not None


def test_the_notifiers_of_a_task_are_found_once() -> None:
    with DAG("night", schedule=None, **ml_alerts("s", default_args={"on_failure_callback": ours})):
        train = BaseOperator(task_id="train", on_failure_callback=[ml_alert("s"), ml_alert(email="a@b.c"), ours])
        plain = BaseOperator(task_id="plain")
    assert [(each.slack, each.email) for each in alerts_of(train)] == [("s", []), (None, ["a@b.c"])]
    assert len(alerts_of(plain)) == 1
    assert alerts_of(BaseOperator(task_id="alone")) == []


@pytest.mark.parametrize("context", [{}, {"ti": None}, {"reason": "task_failure"}, {"deadline": "?"}])
def test_a_context_of_no_known_form_raises_nothing(context: Any, airflow_db: None) -> None:
    notifier = ml_alert("nobody_has_this")
    notifier(dict(context))
    notifier.notify(dict(context))
    asyncio.run(notifier.async_notify(dict(context)))
    assert notifier.announce("promoted", dict(context)) is not None


def test_no_connection_is_one_line_at_info_level(airflow_db: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ml_alert("nobody_has_this", "a@b.c", smtp_conn_id="nor_this")({"reason": "task_failure", "run_id": "r"})
    lines = [each for each in caplog.records if each.name.startswith("airflow_ml_provider")]
    assert [(each.levelname, "nobody_has_this" in each.getMessage(), "nor_this" in each.getMessage()) for each in lines] == [
        ("INFO", True, True)
    ]
    assert "Nobody will hear" in lines[0].getMessage()
