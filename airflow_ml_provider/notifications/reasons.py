"""Why something failed, in plain words: from an exception, or from the word that Airflow has for the end of a DAG run."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.exceptions import AirflowMLError

WORDLESS = (
    "it has left no reason, but its log may say more. Its process may have been killed (most often for its memory), its worker "
    "lost, or the task marked as failed by hand; or it leaves its reasons elsewhere."
)
"""What is said of a task that counts as failed, and of which no reason is on record; its first sentence is in the subject."""
DAG_REASONS = {
    "task_failure": "A task has failed.",
    "timed_out": "The DAG run took longer than its dagrun_timeout allows. Airflow has stopped it.",
    "all_tasks_deadlocked": "No task of the DAG run could start any more: each one waits for another that will not run.",
}
"""In plain words, what Airflow calls the reason of a DAG run's end."""
LOG_MARK = "The end of its log:"
"""The line of a failed KFP run's error after which the log begins."""

_WORD = re.compile(r"[^\s\"'<>`](?:(?![,;|&=][A-Za-z][\w+.-]{0,30}://)[^\s\"'<>`])*")
"""A piece of text that may hold a URL's login: up to a blank, a quote, or the next URL of a list."""
_AUTHORITY = re.compile(r"[^/?#]*")
_PORT = re.compile(r"[^:]*:\d{1,5}")
_WEB = ("http:", "https:", "ws:", "wss:")
"""Schemes of URLs whose paths may hold an ``@``, and whose passwords can hold no ``/``: no client would take them."""
_NAMED = ("abfs:", "abfss:", "wasb:", "wasbs:")
"""Schemes that have the name of a container where others have the user."""
_NO_PASSWORD = ("", "x-oauth-basic")
"""What stands for the password where the user is a token."""
_QUOTED = re.compile(r"(//[^\s/?#:@\[\]\"'<>]{0,200}:)(?!\*\*\*@|\d{1,5}(?:[/?#,\s]|$))(?:[^\s/]{1,500}@|[^\s@]{1,500}@)")
"""A password that holds a quote, which ends a word above."""
_KFP_RUN = re.compile(r"run (?P<id>\S+) FAILED(?:: (?P<error>.*?))?\. See ?(?P<url>\S*)", re.DOTALL)
_KFP_TASK = re.compile(r"^Task (\S+) FAILED(?:: (.*)|\.)$")
_OUT_OF_MEMORY = re.compile(r"Pod \S+?(?: on node (?P<node>\S+))?: (?P<what>[^\n]* was killed for its memory.*)", re.DOTALL)
_LIMIT = re.compile(r"It had ([\d.]+ GiB)")
_RAISED = re.compile(r"^\s*(?:[\d\[][\dTZ:.,+\[\] -]*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)(?:: .*)?)$")


def reason_of(error: object, execution_timeout: timedelta | None = None) -> str:
    """
    Say in plain words why a task has failed.

    The errors of this package speak for themselves, and so does what an ``AirflowFailException`` was raised from; of any
    other error it is the kind and the first line, since what follows is for whoever reads the log.

    :param error: The exception, or a text; None where there is none.
    :param execution_timeout: The task's own limit, for the words about it.
    :return: The reason, secrets masked; empty without an error.
    """
    if error is None or error == "":
        return ""
    return masked(reason_and_log(_reason(error, execution_timeout))[0]).strip()


def traceback_of(error: object) -> str:
    """
    Write what the author of a task needs of an exception's traceback.

    The frames of Airflow before the author's first one are left out, and a line says how many. Of a failed Kubeflow run it
    is the end of the run's log: the frames would be those of this package, waiting.

    :param error: The exception; anything else has none.
    :return: The traceback, secrets masked, as long as it is; empty without one.
    """
    if not isinstance(error, BaseException):
        return ""
    error = _told_by(error)
    log = reason_and_log(_text_of(error))[1] if isinstance(error, AirflowMLError) else ""
    return masked(log or _written(error))


def masked(text: str) -> str:
    """
    Hide what must not leave: what Airflow's masker knows, and logins in URLs, which it knows only as they were typed.

    Where nobody can tell where a password ends, too much is hidden: up to the last ``@`` of the word.

    :param text: Any text.
    :return: The text, each secret ``***``; of ``//user:password@host`` the user stays, of ``//token@host`` the host alone.
    """
    return _QUOTED.sub(r"\1***@", _WORD.sub(_without_logins, str(redact(text))))


def _without_logins(found: re.Match[str]) -> str:
    """Hide the logins of a word, in one go from its beginning to its end: it may be long, and hostile."""
    word, shown, done = found[0], [], 0
    last = word.rfind("@")
    while 0 <= (slashes := word.find("//", done)) < last:
        begin = slashes + 2
        end = _end_of_login(word, begin, last)
        shown += [word[done:begin], _hidden(word[begin:end])]
        done = end
    return "".join([*shown, word[done:]])


def _end_of_login(word: str, begin: int, last: int) -> int:
    """Say where the login of a URL ends, whose ``//`` ends at ``begin``; there, where it has none."""
    scheme = word[max(0, begin - 8) : begin - 2].lower()
    end = _AUTHORITY.match(word, begin).end()  # type: ignore[union-attr]  # it matches nothing, too
    at, colon = word.rfind("@", begin, end), word.find(":", begin, end)
    if colon < 0:
        return begin if at < 0 or scheme.endswith(_NAMED) else at
    if at < 0 and (word[begin] == "[" or (scheme.endswith(_WEB) and _PORT.fullmatch(word, begin, end))):
        return begin
    return last


