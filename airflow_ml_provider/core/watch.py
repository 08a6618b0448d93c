"""
What a look at MLflow means for somebody who waits: one pure decider for each kind of question, and one for the time that passes.

A sensor in a worker and the trigger of a deferred one both use them. Time is an argument, epoch seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from airflow_ml_provider.core.model_names import NAME_LENGTH, check_aliases, check_name
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.gate import Rule
from airflow_ml_provider.models.watch import (
    AliasQuestion,
    MetricQuestion,
    RunQuestion,
    SeenRun,
    SeenVersion,
    Sight,
    Tags,
    VersionQuestion,
    WatchOutcome,
)

KEY_LENGTH, VALUE_LENGTH = 250, 500
"""Characters of a tag's key and of its value: a search for them is sent in a URL."""
ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
GOOD_END = "FINISHED"
REASON_LENGTH = 1000


def check_watched(model: str, *aliases: str) -> None:
    """
    Refuse what no registered model or alias can be called; nothing is asked of a server.

    :param model: Name of a registered model.
    :param aliases: Aliases of it.
    :raises ConfigError: it could not be quoted in a search, or MLflow would refuse it; a retry never helps.
    """
    if not isinstance(model, str) or len(model) > NAME_LENGTH or not model.isprintable():
        raise ConfigError(
            f"the name of a registered model must be a text of at most {NAME_LENGTH} printable characters, "
            f"not {_short(model)}. Give the name as MLflow shows it."
        )
    check_name(model)
    for each in aliases:
        check_aliases(each)


def read_tags(tags: Mapping[str, str] | None, *, what: str = "a version") -> Tags:
    """
    Read the tags that something must have, and refuse what cannot be searched for.

    :param tags: Value per key; both are compared exactly.
    :param what: For messages: what has the tags.
    :return: The same, sorted.
    :raises ConfigError: a key or value is no text, is too long, or could not be quoted in a search; a retry never helps.
    """
    if not isinstance(tags, Mapping | None):
        raise ConfigError(f"tags={_short(tags)} of {what} must be a dictionary of texts, for example {{'stage': 'ready'}}.")
    for key, value in (tags or {}).items():
        if not isinstance(key, str) or not isinstance(value, str) or not key.strip():
            raise ConfigError(f"tag {_short(key)}: {_short(value)} of {what}: both must be texts, the key not empty.")
        if len(key) > KEY_LENGTH or len(value) > VALUE_LENGTH or not (key + value).isprintable():
            raise ConfigError(
                f"tag {_short(key)}: {_short(value)} of {what}: a key has at most {KEY_LENGTH} characters, a value at most "
                f"{VALUE_LENGTH}, all printable."
            )
        if set(key) & set("`\"'\\") or "\\" in value or {"'", '"'} <= set(value):
            raise ConfigError(
                f"tag {_short(key)}: {_short(value)} of {what} cannot be written in MLflow's search: no quote in the key, "
                "not both kinds of quotes in the value, and no backslash in either. Use another tag."
            )
    return tuple(sorted((tags or {}).items()))


def judge_run(question: RunQuestion, run: SeenRun | None) -> Sight:
    """
    Say whether a run has ended.

    :param question: What is waited for.
    :param run: What was found; None for nothing.
    :return: What that means. A run that is known by its id and is not there will never be seen.
    """
    if (sight := _if_absent(question, run)) is not None or run is None:
        return sight or Sight(state="waiting", message="")
    value = _run_value(run)
    if run.status not in ENDED:
        return Sight(state="waiting", message=f"Run {run.run_id} is {run.status}.")
    if run.status == GOOD_END or not question.bad_end:
        return Sight(state="seen", message=f"Run {run.run_id} is {run.status}.", value=value)
    reason = " ".join(run.error.split())[:REASON_LENGTH] or "its tags give no reason: look at its page, and at what wrote it"
    return Sight(state="failed", message=f"Run {run.run_id} {run.status}: {reason}.", value=value)


def judge_metric(question: MetricQuestion, run: SeenRun | None) -> Sight:
    """
    Say whether a metric keeps its rule; NaN keeps none.

    :param question: What is waited for.
    :param run: What was found; None for nothing.
    :return: What that means. A run that has ended without it will never be seen, as nobody logs to it any more.
    """
    if (sight := _if_absent(question, run)) is not None or run is None:
        return sight or Sight(state="waiting", message="")
    rule = Rule.parse(question.rule)
    value = run.metrics.get(rule.metric)
    stands = f"{rule.metric} of run {run.run_id} " + ("was not logged yet" if value is None else f"is {value!r}")
    if value is not None and rule.holds(value):
        found = _run_value(run) | {"metric": rule.metric, "value": value, "rule": str(rule)}
        return Sight(state="seen", message=f"{stands}, which keeps {rule}.", value=found)
    if run.status in ENDED:
        return Sight(state="failed", message=f"{stands}, the rule is {rule}, and the run is {run.status}.", value=_run_value(run))
    return Sight(state="waiting", message=f"{stands}, the rule is {rule}.")


