"""The plugin's own module: what it costs the processes that have no use for the pages, and what it does without them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from airflow_ml_provider.plugin import AirflowMLPlugin, _LazyPages

LOADED = """
import json, sys
import airflow.plugins_manager, airflow.listeners
before = set(sys.modules)
from airflow_ml_provider.plugin import AirflowMLPlugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_no_part_of_the_pages_is_imported_with_the_plugin() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    added = json.loads(done.stdout.splitlines()[-1])
    assert "airflow_ml_provider.plugin" in added
    web = {"fastapi", "starlette", "jinja2", "airflow_ml_provider.plugin.web", "airflow_ml_provider.plugin.internals"}
    assert web & set(added) == set()


def test_pages_that_cannot_be_made_say_so_and_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow_ml_provider.plugin.web", None)  # its import fails
    transport = httpx.ASGITransport(_LazyPages())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow.test") as client:
            await client.get("/")
            return await client.get("/dags/a")

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert "see the log" in answer.text


def test_the_tabs_lead_to_the_pages_that_are_mounted() -> None:
    (app,) = AirflowMLPlugin.fastapi_apps
    assert all(f"/{each['href']}".startswith(f"{app['url_prefix']}/") for each in AirflowMLPlugin.external_views)
