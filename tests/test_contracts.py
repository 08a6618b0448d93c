"""
What is private in Airflow and MLflow, or nowhere promised, and what of ours would break with it.

A failure here after an upgrade names the module of ours to look at.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attr
import attrs
import pendulum
import pytest
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import DAG, BaseOperator, XComArg, task
from airflow.sdk.bases.decorator import DecoratedOperator, _TaskDecorator
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS, Context
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.taskgroup import MappedTaskGroup
from airflow.sdk.definitions.xcom_arg import PlainXComArg, serialize_xcom_arg

from airflow_ml_provider import Dataset, Input, Model, Output, ml_task
from tests.airflow_releases import DagSerialization

EMPTY = inspect.Parameter.empty


def parameters(function: Callable[..., Any]) -> dict[str, tuple[str, bool]]:
    """Kind, and whether there is a default, per parameter."""
    found = inspect.signature(function).parameters.values()
    return {each.name: (str(each.kind.description), each.default is not EMPTY) for each in found if each.name != "self"}


def serialized(make: Any, train: Any, table: str = "", model: str = "") -> dict[str, Any]:
    """What the scheduler sees of references to a step and to a mapped one."""

    @task
    def last(models: Any) -> None: ...

    with DAG("contract", schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as dag:
        made = make()[table] if table else make()
        fits = train.partial(table=made).expand(depth=[1, 2])
        fits = fits[model] if model else fits
        last.expand(models=fits)
    tasks = {each["__var"]["task_id"]: each["__var"] for each in DagSerialization.to_dict(dag)["dag"]["tasks"]}
    return {
        "one": serialize_xcom_arg(made),
        "many": serialize_xcom_arg(fits),
        "given": tasks["train"]["partial_kwargs"]["op_kwargs"],
        "mapped over it": tasks["last"]["op_kwargs_expand_input"],
    }


VARIADIC = {"args": ("variadic positional", False), "kwargs": ("variadic keyword", False)}


class TestTheDecoratorObject:
    def test_its_fields(self) -> None:
        fields = {each.name: each.init for each in attr.fields(_TaskDecorator)}
        assert {"function", "operator_class", "multiple_outputs", "kwargs"} <= {name for name, init in fields.items() if init}, (
            "decorators.ml.ml_task makes an MLTask of function, operator_class, multiple_outputs and kwargs: it cannot any more"
        )
        assert _TaskDecorator._airflow_is_task_decorator is True, (
            "setup, teardown and skip_if tell MLTask from a function by this"
        )

    @pytest.mark.parametrize(
        ("method", "wanted", "breaks"),
        [
            ("__call__", VARIADIC, "MLTask.__call__ hands all arguments on by name, and takes .operator of what comes back"),
            ("partial", {"kwargs": VARIADIC["kwargs"]}, "MLTask.partial checks its arguments before Airflow's"),
            ("override", {"kwargs": VARIADIC["kwargs"]}, "MLTask relies on Airflow's override, which must keep the class"),
            ("expand", {"map_kwargs": VARIADIC["kwargs"]}, "MLTask.expand checks its arguments before Airflow's"),
            (
                "expand_kwargs",
                {"kwargs": ("positional or keyword", False), "strict": ("keyword-only", True)},
                "MLTask.expand_kwargs checks its dictionaries before Airflow's",
            ),
            (
                "_expand",
                {"expand_input": ("positional or keyword", False), "strict": ("keyword-only", False)},
                "MLTask._expand turns the reference to a mapped step into a StepReference",
            ),
        ],
    )
    def test_its_methods(self, method: str, wanted: Mapping[str, tuple[str, bool]], breaks: str) -> None:
        assert parameters(getattr(_TaskDecorator, method)) == wanted, breaks

    def test_partial_and_override_keep_its_class_and_collect_op_kwargs(self) -> None:
        @ml_task
        def step(a: int, b: int) -> None: ...

        fixed: Any = step.partial(a=1).override(retries=3)
        assert type(fixed) is type(step), "MLTask.partial casts what Airflow returns to MLTask"
        assert fixed.kwargs["op_kwargs"] == {"a": 1}, "MLTask.expand looks for what partial has given in kwargs['op_kwargs']"

    def test_both_ways_of_mapping_go_through_expand(self) -> None:
        @task
        def step(a: int) -> None: ...

        seen: list[str] = []

        class Watched(_TaskDecorator):  # type: ignore[type-arg]
            def _expand(self, expand_input: Any, *, strict: bool) -> Any:
                seen.append(expand_input.EXPAND_INPUT_TYPE)
                return super()._expand(expand_input, strict=strict)

        decorator: Any = step
        watched = Watched(function=decorator.function, operator_class=decorator.operator_class, kwargs={"task_id": "watched"})
        with DAG("contract", schedule=None):
            for mapped in (watched.expand(a=[1]), watched.expand_kwargs([{"a": 1}])):
                assert mapped.operator.is_mapped, "MLTask._expand takes .operator of what Airflow returns"  # type: ignore[attr-defined]
        assert seen == ["dict-of-lists", "list-of-dicts"], "MLTask overrides _expand alone for expand and expand_kwargs"


class TestTheOperatorBehindIt:
    def test_its_arguments(self) -> None:
        wanted = {"python_callable", "task_id", "op_args", "op_kwargs", "kwargs_to_upstream", "kwargs"}
        assert parameters(DecoratedOperator.__init__).keys() == wanted, "MLStepOperator hands these on to DecoratedOperator"
        assert {"op_args", "op_kwargs"} <= set(DecoratedOperator.template_fields), "MLStepOperator.template_fields repeats these"

    def test_context_keys_need_no_argument(self) -> None:
        assert {"ti", "logical_date", "params", "dag_run", "ds"} <= set(KNOWN_CONTEXT_KEYS), "MLStepOperator fills these itself"
        assert set(Context.__annotations__) == set(KNOWN_CONTEXT_KEYS), "mypy_plugin reads Airflow's context keys from Context"

    def test_a_task_is_killed_through_on_kill_and_pushed_to_through_the_task_instance(self) -> None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        assert callable(BaseOperator.on_kill), "StepOperatorMixin.on_kill closes the run of a killed task"
        wanted = {"dag_id", "run_id", "task_id", "map_index", "try_number", "max_tries", "id", "task"}
        known = set(RuntimeTaskInstance.model_fields)
        assert wanted <= known, f"operators.attempt and operators.session read these of ti: {wanted - known} are gone"
        assert hasattr(RuntimeTaskInstance, "log_url"), "operators.attempt links the MLflow run to the task's log"

    def test_skips_are_told_from_errors_by_their_class(self) -> None:
        from airflow.sdk import exceptions

        for name in ("AirflowSkipException", "DownstreamTasksSkipped"):
            error = getattr(exceptions, name, None)
            breaks = f"operators.session records a step that raises {name} as done, not as failed"
            assert isinstance(error, type), breaks
            assert issubclass(error, Exception), breaks
        assert issubclass(exceptions.AirflowFailException, Exception), "operators.session: no retry follows it"
        assert exceptions.DownstreamTasksSkipped(tasks=["after"]).tasks == ["after"], "the gate skips what follows with it"

    def test_the_operator_knows_its_mapped_task_group(self) -> None:
        message = "operators.references tells one output from many by the mapped task group of its step"
        assert callable(getattr(BaseOperator, "get_closest_mapped_task_group", None)), message
        assert BaseOperator(task_id="alone").get_closest_mapped_task_group() is None, message


class TestTheGate:
    def test_it_skips_and_branches_as_airflows_own_operators(self) -> None:
        from airflow.providers.standard.operators.branch import BaseBranchOperator, BranchMixIn

        breaks = "ModelGateOperator ends as a skip or as a branch with it"
        assert list(parameters(BranchMixIn.do_branch)) == ["context", "branches_to_execute"], breaks
        assert list(parameters(BranchMixIn.skip)) == ["ti", "tasks"], breaks
        assert "upstream" in parameters(BaseOperator.get_direct_relatives), breaks
        assert BaseBranchOperator.inherits_from_skipmixin is True, (
            "the scheduler skips a cleared task again by this attribute alone"
        )


class TestListeners:
    @pytest.mark.parametrize(
        ("hook", "argument"),
        [
            ("on_dag_run_success", "dag_run"),
            ("on_dag_run_failed", "dag_run"),
            ("on_task_instance_success", "task_instance"),
            ("on_task_instance_failed", "task_instance"),
            ("on_task_instance_skipped", "task_instance"),
        ],
    )
    def test_their_hooks(self, hook: str, argument: str) -> None:
        from airflow.listeners.listener import get_listener_manager

        spec = getattr(get_listener_manager().pm.hook, hook).spec
        assert argument in spec.argnames, (
            f"listeners.runs.{hook} asks for {argument}: Airflow refuses the whole module without it"
        )

    def test_a_task_in_this_process_is_known_by_its_line_to_airflow(self) -> None:
        runner = importlib.import_module("airflow.sdk.execution_time.task_runner")
        assert "SUPERVISOR_COMMS" in inspect.getsource(runner), "listeners.runs waits for dag.test() by this name"

    def test_they_import_what_they_need_before_a_hook_returns(self) -> None:
        from airflow_ml_provider.listeners import runs

        for name in runs.NEEDED:
            assert importlib.util.find_spec(name), f"listeners.runs imports {name} while the process may still import"


class TestReferences:
    def test_their_fields(self) -> None:
        assert [each.name for each in attrs.fields(PlainXComArg)] == ["operator", "key"], (
            "StepReference adds keyword-only fields to operator and key, and evolves itself"
        )
        assert parameters(PlainXComArg.resolve) == {"context": ("positional or keyword", False)}, (
            "StepReference.resolve pulls with Airflow's resolve, and picks an output of what comes"
        )
        assert issubclass(XComArg, ResolveMixin), "references.check_value leaves every ResolveMixin to run time"

    def test_their_step_is_told_what_it_becomes_upstream_of(self) -> None:
        breaks = "references.refuse_mapping_over refuses there what is mapped over one output of a step"
        assert list(parameters(BaseOperator.update_relative)) == ["other", "upstream", "edge_modifier"], breaks
        assert callable(MappedOperator._get_specified_expand_input), breaks
        assert "_expand_input" in {each.name for each in attrs.fields(MappedTaskGroup)}, breaks

    def test_their_text_is_a_template_that_pulls(self) -> None:
        reference = XComArg(BaseOperator(task_id="t", dag=DAG("d", schedule=None)))
        wanted = "{{ task_instance.xcom_pull(task_ids='t', dag_id='d', key='return_value') }}"
        assert str(reference) == wanted, "StepReference.__str__ takes the braces off it to write the template of an output"

    def test_to_the_scheduler_they_are_plain_references(self) -> None:
        @ml_task
        def make(table: Output[Dataset]) -> None: ...

        @ml_task
        def train(table: Input[Dataset], depth: int, model: Output[Model]) -> None: ...

        @task(task_id="make")
        def plain_make() -> None: ...

        @task(task_id="train")
        def plain_train(table: Any, depth: int) -> None: ...

        breaks = "the scheduler counts the instances of a mapped step from it, and has no StepReference"
        ours, plain = serialized(make, train, "table", "model"), serialized(plain_make, plain_train)
        assert ours == plain, breaks
        assert ours["one"] == {"task_id": "make", "key": "return_value"}, breaks
        assert "xcomref" in repr(ours["mapped over it"]), breaks

    def test_they_still_render_when_a_literal_list_is_mapped(self) -> None:
        @ml_task
        def make(table: Output[Dataset]) -> None: ...

        with DAG("contract", schedule=None):
            made = make()

            @ml_task
            def train(table: Input[Dataset]) -> None: ...

            mapped = train.expand(table=[made["table"], "s3://a/b"])
        assert mapped.operator.upstream_task_ids == {"make"}, "references.check_mapped_value recommends a list of references"


class TestWhatHidesSecrets:
    def test_airflows_masker_masks_by_name_whole_and_in_depth(self) -> None:
        assert list(parameters(redact))[:2] == ["value", "name"], "mlflow_runs.masked gives the name second"
        assert redact({"password": "x"}) == {"password": "***"}, "no secret may reach MLflow: operators.attempt masks with it"
        assert redact("x", "api_token") == "***", "operators.attempt masks a parameter by its name"


class TestMlflow:
    def test_the_stack_of_active_runs_can_be_emptied(self) -> None:
        fluent = importlib.import_module("mlflow.tracking.fluent")
        stack = fluent._active_run_stack.get()
        assert isinstance(stack, list), "tracking.fluent empties this list, so that leaving a step does not end its run in MLflow"
        assert fluent._active_run_stack.get() is stack, "tracking.fluent empties the list that MLflow holds, not a copy"
        assert not parameters(fluent.flush_async_logging), "tracking.fluent sends what the user has logged asynchronously"

    def test_a_run_is_made_active_by_its_id_or_by_the_environment(self) -> None:
        import mlflow
        from mlflow import environment_variables

        assert "run_id" in parameters(mlflow.start_run), "tracking.fluent makes the step's run active with it"
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
            variable = getattr(environment_variables, name)
            assert variable.name == name, f"the user's own MLflow calls in a step are led by {name}"

    def test_its_stores_of_artifacts(self) -> None:
        from mlflow.store.artifact.artifact_repo import ArtifactRepository
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        breaks = "tracking.places sends to and fetches from stores that are not proxied with it"
        assert next(iter(parameters(get_artifact_repository))) == "artifact_uri", breaks
        for method in ("log_artifact", "log_artifacts", "download_artifacts", "list_artifacts"):
            assert callable(getattr(ArtifactRepository, method, None)), breaks
