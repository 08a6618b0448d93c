"""
Test your own DAGs without a cluster: a Kubeflow Pipelines server that runs nothing and does what your test tells it.

.. code-block:: python

    import json
    from airflow_ml_provider.testing import FakeKfpServer


    def test_my_dag_waits_for_its_pipeline(monkeypatch):
        with FakeKfpServer() as server:
            server.auto(seconds=0.2)  # every run succeeds after 0.2 s
            monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
            my_dag.test()
            assert [run.state for run in server.runs] == ["SUCCEEDED"]
            assert len(server.workflows) == 1  # it was started once, whatever the API shows


    def test_a_lost_answer_starts_nothing_twice(monkeypatch):
        with FakeKfpServer() as server:
            server.auto(seconds=0.2)
            server.fault("lost-after")  # the next create works, and nobody hears of it
            ...

What it answers, and when, was recorded from a real server; replays of those recordings are part of this package's own tests.
"""

from airflow_ml_provider.testing.kfp_answers import KfpError
from airflow_ml_provider.testing.kfp_server import FakeKfpServer
from airflow_ml_provider.testing.kfp_values import Request, Run, Workflow

__all__ = ["FakeKfpServer", "KfpError", "Request", "Run", "Workflow"]
