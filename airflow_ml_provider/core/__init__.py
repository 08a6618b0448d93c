"""Pure decisions: values in, values out; time is an argument; neither Airflow nor a client is imported."""
