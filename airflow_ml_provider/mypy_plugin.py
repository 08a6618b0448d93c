"""
mypy checks the calls of steps as Airflow makes them: without outputs, and with references where artifacts are read.

::

    [tool.mypy]
    plugins = ["airflow_ml_provider.mypy_plugin"]

``@ml_task`` and ``@task.ml`` are then the same. Without it, mypy and any other type checker leave the calls of an
``@ml_task`` alone, and know ``@task.ml`` only as a decorator like ``@task``, whose calls they get wrong. mypy alone imports
this module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mypy.nodes import ARG_NAMED_OPT, ARG_OPT, CallExpr, Expression, FloatExpr, IntExpr, ListExpr, StrExpr, TupleExpr, TypeInfo
from mypy.plugin import AttributeContext, CheckerPluginInterface, MethodSigContext, Plugin
from mypy.types import CallableType, Instance, NoneType, Parameters, Type, TypeAliasType, UnionType, get_proper_type

ML = "airflow_ml_provider.decorators.ml"
ROLES = {"airflow_ml_provider.models.artifact.Input": "input", "airflow_ml_provider.models.artifact.Output": "output"}
CONTEXT = "airflow.sdk.definitions.context.Context"
REFERENCE = "airflow.sdk.definitions.xcom_arg.XComArg"
TASK_ML = "airflow.sdk.definitions.decorators.TaskDecoratorCollection.ml"
READ_ONLY = {"builtins.list": "typing.Sequence", "builtins.dict": "typing.Mapping"}


class StepPlugin(Plugin):
    """Gives the methods of a step the signatures that its function implies."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """
        Give ``task.ml`` the type of ``ml_task``, where mypy has read this package.

        :param fullname: Full name of the attribute.
        :return: The hook, None for any other attribute.
        """
        known = self.lookup_fully_qualified(f"{ML}.ml_task") if fullname == TASK_ML else None
        typed = getattr(known.node, "type", None) if known else None
        return (lambda _: typed) if typed is not None else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], CallableType] | None:
        """
        Give a call of a step, its ``partial`` and its ``expand`` their signatures.

        :param fullname: Full name of the method.
        :return: The hook, None for any other method.
        """
        owner, _, method = fullname.rpartition(".")
        known = method in {"__call__", "partial", "expand"} and owner == f"{ML}.Step"
        return partial(_signature, method, self._context_keys()) if known else None

    def _context_keys(self) -> set[str]:
        known = self.lookup_fully_qualified(CONTEXT)
        context = known.node if known else None
        return set(context.typeddict_type.items) if isinstance(context, TypeInfo) and context.typeddict_type else set()


def plugin(version: str) -> type[Plugin]:  # noqa: ARG001  (the protocol)
    """
    Say where the plugin is.

    :param version: Version of mypy.
    :return: Its class.
    """
    return StepPlugin


def _signature(method: str, context_keys: set[str], context: MethodSigContext) -> CallableType:
    """Drop the outputs, let the inputs take references, and let Airflow's context keys be left out."""
    declared = get_proper_type(context.type.args[0]) if isinstance(context.type, Instance) and context.type.args else None
    if not isinstance(declared, Parameters) or declared.is_ellipsis_args:
        return context.default_signature
    each = zip(declared.arg_names, declared.arg_kinds, declared.arg_types, strict=True)
    kept = [(name, kind, wanted) for name, kind, wanted in each if _role(wanted) != "output"]
    given = _given(context.context, [name for name, _, _ in kept])
    kinds = [kind if name not in context_keys else ARG_OPT if kind.is_positional() else ARG_NAMED_OPT for name, kind, _ in kept]
    call = context.context
    return context.default_signature.copy_modified(
        arg_names=[name for name, _, _ in kept],
        arg_kinds=kinds if method == "__call__" else [ARG_NAMED_OPT for _ in kept],
        arg_types=[_taken(context.api, wanted, given.get(name), mapped=method == "expand") for name, _, wanted in kept],
        name=getattr(call.callee, "name", None) if isinstance(call, CallExpr) and method == "__call__" else method,
    )


def _role(declared: Type) -> str:
    """Find ``Input`` or ``Output`` among what a declared type abbreviates; mypy forgets Annotated, but not the alias."""
    if isinstance(declared, UnionType):
        return max(_role(item) for item in declared.items)
    if not isinstance(declared, TypeAliasType) or declared.alias is None:
        return ""
    return ROLES.get(declared.alias.fullname) or _role(declared.alias.target)


def _given(call: object, names: list[str | None]) -> dict[str | None, Expression]:
    """Find the expression that is given for each parameter, as far as it is written in the call itself."""
    if not isinstance(call, CallExpr):
        return {}
    arguments = zip(call.arg_names, call.arg_kinds, call.args, strict=True)
    by_place = [value for name, kind, value in arguments if name is None and not kind.is_star()]
    arguments = zip(call.arg_names, call.arg_kinds, call.args, strict=True)
    return dict(zip(names, by_place, strict=False)) | {name: value for name, _, value in arguments if name is not None}


def _taken(api: CheckerPluginInterface, declared: Type, given: Expression | None, *, mapped: bool) -> Type:
    """Say what a call may give for a declared parameter: artifacts by reference or URI, values also by XCom or template."""
    reference, text = api.named_generic_type(REFERENCE, []), api.named_generic_type("builtins.str", [])
    wanted = get_proper_type(declared)
    if _role(declared) == "input":
        parts = wanted.items if isinstance(wanted, UnionType) else [wanted]
        several = any(isinstance(part, Instance) and part.type.fullname == "builtins.list" for part in map(get_proper_type, parts))
        element: list[Type] = [reference] if several and isinstance(given, StrExpr) else [reference, text]
        taken = [_sequence(api, element), reference] if several else element
        taken += [part for part in parts if isinstance(get_proper_type(part), NoneType)]
    else:
        beside: list[Type] = [reference, text] if _may_be_template(given) else [reference]
        taken = [_loosened(api, declared, beside), *beside]
    return UnionType.make_union([_sequence(api, taken), reference] if mapped else taken)


def _loosened(api: CheckerPluginInterface, declared: Type, beside: list[Type]) -> Type:
    """Let the elements of lists and dictionaries be references and templates too."""
    wanted = get_proper_type(declared)
    if isinstance(wanted, UnionType):
        return UnionType.make_union([_loosened(api, item, beside) for item in wanted.items])
    if not isinstance(wanted, Instance) or wanted.type.fullname not in READ_ONLY:
        return declared
    element = UnionType.make_union([_loosened(api, wanted.args[-1], beside), *beside])
    return api.named_generic_type(READ_ONLY[wanted.type.fullname], [*wanted.args[:-1], element])


def _sequence(api: CheckerPluginInterface, element: list[Type]) -> Instance:
    return api.named_generic_type("typing.Sequence", [UnionType.make_union(element)])


def _may_be_template(given: Expression | None) -> bool:
    """Whether a text may come of it that Airflow renders; a literal says by itself that it is none."""
    if isinstance(given, StrExpr):
        return "{{" in given.value or "{%" in given.value
    if isinstance(given, ListExpr | TupleExpr):
        return any(_may_be_template(item) for item in given.items)
    return not isinstance(given, IntExpr | FloatExpr)
