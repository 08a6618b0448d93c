"""
The cache of a task on Kubeflow Pipelines: what its key is made of, a hit in the place of a run, the result that is kept.

The key is made where a run would be started, and lies beside the task's record, under the run's id: whoever sees the run's end,
in another process or in a later try, keeps the result under the key of what the run was given.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException, redact

from airflow_ml_provider.core.cache_key import InputFact, KeyFacts, check_policy, value_part
from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.cache import Cache, CacheEntry, CachePart, shorten
from airflow_ml_provider.models.kfp_package import PipelinePackage
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.cache_hit import CacheHitError
from airflow_ml_provider.operators.cache_parse import read_policy
from airflow_ml_provider.operators.kfp_inputs import as_given, note_inputs

if TYPE_CHECKING:
    from airflow_ml_provider.jobs.kfp_submission import Submission
    from airflow_ml_provider.operators.caching import StepCache
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

FOLDER = "kfp-cache"
"""Of a nested run: keys of the pipeline runs that were started for it."""
XCOM, LINKS = "kfp", "links"
"""Keys of an entry's ``extra``: the XCom without its artifacts, the run's own id in it; Airflow's links to the run."""
SERVER, HERE = "a server", "this machine"
"""Where a pipeline runs: the images of its components count on a server, and not on the worker."""

Look = Callable[[PipelinePackage, Mapping[str, Any]], None]


class RunsCachedPipeline(Protocol):
    """What is read of the operator, and what it is told."""

    cache: Cache | None
    cached_from_url: str
    kfp_links: dict[str, str]
    arguments: Mapping[str, Any] | None

    @property
    def signature(self) -> StepSignature:
        """What the task declares of the run's outputs."""
        ...


def read_run_cache(task_id: str, cache: object, arguments: object) -> Cache | None:
    """
    Read the argument ``cache`` of a task, and check that it fits.

    :param task_id: The task.
    :param cache: True or a policy; False or None for no cache.
    :param arguments: What was given for the pipeline's parameters; their names may be in ``ignore``.
    :return: The policy; None for no cache.
    :raises ConfigError: it could never work; a retry never helps.
    """
    policy = read_policy(task_id, cache)
    if policy is not None:
        names = arguments if isinstance(arguments, Mapping) else policy.ignore if arguments is not None else ()
        try:
            check_policy(policy, (), names, elsewhere=True)
        except ConfigError as error:
            raise ConfigError(f"task {task_id!r}: {error}") from error
    return policy


