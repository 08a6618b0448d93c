"""What a watcher of the registry has told, and what is news to it: pure, and small enough for Airflow's state store."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.models.watch import SeenModel, SeenVersion

REMEMBERED = 2000
"""Versions of one model that are remembered as told; the value stays below the 64 kB at which Airflow warns."""


class AliasMove(BaseModel):
    """
    An alias that stands elsewhere than it was last told.

    :param version: Where it stands; empty for nowhere.
    :param previous: Where it stood; empty for nowhere, and for a model that was deleted and made again.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    previous: str


class AliasMemory(BaseModel):
    """
    Where an alias stood when it was told last.

    :param schema_version: Of this shape.
    :param version: Version; empty for nowhere.
    :param created_ms: When the model was made, 0 for no model: one that was deleted and made again is another.
    :param moves: Moves that were seen so far: the same move, seen twice, is two.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    version: str = ""
    created_ms: int = 0
    moves: int = 0

    @classmethod
    def of(cls, model: SeenModel | None, alias: str) -> AliasMemory:
        """
        Write down where an alias stands.

        :param model: The model; None for none.
        :param alias: The alias.
        :return: What to remember.
        """
        version = model.aliases.get(alias, "") if model else ""
        return cls(version=version, created_ms=model.created_ms if model and version else 0)

    def moved(self, seen: AliasMemory) -> AliasMove | None:
        """
        Compare with what is seen.

        :param seen: Where it stands.
        :return: The move; None when it stands where it was.
        """
        if (self.version, self.created_ms) == (seen.version, seen.created_ms):
            return None
        same_model = not seen.version or self.created_ms == seen.created_ms
        return AliasMove(version=seen.version, previous=self.version if same_model else "")

    def after(self, seen: AliasMemory) -> AliasMemory:
        """
        Take in a move.

        :param seen: Where it stands.
        :return: What to remember.
        """
        return seen.model_copy(update={"moves": self.moves + 1})


class VersionMemory(BaseModel):
    """
    Which versions of a model were told; each is told once, also when it loses its tag and gets it again.

    :param schema_version: Of this shape.
    :param told: When each was made, milliseconds since the epoch, by number.
    :param floor_ms: What was made up to then is no news, remembered or not.
    """

    schema_version: int = 1
    told: dict[str, int] = Field(default_factory=dict)
    floor_ms: int = -1

    def news(self, found: Iterable[SeenVersion]) -> list[SeenVersion]:
        """
        Pick out what was not told.

        :param found: Versions of one model, some of them known.
        :return: Those that are new, oldest first; the same number made at another time is of a model that was made again.
        """
        fresh = [each for each in found if each.created_ms > self.floor_ms and self.told.get(each.version) != each.created_ms]
        return sorted(fresh, key=lambda each: (each.created_ms, each.version))

    def take(self, found: Iterable[SeenVersion]) -> None:
        """
        Remember as told.

        :param found: Versions.
        """
        self.told |= {each.version: each.created_ms for each in found}
        kept = sorted(self.told.items(), key=lambda each: each[1])
        if forgotten := kept[:-REMEMBERED]:
            self.floor_ms = max(self.floor_ms, forgotten[-1][1])
            self.told = dict(kept[-REMEMBERED:])
