"""
What is noted of a task's runs, over crashes and retries, because the server cannot say it.

It is kept in Airflow's task state store, which a clear leaves as it is; before Airflow 3.3 it lasts for one try.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import cast, get_args

from airflow_ml_provider._compat import ForThisTry, StateStore
from airflow_ml_provider.core.submission import Generation, Memory
from airflow_ml_provider.models.kfp import PipelineRun

log = logging.getLogger(__name__)

PREFIX = "kfp_run."
"""Before a run's id: what became of it."""
CURRENT_KEY = PREFIX + "current"
"""Under it stands the run that the task worked with last."""
GENERATION_KEY = PREFIX + "generation"
"""Under it stands which of its runs the task has come to."""
LEFT_KEY = PREFIX + "left"
"""Under it stand the runs that were given up before they had ended, and have a carrier."""
RESUMED_KEY = PREFIX + "resumed"
"""Under it stands when the run had ended that the server was asked to repeat."""


class RunNotes:
    """
    The notes of one task instance.

    :param store: Airflow's task state store, or what stands in its place.
    """

    def __init__(self, store: StateStore) -> None:
        self.store = store

    @property
    def lasting(self) -> bool:
        """Whether the next try can read them."""
        return not isinstance(self.store, ForThisTry)

    @property
    def current(self) -> str | None:
        """The run that the task worked with last, None for none."""
        return cast("str | None", self.store.get(CURRENT_KEY))

    def set_current(self, run_id: str) -> None:
        """
        Note which run the task works with.

        :param run_id: Its id.
        """
        self.store.set(CURRENT_KEY, run_id)

    def of(self, run_id: str) -> Memory:
        """
        Read what became of a run.

        :param run_id: Its id.
        :return: The word; ``nothing`` for one that is not known here.
        """
        word = self.store.get(PREFIX + run_id, "nothing")
        return cast("Memory", word) if word in get_args(Memory) else "nothing"

    def set(self, run_id: str, word: Memory) -> None:
        """
        Note what became of a run.

        :param run_id: Its id.
        :param word: What became of it.
        """
        self.store.set(PREFIX + run_id, word)

    def generation(self, clears: int) -> Generation | None:
        """
        Read which of its runs the task has come to.

        :param clears: Airflow's ``max_tries`` now; what was noted before a clear does not count.
        :return: The generation; None when no run was given up, or nobody could note it.
        """
        noted, _, renewals = str(self.store.get(GENERATION_KEY) or "").partition("/")
        if noted != str(clears) or not renewals.isdecimal():
            return None
        return Generation(clears=clears, renewals=int(renewals))

    def set_generation(self, generation: Generation) -> None:
        """
        Note which of its runs the task has come to.

        :param generation: The generation.
        """
        self.store.set(GENERATION_KEY, f"{generation.clears}/{generation.renewals}")

    @property
    def left(self) -> list[str]:
        """The runs that were given up before they had ended, and have a carrier."""
        return str(self.store.get(LEFT_KEY) or "").split()

    def set_left(self, run_ids: list[str]) -> None:
        """
        Note which runs were given up before they had ended, and have a carrier.

        :param run_ids: Their ids; empty for none.
        """
        self.store.set(LEFT_KEY, " ".join(dict.fromkeys(run_ids)))

    @property
    def resumed(self) -> str:
        """When the run had ended that the server was asked to repeat; empty for none."""
        return str(self.store.get(RESUMED_KEY) or "")

    def set_resumed(self, finished_at: datetime | None) -> None:
        """
        Note the end of a run that the server is asked to repeat.

        :param finished_at: When it had ended.
        """
        self.store.set(RESUMED_KEY, finished_at.isoformat() if finished_at else "")

    def warn_of_a_stranger(self, found: PipelineRun | None) -> None:
        """
        Say where notes that last know nothing of a run that is there, as each create is noted before it is sent.

        :param found: The run that a try has come to, None for none.
        """
        if found is None or not self.lasting or self.current or self.of(found.run_id) != "nothing":
            return
        log.warning(
            "Run %s was made at %s, and now, at %s, Airflow's task state store has no note of it, though one is written before "
            "every create. Most likely the DAG run was deleted and made again under its id, and this is the run of the one "
            "before. It is taken up all the same. If that is wrong, clear the task: it starts a new run.",
            found.run_id,
            found.created_at,
            datetime.now(UTC).replace(microsecond=0),
        )
