"""Connections to MLflow that are lost at one place."""

from __future__ import annotations

from itertools import count

from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi

CUT = "the connection is cut here"


class CutApi(MlflowApi):
    """
    A real client whose connection is lost before or after one of its changes.

    :param api: The client that it stands for.
    :param at: Number of the change, from 0.
    :param answered: Whether the server still made that change.
    """

    def __init__(self, api, at, answered):
        super().__init__(api.server, api.settings)
        self.at, self.answered, self.changes = at, answered, count()

    def _json(self, method, url, **request):
        cut = method != "GET" and next(self.changes) == self.at
        if not cut or self.answered:
            answer = super()._json(method, url, **request)
        if cut:
            raise RemoteUnavailableError(CUT)
        return answer
