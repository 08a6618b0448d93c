# ruff: noqa: UP006, UP035, UP045, B006, PTH123, T201  (what kfp reads of annotations and bodies is its own dialect)
"""
The pipelines whose compiled form lies here, as kfp 2.17.0 and kfp-kubernetes 2.17.0 wrote it.

Not run by the suite, which must not have kfp. Compiled again, in an interpreter of its own, with ``python pipelines.py``.
"""

from pathlib import Path
from typing import Dict, List, Optional

from kfp import compiler, dsl, kubernetes
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.dsl import Dataset, Input, Model, Output


@dsl.component(base_image="python:3.12")
def show(text: str, number: int, rate: float, flag: bool, items: list, settings: dict, kind: str, size: int) -> str:
    return f"{text} {number} {rate} {flag} {items} {settings} {kind} {size}"


@dsl.pipeline(name="every-type", description="One parameter of every type.")
def every_type(
    text: str,
    number: int,
    rate: float,
    flag: bool,
    items: List[int],
    settings: Dict[str, int],
    kind: str,
    size: int = 1,
    text_default: str = "on",
    day: str = "2024-01-31",
    clock: str = "1:30",
    number_default: int = 3,
    rate_default: float = 1.0,
    small: float = 1e-5,
    flag_default: bool = False,
    items_default: list = [1, "two", 1.5],
    settings_default: dict = {"a": {"b": [True, 1.5]}, "on": "yes"},
    maybe: Optional[str] = None,
):
    """Show what came.

    Args:
        text: What to show.
    """
    show(text=text, number=number, rate=rate, flag=flag, items=items, settings=settings, kind=kind, size=size)
    show(
        text=text_default,
        number=number_default,
        rate=rate_default,
        flag=flag_default,
        items=items_default,
        settings=settings_default,
        kind="a",
        size=2,
    )


@dsl.component(base_image="python:3.12")
def split(count: int) -> List[int]:
    return list(range(count))


@dsl.component(base_image="python:3.12")
def fit(depth: int, model: Output[Model], table: Optional[Input[Dataset]] = None):
    with open(model.path, "w") as out:
        out.write(str(depth))


@dsl.component(base_image="python:3.12")
def total(values: List[int]) -> int:
    return sum(values)


@dsl.component(base_image="python:3.12")
def double(value: int) -> int:
    return 2 * value


@dsl.pipeline(name="inner")
def inner(depth: int) -> Model:
    return fit(depth=depth).outputs["model"]


@dsl.component(base_image="python:3.12")
def tell(status: dsl.PipelineTaskFinalStatus):
    print(status)


@dsl.pipeline(name="nested")
def nested(count: int = 2, table: Optional[Input[Dataset]] = None):
    with dsl.ExitHandler(tell()):
        numbers = split(count=count)
        with dsl.ParallelFor(numbers.output, parallelism=2) as each:
            doubled = double(value=each)
        summed = total(values=dsl.Collected(doubled.output))
        with dsl.If(summed.output > 3):
            inner(depth=summed.output)
        fit(depth=1, table=table)


@dsl.pipeline(name="wants-artifact")
def wants_artifact(table: Input[Dataset], depth: int = 1):
    fit(depth=depth, table=table)


@dsl.pipeline(name="with-secret")
def with_secret(depth: int = 1):
    task = fit(depth=depth)
    kubernetes.use_secret_as_env(task, secret_name="login", secret_key_to_env={"token": "TOKEN"})
    kubernetes.add_node_selector(task, label_key="gpu", label_value="yes")


@dsl.component(base_image="python:3.12")
def month_of(month: str, rate: str) -> str:
    return month + rate


@dsl.pipeline(name="two-meanings")
def two_meanings(month: str = "08", rate: str = "1e-5"):
    month_of(month=month, rate=rate)


@dsl.container_component
def greet():
    return dsl.ContainerSpec(image="busybox:1.36", command=["echo"], args=["caf\u00e9 \u65e5\u672c"])


@dsl.pipeline(name="no-parameters")
def no_parameters():
    greet()


FOLDER = Path(__file__).parent

if __name__ == "__main__":
    for each in (every_type, nested, wants_artifact, with_secret, two_meanings):
        compiler.Compiler().compile(each, str(FOLDER / f"{each.name.replace('-', '_')}.yaml"))
    compiler.Compiler().compile(two_meanings, str(FOLDER / "two_meanings.json"))
    compiler.Compiler().compile(month_of, str(FOLDER / "component_month_of.yaml"))
    compiler.Compiler().compile(
        no_parameters,
        str(FOLDER / "manifest.yaml"),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=KubernetesManifestOptions(pipeline_name="p", pipeline_version_name="v"),
    )
