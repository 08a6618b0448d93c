# ruff: noqa: UP006, UP035, UP045, B006, PTH123, PTH104, PTH110, T201, SIM115  (what kfp reads is its own dialect)
"""Pipelines of the shapes that users write; compiled and run by the tests, in the SDK's interpreter."""

from typing import Dict, List, NamedTuple, Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def echo(
    text: str, number: int, rate: float, flag: bool, items: list, settings: dict, maybe: Optional[int] = None, left: str = "own"
) -> NamedTuple(
    "Echo", [("text", str), ("number", int), ("rate", float), ("flag", bool), ("items", list), ("settings", dict), ("seen", str)]
):
    import json

    seen = json.dumps([text, number, rate, flag, items, settings, maybe, left])
    return text, number, rate, flag, items, settings, seen


@dsl.component(base_image=IMAGE)
def add(a: int, b: int = 1) -> int:
    return a + b


@dsl.component(base_image=IMAGE)
def total(numbers: List[int]) -> int:
    return sum(numbers)


@dsl.component(base_image=IMAGE)
def split(count: int) -> NamedTuple("Parts", [("parts", list), ("size", int)]):
    return [{"label": f"part {each}'s", "rows": each} for each in range(1, count + 1)], count


@dsl.component(base_image=IMAGE)
def write(name: str, rows: int, factor: int, table: Output[Dataset], metrics: Output[Metrics]):
    with open(table.path, "w") as file:
        file.write(f"{name}\n" * rows * factor)
    table.metadata["rows"] = rows * factor
    metrics.log_metric("rows", rows * factor)


@dsl.component(base_image=IMAGE)
def merge(tables: Input[List[Dataset]], merged: Output[Dataset]):
    with open(merged.path, "w") as file:
        file.writelines(open(each.path).read() for each in tables)
    merged.metadata["parts"] = len(tables)


@dsl.component(base_image=IMAGE)
def fit(kind: str, table: Input[Dataset], model: Output[Model]):
    with open(model.path, "w") as file:
        file.write(f"{kind} on {len(open(table.path).readlines())} rows")


@dsl.component(base_image=IMAGE)
def count(table: Input[Dataset]) -> int:
    return len(open(table.path).readlines())


@dsl.component(base_image=IMAGE)
def said(text: str) -> str:
    return text


@dsl.component(base_image=IMAGE)
def tell(note: str, status: dsl.PipelineTaskFinalStatus) -> str:
    return f"{note}: {status.pipeline_task_name} {status.state} {status.error_code}"


@dsl.pipeline(name="inner")
def inner(number: int, step: int = 10) -> int:
    return add(a=add(a=number, b=step).output).output


@dsl.pipeline(name="counted")
def counted(table: Input[Dataset]) -> int:
    """Has no input but an artifact."""
    return count(table=table).output


class Types(NamedTuple):
    text: str
    number: int
    rate: float
    flag: bool
    items: list
    settings: dict
    seen: str


@dsl.pipeline(name="every-type")
def every_type(
    required: str,
    number: int = 3,
    rate: float = 2.0,
    flag: bool = True,
    items: List[int] = [1, "two", 2.5],
    settings: Dict[str, int] = {"a": {"b": [True, 2]}},
    maybe: Optional[int] = None,
    word: Optional[str] = None,
) -> Types:
    given = {"text": required, "number": number, "rate": rate, "flag": flag, "items": items, "settings": settings}
    made = echo(**given, maybe=maybe, left=word).outputs
    return Types(**{name: made[name] for name in (*given, "seen")})


class Looped(NamedTuple):
    total: int
    none: int
    rows: int
    merged: Dataset


@dsl.pipeline(name="loops")
def loops(numbers: List[int] = [1, 2, 3], factor: int = 2) -> Looped:
    with dsl.ParallelFor(numbers, parallelism=2) as number:
        added = add(a=number, b=factor)
    summed = total(numbers=dsl.Collected(added.output))
    parts = split(count=2)
    with dsl.ParallelFor(parts.outputs["parts"]) as part:  # a named output, and fields of its items
        written = write(name=part.label, rows=part.rows, factor=parts.outputs["size"])  # beside an output of another task
    merged = merge(tables=dsl.Collected(written.outputs["table"]))
    rows = counted(table=merged.outputs["merged"])
    with dsl.ParallelFor(split(count=0).outputs["parts"]) as part:
        nothing = add(a=part.rows)
    none = total(numbers=dsl.Collected(nothing.output))
    return Looped(summed.output, none.output, rows.output, merged.outputs["merged"])


class Branched(NamedTuple):
    chosen: str
    model: Model
    once: int
    twice: int


@dsl.pipeline(name="branches")
def branches(word: str = 'it\'s "so"') -> Branched:
    table = write(name="row", rows=2, factor=1)
    spoken = said(text=word)
    with dsl.ExitHandler(tell(note="over")):
        add(a=1)
    with dsl.If(spoken.output == "no && never"):
        one = said(text="first")
        small = fit(kind="small", table=table.outputs["table"])
    with dsl.Elif(spoken.output != "no"):
        two = said(text="second")
        large = fit(kind="large", table=table.outputs["table"])
    with dsl.Else():
        three = said(text="third")
        none = fit(kind="none", table=table.outputs["table"])
    chosen = dsl.OneOf(one.output, two.output, three.output)
    model = dsl.OneOf(small.outputs["model"], large.outputs["model"], none.outputs["model"])
    with dsl.If(spoken.output == "no"):
        said(text="never")
    return Branched(chosen, model, inner(number=1).output, inner(number=1, step=20).output)


