"""
Make what the MLflow server needs once: a user for Airflow, who is no admin, and the bucket of the artifacts.

Run by the service ``mlflow-setup`` after each start, on Kubernetes by a job of that name after each ``helm upgrade``. What is
there stays; the user's password becomes the one that is given.
"""

import os
from urllib.parse import urlsplit

import boto3
import requests

USER = "airflow"
TIMEOUT_S = 60


def make_user(server: str, admin_password: str, password: str) -> None:
    """Make the user, or give it the password, as MLflow's administrator."""
    user = {"username": USER, "password": password}
    with requests.Session() as session:
        session.auth = ("admin", admin_password)
        answer = session.post(f"{server}/api/2.0/mlflow/users/create", json=user, timeout=TIMEOUT_S)
        if "RESOURCE_ALREADY_EXISTS" in answer.text:
            answer = session.patch(f"{server}/api/2.0/mlflow/users/update-password", json=user, timeout=TIMEOUT_S)
    if not answer.ok:
        raise SystemExit(
            f"MLflow at {server} answered {answer.status_code} when user {USER!r} was to be made: {answer.text[:500]}"
        )
    print(f"user {USER}: can log in with the password that was given")


def make_bucket(destination: str) -> None:
    """Make the bucket, if the artifacts go to one."""
    place = urlsplit(destination)
    if place.scheme != "s3":
        return
    client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)  # None: Amazon's
    if place.netloc not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=place.netloc)
    print(f"bucket {place.netloc}: is there")


make_user(os.environ["MLFLOW_URL"], os.environ["MLFLOW_ADMIN_PASSWORD"], os.environ["MLFLOW_AIRFLOW_PASSWORD"])
make_bucket(os.environ["MLFLOW_ARTIFACTS_DESTINATION"])
