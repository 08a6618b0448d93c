"""
The demo: a real Airflow and a real MLflow on this machine, and two nights of retraining through them.

Not part of the wheel. The tests reuse :mod:`demo.stack`; nothing here is imported by the package.
"""
