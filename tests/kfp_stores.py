"""An object store for pipeline runs in tests: moto's S3 server, and the pipeline whose files lie there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROOT = "minio://mlpipeline/v2/artifacts"
BUCKET = "mlpipeline"
CONNECTION = "moto"
CONNECTIONS = (CONNECTION, "kfp_store")
"""Airflow connections that open it, the one of ``dags/kfp_training.py`` among them."""
READABLE = f"s3://{CONNECTION}@{BUCKET}/v2/artifacts"
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


def _artifact(kind: str) -> dict[str, Any]:
    return {"artifactType": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"}}


def _task(name: str, **more: Any) -> dict[str, Any]:
    return {"componentRef": {"name": f"comp-{name}"}, "taskInfo": {"name": name}, "cachingOptions": {"enableCache": True}, **more}


PIPELINE: dict[str, Any] = {
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
    "pipelineInfo": {"name": "two-steps"},
    "deploymentSpec": {
        "executors": {
            f"exec-{name}": {"container": {"image": "busybox:1.36", "command": ["true"]}} for name in ("prepare", "train")
        }
    },
    "components": {
        "comp-prepare": {
            "executorLabel": "exec-prepare",
            "inputDefinitions": {"parameters": {"rows": {"parameterType": "NUMBER_INTEGER"}}},
            "outputDefinitions": {
                "artifacts": {"data": _artifact("Dataset")},
                "parameters": {"Output": {"parameterType": "STRING"}},
            },
        },
        "comp-train": {
            "executorLabel": "exec-train",
            "inputDefinitions": {
                "artifacts": {"data": _artifact("Dataset")},
                "parameters": {"lr": {"parameterType": "NUMBER_DOUBLE"}},
            },
            "outputDefinitions": {
                "artifacts": {"metrics": _artifact("Metrics"), "model": _artifact("Model"), "report": _artifact("HTML")},
                "parameters": {"Output": {"parameterType": "NUMBER_DOUBLE"}, "epochs": {"parameterType": "NUMBER_INTEGER"}},
            },
        },
    },
    "root": {
        "dag": {
            "outputs": {
                "artifacts": {"best": {"artifactSelectors": [{"outputArtifactKey": "model", "producerSubtask": "train"}]}},
                "parameters": {"loss": {"valueFromParameter": {"outputParameterKey": "Output", "producerSubtask": "train"}}},
            },
            "tasks": {
                "prepare": _task("prepare", inputs={"parameters": {"rows": {"componentInputParameter": "rows"}}}),
                "train": _task(
                    "train",
                    dependentTasks=["prepare"],
                    inputs={
                        "artifacts": {"data": {"taskOutputArtifact": {"outputArtifactKey": "data", "producerTask": "prepare"}}},
                        "parameters": {"lr": {"componentInputParameter": "lr"}},
                    },
                ),
            },
        },
        "inputDefinitions": {
            "parameters": {
                "rows": {"parameterType": "NUMBER_INTEGER", "defaultValue": 10, "isOptional": True},
                "lr": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.1, "isOptional": True},
            }
        },
        "outputDefinitions": {
            "artifacts": {"best": _artifact("Model")},
            "parameters": {"loss": {"parameterType": "NUMBER_DOUBLE"}},
        },
    },
}
"""Two steps, with outputs of every kind, and two of the pipeline itself."""


class Bucket:
    """The bucket of a pipeline server, as its launcher writes to it and as tests look at it."""

    def __init__(self, client: Any, url: str) -> None:
        self.client = client
        self.url = url
        self.away = False

    def write(self, uri: str, content: bytes) -> None:
        """Store one file, as ``FakeKfpServer(store=...)`` asks."""
        self.client.put_object(Bucket=BUCKET, Key=uri.removeprefix(f"minio://{BUCKET}/"), Body=content)

    def files(self) -> Any:
        """A file system as Airflow's connection opens it; it does not answer while the store is ``away``."""
        import s3fs

        bucket = self

        class Files(s3fs.S3FileSystem):
            def find(self, *args: Any, **kwargs: Any) -> Any:
                if bucket.away:
                    raise ConnectionError("connection refused")
                return super().find(*args, **kwargs)

        login = {"key": KEYS["aws_access_key_id"], "secret": KEYS["aws_secret_access_key"]}
        client = {"region_name": KEYS["region_name"]}
        return Files(**login, endpoint_url=self.url, client_kwargs=client, skip_instance_cache=True)

    def listed(self) -> list[str]:
        """Every key."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 on loopback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of botocore and moto themselves
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def bucket_at(url: str) -> Iterator[Bucket]:
    """Make the bucket anew, and the Airflow connection's file system that reads it."""
    import boto3
    import httpx
    from airflow.sdk.io import attach
    from airflow.sdk.io import store as stores

    httpx.post(f"{url}/moto-api/reset").raise_for_status()
    client = boto3.client("s3", endpoint_url=url, **KEYS)
    client.create_bucket(Bucket=BUCKET)
    bucket = Bucket(client, url)
    for each in CONNECTIONS:
        attach("s3", conn_id=each, fs=bucket.files())
    try:
        yield bucket
    finally:
        for each in CONNECTIONS:
            stores._STORE_CACHE.pop(f"s3-{each}", None)
        client.close()
