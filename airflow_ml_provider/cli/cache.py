"""``airflow-ml cache``: why a step did or did not run, what is kept of earlier results, and how it is deleted."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.cache import CacheEntry
from airflow_ml_provider.tracking.cache_explain import CacheHistory, Explanation
from airflow_ml_provider.tracking.cache_index import when
from airflow_ml_provider.tracking.cache_shelf import CacheShelf, Filters, Shelved, why_stale
from airflow_ml_provider.tracking.runs import Run, run_id_of, status_of, tags_of

KEY_LENGTH = 12
ENDLESS = 1_000_000
KILO = 1000
LONGEST_DAYS = 365_000.0
TITLES = {"hit": "HIT", "miss": "MISS", "off": "OFF", "refresh": "REFRESH", "none": "NO CACHE"}


def run(args: Namespace) -> int:
    """
    Explain one step's cache, list the entries of the index, or delete some.

    :param args: ``action``; ``dag_id``, ``task_id``, ``run_id`` and ``map_index`` of explain; ``dag``, ``task``, ``model``,
        ``older_than`` (days) and ``stale`` of ls and clear; ``yes`` of clear; ``experiment`` and ``conn_id``.
    :return: 0; 1 when not everything could be read or deleted.
    :raises ConfigError: the arguments do not fit the action; a retry never helps.
    :raises RemoteNotFoundError: there is no such run, experiment or model.
    """
    _check(args)
    with open_api(args.conn_id) as api:
        if args.action == "explain":
            return _explain(api, args)
        shelf = CacheShelf(api, args.experiment)
        found = shelf.find(_filters(args))
        return _clear(shelf, found, yes=args.yes) if args.action == "clear" else _list(shelf, found)


def _check(args: Namespace) -> None:
    """Refuse what the action does not take: a filter that is not heeded would list, or delete, too much."""
    named = [each for each in (args.dag_id, args.task_id, args.run_id) if each is not None]
    filtered = bool(_filters(args))
    if args.action == "explain":
        if args.task_id is None:
            raise ConfigError("cache explain needs a DAG and a task: airflow-ml cache explain DAG TASK [RUN].")
        if filtered or args.yes:
            raise ConfigError("cache explain takes no filters: airflow-ml cache explain DAG TASK [RUN] [--map-index N].")
        return
    if named or args.map_index is not None:
        raise ConfigError(
            f"cache {args.action} takes filters, not {' '.join(named) or '--map-index'}: --dag DAG, --task TASK, --model MODEL, "
            "--older-than DAYS, --stale."
        )
    if args.action == "clear" and not filtered:
        raise ConfigError("cache clear needs to know what: give --dag, --task, --model, --older-than or --stale.")
    if args.action == "ls" and args.yes:
        raise ConfigError("cache ls deletes nothing, so it takes no --yes. To delete: airflow-ml cache clear.")


def _filters(args: Namespace) -> Filters:
    days = args.older_than
    if days is not None and not 0 <= days <= LONGEST_DAYS:  # NaN neither
        raise ConfigError(f"--older-than {days}: give days from 0 to {LONGEST_DAYS:.0f}.")
    return Filters(args.dag, args.task, args.model, None if days is None else timedelta(days=days), args.stale)


# explain


def _explain(api: MlflowApi, args: Namespace) -> int:
    history = CacheHistory(api, args.experiment)
    runs = history.runs(args.dag_id, args.task_id, args.run_id, args.map_index)
    found = [history.explain(each) for each in runs]
    lines = _of_many(found) if len(found) > 1 else _of_one(api, found[0])
    print("\n".join(map(_plain, lines)))
    return 0


def _of_many(found: Sequence[Explanation]) -> list[str]:
    """Say of each instance of a mapped task what its cache did, in a line."""
    tags = tags_of(found[0].run)
    hits = sum(each.verdict == "hit" for each in found)
    head = f"{tags['airflow.task_id']} of {tags['airflow.dag_id']}, DAG run {tags['airflow.run_id']}: {hits} of {len(found)} hits"
    lines = [head]
    for each in found:
        short = {"hit": f"from DAG run {_dag_run(each.source)}", "miss": each.why or "; ".join(each.changed)}
        lines.append(f"  [{_index(each.run)}]  {TITLES[each.verdict]:<8}  {short.get(each.verdict, '')}".rstrip())
    return [*lines, "  --map-index N says more of one."]


def _of_one(api: MlflowApi, found: Explanation) -> list[str]:
    tags, info = tags_of(found.run), found.run["info"]
    index = f" [{_index(found.run)}]" if _index(found.run) >= 0 else ""
    state = "" if status_of(found.run) == "FINISHED" else f", {status_of(found.run).lower()}"
    which = f"{tags['airflow.task_id']}{index} of {tags['airflow.dag_id']}, DAG run {tags['airflow.run_id']}"
    head = f"{TITLES[found.verdict]}  {which} ({when(int(info.get('start_time') or 0))}{state})"
    lines = [head, *_reasons(found)]
    if found.verdict in {"miss", "refresh"}:
        lines.append(_what_next(found))
    lines.append(f"  run   {api.server.run_page(str(info['experiment_id']), run_id_of(found.run))}")
    if found.source is not None:
        page = api.server.run_page(str(found.source["info"]["experiment_id"]), run_id_of(found.source))
        lines.append(f"  from  {page}")
    if key := tags.get("airflow.cache_key"):
        lines.append(f"  key   {key[:KEY_LENGTH]}")
    return lines


def _reasons(found: Explanation) -> list[str]:
    if found.verdict == "hit":
        return _of_hit(found)
    if found.verdict == "off":
        return ["  The step ran: this DAG run says ml_cache=off. Its result was not kept."]
    if found.verdict == "refresh":
        return ["  The step ran: a refresh was asked for, by ml_cache of the DAG run or by refresh=True of the policy."]
    if found.verdict == "none":
        return ["  Nobody has asked a cache: cache= is not set for this task, or the step ended before it could ask."]
    if not found.against:
        return [f"  The step ran: {found.why}."]
    lines = [f"  The step ran. Compared with DAG run {found.against} (made {found.made}), its newest result then:"]
    lines += [f"    {each}" for each in found.changed] or ["    nothing"]
    lines += [f"  The same: {', '.join(found.same)}."] if found.same else []
    lines += [
        f"  {each[0].upper()}{each[1:]} holds the date, or the id, of the DAG run, so the key is new each time. If the result "
        f"does not depend on it: Cache(ignore=[{each.partition(' ')[2]!r}])."
        for each in found.dated
    ]
    return lines


def _of_hit(found: Explanation) -> list[str]:
    if found.source is None:
        return ["  The step did not run. The run whose result it took is gone since, or may not be seen."]
    made = f", made {found.made}" if found.made else ""
    lines = [f"  The step did not run. Its result is that of DAG run {_dag_run(found.source)}{made}."]
    here, there = _seconds(found.run), _seconds(found.source)
    if here is not None and there is not None:
        lines.append(f"  It took {here:.1f} s here, and {there:.1f} s there.")
    if found.kept is not None and found.kept.run_id == run_id_of(found.source):
        lines += [f"  Outputs: {_outputs(found.kept)}."] if found.kept.outputs else []
    if found.source["info"].get("lifecycle_stage") != "active":
        again = found.kept is not None and found.kept.run_id != run_id_of(found.source)
        lines.append(f"  That run was deleted since{'.' if again else ': the next run with this key is a miss.'}")
    return lines


def _what_next(found: Explanation) -> str:
    kept = found.kept
    if kept is not None and kept.run_id == run_id_of(found.run):
        if why := why_stale(kept, found.run):
            return f"  The next run with this key is a miss: the result that is kept is of before, and {why}."
        return "  Its result is kept: the next run with this key is a hit."
    if kept is not None:
        return f"  Kept for this key is the result of DAG run {kept.dag_run_id} (made {when(kept.made_at_ms)})."
    if status_of(found.run) == "RUNNING":
        return "  It still runs; its result is kept when it ends well."
    return "  No result is kept for this key: the step failed, its log says why it was not kept, or somebody has cleared it."


# ls and clear


def _list(shelf: CacheShelf, found: Sequence[Shelved]) -> int:
    _show(found)
    stale = sum(bool(each.stale) for each in found)
    print(f"{len(found)} {_noun(found)}" + (f", {stale} of them stale: airflow-ml cache clear --stale" if stale else ""))
    return _end(shelf)


def _clear(shelf: CacheShelf, found: Sequence[Shelved], *, yes: bool) -> int:
    _show(found)
    if not yes:
        would = "Nothing was deleted: the same with --yes deletes them." if found else "Nothing to delete."
        print(f"{len(found)} {_noun(found)} to delete. {would}")
        return _end(shelf)
    print(f"{shelf.clear(found)} of {len(found)} {_noun(found)} deleted. Runs and artifacts stay.")
    return _end(shelf)


def _end(shelf: CacheShelf) -> int:
    for each in shelf.problems:
        print(f"airflow-ml: {_plain(each)}", file=sys.stderr)
    return 1 if shelf.problems else 0


def _show(found: Sequence[Shelved]) -> None:
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = ENDLESS
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("DAG", "task", "made", "by DAG run", "result", "state", "key", "MLflow run"):
        table.add_column(title, no_wrap=not console.is_terminal, overflow="fold")
    for each in found:
        entry, (dag, task) = each.entry, each.names
        style = "dim" if each.stale else ""
        state = f"stale: {each.stale}" if each.stale else "newest" if each.newest else ""
        key = each.path.rpartition("/")[2].removesuffix(".json")[:KEY_LENGTH]
        if entry is None:
            cells = (dag, task, "", "", "", state, key, "")
        else:
            index = f" [{entry.map_index}]" if entry.map_index >= 0 else ""
            result = _outputs(entry) or "a value"
            cells = (dag, task + index, when(entry.made_at_ms), entry.dag_run_id, result, state, key, entry.run_id)
        table.add_row(*(Text(_plain(cell)) for cell in cells), style=style)
    if found:
        console.print(table)


def _outputs(entry: CacheEntry) -> str:
    made = ((name, ref.type, "" if ref.size is None else f" {_size(ref.size)}") for name, ref in entry.outputs.items())
    return ", ".join(f"{name} ({kind}{size})" for name, kind, size in made)


def _noun(found: Sequence[Shelved]) -> str:
    return "entry" if len(found) == 1 else "entries"


def _dag_run(run: Run | None) -> str:
    return "that is gone" if run is None else tags_of(run).get("airflow.run_id", run_id_of(run))


def _index(run: Run) -> int:
    return int(tags_of(run).get("airflow.map_index", "-1"))


def _seconds(run: Run) -> float | None:
    begun, ended = int(run["info"].get("start_time") or 0), int(run["info"].get("end_time") or 0)
    return (ended - begun) / 1000 if 0 < begun <= ended else None


def _plain(text: str) -> str:
    """Keep text of others to one line, without what would move the cursor."""
    return "".join(each if each.isprintable() else " " for each in text)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < KILO:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= KILO
    return f"{size:.1f} GB"
