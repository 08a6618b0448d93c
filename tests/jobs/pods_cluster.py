"""What the tests of pods share: a namespace of the real cluster, pods of busybox, and a server that answers what it is told."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_ml_provider.hooks.kubernetes import ConflictError, KubernetesAccess
from airflow_ml_provider.jobs.pods import PodJobs

NAMESPACE = os.environ.get("AIRFLOW_ML_TEST_NAMESPACE", "d1-test")
on_cluster = pytest.mark.cluster


def access() -> KubernetesAccess:
    return KubernetesAccess(conn_id=None, config_file=os.environ["KUBECONFIG"])


@contextmanager
def cluster_pods() -> Iterator[PodJobs]:
    """The pods of the tests' own namespace, which is made if it is missing."""
    jobs = PodJobs(access().client(), NAMESPACE)
    with suppress(ConflictError):
        jobs.api.json("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    with counted(jobs):
        yield jobs
    jobs.close()


@contextmanager
def counted(jobs: PodJobs) -> Iterator[list[str]]:
    """Count the requests, below everything that could repeat one."""
    pool = jobs.api.client.rest_client.pool_manager
    sent: list[str] = []
    before = pool.urlopen

    def urlopen(method: str, url: str, *args: Any, **options: Any) -> Any:
        sent.append(f"{method} {urlsplit(url).path}")
        return before(method, url, *args, **options)

    pool.urlopen = urlopen
    jobs.sent = sent  # type: ignore[attr-defined]
    yield sent
    pool.urlopen = before


def busybox(script: str, *, name: str = "x", labels: Mapping[str, str] | None = None, grace_s: int = 1, **container: Any) -> Any:
    """The JSON of a pod with one container."""
    base = {"name": "base", "image": "localhost/base:1", "command": ["sh", "-c", script]} | container
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": grace_s, "containers": [base]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels or {})}, "spec": spec}


def evict(jobs: PodJobs, name: str) -> None:
    """Have a pod evicted, as a drain of its node does."""
    path = f"/api/v1/namespaces/{jobs.namespace}/pods/{name}/eviction"
    jobs.api.json("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}})


def until(done: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """Wait for something to be true; give it."""
    end = time.monotonic() + limit_s
    while not (found := done()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


class Answers:
    """An API server that gives one prepared answer after the other; the last one again and again."""

    def __init__(self) -> None:
        self.prepared: list[Any] = []
        self.asked: list[tuple[str, str, dict[str, list[str]], Any]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                url = urlsplit(self.path)
                owner.asked.append((self.command, url.path, parse_qs(url.query), body))
                given = owner.prepared.pop(0) if len(owner.prepared) > 1 else owner.prepared[0]
                status, content = given() if callable(given) else given
                if status == 0:
                    self.close_connection = True
                    return
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815  (http.server's names)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has not waited
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def jobs(self, timeout_s: float = 5.0) -> PodJobs:
        from kubernetes.client import ApiClient, Configuration, CoreV1Api

        configuration = Configuration(host=self.url)
        configuration.api_key = {"authorization": "Bearer t0ken"}
        return PodJobs(CoreV1Api(ApiClient(configuration=configuration)), "n", timeout_s)

    def __enter__(self) -> Answers:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def status(code: int, message: str, reason: str = "") -> tuple[int, dict[str, Any]]:
    """An error as Kubernetes words it."""
    return code, {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
