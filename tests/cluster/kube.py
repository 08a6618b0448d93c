"""The Kubernetes of KUBECONFIG: a namespace of these tests' own, everything that was ever in it, and the faults."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from tests.cluster.gates import relayed
from tests.site import until

IMAGE = os.environ.get("CLUSTER_IMAGE", "localhost/python:3.11")
SMALL_IMAGE = os.environ.get("CLUSTER_SMALL_IMAGE", "localhost/base:1")
FAULT = os.environ.get("CLUSTER_FAULT", "")
EXPOSE = os.environ.get("CLUSTER_EXPOSE", "")
GPUS = os.environ.get("CLUSTER_GPUS", "")
ENOUGH = 32
"""GPUs of a node that has room for everything here."""
OURS = "airflow-ml/managed=true"
Json = dict[str, Any]


@dataclass
class Seen:
    """
    An object that was there.

    :param kind: ``pods`` or ``secrets``.
    :param last: Its newest JSON.
    :param made_at: When it was first seen, of ``time.monotonic``.
    :param over_at: When nothing of it ran any more.
    :param gone_at: When it was gone.
    """

    kind: str
    last: Json
    made_at: float
    over_at: float | None = None
    gone_at: float | None = None

    @property
    def name(self) -> str:
        return str(self.last["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.last["metadata"].get("labels") or {})


@dataclass
class Watcher:
    """
    Writes down every pod and every Secret of ours that was ever in a namespace.

    :param core: Client of its own.
    :param namespace: The namespace.
    """

    core: Any
    namespace: str
    seen: dict[str, Seen] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        threads = [threading.Thread(target=self._follow, args=(kind,), daemon=True) for kind in ("pods", "secrets")]
        for each in threads:
            each.start()
        try:
            yield self
        finally:
            self.ended.set()
            for each in threads:
                each.join(15)

    def pods(self, dag_id: str, task_id: str, map_index: int = -1) -> list[Seen]:
        """Every pod that a task has ever had, in the order in which they were made."""
        wanted = {"dag_id": dag_id, "task_id": task_id} | ({"map_index": str(map_index)} if map_index >= 0 else {})
        found = [each for each in list(self.seen.values()) if each.kind == "pods" and wanted.items() <= each.labels.items()]
        return sorted(found, key=lambda each: each.made_at)

    def _follow(self, kind: str) -> None:
        """List, and then follow what changes: a pod that lives for a moment only is seen too."""
        while not self.ended.is_set():
            with suppress(Exception):  # the API server is away: that is one of the tests
                version = self._list(kind)
                self._stream(kind, version)
            self.ended.wait(0.2)

    def _ask(self, kind: str, **query: Any) -> Any:
        listing = {"pods": self.core.list_namespaced_pod, "secrets": self.core.list_namespaced_secret}[kind]
        return listing(self.namespace, label_selector=OURS, _preload_content=False, **query)

    def _list(self, kind: str) -> str:
        answer = json.loads(self._ask(kind, _request_timeout=5).data)
        for each in answer["items"]:
            self._note(kind, "ADDED", each)
        there = {each["metadata"]["uid"] for each in answer["items"]}
        for uid, each in list(self.seen.items()):
            if each.kind == kind and uid not in there and each.gone_at is None:
                each.gone_at = time.monotonic()
        return str(answer["metadata"]["resourceVersion"])

    def _stream(self, kind: str, version: str) -> None:
        answer = self._ask(kind, watch=True, resource_version=version, timeout_seconds=10, _request_timeout=15)
        with answer:
            rest = b""
            for piece in answer.stream(None):
                *lines, rest = (rest + piece).split(b"\n")
                for event in map(json.loads, filter(None, lines)):
                    if event["type"] == "ERROR":
                        return
                    self._note(kind, event["type"], event["object"])

    def _note(self, kind: str, event: str, found: Json) -> None:
        now = time.monotonic()
        found.pop("data", None)
        seen = self.seen.setdefault(found["metadata"]["uid"], Seen(kind, found, now))
        seen.last = found
        if seen.over_at is None and (found.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            seen.over_at = now
        if event == "DELETED" and seen.gone_at is None:
            seen.gone_at = now


@dataclass
class Kube:
    """
    A cluster and a namespace in it.

    :param core: Client.
    :param namespace: The namespace.
    :param watcher: What was ever in it.
    :param opened: Ports that were opened for pods.
    :param offered: Resources that the node was made to offer.
    :param spare: GPUs beyond those that are enough, one more at each turn.
    """

    core: Any
    namespace: str
    watcher: Watcher
    opened: ExitStack = field(default_factory=ExitStack)
    offered: dict[str, None] = field(default_factory=dict)
    spare: Iterator[int] = field(default_factory=count)

    @property
    def node(self) -> str:
        return str(self.core.list_node().items[0].metadata.name)

    def expose(self, port: int) -> str:
        """Let pods reach a port of this machine; give the address."""
        if EXPOSE:
            return subprocess.run([EXPOSE, str(port)], capture_output=True, text=True, check=True).stdout.strip()
        addresses = self.core.list_node().items[0].status.addresses
        node = next(each.address for each in addresses if each.type == "InternalIP")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: asks for the way there
            probe.connect((node, 9))
            own = str(probe.getsockname()[0])
        return str(self.opened.enter_context(relayed(port, own)))

    def fault(self, *words: str) -> None:
        done = subprocess.run([FAULT, *words], capture_output=True, text=True, check=False, timeout=120)
        # Kubernetes itself evicts, as the command would have it do, from a node that was away a moment ago.
        assert done.returncode == 0 or (words == ("lose", "node") and self.evicts()), f"{words}: {done.stdout}{done.stderr}"

    def evicts(self) -> bool:
        """Whether the node's pods are told to leave it."""
        taints = self.core.read_node(self.node).spec.taints or ()
        return ("node.kubernetes.io/unreachable", "NoExecute") in {(each.key, each.effect) for each in taints}

    def gpus(self, number: int) -> None:
        """Give the node so many pretend GPUs."""
        subprocess.run([GPUS, str(number)], capture_output=True, text=True, check=True, timeout=60)

    def gpus_now(self) -> int:
        return int((self.core.read_node(self.node).status.allocatable or {}).get("nvidia.com/gpu", "0"))

    def offer(self, resources: Mapping[str, str | None]) -> None:
        """Let the node offer resources of our own invention, which the scheduler counts as it counts GPUs."""
        self.core.patch_node_status(self.node, {"status": {"capacity": resources, "allocatable": resources}})
        self.offered |= dict.fromkeys(resources)

    def delete(self, name: str, grace_s: int | None = None) -> None:
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=grace_s)

    def evict(self, name: str) -> None:
        body = {"metadata": {"name": name, "namespace": self.namespace}}
        self.core.create_namespaced_pod_eviction(name, self.namespace, body)

    def ration(self, resource: str) -> None:
        """Allow none of a resource in the namespace."""
        quota = {"metadata": {"name": _slug(resource)}, "spec": {"hard": {f"requests.{resource}": "0"}}}
        self.core.create_namespaced_resource_quota(self.namespace, quota)

    def allow(self, resource: str) -> None:
        self.core.delete_namespaced_resource_quota(_slug(resource), self.namespace)

    def preempt(self, resource: str) -> str:
        """Make an important pod that needs a resource which another one holds; give its name."""
        amounts = {resource: "1"}
        container = {"name": "base", "image": SMALL_IMAGE, "command": ["sh", "-c", "exit 0"]}
        container |= {"imagePullPolicy": "IfNotPresent", "resources": {"requests": amounts, "limits": amounts}}
        spec = {"restartPolicy": "Never", "priorityClassName": important(self.namespace), "containers": [container]}
        name = f"important-{_slug(resource)}"
        self.core.create_namespaced_pod(self.namespace, {"metadata": {"name": name}, "spec": spec})
        return name

    def phase(self, name: str) -> str:
        return str(self.core.read_namespaced_pod(name, self.namespace).status.phase)

    def ready(self) -> bool:
        with suppress(Exception):
            node = self.core.read_node(self.node, _request_timeout=5)
            status = next(each.status for each in node.status.conditions if each.type == "Ready")
            return status == "True" and not any(each.key == "node.kubernetes.io/unreachable" for each in node.spec.taints or ())
        return False

    def repaired(self) -> None:
        until("a node that is ready", self.ready, 120)


