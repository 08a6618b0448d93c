"""
The cache of one try of a step, of whatever kind: its key, the decision, a hit put on record, a new result kept.

What a kind of step adds is the facts that go into its key (``cache_facts``). An operator asks in this order::

    cache = open_cache(self, session, context)
    hit = cache.look(facts) if cache else None
    if hit is None:
        result = ...  # the step runs
        if cache:
            cache.keep(result)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.core.cache_key import KeyFacts, make_key, named
from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.cache import Cache, CacheEntry, CacheKey, CachePart, changes
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.operators.cache_parse import RUN_PARAM, Mode, mode_of
from airflow_ml_provider.tracking.cache_index import (
    CACHE,
    CACHE_ENTRY,
    CACHE_KEY,
    CACHED_FROM,
    Answer,
    CacheIndex,
    UnreadableError,
    digest_of,
    make_entry,
    when,
)
from airflow_ml_provider.tracking.delivery import in_words

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

WHY_LENGTH = 1000
"""Characters of the reason that the tag keeps."""
MOMENTS = (
    *("run_id", "ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz"),
    *("logical_date", "data_interval_start", "data_interval_end"),
)
"""What of the context is another in each DAG run."""
TELLING = 8
"""Characters from which on a text is looked for inside of others; a shorter one may be there by chance."""


class CachedOperator(Protocol):
    """What an operator needs to have to ask its cache."""

    cache: Cache | None
    cached_from_url: str


def open_cache(operator: CachedOperator, session: StepSession, context: Context | Mapping[str, Any]) -> StepCache | None:
    """
    Open the cache of a try, unless there is none or this DAG run goes without.

    :param operator: Says the policy; learns the page of the run whose result is taken.
    :param session: The try, its run open.
    :param context: Airflow's context.
    :return: The cache; None where nothing is to be looked for or kept.
    :raises ConfigError: what the DAG run says of caches is no choice; a retry never helps.
    """
    policy = operator.cache
    if session.record.attempt.try_number > 1:
        session.set_tags({CACHE: "", CACHED_FROM: ""})  # of a try before, which may have had a cache
    if policy is None:
        return None
    mode = mode_of(policy, context, session.record.attempt.identity.task_id)
    if mode == "off":
        session.set_tags({CACHE: "off"})
        log.info("Cache: off in this DAG run (%s).", RUN_PARAM)
        return None

    def show(run_id: str) -> None:
        operator.cached_from_url = session.api.server.run_page(session.record.run.experiment_id, run_id)

    return StepCache(policy, session, mode, moments=_moments(context), show=show)


class StepCache:
    """
    The cache of one try of one step.

    :param policy: Its policy.
    :param session: The try, its run open.
    :param mode: What the cache does in this DAG run.
    :param moments: Texts that are others in each DAG run.
    :param show: Told of the run whose result is taken.
    """

    def __init__(
        self,
        policy: Cache,
        session: StepSession,
        mode: Mode = "on",
        moments: Iterable[str] = (),
        show: Callable[[str], None] | None = None,
    ) -> None:
        self.policy = policy
        self.session = session
        self.mode = mode
        self.key: CacheKey | None = None
        record = session.record
        self.index = CacheIndex(session.api, record.run, record.attempt.identity)
        self._moments = tuple(moments)
        self._show = show
        self._inputs: dict[str, str | None] = {}
        self._result: Any = None
        self._extra: dict[str, Any] = {}
        self._entry: CacheEntry | None = None

    # The decision

    def look(self, facts: KeyFacts) -> CacheEntry | None:
        """
        Look for an earlier result; a hit is put on record, so that nothing is left to do but to end well.

        :param facts: What the key is made of.
        :return: The entry of a hit: its ``result``, and ``extra``; None when the step has to run.
        :raises ConfigError: no key can be made of the facts; a retry never helps.
        :raises RemoteUnavailableError: the index could not be read, and the policy calls that an error; a retry is safe.
        """
        self.key = key = make_key(self.policy, facts, redact)
        self._inputs = {each.name: each.sha256 for each in self.session.record.inputs}
        self.session.set_tags({CACHE_KEY: key.digest})
        if self.mode == "refresh":
            self.session.set_tags({CACHE: "refresh"})
            log.info("Cache: refresh. The step runs, and its result takes the place of an earlier one.")
            return None
        try:
            answer = self._ask(key, facts)
        except UnreadableError as error:
            if self.policy.unreadable == "error":
                raise
            self._missed(str(error), warn=True)
            return None
        if answer.entry is None:
            self._explain(answer, key, facts)
            return None
        self._take(answer.entry, answer)
        return answer.entry

    def _ask(self, key: CacheKey, facts: KeyFacts) -> Answer:
        def ask() -> Answer | UnreadableError:
            try:
                return self.index.look(key, self.policy, facts.outputs, self.session.scratch)
            except UnreadableError as error:
                if error.lasting:
                    return error
                raise

        waits = self.policy.unreadable == "error"  # else the step can run, so nothing is waited for
        answer = patiently("read the cache", ask, self.session.settings.patience_s) if waits else ask()
        if isinstance(answer, UnreadableError):
            raise answer
        return answer

    def _take(self, entry: CacheEntry, answer: Answer) -> None:
        """Put an earlier result on record as this step's; nothing of it is stored again."""
        record, session = self.session.record, self.session
        record.outputs = [
            OutputFile(name=name, type=ref.type, path="", target="", model_id=entry.model_ids.get(name), stored=ref)
            for name, ref in entry.outputs.items()
        ]
        for point in answer.metrics:
            session.metrics.add(point)
        session.made_by = entry.run_id
        session.set_tags({CACHE: "hit", CACHED_FROM: entry.run_id})
        if self._show is not None:
            self._show(entry.run_id)
        log.info(
            "Cache: hit. The outputs are those of run %s (%s, made %s); checked in the store: %d.",
            entry.run_id,
            entry.dag_run_id,
            when(entry.made_at_ms),
            len(entry.outputs),
        )

    def _explain(self, answer: Answer, key: CacheKey, facts: KeyFacts) -> None:
        """Say why it is a miss: against the newest result where there is none of this key."""
        before = self.index.latest(self.session.scratch) if answer.absent else None
        if before is None:
            self._missed(answer.why)
            return
        told = ", ".join(changes(key, before.cache_key)) or answer.why
        self._missed(f"against the run of {before.dag_run_id} ({when(before.made_at_ms)}): {told}")
        for what, kind, given in (("Parameter", "parameter", facts.parameters), ("Variable", "environment", facts.environment)):
            for name in self._always_new(kind, given, key, before.parts):
                log.warning(
                    "%s %r (%s) holds a date, or the id, of this DAG run, so the key is new each time and no earlier result "
                    "is ever found. Leave it out of the key if the result does not depend on it: Cache(ignore=[%r]).",
                    what,
                    name,
                    key.parts[named(kind, name)].shown,
                    name,
                )

    def _missed(self, why: str, *, warn: bool = False) -> None:
        why = str(redact(why)).encode("utf-8", "backslashreplace").decode()  # parts of it stood in a file of others
        self.session.set_tags({CACHE: f"miss: {why}"[:WHY_LENGTH]})
        log.log(logging.WARNING if warn else logging.INFO, "Cache: miss. %s", why[:1].upper() + why[1:])

    def _always_new(self, kind: str, given: Mapping[str, Any], key: CacheKey, before: Mapping[str, CachePart]) -> list[str]:
        """Name those of the values that hold what is another in each DAG run, and were others in the run before."""
        found = []
        for name, value in given.items():
            now, earlier = key.parts.get(named(kind, name)), before.get(named(kind, name))
            text = _as_text(value)
            holds = any(each == text or (len(each) >= TELLING and each in text) for each in self._moments)
            if holds and now is not None and earlier is not None and now.digest != earlier.digest:
                found.append(name)
        return found

    # The result

    def keep(self, result: Any = None, extra: Mapping[str, Any] | None = None) -> None:
        """
        Keep the result of the step once it is on record; to be called when the step itself has ended well.

        :param result: What it returned, for a step without outputs.
        :param extra: JSON object of the kind of step, which comes back with a hit.
        """
        self._result, self._extra = result, dict(extra or {})
        self.session.keeper = self

    def seal(self, record: StepRecord) -> dict[str, str]:
        """
        Take down the result, the outputs being stored; called by the session.

        :param record: What the step did.
        :return: The tag that says which entry is the run's own; none where the result cannot be kept.
        """
        self._entry = None
        if self.key is None:
            return {}
        changed = [each.name for each in record.inputs if (self._inputs.get(each.name) or each.sha256) != each.sha256]
        if changed:
            said = f"input {changed[0]!r} was changed while the step ran, so the key is not that of what it read."
            log.warning("Cache: the result of this step is not kept: %s", said)
            return {CACHE_ENTRY: ""}
        try:
            store = self.session.recorder.store
            self._entry = make_entry(record, self.key, self.policy, store, self._result, self._extra)
            return {CACHE_ENTRY: digest_of(self._entry)}
        except Exception as error:  # noqa: BLE001  (the step has ended well)
            self._entry = None
            told = error if isinstance(error, AirflowMLError) else in_words(error)
            log.warning("Cache: the result of this step is not kept: %s", told)
            return {CACHE_ENTRY: ""}

    def write(self) -> None:
        """Write the entry, the run being closed; called by the session, and never the step's failure."""
        if self._entry is None:
            return
        try:
            self.index.keep(self._entry, self.session.scratch)
        except Exception as error:  # noqa: BLE001  (whatever a store raises, the step has ended well)
            log.warning(
                "Cache: the result of this step could not be kept, so the next run of the same will be a miss: %s Check that "
                "this worker may write to %s.",
                in_words(error),
                self.index.folder,
            )

    # Over a deferral

    def to_json(self) -> dict[str, Any]:
        """
        Write what another process needs to keep the result.

        :return: Plain JSON, for the arguments of a deferral or for a plan.
        """
        return {"key": self.key.model_dump(mode="json") if self.key else None, "inputs": self._inputs}

    @classmethod
    def from_json(cls, policy: Cache, session: StepSession, value: Mapping[str, Any]) -> Self:
        """
        Go on where :meth:`to_json` was called, to :meth:`keep` a result.

        :param policy: The task's policy.
        :param session: The try that ends the step.
        :param value: What was written.
        :return: The cache, its key known.
        """
        cache = cls(policy, session)
        cache.key = CacheKey.model_validate(value["key"]) if value.get("key") else None
        cache._inputs = dict(value.get("inputs") or {})
        if cache.key is not None:
            session.set_tags({CACHE_KEY: cache.key.digest})
        return cache


def _moments(context: Context | Mapping[str, Any]) -> list[str]:
    """Write what of the context is another in each DAG run, in the forms that templates give it."""
    found: dict[str, None] = {}
    for name in MOMENTS:
        value = context.get(name)
        if isinstance(value, datetime):
            forms = (value.isoformat(), str(value), value.date().isoformat(), f"{value:%Y%m%d}", f"{value:%Y%m%dT%H%M%S}")
            found |= dict.fromkeys(forms)
        elif value:
            found[str(value)] = None
    return list(found)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps(value, default=str)
