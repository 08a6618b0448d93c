"""What waits in Airflow's triggerer, without a worker's slot."""
