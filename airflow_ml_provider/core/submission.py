"""
Which remote run a try works with: ids that a crash cannot change, and what to do with what is found under them.

An id is made of the task instance and of its **generation**, never of the try. A generation is ``(clears, renewals)``: Airflow's
``max_tries``, which a clear raises and nothing else does, and the number of times that we ourselves gave up a run and
began another. A crash changes neither, so it finds the run that it lost. See docs/adr/0008-run-ids-of-kfp.md.
"""

from __future__ import annotations

import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airflow_ml_provider.models.kfp import PipelineRun, RunState
from airflow_ml_provider.models.run import StepIdentity

NAMESPACE = uuid.UUID("6f0c8f7e-8a0b-5d0e-9a51-4b1d2f3c7e90")
"""Of our run ids; it must never change, since the runs of yesterday are found by it."""

RetryMode = Literal["resume", "new"]
"""What an Airflow retry does with a run that failed: repeat on the server what failed, or start anew."""

Memory = Literal["nothing", "sent", "started", "stopped"]
"""What is remembered of an id: nothing, a create was sent, it was answered well, we asked for its end."""

Action = Literal["create", "settle", "adopt", "resume", "renew"]
"""
``create``: nothing was ever sent. ``settle``: a create was sent, and its fate is not known. ``adopt``: the run is ours, wait
for it or take its result. ``resume``: ask the server to repeat what failed. ``renew``: leave it, look at the next generation.
"""


class Generation(BaseModel):
    """
    Which of a task instance's runs.

    :param clears: Airflow's ``max_tries``: constant over retries and crashes, raised by every clear of a task that ran.
    :param renewals: Runs of this count of clears that were given up for a new one, from 0.
    """

    model_config = ConfigDict(frozen=True)

    clears: int
    renewals: int = 0

    def next(self) -> Generation:
        """
        Name the one after it.

        :return: The same clears, one renewal more.
        """
        return Generation(clears=self.clears, renewals=self.renewals + 1)


def run_id_of(identity: StepIdentity, generation: Generation) -> str:
    """
    Derive the id of a run; the same on every machine and in every try.

    :param identity: The task instance.
    :param generation: Which of its runs.
    :return: A UUID as text, which the server takes as a run's id.
    """
    return str(uuid.uuid5(NAMESPACE, f"{identity.key}/{generation.clears}/{generation.renewals}"))


def decide(found: PipelineRun | None, memory: Memory, on_retry: RetryMode) -> Action:
    """
    Decide what a try does, before it has sent anything itself.

    :param found: What the server has under the id; None when it says that there is none.
    :param memory: What earlier tries left; ``nothing`` also where Airflow has no place to remember it (before 3.3).
    :param on_retry: What to do with a run that failed.
    :return: The action. A run that was deleted, or that we stopped, is never taken up again.
    """
    if found is None:
        absent: dict[Memory, Action] = {"nothing": "create", "sent": "settle", "started": "renew", "stopped": "renew"}
        return absent[memory]
    if found.state.good:
        return "adopt"
    if memory == "stopped" or found.state in {RunState.CANCELING, RunState.CANCELED}:
        return "renew"
    if found.state is RunState.FAILED:
        return "resume" if on_retry == "resume" else "renew"
    return "adopt"