def _hidden(login: str) -> str:
    user, _, password = login.partition(":")
    if not login:
        return ""
    # With an @ before the colon and a slash behind it, what looks like the user may be a token with its host.
    doubtful = "@" in user and _AUTHORITY.fullmatch(login) is None
    return "***" if doubtful or password in _NO_PASSWORD else f"{user}:***"


def reason_and_log(text: str) -> tuple[str, str]:
    """
    Let what matters come first in an error of ours, and tell the reason from the log behind it.

    Of a failed Kubeflow run that is the failed task. Of a pod that ran out of memory it is how much it had, and where; its
    name goes, so that mapped tasks have one reason.

    :param text: An error's text, or what a record kept of it.
    :return: The reason and the log with its line breaks; any other text as it is, without a log.
    """
    if memory := _OUT_OF_MEMORY.search(text):
        limit, what = _LIMIT.search(text), memory["what"]
        place = (f" at {limit[1]}" if limit else "") + (f" on node {memory['node']}" if memory["node"] else "")
        return f"out of memory{place}. {what[0].upper()}{what[1:]}", ""
    said, _, log = text.partition(f"\n{LOG_MARK}\n")
    run = _KFP_RUN.match(said)
    if not run:
        return text, ""
    rest = [line.strip() for line in said[run.end() :].splitlines() if line.strip()]
    tasks = [found for line in rest if (found := _KFP_TASK.match(line))]
    others = [line for line in rest if not _KFP_TASK.match(line)]
    raised = next((found[1] for line in reversed(log.splitlines()) if (found := _RAISED.match(line))), "")
    whole = run["error"] or ""
    # Of several failed tasks nobody knows here whose log it is.
    alone = raised if len(tasks) == 1 else ""
    parts = [_sentence(f"KFP task {each[1]} failed", alone or each[2]) for each in tasks]
    if whole or not tasks:
        parts.append(_sentence("The KFP run failed", whole))
    page = f": {run['url']}" if run["url"] else "."
    return " ".join([*parts, *others, f"The run is {run['id']}{page}"]), log


def _sentence(what: str, why: str | None) -> str:
    why = " ".join((why or "").split()).rstrip(".")
    return f"{what}: {why}." if why else f"{what}."


def _told_by(error: BaseException) -> BaseException:
    """Give what an error was raised from where it says the same, so that nothing is said twice."""
    cause = error.__cause__
    said = _text_of(error)
    told = isinstance(cause, Exception) and said in (_text_of(cause), f"{type(cause).__name__}: {_text_of(cause)}")
    return cause if cause is not None and said and told else error


class _FromTheAuthor(traceback.StackSummary):
    """Frames of which the first ones are left out."""

    left_out = 0

    def format(self, **options: Any) -> list[str]:
        frames = "1 frame" if self.left_out == 1 else f"{self.left_out} frames"
        return [f"  ({frames} of Airflow left out)\n", *super().format(**options)]


def _written(error: BaseException) -> str:
    try:
        shown = traceback.TracebackException.from_exception(error)
        for each, its in _chain(error, shown):
            if count := _before_the_author(each.__traceback__):
                stack = _FromTheAuthor(its.stack[count:])
                stack.left_out = count
                its.stack = stack
        return "".join(shown.format())
    except Exception:  # noqa: BLE001  (a hostile __str__ of it, or of what it was raised from)
        return "".join(traceback.format_tb(error.__traceback__))


def _chain(
    error: BaseException, shown: traceback.TracebackException
) -> Iterator[tuple[BaseException, traceback.TracebackException]]:
    """Go from an exception to what it came from, as a traceback shows it."""
    now: BaseException | None = error
    its: traceback.TracebackException | None = shown
    while now is not None and its is not None:
        yield now, its
        caused = its.__cause__ is not None
        now, its = (now.__cause__, its.__cause__) if caused else (now.__context__, its.__context__)


def _before_the_author(trace: TracebackType | None) -> int:
    """Count the frames of Airflow and of this package before the author's first; of Airflow's alone where no author's is."""
    packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in traceback.walk_tb(trace)]
    for machinery in (("airflow", "airflow_ml_provider"), ("airflow",)):
        count = next((index for index, each in enumerate(packages) if each not in machinery), 0)
        if count:
            return count
    return 0


def _reason(error: object, execution_timeout: timedelta | None) -> str:
    if not isinstance(error, BaseException):
        return _first_line(str(error))
    names = {each.__name__ for each in type(error).__mro__}  # by name: the classes have moved between releases of Airflow
    if "AirflowTaskTimeout" in names:
        limit = f" of {execution_timeout}" if execution_timeout else ""
        return f"Out of time: the task's execution_timeout{limit} was up."
    if "AirflowTaskTerminated" in names:
        return "The task was told to end: it was marked or cleared, or its worker was stopped."
    if isinstance(error, AirflowMLError):
        return _text_of(error) or type(error).__name__
    if "AirflowFailException" in names:
        return _reason_of_failing(error, execution_timeout)
    said = _first_line(_text_of(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _reason_of_failing(error: BaseException, execution_timeout: timedelta | None) -> str:
    """Read what made the author, or one of our operators, fail a task without a retry."""
    cause = error.__cause__
    if isinstance(cause, Exception) and cause is not error:
        return _reason(cause, execution_timeout)
    return _text_of(error).strip() or "The task has failed itself, and gave no reason."


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (its own __str__ fails)
        return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
