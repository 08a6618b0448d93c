"""
Loopback ports: which are free, and one clear message when a wanted one is taken.

Only looks; the servers bind for themselves.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import chain
from typing import TYPE_CHECKING

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["HOST", "free_ports", "is_free", "port_from_environment"]

HOST = "127.0.0.1"
# Below the range that Linux and macOS hand out to outgoing connections: a client that knocks at the port of a
# server that is down could otherwise be given that very port, connect to itself and keep the server from restarting.
LOWEST, HIGHEST = 18_000, 32_000


def is_free(port: int) -> bool:
    """
    Say whether a server could listen on this port of the loopback interface now.

    :param port: 1 to 65535.
    :return: False when it is taken, or when this user may not bind it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, preferred: Iterable[int | None] = (), *, without: Collection[int] = ()) -> list[int]:
    """
    Choose distinct free ports.

    :param count: How many.
    :param preferred: Ports to take first if they are free, such as those of the last run: links into the user
        interfaces then stay valid. None where there is no preference.
    :param without: Ports that are promised to somebody already, free or not.
    :return: ``count`` ports, the preferred ones at the positions at which they were given.
    :raises DemoError: the whole range is taken; a retry helps when something else has ended.
    """
    wanted = list(preferred)[:count]
    candidates = iter(random.SystemRandom().sample(range(LOWEST, HIGHEST), 2_000))
    chosen: list[int] = []
    for position in range(count):
        first = filter(None, wanted[position : position + 1])
        port = next((p for p in chain(first, candidates) if p not in (*chosen, *without) and is_free(p)), None)
        if port is None:
            raise DemoError(f"No free port on {HOST} between {LOWEST} and {HIGHEST}: end something that listens there.")
        chosen.append(port)
    return chosen


def port_from_environment(name: str, environment: Mapping[str, str] | None = None) -> int | None:
    """
    Read a port that the user asks for and check that it can be had.

    :param name: Name of the environment variable.
    :param environment: Where to look, by default the environment of this process.
    :return: The port, or None when the variable is unset or empty.
    :raises DemoError: it is no port, or it is taken; never helped by a retry alone.
    """
    text = (os.environ if environment is None else environment).get(name, "")
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:  # noqa: PLR2004 - the range of ports
        raise DemoError(f"{name}={text!r} is not a port: give a number from 1 to 65535, or unset it to get a free one.")
    port = int(text)
    if not is_free(port):
        raise DemoError(f"{name}={port} is taken on {HOST}: give another, or unset it to get a free one.")
    return port
