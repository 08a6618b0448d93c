"""One client of an MLflow server for all triggers of an event loop; it blocks, so it is used on threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from airflow_ml_provider.triggers.threads import in_thread

if TYPE_CHECKING:
    from airflow_ml_provider.hooks.mlflow import MlflowApi

T = TypeVar("T")

AT_ONCE = 4
"""Requests to one server that are under way at the same time: so many threads, at most, wait for it."""


class MlflowLine:
    """
    A client that is opened when it is first used and closed with its last user.

    After an error the connection is read again, as somebody may have mended it.

    :param conn_id: Connection of the server.
    """

    _all: ClassVar[dict[tuple[int, str], MlflowLine]] = {}

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.loop = asyncio.get_running_loop()
        self._users = 0
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._api: MlflowApi | None = None
        self._busy: dict[MlflowApi, int] = {}

    @classmethod
    def of(cls, conn_id: str) -> MlflowLine:
        """
        Find the client of the running event loop, or make it.

        :param conn_id: Connection of the server.
        :return: The client, to be used in an ``async with``.
        """
        cls._all = {key: each for key, each in cls._all.items() if not each.loop.is_closed()}
        return cls._all.setdefault((id(asyncio.get_running_loop()), conn_id), cls(conn_id))

    async def __aenter__(self) -> Self:
        self._users += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        self._users -= 1
        if not self._users:
            self._all.pop((id(self.loop), self.conn_id), None)
            self._retire()

    async def ask(self, call: Callable[[MlflowApi], T]) -> T:
        """
        Ask the server something.

        :param call: What blocks; given a client that sends each request once.
        :return: What it returned.
        :raises ConfigError: as the call, or the connection is missing or unusable.
        :raises RemoteUnavailableError: as the call.
        """
        async with self._turns:
            return await in_thread(partial(self._ask, call))

    def _ask(self, call: Callable[[MlflowApi], T]) -> T:
        api = self._taken()
        try:
            return call(api)
        except BaseException:
            with self._lock:
                self._api = None if self._api is api else self._api
            raise
        finally:
            self._put_back(api)

    def _taken(self) -> MlflowApi:
        from airflow_ml_provider.config import load_settings
        from airflow_ml_provider.hooks.mlflow import MlflowHook

        with self._lock:
            if self._api is None:  # asks Airflow's supervisor, which is why it is on a thread too
                settings = load_settings().model_copy(update={"http_retries": 0})  # who waits knows when to ask again
                self._api = MlflowHook(self.conn_id).api(settings)
            self._busy[self._api] = self._busy.get(self._api, 0) + 1
            return self._api

    def _put_back(self, api: MlflowApi) -> None:
        with self._lock:
            self._busy[api] -= 1
            if self._busy[api] or (self._api is api and self._users):
                return
            del self._busy[api]
            self._api = None if self._api is api else self._api
        api.close()

    def _retire(self) -> None:
        """Close what nobody uses; a thread that is still at work closes its own when it is done."""
        with self._lock:
            idle = [each for each, number in self._busy.items() if not number]
            self._busy = {each: number for each, number in self._busy.items() if number}
            self._api = None
        for each in idle:
            each.close()
