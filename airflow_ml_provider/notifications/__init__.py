"""Alerts to people by Slack and e-mail, from whichever process of Airflow notices."""