class RunCache:
    """
    The cache of one try of a task; does nothing where the task has none.

    :param operator: The task.
    :param session: Its record, which holds the index; None where nothing is recorded.
    :param context: Airflow's context.
    :raises AirflowFailException: there is no record, and the policy calls that an error; a retry never helps, and there is none.
    """

    def __init__(self, operator: RunsCachedPipeline, session: StepSession | None, context: Mapping[str, Any]) -> None:
        self._operator = operator
        self._session = session
        self._context = context
        self._cache: StepCache | None = None
        self._looked = False
        if operator.cache is not None and session is None:
            said = "cache is set, and there is no MLflow connection, which keeps the results: add 'mlflow_default'."
            if operator.cache.unreadable == "error":
                raise AirflowFailException(said)
            log.warning("Cache: miss. %s", said)

    def before(self, submission: Submission) -> Look | None:
        """
        Say what is asked before a create.

        :param submission: Starts the run.
        :return: :meth:`look`; None where a try before has sent a create of which nothing is known: what it may have started is
            looked for, and nothing else.
        """
        run_id = submission.run_id
        return None if run_id is not None and submission.notes.of(run_id) == "sent" else self.look

    def look(self, package: PipelinePackage, arguments: Mapping[str, Any], where: str = SERVER) -> None:
        """
        Look for an earlier result before a run is started.

        :param package: The pipeline.
        :param arguments: Its arguments, checked.
        :param where: Where it would run.
        :raises CacheHitError: there is one; no run is to be started.
        :raises ConfigError: no key can be made; a retry never helps.
        :raises RemoteUnavailableError: the index could not be read, and the policy calls that an error; a retry is safe.
        """
        from airflow_ml_provider.operators.caching import open_cache

        session, self._looked = self._session, True
        if session is None:
            return
        self._cache = open_cache(self._operator, session, self._context)
        if self._cache is None:
            return
        given = as_given(arguments, self._operator.arguments)
        hit = self._cache.look(run_facts(session, self._operator.signature, self._cache.policy, package, given, where))
        if hit is not None:
            session.log_params(arguments)
            note_inputs(session, given)
            raise CacheHitError(hit)

    def note(self, submission: Submission) -> None:
        """
        Write down the key of a run that is about to be started; a failure costs the result its place in the cache, and no more.

        Where a try before has written down another key for the same run, it is not known whose create makes it: no key is kept.

        :param submission: Starts the run.
        """
        session = self._session
        if self._operator.cache is None or session is None:
            return
        run, run_id = session.record.run, str(submission.run_id)
        try:
            kept = self._cache.to_json() if self._cache is not None else None
            if not self._is_only_key(session, run_id, kept):
                log.info("Cache: the result of run %s is not kept: an earlier try may have started it with another key.", run_id)
                kept, self._looked, self._cache = {}, True, None
            if kept is not None:
                with tempfile.TemporaryDirectory(dir=session.scratch) as folder:
                    local = Path(folder) / "key.json"
                    local.write_text(json.dumps(kept))
                    session.recorder.store.store(run.artifact_uri, f"{FOLDER}/{run_id}.json", local)
            # By now, as who ends the task may be another process, which has not looked.
            session.recorder.tree.set_tags(run.run_id, _cache_tags(session))
        except AirflowMLError as error:
            log.warning("Cache: the key of run %s could not be kept, so its result may not be either: %s", run_id, error)

    def keep(self, answer: Mapping[str, Any]) -> None:
        """
        Keep the result of a run that has ended well.

        :param answer: What the task returns, before its record is closed.
        """
        session = self._session
        if self._operator.cache is None or session is None:
            return
        cache = self._cache if self._looked else self._noted(session, self._operator.cache, str(answer.get("run_id")))
        if cache is not None:
            # Its artifacts are told when the record is closed, and are the entry's own.
            cache.keep(extra={XCOM: dict(answer), LINKS: dict(self._operator.kfp_links)})

    def or_run(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """
        Run, and take what is returned, unless there is an earlier result.

        :param run: Starts a run, or takes one up, and waits for its end; asks :meth:`look` on its way.
        :return: Keys of the run and of its outputs, to be completed when the record is closed: on a hit those of the earlier one.
        """
        try:
            return run()
        except CacheHitError as hit:
            return self._answer(hit.entry)

    def _answer(self, entry: CacheEntry) -> dict[str, Any]:
        told: dict[str, Any] = dict(entry.extra.get(XCOM) or {})
        self._operator.kfp_links = dict(entry.extra.get(LINKS) or {})
        log.info("No run is started: the result is that of KFP run %s, %s", told.get("run_id"), told.get("url"))
        return told

    def _is_only_key(self, session: StepSession, run_id: str, kept: Mapping[str, Any] | None) -> bool:
        """Whether no try before has sent a create of this run with another key, as far as that can be told."""
        if session.record.attempt.try_number == 1:
            return True
        try:
            before = _read_noted(session, run_id)
        except RemoteNotFoundError:
            return True
        except ValueError:
            return False
        return self._looked and kept is not None and before == json.loads(json.dumps(kept))

    def _noted(self, session: StepSession, policy: Cache, run_id: str) -> StepCache | None:
        """Read the key that was written down when a run was started."""
        from airflow_ml_provider.operators.caching import StepCache

        try:
            return StepCache.from_json(policy, session, _read_noted(session, run_id))
        except RemoteNotFoundError:
            log.info("Cache: the result of run %s is not kept: it was started without a cache.", run_id)
        except (AirflowMLError, ValueError, TypeError, AttributeError, KeyError) as error:
            log.warning("Cache: the result of run %s is not kept, as its key cannot be read: %s", run_id, redact(str(error)))
        return None


def _read_noted(session: StepSession, run_id: str) -> Any:
    from airflow_ml_provider.tracking.places import place_for

    with tempfile.TemporaryDirectory(dir=session.scratch) as folder:
        local = Path(folder) / "key.json"
        place_for(session.api, session.record.run.artifact_uri, of_mlflow=True).read(f"{FOLDER}/{run_id}.json", local)
        return json.loads(local.read_text())


def run_facts(
    session: StepSession,
    signature: StepSignature,
    policy: Cache,
    package: PipelinePackage,
    arguments: Mapping[str, Any],
    where: str,
) -> KeyFacts:
    """
    Say what the result of a pipeline run depends on.

    An argument that is a reference to an artifact counts by its digest. Server, namespace, service account, pipeline root and
    plugins do not count.

    :param session: The try.
    :param signature: What the task declares of the run's outputs.
    :param policy: Says what is part of the key.
    :param package: The pipeline: a registered one and a package of the same content are the same.
    :param arguments: Its arguments, checked.
    :param where: Where it would run.
    :return: The facts.
    :raises ArtifactError: the metadata of an artifact is gone; a retry does not help.
    :raises RemoteUnavailableError: a store did not answer within the patience; a retry is safe.
    """
    refs = {name: found for name, value in arguments.items() if (found := _refs_in(value))}
    inputs: dict[str, Any] = {}
    for name, found in refs.items():
        if policy.inputs and name not in policy.ignore:
            facts = [_input_fact(session, policy, each) for each in found]
            inputs[name] = facts if isinstance(arguments[name], list) else facts[0]
    parts = {"pipeline runner": value_part(where, "where it runs")}
    if policy.code:
        parts["pipeline"] = CachePart(digest=package.digest, shown=shorten(f"{package.name} {package.digest[:16]}"))
    declared = {name: _type_of(each) for name, each in signature.outputs.items()}
    parts["outputs declared"] = value_part(declared, "outputs")
    return KeyFacts(
        inputs=inputs,
        parameters={name: value for name, value in arguments.items() if name not in refs},
        # Those that a result must have; a list may be empty, and a value lies in the XCom.
        outputs={name: _type_of(each) for name, each in signature.outputs.items() if each.artifact and not each.many},
        parts=parts,
    )


def _refs_in(value: Any) -> list[ArtifactRef]:
    """Read the references that an argument is, if it is nothing else and each has a digest."""
    some = value if isinstance(value, list) else [value]
    if not some or not all(ArtifactRef.looks_like(each) and each.get("sha256") for each in some):
        return []
    try:
        return [ArtifactRef.from_json(each) for each in some]
    except ConfigError:  # it only looks like one
        return []


def _input_fact(session: StepSession, policy: Cache, ref: ArtifactRef) -> InputFact:
    from airflow_ml_provider.tracking.artifacts import is_directory

    metadata, directory = None, bool(is_directory(ref))
    if policy.metadata and ref.type != "Metrics":  # whose metadata is its bytes
        with tempfile.TemporaryDirectory(dir=session.scratch) as folder:
            read = partial(session.recorder.store.read_metadata, ref, Path(folder) / "metadata.json")
            metadata = patiently(f"read the metadata of {ref.name}", read, session.settings.patience_s)
    return InputFact(ref, "" if directory else PurePosixPath(ref.uri).suffix, directory, metadata)


def _type_of(each: StepParameter) -> str:
    """Write the type of an output as its author does."""
    if each.artifact is None:
        return getattr(each.annotation, "__name__", "") if isinstance(each.annotation, type) else str(each.annotation)
    return f"list[{each.artifact.type_name}]" if each.many else each.artifact.type_name


def _cache_tags(session: StepSession) -> dict[str, str]:
    from airflow_ml_provider.tracking.cache_index import CACHE, CACHE_KEY, CACHED_FROM

    return {key: session.record.tags[key] for key in (CACHE, CACHE_KEY, CACHED_FROM) if key in session.record.tags}
