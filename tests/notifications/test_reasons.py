"""Why a task has failed, in plain words."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_ml_provider.core.pod_failures import explain
from airflow_ml_provider.exceptions import ConfigError, GateClosedError, PodOutOfMemoryError, RemoteJobError
from airflow_ml_provider.models.pod import PodEnd, PodOutcome
from airflow_ml_provider.notifications.reasons import masked, reason_of, traceback_of
from tests.airflow_releases import AirflowTaskTerminated

RUN = "0b9f3a52-7c1e-4f2d-9d3c-8a1b2c3d4e5f"
LOG = "INFO epoch 1\nTraceback (most recent call last):\n  fit(x)\nValueError: Input X contains NaN."
KFP = f"run {RUN} FAILED. See http://kfp/#/{RUN}\nTask train FAILED: Error (exit code 1).\nThe end of its log:\n{LOG}"


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def failed_from(cause: BaseException | None, text: str = "told otherwise") -> AirflowFailException:
    error = AirflowFailException(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PodOutOfMemoryError("out of memory at 64 GiB on node x"), "out of memory at 64 GiB on node x"),
        (RemoteJobError("KFP task `train` failed:\nlast lines"), "KFP task `train` failed:\nlast lines"),
        (failed_from(GateClosedError("the gate's verdict is reject")), "the gate's verdict is reject"),
        (failed_from(ConfigError("no such alias")), "no such alias"),
        (failed_from(ValueError("bad rows\nmore")), "ValueError: bad rows"),
        (failed_from(None, "the table is empty"), "the table is empty"),
        (AirflowTaskTimeout("Timeout, PID: 7"), "Out of time: the task's execution_timeout of 1:00:00 was up."),
        (AirflowTaskTerminated("x"), "The task was told to end: it was marked or cleared, or its worker was stopped."),
        (KeyError("label"), "KeyError: 'label'"),
        (ValueError("\n\n  second line \nthird"), "ValueError: second line"),
        (ValueError(), "ValueError"),
        (MuteError(), "MuteError"),
        ("a text\nand more", "a text"),
        (None, ""),
        ("", ""),
    ],
)
def test_an_error_in_words(error: object, said: str) -> None:
    assert reason_of(error, timedelta(hours=1)) == said


def test_the_traceback_is_whole_and_a_mute_error_has_one_too() -> None:
    with pytest.raises(MuteError) as raised:
        raise MuteError
    assert "raise MuteError" in traceback_of(raised.value)
    assert traceback_of("a text") == ""
    assert traceback_of(None) == ""


def test_what_airflow_masks_is_masked() -> None:
    from airflow.sdk.log import mask_secret

    mask_secret("hunter2-hunter2")
    assert "hunter2" not in reason_of(ValueError("password hunter2-hunter2")) + traceback_of(ValueError("hunter2-hunter2"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach postgresql://bob:secret1@db:5432/x", "cannot reach postgresql://bob:***@db:5432/x"),
        ("//bob:p%40ss%2Fword1@db/x", "//bob:***@db/x"),
        ("//bob:p@ss@db/x", "//bob:***@db/x"),
        ("//bob:p/ss@db/x", "//bob:***@db/x"),
        ("redis://:pw@h and amqp://u:12345@h", "redis://:***@h and amqp://u:***@h"),
        ("https://host:8080/users/@bob?mail=a@b", "https://host:8080/users/@bob?mail=a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("https://host/x: a@b", "https://host/x: a@b"),
        ("x://a@b.c:pw@h:1/d", "x://a@b.c:***@h:1/d"),
        ("postgresql://u:p@ss/w0rd@host/db", "postgresql://u:***@host/db"),
        ("mysql://u:12,ab@h", "mysql://u:***@h"),
        ("amqp://u:123/45abc@host", "amqp://u:***@host"),
        ("https://ghp_secret@github.com/x", "https://***@github.com/x"),
        ("https://ghp_secret:x-oauth-basic@github.com/x", "https://***@github.com/x"),
        ("https://ghp_secret:@github.com/x", "https://***@github.com/x"),
        ("x://secret@host:5432/a@b", "x://***@b"),
        ("see https://host/x?to=pg://u:p@h", "see https://host/x?to=pg://u:***@h"),
        ("a://u:p@h,b://v:q/r@k", "a://u:***@h,b://v:***@k"),
        (f"pg://u:{'A?b=%2F&' * 200}@h", "pg://u:***@h"),
        ('{"uri":"pg://u:p@h","who":"a@b"}', '{"uri":"pg://u:***@h","who":"a@b"}'),
        ('x://u:a"b@h', "x://u:***@h"),
        ("x://u:***@h and y://***@k/a@b", "x://u:***@h and y://***@k/a@b"),
        ("mailto:a@b, git+https://host/x@v1, s3://bucket/a@b", "mailto:a@b, git+https://host/x@v1, s3://bucket/a@b"),
        ("abfss://models@account.example/a", "abfss://models@account.example/a"),
        ("abfss://u:p@account.example/a", "abfss://u:***@account.example/a"),
        ("git+ssh://git@host/x@v1", "git+ssh://***@host/x@v1"),
    ],
)
def test_a_password_in_a_url_is_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert reason_of(RemoteJobError(text)) == shown
    assert shown in traceback_of(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        "//a:" * 25_000,
        "//a" * 33_000 + '"@',
        "@" + "//a:" * 25_000,
        "," * 100_000 + "//",
        ",a//" * 25_000,
        "//" + "a" * 100_000,
        "http://a:1/" * 9_000 + "x@",
        '//a:"' * 20_000,
        "/" * 100_000 + "@",
    ],
)
def test_masking_a_hostile_text_takes_no_time_worth_counting(text: str) -> None:
    began = time.process_time()
    assert masked(text) == text
    assert time.process_time() - began < 2
    masked(f"{text}u:p@h")
    masked("//a:@" * 20_000)
    assert time.process_time() - began < 4


def test_of_a_kfp_run_the_failed_task_comes_first_and_the_log_is_the_detail() -> None:
    error = failed_from(RemoteJobError(KFP), KFP)
    assert reason_of(error) == f"KFP task train failed: ValueError: Input X contains NaN. The run is {RUN}: http://kfp/#/{RUN}"
    assert traceback_of(error) == LOG


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "run r FAILED. See http://k\nTask a FAILED.\nTask b FAILED: no room.",
            "KFP task a failed. KFP task b failed: no room. The run is r: http://k",
        ),
        (
            "run r FAILED: quota is used up. See http://k\nNo task of it has failed: it was terminated.",
            "The KFP run failed: quota is used up. No task of it has failed: it was terminated. The run is r: http://k",
        ),
        (
            "run r FAILED. See \nTask a FAILED: exit code 137.\nThe end of its log:\nepoch 1\nepoch 2",
            "KFP task a failed: exit code 137. The run is r.",
        ),
        ("run r was cancelled on the server, not by this task: http://k",) * 2,
    ],
)
def test_of_a_kfp_run_without_an_exception_the_server_s_words_are_told(text: str, said: str) -> None:
    assert reason_of(RemoteJobError(text)) == said


@pytest.mark.parametrize("again", [str, lambda text: f"PodOutOfMemoryError: {text}"])
def test_of_a_pod_out_of_memory_the_limit_and_the_node_come_first(again: Callable[[str], str]) -> None:
    what = "container main was killed for its memory (OOMKilled, exit code 137)."
    outcome = PodOutcome(
        end=PodEnd.OUT_OF_MEMORY, pod="a", namespace="ml", node="gpu-7", message=f"Pod ml/a on node gpu-7: {what}"
    )
    error = explain(outcome, try_number=3, memory_gib=64.0).make()
    failed = failed_from(error, again(str(error)))
    assert reason_of(failed).startswith("out of memory at 64 GiB on node gpu-7. Container main was killed for its memory")
    assert "ml/a" not in reason_of(failed)
    assert traceback_of(failed).count("Pod ml/a") == 1


def test_what_an_error_was_raised_from_is_not_shown_twice() -> None:
    shown = traceback_of(failed_from(ConfigError("no such alias"), "no such alias"))
    assert shown.count("no such alias") == 1
    assert "direct cause" not in shown
    assert "direct cause" in traceback_of(failed_from(ConfigError("no such alias"), "another text"))


def test_frames_of_airflow_before_the_author_s_first_are_counted_and_left_out() -> None:
    machinery: dict[str, Any] = {"__name__": "airflow.sdk.runner"}
    exec(compile("def run(f):\n    return again(f)\ndef again(f):\n    return f()", "runner.py", "exec"), machinery)  # noqa: S102

    def author() -> None:
        machinery["again"](lambda: dict[str, str]()["label"])

    with pytest.raises(KeyError) as raised:
        machinery["run"](author)
    assert raised.value.__traceback__ is not None
    inner = raised.value.with_traceback(raised.value.__traceback__.tb_next)  # the first frame is this test's
    lines = traceback_of(inner).splitlines()
    assert lines[:2] == ["Traceback (most recent call last):", "  (2 frames of Airflow left out)"]
    assert ", in author" in lines[2]
    assert sum("runner.py" in line for line in lines) == 1  # what the author has called is shown
    assert lines[-1] == "KeyError: 'label'"
