"""The command ``airflow-ml``, and the same as ``airflow ml``."""
