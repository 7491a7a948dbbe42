"""Run the graph through Dagster: land what is new in the sources, then build what that made stale."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError
from orchestration.settings import PROJECT_ROOT, Settings
from orchestration.warehouse.connect import require_writable

if TYPE_CHECKING:
    from orchestration.defs.components import EventStreamSource, Topic


@dataclass
class Built:
    """What one build did."""

    succeeded: bool = True
    assets: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    checks_passed: int = 0
    checks_warned: list[str] = field(default_factory=list)
    checks_failed: list[str] = field(default_factory=list)


def prepare_dagster_home(settings: Settings) -> None:
    """Point Dagster at its run history in the data folder, with the project's `dagster.yaml`.

    Raises:
        MendableError: the data folder cannot be written.
    """
    require_writable(settings.data_dir)
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        PROJECT_ROOT / "orchestration" / "dagster.yaml", settings.dagster_home / "dagster.yaml"
    )
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)


def prepare_manifest() -> None:
    """Parse the dbt project if one of its files is newer than the manifest Dagster reads."""
    project = PROJECT_ROOT / "dbt_project"
    manifest = project / "target" / "manifest.json"
    files = [*project.glob("*.yml"), *(PROJECT_ROOT / "seeds").rglob("*")]
    for folder in ("models", "macros", "tests"):
        files += (project / folder).rglob("*")
    if manifest.exists() and manifest.stat().st_mtime > max(f.stat().st_mtime for f in files):
        return
    from dbt.cli.main import dbtRunner

    result = dbtRunner().invoke(
        ["--quiet", "parse", "--project-dir", str(project), "--profiles-dir", str(project)]
    )
    if not result.success:
        raise MendableError(
            "the dbt project",
            expected="models, tests and seeds that dbt can parse",
            arrived=str(result.exception).strip(),
            mend="mend it as dbt says, and look again with: cd dbt_project && dbt parse",
        )


def build(settings: Settings, step: Callable[[str], None]) -> Built:
    """Materialise every raw asset (cheap when a source has nothing new), then whatever is not up to date.

    Up to date is what the Dagster UI calls synced: code and inputs are those of the last
    materialisation, and no error-level check of the asset failed. So a second build with nothing
    new stops after asking the sources, and a build after a failure resumes where it stopped.

    Args:
        settings: which warehouse and sources.
        step: told the title of each of the two parts.

    Returns:
        What was built; `failures` holds one readable text per cause, the checks are the latest
        evaluation of every check in the graph.

    Raises:
        MendableError: the data folder cannot be written, or another build is running.
    """
    prepare_dagster_home(settings)
    with _only_build(settings):
        return _build(settings, step)


def _build(settings: Settings, step: Callable[[str], None]) -> Built:
    import dagster as dg

    started = time.perf_counter()
    prepare_manifest()
    from orchestration.definitions import definitions

    defs = definitions()
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.get_repository_def().asset_graph
    built = Built()
    with (
        dg.DagsterInstance.get() as instance,
        (settings.data_dir / "build.log").open("w") as log,
    ):
        raw = [key for key in graph.materializable_asset_keys if key.path[0] == "raw"]
        for title, select in (
            ("2/3  landing what is new", lambda: raw),
            ("3/3  building what that made stale", lambda: not_up_to_date(instance, graph)),
        ):
            selected = select()
            step(f"{title} ({len(selected)} assets)")
            if not selected:
                continue
            with contextlib.redirect_stdout(log):  # dbt's own lines; ours go to standard error
                result = job.execute_in_process(
                    run_config={"loggers": {"console": {}}},
                    instance=instance,
                    asset_selection=selected,
                    tags=_partition_range(graph, selected),
                    raise_on_error=False,
                )
            built.assets += len(selected)
            built.failures += _causes(result)
            if not result.success:
                built.succeeded = False
                break
        _count_checks(instance, graph, built)
    built.seconds = time.perf_counter() - started
    return built


def reload(
    settings: Settings,
    table: str,
    start: str | None = None,
    end: str | None = None,
    *,
    accept_gap: bool = False,
) -> Built:
    """Land one part of a source again, as the raw asset's run config does in the UI.

    Args:
        settings: which warehouse and sources.
        table: `<system>.<entity>`.
        start: from here on, as the source counts; None from its beginning.
        end: before this; None to its end.
        accept_gap: land what is new in an event stream although events before it are gone.

    Raises:
        MendableError: there is no such raw table, or no part of it was named.
    """
    import dagster as dg

    prepare_dagster_home(settings)
    prepare_manifest()
    from orchestration.definitions import definitions

    defs = definitions()
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.get_repository_def().asset_graph
    key = dg.AssetKey(["raw", table.replace(".", "__", 1)])
    if key not in graph.materializable_asset_keys or not (start or end or accept_gap):
        raw = sorted(
            k.path[1].replace("__", ".", 1)
            for k in graph.materializable_asset_keys
            if k.path[0] == "raw"
        )
        raise MendableError(
            f"reload {table}",
            expected=f"one of {', '.join(raw)}, and --from, --to or both, or --accept-gap",
            arrived=f"{table}, from {start or 'nowhere'}, to {end or 'nowhere'}",
            mend="watershed reload retail_db.transactions --from 2017-03-01 --to 2017-04-01",
        )
    step = "__".join(key.path)
    config = {"reload_from": start, "reload_to": end, "accept_gap": accept_gap}
    built = Built(assets=1)
    with (
        dg.DagsterInstance.get() as instance,
        (settings.data_dir / "build.log").open("w") as log,
        contextlib.redirect_stdout(log),
    ):
        result = job.execute_in_process(
            run_config={"loggers": {"console": {}}, "ops": {step: {"config": config}}},
            instance=instance,
            asset_selection=[key],
            raise_on_error=False,
        )
    built.succeeded = result.success
    built.failures = _causes(result)
    return built


def follow(
    settings: Settings,
    tables: Sequence[str],
    say: Callable[[str], None],
    *,
    with_parent: bool = False,
) -> None:
    """Land streams as their events come, until the process is told to stop (Ctrl-C, SIGTERM).

    Args:
        settings: which warehouse and sources.
        tables: topics of described event streams, `<system>.<entity>` each; one thread follows one.
        say: told what landed, and of troubles that are waited out.
        with_parent: stop as well when the process that started this one has ended, however it did.

    Raises:
        MendableError: one of `tables` is no such topic, or cannot be landed.
    """
    import signal
    import threading

    topics = [_topic_of(table) for table in tables]
    stopping, parent = threading.Event(), os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    failures: list[BaseException] = []

    def land_one(source: EventStreamSource, topic: Topic) -> None:
        try:
            source.follow(settings, topic, stop=stopping, say=say)
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the main thread
            failures.append(error)
            stopping.set()

    threads = [threading.Thread(target=land_one, args=pair) for pair in topics]
    for thread in threads:
        thread.start()
    while not stopping.wait(0.2):
        if with_parent and os.getppid() != parent:
            stopping.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _topic_of(table: str) -> tuple[EventStreamSource, Topic]:
    from orchestration.defs.components import EventStreamSource, described_source

    system, _, entity = table.partition(".")
    source = described_source(system)
    topics = source.tables if isinstance(source, EventStreamSource) else ()
    topic = next((topic for topic in topics if topic.name == entity), None)
    if topic is None or not isinstance(source, EventStreamSource):
        raise MendableError(
            f"follow {table}",
            expected=f"a topic of an EventStreamSource; {system} has"
            f" {', '.join(t.name for t in topics) or 'none'}",
            arrived=entity or "no entity",
            mend="make build lands what is not a stream",
        )
    return source, topic


@contextlib.contextmanager
def _only_build(settings: Settings) -> Iterator[None]:
    """Hold the data folder's build lock, which ends with the process; a second build is refused."""
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(settings.data_dir / "build.lock", timeout=0).acquire()
    except Timeout:
        raise MendableError(
            f"the build into {settings.data_dir}",
            expected="to be the only one",
            arrived="another build is running; this one has changed nothing",
            mend="wait until it has finished, then run the command again",
        ) from None
    with lock:
        yield


