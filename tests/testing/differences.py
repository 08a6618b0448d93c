"""
Everything in which a replay does not ask the fake to be like the recorded server, each with its reason; the one list of its kind.

``RULES`` holds them all. :mod:`tests.testing.replay` applies them and notes which it has needed; one that no recording needs any
more fails the suite.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """
    One thing that is not compared, or not as it stands.

    :param name: What it is about; also what the report of unused rules says.
    :param reason: Why.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Field(Rule):
    """
    A field of a recorded body.

    :param field: Its name, empty for every field that the recorded object does not have.
    :param compared: Whether it is compared where the recorded object has it.
    :param has: Other fields that the recorded object has, for the rule to hold.
    :param lacks: Other fields that it lacks.
    """

    field: str = ""
    compared: bool = True
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def holds(self, key: str, recorded: frozenset[str]) -> bool:
        """Tell whether it is about this field of an object with these fields."""
        about = key == self.field if self.field else key not in recorded
        return about and self.has <= recorded and not self.lacks & recorded


@dataclass(frozen=True)
class Text(Rule):
    """
    A part of a text, in the place of which a word is compared.

    :param pattern: The part.
    :param word: The word.
    """

    pattern: re.Pattern[str] = re.compile("")
    word: str = ""


@dataclass(frozen=True)
class Told(Rule):
    """
    A value that the recording describes in the place of showing it; what the description says is compared.

    :param key: Field of the recorded object that is the description, or
    :param pattern: how a describing text reads.
    """

    key: str = ""
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Sent(Rule):
    """
    An upload that is not sent as the recording shows it.

    :param file: Name of the file.
    :param before: What is replaced in it, empty for the whole of it.
    :param after: By what; the name of another file for the whole of it.
    """

    file: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Limit(Rule):
    """
    A number within which something is compared.

    :param value: The number.
    """

    value: int = 0


@dataclass(frozen=True)
class Exchange(Rule):
    """
    An exchange of which not everything is compared.

    :param recording: Its recording; ``name`` is made of both.
    :param number: Its number, None for all of them.
    :param sent: Whether it is sent at all; its status is compared then.
    :param field: The one field that is not compared, empty for the whole body.
    """

    recording: str = ""
    number: int | None = None
    sent: bool = True
    field: str = ""


def exchange(recording: str, number: int | None, reason: str, *, sent: bool = True, field: str = "") -> Exchange:
    where = recording if number is None else f"{recording}[{number}]"
    return Exchange(where, reason, recording, number, sent, field)


NOT_READ = (
    Rule("event", "no exchange: what was done to the surroundings, which scripts.py does, or seen there, which it checks"),
    Rule("elapsed_ms", "how long the recorded server took"),
    Rule("body_bytes", "length of a body that the recording may have shortened"),
    Rule("Content-Length", "how the answer travels; the body is compared"),
)
"""Parts of an exchange, and headers of an answer, that are not read. Every other one is compared."""

FIELDS = (
    Field("error_details", "a stack trace of the server's own source", "error_details", compared=False),
    Field("pipeline_spec", "left out of most recorded bodies to keep them short", "pipeline_spec"),
    Field("runtime_config", "left out of the recorded answer with the 10 kB parameter", "runtime_config"),
    Field("run_details", "left out of most recorded bodies of runs that were reported", "run_details"),
    Field("total_size", "left out of a few recorded lists, together with their runs", "total_size", has=frozenset({"runs"})),
    Field("next_page_token", "likewise", "next_page_token", has=frozenset({"runs"})),
    Field(
        "short items",
        "items of recorded lists of runs show a few fields that matter there; recordings 30 and 33 have them in full",
        has=frozenset({"run_id"}),
        lacks=frozenset({"experiment_id", "task_id"}),
    ),
)
"""Fields that may be in the fake's answer and not in the recorded one, and one that is never compared."""

