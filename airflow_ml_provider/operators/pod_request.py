"""The context of a step in a pod: what it reads and where, what it writes and where to, where MLflow is, and as whom."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepContext, StepFunction, StepInput, StepMlflow, StepOutput
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import OpenRun, StepIdentity
from airflow_ml_provider.operators.pod_checks import check_parameters
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking.artifacts import ArtifactStore, is_directory
from airflow_ml_provider.tracking.pod_places import ContainerPlaces
from airflow_ml_provider.tracking.pod_record import MANIFEST, StepPlan
from airflow_ml_provider.tracking.record import MODEL_TYPES

CREDENTIALS = "/var/run/airflow-ml/mlflow"
"""Where the container finds the login of the MLflow server, as files."""


@dataclass(frozen=True)
class StepRequest:
    """
    What a step is asked to do, templates and references resolved.

    :param identity: Whose step it is.
    :param plan: What is on record of it.
    :param refs: Per input what it reads, in the order of the plan's ``inputs``.
    :param many: Inputs that are lists.
    :param parameters: JSON value per name.
    :param function: Function to call; None where the container has a program of its own.
    :param clears: Airflow's ``max_tries``: checkpoints of before a clear are no business of the run after it.
    :param patience_s: Seconds that the container waits for a server that is away.
    :param grace_s: Seconds that it has when it is told to stop.
    """

    identity: StepIdentity
    plan: StepPlan
    refs: Mapping[str, Sequence[ArtifactRef]] = field(default_factory=dict)
    many: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    function: StepFunction | None = None
    clears: int = 0
    patience_s: float = 300.0
    grace_s: float = 30.0


def read_refs(session: StepSession, signature: StepSignature, given: Mapping[str, Any]) -> dict[str, list[ArtifactRef]]:
    """
    Resolve what came for the inputs, and put it on record.

    :param session: The try.
    :param signature: What the step declares.
    :param given: Reference, URI or a list of these per input; an optional one that is not given is not read.
    :return: References per input, each naming bytes; none for an optional one that is missing.
    :raises ConfigError: it is not what is declared; a retry never helps.
    :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
    """
    return {
        name: [] if each.optional and name not in given else session.read_refs(each, given.get(name))
        for name, each in signature.inputs.items()
    }


def build_context(
    store: ArtifactStore, run: OpenRun, request: StepRequest, mlflow: StepMlflow, options: PodOptions
) -> StepContext:
    """
    Write everything that a container is told.

    :param store: Artifacts of the MLflow server.
    :param run: Nested run of the step.
    :param request: What it is asked to do.
    :param mlflow: The server, as the container reaches it.
    :param options: The rest.
    :return: The context.
    :raises ConfigError: the container cannot reach a place; a retry never helps.
    """
    places = ContainerPlaces(store, options.image_has, reaches_mlflow=bool(mlflow.url))
    number = request.plan.try_number
    return StepContext(
        step=request.identity.label,
        try_number=number,
        mlflow=mlflow,
        inputs={name: _inputs(places, name, request, options.folder) for name in request.refs},
        many=list(request.many),
        outputs={
            name: StepOutput(
                type=each.type,
                path=f"{options.folder}/outputs/{name}",
                place=places.of_output(each.root),
                flat=each.type in MODEL_TYPES,
            )
            for name, each in request.plan.outputs.items()
        },
        parameters=dict(request.parameters),
        folder=options.folder,
        manifest=places.of_root(run.artifact_uri, f"try-{number}/{MANIFEST}"),
        metadata=places.of_root(run.artifact_uri, f"try-{number}"),
        checkpoints=places.of_root(run.artifact_uri, f"checkpoints/{request.clears}") if options.checkpoints else None,
        function=request.function,
        patience_s=request.patience_s,
        grace_s=request.grace_s,
    )


def dump_context(context: StepContext) -> str:
    """
    Write a context as the value of its environment variable.

    :param context: The context.
    :return: JSON without what is a default.
    :raises ConfigError: a parameter is not plain JSON; a retry never helps.
    """
    check_parameters(context.step, context.parameters)
    plain = {"version": context.version, **context.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


def container_mlflow(server: MlflowServer, run: OpenRun, options: PodOptions) -> StepMlflow:
    """
    Say how a container reaches MLflow, and as whom.

    :param server: The server as the worker knows it.
    :param run: Nested run of the step.
    :param options: ``mlflow_url``, and where the login comes from.
    :return: The server as the container reaches it.
    :raises ConfigError: the address is the worker's own machine, or the server wants a login and the pod is given none.
    """
    told = options.mlflow_url or server.pod_url
    url = (told or server.url).rstrip("/")
    if not told and _is_loopback(url):
        raise ConfigError(
            f"connection {server.conn_id!r} names MLflow at {url}, which in a pod is the pod itself. Say where pods reach it: "
            '"pod_url" in the connection\'s extra, or options=PodOptions(mlflow_url=...).'
        )
    mounted = options.mlflow_secret or options.mlflow_token_audience or options.copy_credentials
    if (server.username or server.password or server.token_file) and not mounted and not told:
        raise ConfigError(
            f"connection {server.conn_id!r} has a login, and nothing says how the pod gets it. Give PodOptions(...) with "
            "mlflow_secret= (an existing Secret with username and password, or token), mlflow_token_audience= (a service-account "
            "token), or copy_credentials=True (a Secret made of the connection for the life of the pod)."
        )
    if options.copy_credentials and not server.password:
        raise ConfigError(
            f"options.copy_credentials is set, and connection {server.conn_id!r} has no password to copy. Leave it out."
        )
    return StepMlflow(
        url=url,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        workspace=server.workspace,
        credentials=CREDENTIALS if mounted else "",
    )


def secret_data(server: MlflowServer) -> dict[str, str]:
    """
    Write a connection's login as the keys of a Secret.

    :param server: The server.
    :return: ``username`` and ``password``, or ``token``; never to be logged.
    """
    return {"username": server.username, "password": server.password} if server.username else {"token": server.password}


def _inputs(places: ContainerPlaces, name: str, request: StepRequest, folder: str) -> list[StepInput]:
    made = []
    for index, ref in enumerate(request.refs[name]):
        described = places.store.described(ref)
        below = f"{name}/{index}" if name in request.many else name
        metadata = places.of_input(ref.model_copy(update={"uri": described.metadata})) if described.metadata else None
        made.append(
            StepInput(
                type=ref.type,
                uri=ref.uri,
                path=f"{folder}/inputs/{below}/{_file_name(ref)}",
                place=places.of_input(ref),
                directory=is_directory(ref),
                sha256=ref.sha256,
                size=ref.size,
                metadata=metadata,
            )
        )
    return made


def _file_name(ref: ArtifactRef) -> str:
    """Name the file in the container as its maker did: some readers choose by the ending."""
    name = PurePosixPath(unquote(urlsplit(ref.uri).path).rstrip("/")).name
    return name if name and name.isprintable() else ref.name


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