def judge_alias(question: AliasQuestion, version: SeenVersion | None) -> Sight:
    """
    Say whether an alias exists, or has moved.

    :param question: What is waited for.
    :param version: Where it stands; None for nowhere.
    :return: What that means.
    """
    named = f"{question.model}@{question.alias}"
    if version is None:
        return Sight(state="waiting", message=f"There is no {named}.")
    if question.away_from and version.version == question.away_from:
        return Sight(state="waiting", message=f"{named} is still version {version.version}.")
    value = version_value(version) | {"alias": question.alias}
    return Sight(state="seen", message=f"{named} is version {version.version}.", value=value)


def judge_versions(question: VersionQuestion, versions: Iterable[SeenVersion]) -> Sight:
    """
    Say whether there is a version as it is waited for.

    :param question: What is waited for.
    :param versions: Versions that a search has found; those that do not fit are passed over, as a database may compare
        texts without their case.
    :return: What that means; the newest one that fits.
    """
    fitting = [each for each in versions if fits(each, question.model, question.tags) and _number(each) > question.newer_than]
    wanted = ", ".join(f"{key}={value}" for key, value in question.tags) or "any tags"
    if not fitting:
        newer = f" above {question.newer_than}" if question.newer_than else ""
        return Sight(state="waiting", message=f"{question.model} has no version{newer} with {wanted}.")
    found = max(fitting, key=_number)
    return Sight(state="seen", message=f"{question.model} has version {found.version} with {wanted}.", value=version_value(found))


def fits(version: SeenVersion, model: str, tags: Tags) -> bool:
    """
    Compare a version with what is wanted, exactly.

    :param version: The version.
    :param model: Name of the registered model.
    :param tags: Tags that it must have.
    :return: Whether it is of that model and has all of them.
    """
    return version.model == model and all(version.tags.get(key) == value for key, value in tags)


def version_value(version: SeenVersion) -> dict[str, object]:
    """
    Write a version as plain JSON.

    :param version: The version.
    :return: ``{"model", "version", "run_id", "source", "tags"}``.
    """
    return version.model_dump(mode="json", include={"model", "version", "run_id", "source", "tags"})


@dataclass
class Vigil:
    """
    One waiting, with an end: a deadline, and a patience with errors.

    :param deadline: Epoch seconds at which it ends in any case; None for never.
    :param patience_s: Seconds of errors in a row that are borne.
    """

    deadline: float | None = None
    patience_s: float = 300.0
    _failing_since: float | None = None
    _message: str = "nothing was seen yet"

    def on_sight(self, sight: Sight, now: float) -> WatchOutcome | None:
        """
        Take in what a look has come to.

        :param sight: What was seen.
        :param now: The time.
        :return: The end; None to go on.
        """
        self._failing_since, self._message = None, sight.message
        if sight.state != "waiting":
            return WatchOutcome(outcome=sight.state, message=sight.message, value=sight.value)
        return self._on_time(now)

    def on_error(self, error: Exception, now: float) -> WatchOutcome | None:
        """
        Take in that a look has failed; one that is refused is borne too, as a proxy that starts refuses for a while.

        :param error: Why.
        :param now: The time.
        :return: The end; None to go on.
        """
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since < self.patience_s:
            return self._on_time(now)
        outcome = "refused" if isinstance(error, ConfigError) else "unreachable"
        failing = f"for {now - self._failing_since:.0f} s (patience {self.patience_s:.0f} s)"
        return WatchOutcome.model_validate({"outcome": outcome, "message": f"{error} It has been so {failing}."})

    def pause_s(self, interval_s: float, now: float) -> float:
        """
        Say how long to wait until the next look.

        :param interval_s: The usual pause.
        :param now: The time.
        :return: Seconds; no longer than until the deadline.
        """
        return interval_s if self.deadline is None else max(0.0, min(interval_s, self.deadline - now))

    def _on_time(self, now: float) -> WatchOutcome | None:
        if self.deadline is None or now < self.deadline:
            return None
        return WatchOutcome(outcome="deadline", message=f"The time was up. Newest look: {self._message}")


def _if_absent(question: RunQuestion | MetricQuestion, run: SeenRun | None) -> Sight | None:
    if run is None and not question.run_id:
        tags = ", ".join(f"{key}={value}" for key, value in question.tags)
        return Sight(state="waiting", message=f"Experiment {question.experiment!r} has no run with {tags}.")
    if run is None or run.deleted:
        which = run.run_id if run else question.run_id
        return Sight(state="failed", message=f"The server has no run {_short(which)}, or it was deleted.")
    return None


def _run_value(run: SeenRun) -> dict[str, object]:
    return {"run_id": run.run_id, "experiment_id": run.experiment_id, "status": run.status}


def _number(version: SeenVersion) -> int:
    return int(version.version) if version.version.isdigit() else 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"  # noqa: PLR2004  (what a message bears)