TOLD = (
    Told("keys", "only the names of the fields are recorded", key="keys"),
    Told("states", "of a list, only the storage states are recorded", key="states"),
    Told("has_next_page_token", "of a page token, only that there is one is recorded", key="has_next_page_token"),
    Told("task_details", "recorded without the object around them", key="task_details"),
    Told("<20 runs>", "only the number is recorded", pattern=re.compile(r"<(\d+) (?:runs?|items)>")),
)

TEXTS = (
    Text(
        "name of a workflow",
        "it ends in signs made up at random",
        re.compile(
            r"\b(container-no-input|pipeline-with-after|typed-parameters|concat-message)-[2456789bcdfghjklmnpqrstvwxz]{5}\b(-\d+)?"
        ),
        "<workflow>",
    ),
    Text("size of an object", "the server's own objects have other sizes", re.compile(r"(?<=\()\d+(?= vs\.)"), "<number>"),
    Text("place in memory", "of the server's own process", re.compile(r"(?<=context &\{)0x[0-9a-f]+"), "<number>"),
    Text("place in memory, of options", "likewise", re.compile(r"(?<=options &\{)20 0x[0-9a-f]+"), "<number>"),
    Text("age of an orphan", "how long the script took to report it", re.compile(r"(?<=\()\d+(?=s old,)"), "<number>"),
)
[WORKFLOW, *_] = TEXTS

NAMES = Text(
    "name of an id",
    "recordings have names in the place of ids: the first id that stands for one is taken, and must stand for it from then on",
    re.compile(
        r"(?:experiment|pipeline|version|recurring-run|run|task|page-token|mlflow-run)-\d+|run-derived|orphan-run|[0-9a-f]{32}"
    ),
)
TIMES = Limit("times", "a recorded second can pass within a request, and a server without its MLflow waits 10 s", 12)
"""Seconds that stamps may be apart."""
LONG = Limit("long texts", "padding without names; and the client's models take minutes to read such a body", 200_000)
"""Characters."""

NODE_ORDER = Rule("order of task_details", "of no use on the server either; compared as a set")
NODE_VALUES = Rule(
    "values of nodes",
    "ids and times of a script's nodes mean nothing; compared are names, states, whether they have ended, and which fields there are",
)
NODE_LINKS = Rule(
    "child_tasks",
    "a script linked the workflow, root and executors otherwise than Argo does, which the fake follows; test_tasks.py compares with 95",
)
NODE_STATES = Rule(
    "states of nodes in a run that has not succeeded",
    "the script left drivers RUNNING in a failed workflow; in the fake, as in 95, drivers of what ran are SUCCEEDED",
)
NODE_ABSENT = Rule(
    "nodes that have not begun",
    "the script listed them; in the fake, as in 95, what has not begun is absent from a run that has not succeeded",
)
NODES = (NODE_ORDER, NODE_VALUES, NODE_LINKS, NODE_STATES, NODE_ABSENT)

RACE = Rule("workflows of a race", "7 or 8 of 8 creates started one; how many is chance, so more than one is asked for")

MODELS = (
    Rule("V2beta1GetHealthzResponse.commit_sha is not in the model", "kfp-server-api 2.17.3 does not show it"),
    Rule("V2beta1GetHealthzResponse.tag_name is not in the model", "likewise"),
)
"""What kfp-server-api's models have against answers that are right."""

SPOILED = "recording 04 spoils the file in a way that only its note tells"
HEAD = "{name: container-no-input}\nroot"
SENT = (
    Sent(
        "echo.yaml",
        "a file that is not among the recorded ones; this one has the same shape",
        "echo.yaml",
        "",
        "container_no_input.yaml",
    ),
    Sent("no_name.yaml", SPOILED, "no_name.yaml", HEAD, "{name: null}\nroot"),
    Sent("invalid_yaml.yaml", SPOILED, "invalid_yaml.yaml", "components:", "componets:"),
    Sent("schema9.yaml", SPOILED, "schema9.yaml", "schemaVersion: 2.1.0", "schemaVersion: 9.9.9"),
    Sent("extra.yaml", SPOILED, "extra.yaml", "schemaVersion:", "extra: 1\nschemaVersion:"),
    Sent("badname.yaml", SPOILED, "badname.yaml", HEAD, "{name: Bad_Näme x}\nroot"),
    Sent("longname.yaml", SPOILED, "longname.yaml", HEAD, "{name: " + "a" * 200 + "}\nroot"),
    Sent(
        "norootcomp.yaml",
        SPOILED,
        "norootcomp.yaml",
        "componentRef: {name: comp-container-no-input}",
        "componentRef: {name: comp-absent}",
    ),
)

