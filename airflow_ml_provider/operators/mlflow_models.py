"""MLflow's model registry, as tasks. To promote what a night of steps has trained, see ``PromoteModelOperator``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_ml_provider.assets.events import check_registered
from airflow_ml_provider.core.model_names import check_aliases, check_name
from airflow_ml_provider.core.wiring import check_given
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.mlflow import MlflowOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi


class MlflowRegisterModelOperator(MlflowOperator):
    """
    Registers a model version: from a run's artifact, a LoggedModel, any artifact URI, or a version of another model (a copy).

    A copy has the source and the tags of what it is copied from, and ``airflow.copied_from`` says which version that was; its
    bytes are not copied.

    A retry finds the version that the try before has made: what has a version of this name already keeps it, whoever made
    that. Tags, description and aliases are set again.

    The XCom is ``{"name", "version", "uri", "source", "run_id", "model_id", "status", "description", "aliases", "tags",
    "sha256", "url"}``; ``uri`` names the version and never moves.

    :param name: Name of the registered model; made when there is none.
    :param source: ``runs:/<run>/<path>``, ``models:/<model id>``, ``models:/<name>/<version>``, ``models:/<name>@<alias>``, any
        other URI, or a reference to a model of a step.
    :param run_id: Run that made it, where the source does not say so; None for none.
    :param aliases: Aliases that are to stand for the version.
    :param tags: Tags of the version.
    :param description: Text of the version; None leaves it.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    handles: ClassVar[tuple[str, ...]] = ("version", "uri")
    template_fields: Sequence[str] = ("name", "source", "run_id", "aliases", "tags", "description")

    def __init__(
        self,
        *,
        name: str,
        source: Any,
        run_id: str | None = None,
        aliases: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.source = source
        self.run_id = run_id
        self.aliases = aliases
        self.tags = tags
        self.description = description
        check_given(self.task_id, "source", source)
        check_known(name, *([] if isinstance(aliases, str) or not isinstance(aliases, Sequence) else aliases))
        _check_outlets(self)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Register it, or find it registered.

        :param api: The server.
        :param context: Airflow's context.
        :return: The version, as plain JSON.
        :raises ConfigError: a name, an alias or the source is wrong, or the source holds a password.
        :raises RemoteNotFoundError: there is no such run, artifact, model or version.
        """
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        ref = ArtifactRef.from_json(self.source) if ArtifactRef.looks_like(self.source) else None
        made = RegistryVersions(api).register(
            self.name,
            ref.uri if ref else self.source,
            run_id=self.run_id or (ref.run_id if ref else "") or "",
            tags=self.tags,
            description=self.description,
            aliases=self.aliases,
        )
        self.mlflow_page_url = str(made["url"])
        return made


class MlflowGetModelOperator(MlflowOperator):
    """
    Reads a registered model, or the version that a number or an alias names now.

    A retry reads again: an alias may have moved.

    The XCom is as of ``MlflowRegisterModelOperator`` for a version; for a model ``{"name", "description", "tags", "aliases",
    "latest_version", "url"}``, with the version per alias.

    :param model: ``models:/<name>``, ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    handles: ClassVar[tuple[str, ...]] = ("version", "uri")
    only_reads: ClassVar[bool] = True
    template_fields: Sequence[str] = ("model",)

    def __init__(self, *, model: str, mlflow_conn_id: str = "mlflow_default", **kwargs: Any) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.model = model
        check_given(self.task_id, "model", model)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Read it.

        :param api: The server.
        :param context: Airflow's context.
        :return: It, as plain JSON.
        :raises ConfigError: it names no registered model.
        :raises RemoteNotFoundError: there is no such model, version or alias.
        """
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        found = RegistryVersions(api).get(self.model)
        self.mlflow_page_url = str(found["url"])
        return found


class MlflowSearchModelsOperator(MlflowOperator):
    """
    Lists registered models, or the versions of one.

    A retry asks again; the answer is what the server has then.

    The XCom is a list, one entry a model or a version, each as of ``MlflowGetModelOperator``.

    :param name: Model whose versions are listed, the newest first; None lists the models.
    :param filter_string: In MLflow's search language, ``name LIKE 'flights%'``; empty for all.
    :param tags: Tags with the value that they must have. What a template puts there never becomes a part of the language.
    :param order_by: In that language, ``last_updated_timestamp DESC``; empty for MLflow's order.
    :param max_results: How many at most.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("name", "filter_string", "tags", "order_by")

    def __init__(
        self,
        *,
        name: str | None = None,
        filter_string: str = "",
        tags: Mapping[str, str] | None = None,
        order_by: str = "",
        max_results: int = 100,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.filter_string = filter_string
        self.tags = tags
        self.order_by = order_by
        self.max_results = max_results

    def act(self, api: MlflowApi, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002  (the base's signature)
        """
        Search.

        :param api: The server.
        :param context: Airflow's context.
        :return: The models or versions, as plain JSON.
        :raises ConfigError: MLflow does not take the filter, the order or the name.
        """
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        registry = RegistryVersions(api)
        self.mlflow_page_url = api.server.model_page(self.name or "")
        if self.name is None:
            return registry.search_models(self.filter_string, self.tags, self.order_by, self.max_results)
        return registry.search_versions(self.name, self.filter_string, self.tags, self.order_by, self.max_results)


class MlflowUpdateModelOperator(MlflowOperator):
    """
    Sets and deletes aliases and tags of a registered model and its versions.

    An alias is moved from wherever it stood. To move the champion and keep the one before it, with a check of who is newer,
    use ``PromoteModelOperator``; back again, ``MlflowRollbackModelOperator``.

    A retry sets and deletes the same again; what is deleted already is a success.

    The XCom is as of ``MlflowGetModelOperator``: the version if one is given, else the model.

    :param name: Name of the registered model.
    :param version: Version that ``tags`` and ``description`` are of; None for the model itself.
    :param aliases: Version per alias; None deletes the alias.
    :param tags: Value per key; None deletes the tag. Others stay.
    :param description: Text; None leaves it.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("name", "version", "aliases", "tags", "description")

    def __init__(
        self,
        *,
        name: str,
        version: str | int | None = None,
        aliases: Mapping[str, str | int | None] | None = None,
        tags: Mapping[str, str | None] | None = None,
        description: str | None = None,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.version = version
        self.aliases = aliases
        self.tags = tags
        self.description = description
        check_known(name, *(aliases if isinstance(aliases, Mapping) else ()))
        _check_outlets(self)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Set and delete.

        :param api: The server.
        :param context: Airflow's context.
        :return: The model or the version as it is now, as plain JSON.
        :raises ConfigError: a name, an alias or a number is wrong; nothing was changed.
        :raises RemoteNotFoundError: there is no such model or version; nothing was changed.
        """
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        version = None if self.version is None else str(self.version)
        found = RegistryVersions(api).update(
            self.name, version, aliases=self.aliases or {}, tags=self.tags or {}, description=self.description
        )
        self.mlflow_page_url = str(found["url"])
        return found


class MlflowDeleteModelOperator(MlflowOperator):
    """
    Deletes versions of a registered model, or all of it; for good, as MLflow's registry keeps nothing that was deleted.

    What an alias stands for is refused, unless that is said. The runs and artifacts of the versions stay.

    A retry deletes what is left; what is gone is a success, and the log says so.

    The XCom is ``{"name", "versions", "url"}``: the versions that are not there any more.

    :param name: Name of the registered model.
    :param versions: Numbers of the versions; None deletes the model with all of them.
    :param delete_aliased: Whether also what an alias stands for, with the alias.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("name", "versions")

    def __init__(
        self,
        *,
        name: str,
        versions: Sequence[str | int] | None = None,
        delete_aliased: bool = False,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.versions = versions
        self.delete_aliased = delete_aliased
        check_known(name)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Delete what is there.

        :param api: The server.
        :param context: Airflow's context.
        :return: What is gone, as plain JSON.
        :raises ConfigError: an alias stands for one of them, or a name or a number is wrong; nothing was deleted.
        """
        from airflow_ml_provider.exceptions import ConfigError
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        if self.versions is not None and (isinstance(self.versions, str) or not self.versions):
            raise ConfigError(
                f"task {self.task_id!r}: versions={self.versions!r:.80} must be a list of numbers, or None for all."
            )
        gone = RegistryVersions(api).delete(self.name, self.versions, delete_aliased=self.delete_aliased)
        self.mlflow_page_url = str(gone["url"])
        return gone


class MlflowRollbackModelOperator(MlflowOperator):
    """
    Makes the champion before this one the champion again; what ``PromoteModelOperator`` did is undone.

    A retry, or a clear, does not swap them back: a task instance rolls back once, and completes what its try before began.
    Another DAG run rolls back again. A model remembers the newest 20 that have rolled it back.

    The XCom is ``{"name", "alias", "version", "rolled_back", "changed", "uri", "url"}``: the version that serves now, and the
    one that does not any more; ``changed`` is False where the try before had done it.

    :param name: Name of the registered model.
    :param alias: Alias of the champion.
    :param previous_alias: Alias of the champion before it.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    handles: ClassVar[tuple[str, ...]] = ("version", "uri")
    template_fields: Sequence[str] = ("name", "alias", "previous_alias")

    def __init__(
        self,
        *,
        name: str,
        alias: str = "champion",
        previous_alias: str = "previous-champion",
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.alias = alias
        self.previous_alias = previous_alias
        check_known(name, alias, previous_alias)
        _check_outlets(self)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:
        """
        Swap them, once.

        :param api: The server.
        :param context: Airflow's context.
        :return: How the aliases stand, as plain JSON.
        :raises ConfigError: there is no champion or none before it, an alias is wrong, or somebody else moved it meanwhile.
        :raises RemoteNotFoundError: there is no such registered model.
        """
        from airflow_ml_provider.operators.attempt import read_attempt
        from airflow_ml_provider.tracking.registry_versions import RegistryVersions

        identity = read_attempt(context).identity
        done = RegistryVersions(api).roll_back(self.name, identity, alias=self.alias, previous_alias=self.previous_alias)
        self.mlflow_page_url = str(done["url"])
        return done


def check_known(name: object, *aliases: object) -> None:
    """
    Refuse at parse time a name or aliases that MLflow does not take; templates and references are left to the run.

    :param name: Name of a registered model.
    :param aliases: Aliases of it.
    :raises ConfigError: one is not what MLflow takes; a retry never helps.
    """
    if _is_known(name):
        check_name(str(name))
    known = [str(each) for each in aliases if _is_known(each)]
    if known:
        check_aliases(*known)


def _check_outlets(operator: MlflowRegisterModelOperator | MlflowUpdateModelOperator | MlflowRollbackModelOperator) -> None:
    if _is_known(operator.name):
        check_registered(operator.task_id, operator.outlets, operator.name, operator.mlflow_conn_id)


def _is_known(value: object) -> bool:
    return isinstance(value, str) and "{{" not in value and "{%" not in value
