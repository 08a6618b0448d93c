"""What our values have in common that travel in XCom: plain JSON, with the version of its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_ml_provider.exceptions import ConfigError

WIRE_VERSION: Literal[1] = 1
"""Version of the XCom form of our values; a reader refuses any other."""


class XComValue(BaseModel):
    """
    A frozen value with a plain JSON form.

    :param version: Version of this form.
    """

    # Built when first used, not when a DAG file is parsed.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    what: ClassVar[str]
    """What it is, for messages, with its article."""

    remedy: ClassVar[str]
    """Sentence that says how to get one that can be read."""

    version: Literal[1] = WIRE_VERSION

    def to_json(self) -> dict[str, Any]:
        """
        Return the plain JSON form.

        :return: A dictionary without the fields that are None.
        """
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """
        Read the form that :meth:`to_json` writes.

        :param value: What XCom gave back.
        :return: The value.
        :raises ConfigError: it is of another version or shape; a retry never helps.
        """
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"{dict(value)!r} is not {cls.what} of version {WIRE_VERSION} that this release reads: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}. {cls.remedy}"
            ) from error
