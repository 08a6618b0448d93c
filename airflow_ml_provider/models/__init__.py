"""Frozen values that cross a process or a layer; no I/O and neither Airflow nor a client."""