V1 = "v1beta1 is not part of the fake"
LOG = "the log of a real container; test_fates.py and test_tasks.py have the log of the fake"
TASKS = "of a real execution, whose launcher adds an item without a name; test_tasks.py compares the others"
SHUT = "the process of the recorded server was on its way out; down() and up() of the fake are tested apart"
CONTROLLER = "the controller has reported the ScheduledWorkflow; the fake has no controller"
MINUTES = "97-real-recurring-and-orphans"

EXCHANGES = (
    exchange("20-run-states", 31, "one task skipped and another omitted by hand, which the fake's auto() cannot say"),
    exchange("20-run-states", 37, V1, sent=False),
    exchange("34-runs-finished-since", None, "has events alone; test_limits.py asks what they tell", sent=False),
    exchange(
        "42-client-gives-up", None, "the fake does not notice that a client goes away; hang and slow stand for it", sent=False
    ),
    exchange("50-outage-database", 2, "the first request after the loss finds a broken connection and says so in other words"),
    *(exchange("52-server-killed", number, SHUT, sent=False) for number in (4, 5, 6)),
    exchange("53-outage-kubernetes", 8, "calls the uploaded pipeline by the name of another one, whose id the recording lost"),
    exchange("53-outage-kubernetes", 11, "names the pod that could not be deleted"),
    exchange("53-outage-kubernetes", 14, "a stack trace within the message"),
    exchange("54-outage-object-store", 4, "lists pipelines of earlier recordings on the same server"),
    *(exchange("70-artifacts-metrics-logs", number, V1, sent=False) for number in (11, 12, 25, 26)),
    exchange("70-artifacts-metrics-logs", 24, "Prometheus metrics are not part of the fake", sent=False),
    *(exchange("80-multi-user-auth", number, V1, sent=False) for number in (51, 52)),
    exchange("81-multi-user-kubernetes-down", 5, "its history holds a state that a forged report of recording 80 left empty"),
    exchange("82-multi-user-rate", None, "only how long many requests take; test_faults.py has the rate", sent=False),
    exchange("91-mlflow-configured", 36, "an MLflow that hangs: the answer of one that is away, after a longer time", sent=False),
    *(exchange("95-real-execution", number, LOG, sent=False) for number in (3, 4, 5)),
    *(exchange("95-real-execution", number, TASKS, field="task_details") for number in (2, 8)),
    exchange("96-real-execution-mlflow", None, "a real training, with what the stores and a real MLflow hold of it", sent=False),
    exchange(MINUTES, 1, "that server was set up without a default one", field="service_account"),
    exchange(MINUTES, 2, "that server was set up without a default one", field="service_account"),
    exchange(MINUTES, 8, CONTROLLER),
    exchange(MINUTES, 9, "the run that the controller started; the fake has no controller", sent=False),
    exchange(MINUTES, 10, CONTROLLER),
    exchange(MINUTES, 15, "in its first second a real run has two nodes, the fake's has six", field="task_details"),
    exchange(MINUTES, 23, "the recorded run had come to four nodes by then, the fake's has six", field="task_details"),
)

RULES: tuple[Rule, ...] = (
    *NOT_READ,
    *FIELDS,
    *TOLD,
    *TEXTS,
    NAMES,
    TIMES,
    LONG,
    *NODES,
    RACE,
    *MODELS,
    *SENT,
    *EXCHANGES,
)


def of(recording: str, number: int) -> Exchange | None:
    """Find the rule about an exchange."""
    return next((each for each in EXCHANGES if each.recording == recording and each.number in {None, number}), None)