@dsl.component(base_image=IMAGE)
def score(model: Input[Model], metrics: Output[Metrics]) -> float:
    metrics.log_metric("auc", 0.75)
    metrics.log_metric("words", len(open(model.path).read().split()))
    return 0.75


class Trained(NamedTuple):
    model: Model
    auc: float


@dsl.pipeline(name="trains")
def trains(day: str, rows: int = 2) -> Trained:
    table = write(name=day, rows=rows, factor=1).outputs["table"]
    model = fit(kind="forest", table=table).outputs["model"]
    return Trained(model, score(model=model).outputs["Output"])


@dsl.component(base_image=IMAGE)
def once_more(note: str, out: dsl.OutputPath(dict), number: dsl.OutputPath(int)):
    import os

    if not os.path.exists(note):
        open(note, "w").close()
        raise RuntimeError("the first time")
    for path, text in ((out, '{"a": [1, 2.5]}'), (number, "7")):
        with open(path, "w") as file:
            file.write(text)


@dsl.pipeline(name="each-of")
def each_of(tables: Input[List[Dataset]]) -> int:
    with dsl.ParallelFor(tables) as table:
        counted = count(table=table)
    return total(numbers=dsl.Collected(counted.output)).output


class Corners(NamedTuple):
    rows: int
    deep: int
    struct: dict
    number: int


@dsl.pipeline(name="corners")
def corners(note: str) -> Corners:
    with dsl.ParallelFor([1, 2]) as rows:
        written = write(name="row", rows=rows, factor=1)
    with dsl.ParallelFor([{"numbers": [1, 2]}, {"numbers": [3]}]) as outer:
        deep = total(numbers=outer.numbers)
        with dsl.ParallelFor(outer.numbers) as inmost:
            added = add(a=inmost)
            with dsl.If(added.output > 3):
                said(text="more than three")
    parts = once_more(note=note).set_retry(num_retries=1, backoff_duration="0s")
    rows = each_of(tables=dsl.Collected(written.outputs["table"]))
    return Corners(rows.output, total(numbers=dsl.Collected(deep.output)).output, parts.outputs["out"], parts.outputs["number"])


@dsl.component(base_image=IMAGE)
def broken(number: int):
    def deeper(value: int) -> float:
        return 1 / (value - value)

    print("about to break")
    deeper(number)


@dsl.pipeline(name="fails")
def fails():
    end = tell(note="over")
    with dsl.ExitHandler(end):
        before = add(a=1)
        stops = broken(number=before.output)
        said(text="never").after(stops)


@dsl.component(base_image=IMAGE)
def leaves(code: int):
    import os

    print("so far, so good", flush=True)
    if code:
        os._exit(code)
    os.kill(os.getpid(), 9)


@dsl.pipeline(name="goes")
def goes(code: int):
    leaves(code=code)


@dsl.component(base_image=IMAGE)
def sleeper(note: str):
    import os
    import subprocess
    import sys
    import time

    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    code = "import time; time.sleep(600)"
    apart = subprocess.Popen([sys.executable, "-c", code, note], start_new_session=True, **quiet)
    with open(f"{note}.new", "w") as file:
        file.write(f"{os.getpid()} {apart.pid}")
    os.rename(f"{note}.new", note)
    time.sleep(600)


@dsl.pipeline(name="sleeps")
def sleeps(note: str):
    sleeper(note=note)


@dsl.component(base_image=IMAGE)
def helped(which: str, notes: str) -> dict:
    import os
    import subprocess
    import sys
    import time

    def alive(pid: int) -> bool:
        try:
            return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def helper_of(name: str) -> int:
        while not os.path.exists(f"{notes}/{name}"):
            time.sleep(0.05)
        return int(open(f"{notes}/{name}").read())

    code = "import os, sys; open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); os.rename(sys.argv[1] + '.new', sys.argv[1])"
    code += "; import time; time.sleep(600)"
    daemon = ["sh", "-c", '"$@" >/dev/null 2>&1 &', "sh", sys.executable, "-c", code, f"{notes}/{which}"]
    subprocess.run(daemon, check=True)
    own, others = helper_of(which), helper_of("quick")
    if which == "quick":
        helper_of("slow")
        return {"quick": alive(own)}
    end = time.monotonic() + 20
    while alive(others) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)  # who ended that of the other would end ours with it
    return {"slow": alive(own), "quick left": alive(others)}


@dsl.pipeline(name="daemons")
def daemons(notes: str):
    with dsl.ParallelFor(["slow", "quick"], parallelism=2) as which:
        helped(which=which, notes=notes)


@dsl.component(base_image=IMAGE, packages_to_install=["tabulate==0.9.0"])
def tabulated() -> str:
    import tabulate

    return tabulate.__version__


@dsl.component(base_image=IMAGE, packages_to_install=["tabulate==0.8.10"])
def tabulated_before() -> str:
    import tabulate

    return tabulate.__version__


class Versions(NamedTuple):
    new: str
    old: str


@dsl.pipeline(name="packages")
def packages() -> Versions:
    return Versions(tabulated().output, tabulated_before().output)


@dsl.container_component
def in_its_image():
    return dsl.ContainerSpec(image="alpine", command=["echo", "hello"])


@dsl.pipeline(name="contained")
def contained():
    in_its_image()
    dsl.importer(artifact_uri="s3://bucket/table.csv", artifact_class=Dataset)


@dsl.pipeline(name="imported")
def imported(place: str) -> int:
    return count(table=dsl.importer(artifact_uri=place, artifact_class=Dataset).output).output
