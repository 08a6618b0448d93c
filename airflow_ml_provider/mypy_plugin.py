"""
mypy checks the calls of steps as Airflow makes them: without outputs, and with references where artifacts are read.

::

    [tool.mypy]
    plugins = ["airflow_ml_provider.mypy_plugin"]

``@ml_task`` and ``@task.ml`` are then the same, and so are ``@ml_pod_task`` and ``@task.ml_pod``. Without it, mypy and any
other type checker leave the calls of an ``@ml_task`` alone, and know ``@task.ml`` only as a decorator like ``@task``, whose
calls they get wrong. mypy alone imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mypy.nodes import ARG_NAMED_OPT, ARG_OPT, CallExpr, Expression, FloatExpr, IntExpr, ListExpr, StrExpr, TupleExpr, TypeInfo
from mypy.plugin import AttributeContext, MethodSigContext, Plugin
from mypy.types import CallableType, Instance, NoneType, Parameters, Type, TypeAliasType, UnionType, get_proper_type

ML = "airflow_ml_provider.decorators.ml"
ROLES = {"airflow_ml_provider.models.artifact.Input": "input", "airflow_ml_provider.models.artifact.Output": "output"}
CONTEXT = "airflow.sdk.definitions.context.Context"
REFERENCE = "airflow.sdk.definitions.xcom_arg.XComArg"
TASK = "airflow.sdk.definitions.decorators.TaskDecoratorCollection"
TYPED = {f"{TASK}.ml": f"{ML}.ml_task", f"{TASK}.ml_pod": f"{ML}_pod.ml_pod_task"}
"""What Airflow's ``task`` offers at run time, and what is the same with types."""
READ_ONLY = {"builtins.list": "typing.Sequence", "builtins.tuple": "typing.Sequence", "builtins.dict": "typing.Mapping"}


