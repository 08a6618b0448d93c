"""An event loop whose clock jumps to what is next, and a server in memory: hours of waiting take no time."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from airflow_ml_provider.models.kfp import PipelineRun, RunState

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: it moves the loop's clock."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everybody waits, and nothing is to come")
        if not ready:
            self.passed += timeout or 0.0
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; what belongs on a thread is done at once."""

    def __init__(self) -> None:
        self.selector = _JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  (as a thread would)
            future.set_exception(error)
        return future


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run something that waits, without waiting."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


class RunsInMemory:
    """
    What a poller asks, in memory.

    :param ahead_s: How far the engine's clock is ahead of this machine's.
    """

    def __init__(self, ahead_s: float = 0.0) -> None:
        self.ahead_s = ahead_s
        self.rows: dict[str, PipelineRun] = {}
        self.asked: list[str] = []
        self.looked: list[int] = []
        self.page_size = 200
        self.connections = 0
        self.open = 0
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.clock: Callable[[], float] = lambda: 0.0

    @property
    def pages(self) -> int:
        return len(self.asked)

    def start(self, *run_ids: str) -> None:
        self.rows |= {each: PipelineRun(run_id=each, state=RunState.RUNNING) for each in run_ids}

    def end(self, run_id: str, state: str = "SUCCEEDED", report: bool = True) -> None:
        moment = datetime.fromtimestamp(int(self.clock() + self.ahead_s), UTC) if report else None
        self.rows[run_id] = PipelineRun(run_id=run_id, state=RunState(state), finished_at=moment)

    def find(self, run_ids: Iterable[str]) -> dict[str, PipelineRun]:
        asked = list(run_ids)
        self.looked.append(len(asked))
        found = {each: self.rows[each] for each in asked if each in self.rows}
        self._answer("look")
        return found

    def finished_since(self, moment: datetime) -> list[PipelineRun]:
        self._answer("since")
        return [each for each in self.rows.values() if each.finished_at and each.finished_at > moment.replace(microsecond=0)]

    @contextmanager
    def connect(self) -> Iterator[RunsInMemory]:
        self.connections += 1
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error