def _causes(result: Any) -> list[str]:
    """One text per cause of a run's failures; the things that it stopped stand before it together."""
    texts: list[str] = []
    things: dict[str, list[str]] = {}
    for event in result.filter_events(lambda event: event.is_step_failure):
        error = event.step_failure_data.error
        user = event.step_failure_data.user_failure_data
        cause = (error.cause or error) if error else None
        text = (user and user.description) or (cause.message if cause else "no reason given")
        thing, mendable, rest = text.partition("\n  expected:")
        if not mendable:
            texts.append(f"{event.step_key}: {text}".strip())
        elif thing not in things.setdefault(mendable + rest, []):
            things[mendable + rest].append(thing)
    return [f"{', '.join(names)}{cause}" for cause, names in things.items()] + texts


def _partition_range(graph: Any, selected: list[Any]) -> dict[str, str]:
    """Run tags that make one run cover every partition of the partitioned assets selected."""
    from dagster._core.storage.tags import (
        ASSET_PARTITION_RANGE_END_TAG,
        ASSET_PARTITION_RANGE_START_TAG,
    )

    keys = next(filter(None, (_partition_keys(graph, key) for key in selected)), None)
    if keys is None:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}


def not_up_to_date(instance: Any, graph: Any) -> list[Any]:
    """The assets the UI shows as missing or unsynced or with a failed check, and all downstream."""
    import dagster as dg

    # The same resolver that answers the UI, so that both always agree; Dagster is pinned.
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContext

    class Context(LoadingContext):
        def __init__(self) -> None:
            self._loaders: dict[Any, Any] = {}

        @property
        def instance(self) -> dg.DagsterInstance:
            return instance  # type: ignore[no-any-return]

        @property
        def loaders(self) -> dict[Any, Any]:
            return self._loaders

    resolver = CachingStaleStatusResolver(instance, graph, Context())
    failed = {
        check.asset_key
        for check, (passed, is_error) in _latest_checks(instance, graph).items()
        if not passed and is_error
    }
    not_synced = {
        key
        for key in graph.materializable_asset_keys
        if any(
            resolver.get_status(key, partition) is not StaleStatus.FRESH
            for partition in (*_partition_keys(graph, key),) or (None,)
        )
    }
    selected = dg.AssetSelection.keys(*failed, *not_synced).downstream().resolve(graph)
    return sorted(selected & graph.materializable_asset_keys)


def _partition_keys(graph: Any, key: Any) -> list[str]:
    """The asset's partitions, in order; none if it is not partitioned."""
    partitions = graph.get(key).partitions_def
    return list(partitions.get_partition_keys()) if partitions is not None else []


def _latest_checks(instance: Any, graph: Any) -> dict[Any, tuple[bool, bool]]:
    """For every check that was ever evaluated: whether it last passed, and whether it is error-level."""
    from dagster import AssetCheckSeverity, DagsterEventType

    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        list(graph.asset_check_keys)
    )
    evaluations = {
        check: record.event.dagster_event.asset_check_evaluation_data
        for check, record in records.items()
        # a check whose run broke off before it is planned, not evaluated
        if record.event is not None
        and record.event.dagster_event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION
    }
    return {
        check: (evaluation.passed, evaluation.severity is AssetCheckSeverity.ERROR)
        for check, evaluation in evaluations.items()
    }


def _count_checks(instance: Any, graph: Any, built: Built) -> None:
    for check, (passed, is_error) in sorted(_latest_checks(instance, graph).items()):
        if passed:
            built.checks_passed += 1
        else:
            name = f"{check.asset_key.to_user_string()}: {check.name}"
            (built.checks_failed if is_error else built.checks_warned).append(name)
