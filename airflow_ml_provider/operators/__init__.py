"""Operators: the only place that knows Airflow's context, XCom and task states."""
