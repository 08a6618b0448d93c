"""Everything in which a replay does not ask the fake to be like the recorded server, each with its reason; the one list of its kind."""

from __future__ import annotations

import re

TIME_TOLERANCE_S = 12
"""Stamps may be this far apart: a recorded second can pass within a request, and a server without its MLflow waits 10 s."""

NOT_LOOKED_AT: dict[str, str] = {
    "elapsed_ms": "how long the recorded server took",
    "body_bytes": "length of a body that the recording may have shortened",
    "Date, Content-Length, Transfer-Encoding, Grpc-Metadata-Content-Type": "how the answer travels; Content-Type is compared",
    "order of keys in an object": "JSON has none",
    "order of task_details": "of no use on the server either; compared as a set",
}
"""Parts of an exchange that the replay never reads."""

FIELDS: dict[str, str] = {
    "error_details": "a stack trace of the server's own source",
}
"""Fields of a body whose value is not compared."""

SHORTENED: dict[str, str] = {
    "pipeline_spec": "left out of most recorded bodies to keep them short; compared where it stands",
    "runtime_config": "left out of the recorded answer with the 10 kB parameter; compared where it stands",
    "run_details": "left out of most recorded bodies of runs that were reported; compared where it stands",
}
"""Fields that may be in the fake's answer and not in the recorded one."""

SHORTENED_LISTS: dict[str, str] = {
    "total_size": "left out of a few recorded lists, together with their runs; compared where it stands",
    "next_page_token": "likewise",
}
"""The same, of lists."""

NUMBERS = re.compile(r"(?<=\()\d+(?= vs\.)|(?<=context &\{)0x[0-9a-f]+|(?<=options &\{)20 0x[0-9a-f]+")
"""Numbers in texts that are the size of the server's own object, or a place in its memory."""

NODES = (
    "In 01 to 91 a script wrote the states of nodes: it leaves drivers RUNNING in a failed workflow, and lists tasks that have not "
    "begun. The fake follows the real Argo of 95: drivers of what ran are SUCCEEDED, and what has not begun is absent. So of a run "
    "that SUCCEEDED all nodes are compared with their states; of another one the names and fields, where the fake may lack nodes that "
    "have not begun; the nodes of the workflow, of root and of executors by their links in neither. test_tasks.py compares with 95."
)
"""Why nodes are compared as they are."""

V1 = "not sent: v1beta1 is not part of the fake"
REAL = "not sent: a real training, with what the stores and a real MLflow hold of it"
LOG = "not sent: the log of a real container; test_fates.py and test_tasks.py have the log of the fake"
TASKS = "the nodes of a real execution, which come one by one; test_tasks.py compares them for runs that have ended"
SHUT = "not sent: the process of the recorded server was on its way out; down() and up() of the fake are tested apart"

PARTLY: dict[tuple[str, int], tuple[str, str]] = {
    **{("95-real-execution", number): ("task_details", TASKS) for number in (2, 8, 11, 15, 17, 20, 23, 28)},
    ("97-real-recurring-and-orphans", 1): ("service_account", "that server was set up without a default one"),
    ("97-real-recurring-and-orphans", 2): ("service_account", "that server was set up without a default one"),
    ("97-real-recurring-and-orphans", 15): ("task_details", "in its first second a real run has two nodes, the fake's has six"),
    ("97-real-recurring-and-orphans", 23): ("task_details", "likewise; the recorded one had come to four"),
}
"""Recording, number of an exchange, and the one field of it that is not compared."""

UNCOMPARED: dict[tuple[str, int | None], str] = {
    (
        "20-run-states",
        31,
    ): "one task skipped and another omitted by hand, in a workflow that succeeds; the fake's auto() cannot say that",
    ("20-run-states", 37): V1,
    ("42-client-gives-up", None): "not sent: the fake does not notice a client that goes away; faults hang and slow stand for it",
    ("50-outage-database", 2): "the first request after the loss finds a broken connection and says so in other words",
    ("52-server-killed", 4): SHUT,
    ("52-server-killed", 5): SHUT,
    ("52-server-killed", 6): SHUT,
    ("53-outage-kubernetes", 8): "the recording calls the uploaded pipeline by the name of another one, whose id it lost",
    ("53-outage-kubernetes", 11): "names the pod that could not be deleted",
    ("53-outage-kubernetes", 14): "a stack trace within the message",
    ("54-outage-object-store", 4): "lists pipelines of earlier recordings on the same server",
    ("70-artifacts-metrics-logs", 11): V1,
    ("70-artifacts-metrics-logs", 12): V1,
    ("70-artifacts-metrics-logs", 24): "not sent: Prometheus metrics are not part of the fake",
    ("70-artifacts-metrics-logs", 25): V1,
    ("70-artifacts-metrics-logs", 26): V1,
    ("80-multi-user-auth", 51): V1,
    ("80-multi-user-auth", 52): V1,
    ("81-multi-user-kubernetes-down", 5): "its history holds a state that a forged report of recording 80 left empty",
    ("82-multi-user-rate", None): "only how long many requests take; test_faults.py has the rate",
    ("91-mlflow-configured", 36): "not sent: an MLflow that hangs; the same answer as from one that is away, after a longer time",
    ("95-real-execution", 3): LOG,
    ("95-real-execution", 4): LOG,
    ("95-real-execution", 5): LOG,
    ("96-real-execution-mlflow", None): REAL,
    ("97-real-recurring-and-orphans", 8): "the controller has reported the ScheduledWorkflow; the fake has no controller",
    ("97-real-recurring-and-orphans", 9): "not sent: the run that the controller started; the fake has no controller",
    ("97-real-recurring-and-orphans", 10): "the controller has reported the ScheduledWorkflow; the fake has no controller",
}
"""Recording and number of an exchange (None for all) that is not compared. "not sent" comes first when it is not even sent."""
