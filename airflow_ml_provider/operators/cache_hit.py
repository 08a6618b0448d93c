"""What ends the making of a remote job: there is a result of it already."""

from __future__ import annotations

from airflow_ml_provider.models.cache import CacheEntry


class CacheHitError(Exception):
    """
    No remote job is to be made; on its way from where one would be made to the operator, which takes the result.

    :param entry: The earlier result, on record as this step's.
    """

    def __init__(self, entry: CacheEntry) -> None:
        super().__init__(f"the result of run {entry.run_id} stands for this one")
        self.entry = entry
