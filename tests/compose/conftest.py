"""An engine for the whole run, and the stack that most tests look at; both gone at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.engine import Engine
from tests.compose.stage import Stage


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """The engine of ``--compose-engine``."""
    with Engine(pytestconfig.getoption("--compose-engine")) as started:
        yield started


@pytest.fixture(scope="session")
def stage(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Our images, built; nothing runs yet."""
    folder = tmp_path_factory.mktemp("checkout")
    for each in (folder, *folder.parents):  # pytest's folders are closed, and the containers' users are others
        if each.is_relative_to(tmp_path_factory.getbasetemp().parent):
            each.chmod(0o755)
    made = Stage(engine, folder)
    made.build()
    yield made
    made.down()


@pytest.fixture(scope="session")
def stack(stage: Stage) -> Stage:
    """The stack without profiles, as ``make up`` starts it."""
    stage.up()
    return stage
