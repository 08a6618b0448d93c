"""What a container is started with: the name of its image, its environment, its command line. Refused before a pod is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from airflow_ml_provider.core.podspec import is_template
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import shown

STRING_BYTES = 131_071
"""Linux starts no program with a longer argument, or a longer ``NAME=value`` (MAX_ARG_STRLEN, with the byte that ends it)."""

ENVIRONMENT_BYTES = 1_048_576
"""The API server keeps no object above 1.5 MiB, and a pod is more than its environment."""

PATH_CHARACTERS = 255
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_HOST = (
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_SCHEME = re.compile(r"[a-z]+://")


def check_image(image: object, argument: str = "image") -> None:
    """
    Refuse what is no name of an image; the kubelet would say ``InvalidImageName`` for as long as it was waited for.

    :param image: ``[registry[:port]/]path[:tag][@digest]``; a template is left to the run.
    :param argument: What it was given for, for the message.
    :raises ConfigError: it is none; says which part is wrong; a retry never helps.
    """
    if is_template(image):
        return
    if not isinstance(image, str) or not image:
        raise ConfigError(f"{argument}={shown(image)} names no image. Give one, as 'registry.example.com/team/train:1.4'.")
    wrong = _wrong_with_image(image)
    if wrong:
        raise ConfigError(f"{argument}={shown(image)} is not the name of an image: {wrong}")


def _wrong_with_image(image: str) -> str:
    """Say what is wrong, and how to mend it; nothing for a good name."""
    if re.search(r"\s", image):
        return "it has a blank in it. Take it out."
    if _SCHEME.match(image):
        return f"it starts with {image.partition('//')[0]}//. Leave that out: the registry's host comes first."
    name, has_digest, digest = image.partition("@")
    if has_digest and not _DIGEST.fullmatch(digest):
        return f"{shown(digest)} is no digest. It is 'sha256:' and 64 hexadecimal digits, in lower case."
    place, has_tag, tag = name.rpartition(":")
    if has_tag and "/" not in tag:  # else the colon is the one before a registry's port
        if not re.fullmatch(_TAG, tag):
            rule = "A tag is 1 to 128 letters, digits, '_', '.' and '-', and starts with neither '.' nor '-'."
            return f"{shown(tag)} is no tag. {rule}" if tag else f"its tag is empty. {rule}"
        name = place
    return _wrong_with_name(name)


def _wrong_with_name(name: str) -> str:
    found = _NAME.fullmatch(name)
    if found and (length := len(_repository(name))) > PATH_CHARACTERS:
        return f"its repository has {length} characters, and may have {PATH_CHARACTERS}. Take a shorter one."
    if re.fullmatch("[0-9a-f]{64}", name):
        return "64 hexadecimal digits alone are an image's id, which no registry serves. Give its name."
    if found:
        return ""
    path = name.partition("/")[2] if "/" in name else name
    if path != path.lower():
        return f"{shown(path)} has upper case letters. A repository is written in lower case: {path.lower()!r}."
    if not path:
        return "the repository is missing. It stands behind the registry's host, and before ':' and '@'."
    return (
        f"{shown(name)} is no repository. Its parts are lower case letters and digits, with '.', '_', '__' or '-' between them."
    )


def _repository(name: str) -> str:
    """Name the repository as a registry knows it: behind the host, and with the ``library/`` that is put before a single word."""
    host, slash, path = name.partition("/")
    if slash and (host == "localhost" or re.search("[.:A-Z]", host)):
        return path
    return name if slash else f"library/{name}"


def check_environment(environment: Mapping[str, str | None]) -> None:
    """
    Refuse an environment that no container starts with. What the values are is never said: they may be secrets.

    :param environment: Value per name; None for one that a Secret, a ConfigMap or the pod itself gives.
    :raises ConfigError: a name or a value cannot be one, or is too long, or all together are; a retry never helps.
    """
    total = 0
    for name, value in environment.items():
        if not name or "=" in name or not name.isascii() or not name.isprintable():
            raise ConfigError(
                f"environment variable {shown(name)}: Kubernetes takes no such name. A name is printable ASCII without '='."
            )
        if "\0" in (value or ""):
            raise ConfigError(f"environment variable {name}: its value has a zero byte in it, which ends a text. Encode it.")
        size = _bytes(name) + 1 + _bytes(value or "")
        total += size
        if size > STRING_BYTES:
            raise ConfigError(
                f"environment variable {shown(name)} takes {size} bytes with its name; Linux starts no program with more than "
                f"{STRING_BYTES} in one variable. Pass a reference to it: an artifact as an input, or a file of a ConfigMap."
            )
    if total > ENVIRONMENT_BYTES:
        largest = sorted(environment, key=lambda each: -_bytes(environment[each] or ""))[:3]
        raise ConfigError(
            f"the environment takes {total} bytes; a pod holds {ENVIRONMENT_BYTES}. The largest variables are "
            f"{', '.join(largest)}. Pass references to them: artifacts as inputs, or files of a ConfigMap."
        )


def check_command(argument: str, words: Sequence[str] | None) -> None:
    """
    Refuse a command line that no container starts with.

    :param argument: ``cmds`` or ``arguments``.
    :param words: Its words; None for the image's own, a template is left to the run.
    :raises ConfigError: it is one text, or a word is too long, or has a zero byte; a retry never helps.
    """
    if isinstance(words, str):
        if is_template(words):
            return
        raise ConfigError(f"{argument}={shown(words)} is one text, of which each letter would be a word. Give a list of words.")
    for index, word in enumerate(words or ()):
        size = _bytes(str(word))
        if size > STRING_BYTES or "\0" in str(word):
            problem = f"takes {size} bytes" if size > STRING_BYTES else "has a zero byte in it"
            raise ConfigError(
                f"{argument}[{index}] {problem}; Linux starts no program with such a word, {STRING_BYTES} bytes is the most. "
                "Pass it as an input, or as a file of a ConfigMap."
            )


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
