"""What Airflow tells of tasks and DAG runs; a best effort beside ``airflow-ml reconcile``, never the only way."""
