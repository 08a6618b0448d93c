"""Decorators that turn typed functions into Airflow tasks."""