def _slug(resource: str) -> str:
    return resource.partition("/")[2]


def needs(*commands: tuple[str, str]) -> None:
    """Skip what needs a command that nobody gave."""
    for name, given in commands:
        if not given:
            pytest.skip(f"needs {name}, a command that this Kubernetes has none for")


def _clients() -> Any:
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(client_configuration=settings)
    settings.retries = False  # the watcher goes on by itself, and so do the tests
    return client.CoreV1Api(client.ApiClient(settings))


def important(namespace: str) -> str:
    """Name the priority of pods that push others out; priorities are of a whole cluster, which may have more such namespaces."""
    return f"{namespace}-important"


@contextmanager
def kubernetes(namespace: str) -> Iterator[Kube]:
    """Open the cluster and make the namespace; in the end both it and all that is in it are deleted."""
    from kubernetes import client

    core, eyes = _clients(), _clients()
    scheduling = client.SchedulingV1Api(core.api_client)
    core.create_namespace({"metadata": {"name": namespace}})
    scheduling.create_priority_class({"metadata": {"name": important(namespace)}, "value": 1000, "description": "tests"})
    until("the namespace's account", lambda: core.list_namespaced_service_account(namespace).items, 60)
    try:
        with Watcher(eyes, namespace).watching() as watcher:
            cluster = Kube(core, namespace, watcher)
            with cluster.opened:
                yield cluster
            cluster.offer(cluster.offered)
    finally:
        scheduling.delete_priority_class(important(namespace))
        core.delete_namespace(namespace)
        for each in (core, eyes):
            each.api_client.close()
