"""
Names and texts that a Kubeflow Pipelines server can store; pure.

The server checks few of them before it starts the workflow. What its database then refuses is answered with a 500 while the
workflow runs on, in no list and without a run: an orphan. So everything is checked here, before anything is sent.
"""

from __future__ import annotations

import hashlib
import re

from airflow_ml_provider.exceptions import ConfigError

RUN_NAME_LENGTH = 255
"""Characters of a run's name and of its description; the next one makes an orphan."""
EXPERIMENT_NAME_BYTES = 128
"""Bytes in UTF-8 of an experiment's name; the server counts bytes here, and characters above."""
PIPELINE_NAME_BYTES = 128
"""Bytes in UTF-8 of the name that a pipeline is registered under."""
VERSION_NAME_BYTES = 127
"""Bytes in UTF-8 of the name of a pipeline's version."""
UNSTORABLE = re.compile("[\U00010000-\U0010ffff\ud800-\udfff]")
"""Characters that take 4 bytes in UTF-8, and halves of them: the server's connection to its database takes 3 at most."""
SHOWN = 40


def unstorable(text: str) -> str:
    """
    Find what the server's database cannot store.

    :param text: Any text.
    :return: The first such character, named for a message; empty where there is none.
    """
    found = UNSTORABLE.search(text)
    return f"{found.group()!a} at position {found.start()}" if found else ""


def check_run_name(name: str) -> str:
    """
    Refuse a name of a run that the server would turn into an orphan.

    :param name: ``display_name`` of the run; it need not be unique.
    :return: The name.
    :raises ConfigError: it is empty, longer than 255 characters, or holds a 4-byte character; a retry never helps.
    """
    if not name:
        raise ConfigError("the run's name is empty, which the server refuses. Leave it out to have one made, or give one.")
    return _check_characters("the run's name", name)


def check_description(text: str) -> str:
    """
    Refuse a description of a run that the server would turn into an orphan.

    :param text: The description; it may be empty.
    :return: The description.
    :raises ConfigError: it is longer than 255 characters, or holds a 4-byte character; a retry never helps.
    """
    return _check_characters("the run's description", text)


def check_experiment_name(name: str) -> str:
    """
    Refuse a name of an experiment that the server does not take.

    :param name: Name of the experiment.
    :return: The name.
    :raises ConfigError: it is empty, longer than 128 bytes, or holds a 4-byte character; a retry never helps.
    """
    return _check_bytes("the experiment's name", name, EXPERIMENT_NAME_BYTES)


def check_pipeline_name(name: str) -> str:
    """
    Refuse a name that no pipeline can be registered under.

    :param name: Name of the registered pipeline; blanks, slashes and other letters than a to z are fine.
    :return: The name.
    :raises ConfigError: it is empty, longer than 128 bytes, or holds a 4-byte character; a retry never helps.
    """
    return _check_bytes("the pipeline's name", name, PIPELINE_NAME_BYTES)


def check_version_name(name: str) -> str:
    """
    Refuse a name that no version of a pipeline can have.

    :param name: Name of the version.
    :return: The name.
    :raises ConfigError: it is empty, longer than 127 bytes, or holds a 4-byte character; a retry never helps.
    """
    return _check_bytes("the version's name", name, VERSION_NAME_BYTES)


def fitted_run_name(text: str) -> str:
    """
    Make a name that the server can store out of ids that it could not, always the same one.

    :param text: What the name is made of, for example the ids of a DAG, a run and a task.
    :return: The text where it fits. Else each 4-byte character is ``?``, and a text too long ends in a hash of the whole.
    """
    clean = UNSTORABLE.sub("?", text) or "run"
    if len(clean) <= RUN_NAME_LENGTH:
        return clean
    tail = "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return clean[: RUN_NAME_LENGTH - len(tail)] + tail


def _check_characters(what: str, text: str) -> str:
    if len(text) > RUN_NAME_LENGTH:
        raise ConfigError(
            f"{what}, {_cut(text)}, has {len(text)} characters; the server's database holds {RUN_NAME_LENGTH}, and finds out "
            "only when the workflow runs already. Shorten it."
        )
    return _check_storable(what, text)


def _check_bytes(what: str, name: str, limit: int) -> str:
    if not name:
        raise ConfigError(f"{what} is empty, which the server refuses. Give one.")
    _check_storable(what, name)
    size = len(name.encode())
    if size > limit:
        raise ConfigError(f"{what}, {_cut(name)}, takes {size} bytes in UTF-8; the server takes {limit}. Shorten it.")
    return name


def _check_storable(what: str, text: str) -> str:
    if found := unstorable(text):
        raise ConfigError(
            f"{what}, {_cut(text)}, holds {found}, which takes 4 bytes in UTF-8; the server's database takes 3. Write it without."
        )
    return text


def _cut(text: str) -> str:
    return ascii(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")
