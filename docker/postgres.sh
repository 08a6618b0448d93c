#!/bin/sh
# Run once, by the image, when the volume is new: a database and an owner each for Airflow and for MLflow.
# psql reads the passwords from the environment: a command line is for all to read.
set -eu
psql --username postgres --set ON_ERROR_STOP=1 --quiet <<'SQL'
\getenv airflow_password AIRFLOW_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE airflow, mlflow FROM PUBLIC;
SQL
