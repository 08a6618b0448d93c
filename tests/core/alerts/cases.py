"""Alerts that the tests here render: of every kind, with everything known and with nothing, and some that are too much."""

from __future__ import annotations

from typing import get_args

from airflow_ml_provider.models.alert import Alert, AlertKind, AlertLink, Failure, Severity, Trend, TrendPoint
from airflow_ml_provider.notifications.samples import AT, DAG_ID, HOME, sample_alerts

KINDS: tuple[AlertKind, ...] = get_args(AlertKind)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> </pre></td></table> {{ 7*7 }} {% raw %} "
    "<!channel> <!here> <@U012AB3CD> @channel <https://evil.example|click> *bold* _it_ ~no~ `code` ```fence``` & &amp; :fire: "
    "שלום עולם \u202egnp.exe\u202c \u2067 \U0001f1e9\U0001f1ea \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 "
    "\x1b[31mred\x1b[0m \x00 \x07 \ud83d \r\nBcc: everyone@example.com"
)
"""Everything at once: HTML, templates, mentions, marks, headers, right-to-left, overrides, colours of a terminal, half an emoji."""

TRACEBACK = (
    "Traceback (most recent call last):\n"
    + "".join(f'  File "/opt/steps/deep.py", line {line}, in fold\n    return fold(rest, {line})\n' for line in range(1500))
    + "ValueError: the table has 0 rows"
)
"""A recursion that went wrong: 100 kB, of which the first and the last line count."""


def nothing_known(kind: AlertKind) -> Alert:
    return Alert(kind=kind, severity="critical", at=AT)


def hostile(kind: AlertKind, text: str = HOSTILE) -> Alert:
    """An alert whose every text is of a stranger."""
    return Alert(
        kind=kind,
        severity="warning",
        at=AT,
        dag_id=text,
        run_id=text,
        task=text,
        try_number=1,
        tries=2,
        why=text,
        detail=f"{text}\n{text}",
        failures=tuple(Failure(task=text, why=why, url=url) for why in (text, "") for url in (text, f"{HOME}/{text}")),
        failed=7,
        last_worked=AT,
        took_s=1.0,
        champion=text,
        model=text,
        trend=Trend(metric=text, points=(TrendPoint(at=AT, value=1), TrendPoint(at=AT, value=2)), limit=1.5),
        links=(AlertLink(text=text, url=f"{HOME}/{text}"), AlertLink(text=text, url="javascript:alert(1)")),
    )


def many(count: int = 200, reasons: int = 1) -> Alert:
    """The end of a DAG run in which many mapped tasks have failed."""
    failures = tuple(
        Failure(task=f"train[{index}]", why=f"reason {index % reasons}. Look there.", url=f"{HOME}/train/{index}")
        for index in range(count)
    )
    return Alert(kind="dag_failed", severity="critical", at=AT, dag_id=DAG_ID, failures=failures, failed=count)


GOLDEN: dict[str, Alert] = {
    **sample_alerts(),
    **{f"nothing_known_{kind}": nothing_known(kind) for kind in KINDS},
    "hostile": hostile("task_failed"),
    "long_traceback": sample_alerts()["task_failed"].model_copy(update={"detail": TRACEBACK}),
    "200_failures_of_one_reason": many(),
    "200_failures_of_150_reasons": many(reasons=150),
    "failures_that_are_not_listed": many(5).model_copy(update={"failed": 200}),
    "one_failure_told": many(1).model_copy(update={"told": True}),
}
"""Name of a golden file, and the alert that it is of."""
