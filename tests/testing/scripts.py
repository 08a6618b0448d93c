"""What was there before each recording began, and what the engine did between its exchanges."""

from __future__ import annotations

from tests.testing.replay import Script
from tests.testing.steps import (
    AFTER,
    BIG,
    LARGE,
    RIGHTS,
    TOKENS,
    artifacts,
    derived,
    ends_without_mlflow,
    experiment,
    fault,
    finish,
    finish_second,
    follow,
    gone,
    inline_package,
    lose,
    many,
    named_workflows,
    object_gone,
    of_eighty_one,
    of_outage,
    of_thirty,
    of_thirty_three,
    only_version,
    orphan_label,
    race,
    refuse_tokens,
    report,
    reported,
    restore,
    run,
    steps,
    upload,
    version_reference,
    without_plugin,
    workflow_name,
    workflows,
)

SCRIPTS: dict[str, Script] = {
    "01-healthz": Script(),
    "02-experiments": Script(ranks=("experiment-1", "experiment-2", "experiment-3")),
    # The ids of the fake are counted in the order of creation, those of the recording in the order of appearance.
    "03-pipelines-upload": Script(ranks=("version-7", "version-4")),
    "04-pipelines-upload-invalid": Script(ranks=("pipeline-2", "pipeline-1")),
    "10-run-create": Script(bodies={29: lambda replay: version_reference(replay, "big value", **BIG)}),
    "11-run-create-orphan": Script(before={1: orphan_label, 4: reported(4), 6: orphan_label, 9: reported(9)}),
    "12-run-create-client-run-id": Script(
        before={
            1: workflows("client-chosen-uuid", 1),
            4: workflows("client-chosen-uuid", 2),
            5: finish("client-chosen-uuid"),
            6: finish_second("client-chosen-uuid", "FAILED"),
        }
    ),
    "13-run-create-idempotent-by-recurring-run": Script(
        before={
            5: workflows("run-1", 1),
            10: finish("run-1", "FAILED"),
            16: race("race-0"),
            17: race("race-1"),
            18: race("race-2"),
        }
    ),
    "14-run-create-recovered-orphan": Script(
        upload(),
        before={
            1: fault("lost-between"),
            2: derived("attempt-key-0002"),
            5: report("run-derived", "RUNNING"),
            8: workflows("run-derived", 2),
            11: workflows("client-chosen-uuid", 1),
            13: workflows("client-chosen-uuid", 2),
        },
    ),
    "15-run-create-limits": Script(),
    "16-run-create-recovered-orphan-content": Script(
        steps(
            upload("carrier-pipeline", "carrier-version", "typed_parameters.yaml", "c"),
            upload("run-pipeline", "run-version", name="r"),
            experiment("experiment-of-run"),
        ),
        before={2: fault("lost-between"), 3: report("chosen-id", "RUNNING"), 6: named_workflows("my name", 2)},
    ),
    "20-run-states": Script(
        before={
            4: report("run-1", "PENDING"),
            6: report("run-1", "RUNNING"),
            8: finish("run-1"),
            16: steps(report("run-2", "RUNNING"), finish("run-2", "FAILED", "print-text-2")),
            19: steps(report("run-3", "RUNNING"), finish("run-3", "ERROR")),
            22: report("run-4", "RUNNING"),
            25: report("run-4", "RUNNING"),
            26: report("run-4"),
            28: report("run-4"),
            30: steps(report("run-5", "RUNNING"), finish("run-5")),
        }
    ),
    "21-run-terminate": Script(AFTER, before={4: report("run-1"), 7: finish("run-2"), 10: gone("run-3")}),
    "22-run-retry": Script(
        AFTER,
        before={
            2: report("run-1", "RUNNING"),
            3: finish("run-1"),
            5: steps(report("run-2", "RUNNING"), finish("run-2", "FAILED")),
            8: workflows("run-2", 1),
            10: finish("run-2"),
            12: report("run-3", "RUNNING"),
            13: report("run-3"),
            17: steps(report("run-4", "RUNNING"), finish("run-4", "FAILED"), gone("run-4")),
            19: workflows("run-4", 1),
        },
    ),
    "23-run-archive-delete": Script(AFTER, before={1: report("run-1", "RUNNING"), 10: workflows("run-1", 0)}),
    "30-runs-list": Script(before={4: of_thirty}),
    "32-runs-list-limits": Script(many),
    "33-runs-list-full": Script(of_thirty_three),
    "40-large": Script(
        before={20: report("run-5", "RUNNING"), 26: report("run-6", "RUNNING"), 32: report("run-7", "RUNNING")},
        bodies=LARGE,
    ),
    "41-concurrency": Script(),
    "50-outage-database": Script(of_outage, before={0: lose("database"), 18: restore}),
    "51-outage-database-between": Script(
        AFTER, before={0: fault("orphan-500"), 3: reported(3), 5: named_workflows("between", 2), 7: reported(7, later_s=200)}
    ),
    "52-server-killed": Script(
        AFTER,
        before={
            0: fault("lost-before"),
            1: named_workflows("killed-early", 0),
            2: fault("lost-between"),
            3: named_workflows("killed-between", 1),
            7: lambda replay: replay.server.down(),
            8: lambda replay: replay.server.up(),
        },
    ),
    "53-outage-kubernetes": Script(of_outage, before={0: lose("kubernetes"), 17: restore, 22: report("running-run", "RUNNING")}),
    "54-outage-object-store": Script(of_outage),
    "60-recurring-runs": Script(before={30: finish("run-1"), 40: object_gone}, ranks=("recurring-run-7", "recurring-run-2")),
    "70-artifacts-metrics-logs": Script(before={2: artifacts}),
    "71-report-endpoint": Script(steps(run("run-1", "rep", inline=True), workflow_name("container-no-input-lhztf"))),
    "80-multi-user-auth": Script(refuse_tokens, options={"multi_user": True, "tokens": TOKENS, "rights": RIGHTS}),
    "81-multi-user-kubernetes-down": Script(
        of_eighty_one,
        before={0: lose("kubernetes"), 4: steps(restore, lose("kubernetes-hanging")), 5: restore},
        options={"multi_user": True, "tokens": TOKENS, "rights": RIGHTS},
    ),
    "90-mlflow-not-configured": Script(
        AFTER,
        bodies={
            7: lambda replay: version_reference(replay, "ml", plugins_input={"mlflow": {"experiment_name": "x" * 1_000_000}}),
            8: lambda replay: version_reference(replay, "ml", plugins_input={f"key-{number}": {} for number in range(40)}),
        },
    ),
    "91-mlflow-configured": Script(
        AFTER,
        before={
            7: report("run-1", "RUNNING"),
            8: finish("run-1", "FAILED"),
            15: finish("run-1"),
            26: report("run-6"),
            32: lose("mlflow"),
            34: ends_without_mlflow,
        },
        options={"mlflow": True},
    ),
    "95-real-execution": Script(
        before={
            2: follow("run-1", 2),
            8: follow("run-2", 8),
            11: follow("run-3", 11, "print-text-2"),
            15: follow("run-3", 15, "print-text-2"),
            17: follow("run-4", 17),
            20: follow("run-4", 20),
            23: follow("run-4", 23),
            25: workflows("run-4", 0),
            28: follow("run-5", 28),
        },
        bodies={
            number: inline_package(name, file)
            for number, name, file in (
                (0, "real-ok", "container_no_input.yaml"),
                (6, "real-cached", "container_no_input.yaml"),
                (9, "real-fails", "pipeline_with_after.yaml"),
                (16, "real-long", "container_no_input.yaml"),
                (26, "real-noimage", "container_no_input.yaml"),
            )
        },
    ),
    "97-real-recurring-and-orphans": Script(
        before={
            1: only_version,
            5: workflows("run-1", 1),
            7: follow("run-1", 7),
            13: fault("lost-between"),
            14: workflows("chosen-id-1", 1),
            15: report("chosen-id-1", "RUNNING"),
            17: fault("lost-between"),
            18: workflows("chosen-id-2", 1),
            19: without_plugin,
            20: steps(workflows("run-3", 1), report("run-3", "RUNNING")),
            22: workflows("run-3", 0),
        },
        options={"mlflow": True},
    ),
}
