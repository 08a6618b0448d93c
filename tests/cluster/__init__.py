"""Steps in pods on a real Kubernetes, through a real Airflow scheduler."""
