"""Whether an answer is one that kfp-server-api's own models take, with no field that they do not know."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import kfp_server_api

V2 = "/apis/v2beta1/"
MODELS: tuple[tuple[str, str, str], ...] = (
    ("GET", "healthz", "V2beta1GetHealthzResponse"),
    ("GET", "runs", "V2beta1ListRunsResponse"),
    ("POST", "runs", "V2beta1Run"),
    ("GET", "runs/[^/]*", "V2beta1Run"),
    ("GET", "experiments", "V2beta1ListExperimentsResponse"),
    ("POST", "experiments", "V2beta1Experiment"),
    ("GET", "experiments/[^/]*", "V2beta1Experiment"),
    ("GET", "pipelines", "V2beta1ListPipelinesResponse"),
    ("POST", "pipelines/upload", "V2beta1Pipeline"),
    ("POST", "pipelines/upload_version", "V2beta1PipelineVersion"),
    ("GET", "pipelines/names/[^/]*", "V2beta1Pipeline"),
    ("GET", "pipelines/[^/]*", "V2beta1Pipeline"),
    ("GET", "pipelines/[^/]*/versions", "V2beta1ListPipelineVersionsResponse"),
    ("GET", "pipelines/[^/]*/versions/[^/]*", "V2beta1PipelineVersion"),
    ("GET", "recurringruns", "V2beta1ListRecurringRunsResponse"),
    ("POST", "recurringruns", "V2beta1RecurringRun"),
    ("GET", "recurringruns/[^/]*", "V2beta1RecurringRun"),
)


class _Body:
    def __init__(self, data: str) -> None:
        self.data = data


def complaints(method: str, path: str, body: bytes) -> list[str]:
    """
    Say what the models have against an answer.

    :param method: Method of the request.
    :param path: Its path.
    :param body: Body of a 200.
    :return: What is wrong; nothing for an answer of another kind (empty ones of actions, logs).
    """
    name = next((model for verb, pattern, model in MODELS if verb == method and re.fullmatch(V2 + pattern, path)), None)
    if name is None:
        return []
    with kfp_server_api.ApiClient() as client:
        try:
            value = client.deserialize(_Body(body.decode()), name)
        except Exception as refused:  # noqa: BLE001  (whatever a generated model raises is the finding)
            return [f"{name}: {type(refused).__name__}: {refused}"]
    return _unknown(name, value, json.loads(body))


def _unknown(where: str, value: Any, data: Any) -> list[str]:
    """Walk the model beside the JSON: a field that is not known, or one that did not arrive, is a complaint."""
    if isinstance(data, list):
        return [each for left, right in zip(value or [], data, strict=True) for each in _unknown(where, left, right)]
    if not hasattr(value, "attribute_map"):
        return [f"{where}: {data!r} was not read as a time"] if isinstance(value, str) and _is_time(data) else []
    known = {alias: attribute for attribute, alias in value.attribute_map.items()}
    found = [f"{where}.{key} is not in the model" for key in data if key not in known]
    for key, each in data.items():
        if key in known and value.openapi_types[known[key]] != "object":
            held = getattr(value, known[key])
            found += [f"{where}.{key} got lost"] if held is None else _unknown(f"{where}.{key}", held, each)
    return found


def _is_time(data: Any) -> bool:
    try:
        return isinstance(data, str) and len(data) == 20 and bool(datetime.fromisoformat(data))
    except ValueError:
        return False
