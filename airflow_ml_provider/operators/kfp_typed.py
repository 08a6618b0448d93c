"""What tasks on Kubeflow Pipelines share that hand on a run's outputs: the references to them, and the XCom."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.models.reference import MLFLOW_RUN_ID
from airflow_ml_provider.operators.declared import declare_outputs
from airflow_ml_provider.operators.step import TypedStepMixin

if TYPE_CHECKING:
    from airflow.sdk import Context


class RunOutputsMixin(TypedStepMixin):
    """What operator and sensor add that take ``outputs``."""

    task_id: str
    outputs: Mapping[str, Any] | None

    @cached_property
    def signature(self) -> StepSignature:
        """What the run is to give."""
        return declare_outputs(self.task_id, self.outputs)

    @property
    def output(self) -> Any:
        """The XCom, and through ``["model"]`` one of ``outputs``."""
        airflows: Any = super(TypedStepMixin, self)
        return super().output if self.outputs else airflows.output

    def _told(self, context: Context, answer: dict[str, Any]) -> dict[str, Any]:
        """Complete the XCom, once the record is closed."""
        from airflow_ml_provider.operators.kfp_delivery import finished, push_by_name

        me: Any = self
        answer = finished(answer, self.session)
        if self.session is not None:  # that of an earlier night, where its result stands for this one's
            answer[MLFLOW_RUN_ID] = self.session.made_by
        if me.do_xcom_push and self.outputs:
            push_by_name(context["ti"], answer, self.outputs)
        return answer