class StepPlugin(Plugin):
    """Gives the methods of a step the signatures that its function implies."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """
        Give ``task.ml`` and ``task.ml_pod`` the types of ``ml_task`` and ``ml_pod_task``, where mypy has read this package.

        :param fullname: Full name of the attribute.
        :return: The hook, None for any other attribute.
        """
        known = self.lookup_fully_qualified(TYPED[fullname]) if fullname in TYPED else None
        typed = getattr(known.node, "type", None) if known else None
        return (lambda _: typed) if typed is not None else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], CallableType] | None:
        """
        Give a call of a step, its ``partial`` and its ``expand`` their signatures.

        :param fullname: Full name of the method.
        :return: The hook, None for any other method.
        """
        owner, _, method = fullname.rpartition(".")
        if owner != f"{ML}.Step" or method not in {"__call__", "partial", "expand"}:
            return None
        knows_airflow = self.lookup_fully_qualified(REFERENCE) and self.lookup_fully_qualified(CONTEXT)
        return partial(self._signature, method) if knows_airflow else None

    def _signature(self, method: str, context: MethodSigContext) -> CallableType:
        """Drop the outputs, let the inputs take references, and let Airflow's context keys be left out."""
        declared = get_proper_type(context.type.args[0]) if isinstance(context.type, Instance) and context.type.args else None
        if not isinstance(declared, Parameters) or declared.is_ellipsis_args:
            return context.default_signature
        each = zip(declared.arg_names, declared.arg_kinds, declared.arg_types, strict=True)
        kept = [(name, kind, wanted) for name, kind, wanted in each if _role(wanted) != "output"]
        call, filled = context.context, self._info(CONTEXT).typeddict_type
        given = _given(call, [name for name, _, _ in kept])
        optional = {name: ARG_OPT if kind.is_positional() else ARG_NAMED_OPT for name, kind, _ in kept}
        kinds = [optional[name] if filled and name in filled.items else kind for name, kind, _ in kept]
        taken = [self._taken(wanted, given.get(name)) for name, _, wanted in kept]
        return context.default_signature.copy_modified(
            arg_names=[name for name, _, _ in kept],
            arg_kinds=kinds if method == "__call__" else [ARG_NAMED_OPT for _ in kept],
            arg_types=[self._sequence(types) if method == "expand" else UnionType.make_union(types) for types in taken],
            name=getattr(call.callee, "name", None) if isinstance(call, CallExpr) else None,
        )

    def _taken(self, declared: Type, given: Expression | None) -> list[Type]:
        """Say what a call may give for a parameter: artifacts by reference or URI, values by reference or template too."""
        reference, text = Instance(self._info(REFERENCE), []), Instance(self._info("builtins.str"), [])
        if _role(declared) != "input":
            beside: list[Type] = [reference, text] if _may_be_template(given) else [reference]
            return [self._loosened(declared, beside), *beside]
        wanted = get_proper_type(declared)
        parts = [get_proper_type(part) for part in (wanted.items if isinstance(wanted, UnionType) else [wanted])]
        none: list[Type] = [part for part in parts if isinstance(part, NoneType)]
        if not any(isinstance(part, Instance) and part.type.fullname == "builtins.list" for part in parts):
            return [reference, text, *none]
        return [self._sequence([reference] if isinstance(given, StrExpr) else [reference, text]), *none]

    def _loosened(self, declared: Type, beside: list[Type]) -> Type:
        """Let the elements of lists and dictionaries be references and templates too."""
        wanted = get_proper_type(declared)
        if isinstance(wanted, UnionType):
            return UnionType.make_union([self._loosened(item, beside) for item in wanted.items])
        if not isinstance(wanted, Instance) or wanted.type.fullname not in READ_ONLY:
            return declared
        element = UnionType.make_union([self._loosened(wanted.args[-1], beside), *beside])
        return Instance(self._info(READ_ONLY[wanted.type.fullname]), [*wanted.args[:-1], element])

    def _sequence(self, element: list[Type]) -> Type:
        """Take several of them, or the XCom that holds several."""
        several = Instance(self._info("typing.Sequence"), [UnionType.make_union(element)])
        return UnionType.make_union([several, Instance(self._info(REFERENCE), [])])

    def _info(self, fullname: str) -> TypeInfo:
        known = self.lookup_fully_qualified(fullname)
        if known is None or not isinstance(known.node, TypeInfo):
            raise RuntimeError(f"mypy knows no class {fullname}. Remove airflow_ml_provider.mypy_plugin, and report this.")
        return known.node


def plugin(version: str) -> type[Plugin]:  # noqa: ARG001  (the protocol)
    """
    Say where the plugin is.

    :param version: Version of mypy.
    :return: Its class.
    """
    return StepPlugin


def _role(declared: Type) -> str:
    """Find ``Input`` or ``Output`` in what a declared type abbreviates: mypy forgets ``Annotated``, but not the alias."""
    if isinstance(declared, UnionType):
        return max(_role(item) for item in declared.items)
    if not isinstance(declared, TypeAliasType) or declared.alias is None:
        return ""
    return ROLES.get(declared.alias.fullname) or _role(declared.alias.target)


def _given(call: object, names: list[str | None]) -> dict[str | None, Expression]:
    """Find the expression that is given for each parameter, as far as it is written in the call itself."""
    if not isinstance(call, CallExpr):
        return {}
    given = list(zip(call.arg_names, call.arg_kinds, call.args, strict=True))
    by_place = [value for name, kind, value in given if name is None and not kind.is_star()]
    return dict(zip(names, by_place, strict=False)) | {name: value for name, _, value in given if name is not None}


def _may_be_template(given: Expression | None) -> bool:
    """Say whether it may be a text that Airflow renders; a literal says by itself that it is none."""
    if isinstance(given, StrExpr):
        return "{{" in given.value or "{%" in given.value
    if isinstance(given, ListExpr | TupleExpr):
        return any(_may_be_template(item) for item in given.items)
    return not isinstance(given, IntExpr | FloatExpr)
