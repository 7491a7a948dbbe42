"""Run the graph through Dagster: land what is new in the sources, then build what that made stale."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError
from orchestration.settings import PROJECT_ROOT, Settings
from orchestration.warehouse.connect import connect, kept_open, require_writable
from orchestration.warehouse.holding import holding_rows

if TYPE_CHECKING:
    from orchestration.defs.components import EventStreamSource, Topic
    from orchestration.warehouse.releases import Release

DBT = str(Path(sys.executable).parent / "dbt")
STALE = "watershed/stale"
"""A run's tag: the dbt models that are stale, with commas; the others are built if these change what they read."""
_INPUT = "dagster/input_data_version/"
INGESTS = "ingest_"
"""How the jobs are called that land a source and build nothing."""


class AnotherBuildError(MendableError):
    """Another build of the same data folder is running."""


@dataclass
class Built:
    """What one build did; `released` is None if it changed nothing, or failed."""

    succeeded: bool = True
    assets: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    checks_passed: int = 0
    checks_warned: list[str] = field(default_factory=list)
    checks_failed: list[str] = field(default_factory=list)
    released: Release | None = None
    in_force: list[str] = field(default_factory=list)


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


def prepare_manifest(command: str = "parse", target: str = "target") -> Path:
    """Let dbt read the project, if one of its files is newer than the manifest; Dagster reads that too.

    Args:
        command: `parse`, or `compile` for a manifest with the SQL that DuckDB gets.
        target: dbt's folder for it, in the project.
    """
    from filelock import FileLock

    (PROJECT_ROOT / "dbt_project" / target).mkdir(parents=True, exist_ok=True)
    with FileLock(PROJECT_ROOT / "dbt_project" / target / "parse.lock"):
        return _prepared(command, target)


def _prepared(command: str, target: str) -> Path:
    project = PROJECT_ROOT / "dbt_project"
    manifest = project / target / "manifest.json"
    files = [*project.glob("*.yml"), *(PROJECT_ROOT / "seeds").rglob("*")]
    for folder in ("models", "macros", "tests"):
        files += (project / folder).rglob("*")
    if manifest.exists() and manifest.stat().st_mtime > max(f.stat().st_mtime for f in files):
        return manifest
    from dbt.cli.main import dbtRunner

    offline = ["--no-introspect", "--no-populate-cache"] if command == "compile" else []
    result = dbtRunner().invoke(
        [
            "--quiet", command, "--project-dir", str(project), "--profiles-dir", str(project),
            "--target-path", str(project / target), *offline,
        ]
    )  # fmt: skip
    if not result.success:
        raise MendableError(
            "the dbt project",
            expected="models, tests and seeds that dbt can parse",
            arrived=str(result.exception).strip(),
            mend="mend it as dbt says, and look again with: cd dbt_project && dbt parse",
        )
    return manifest


def build(settings: Settings, step: Callable[[str], None], use_case: str | None = None) -> Built:
    """Materialise every raw asset (cheap when a source has nothing new), then whatever is not up to date.

    Up to date is what the Dagster UI calls synced: code and inputs' data versions are those of the last
    materialisation, and no error-level check of the asset failed. So a second build with nothing
    new stops after asking the sources, and a build after a failure resumes where it stopped.
    One that failed no error-level check becomes a release.

    Args:
        settings: which warehouse and sources.
        step: told the title of each of the two parts.
        use_case: build only its assets, and what they are made of.

    Returns:
        What was built; `failures` holds one readable text per cause, the checks are the latest
        evaluation of every check in the graph.

    Raises:
        MendableError: the data folder cannot be written, or another build is running.
    """
    prepare_dagster_home(settings)
    with _only_build(settings), holding_rows(settings, "the build"):
        return _build(settings, step, use_case)


def _build(settings: Settings, step: Callable[[str], None], use_case: str | None) -> Built:
    import dagster as dg

    started = time.perf_counter()
    prepare_manifest()
    from orchestration.definitions import definitions
    from orchestration.defs.staleness import stale_assets

    defs = definitions()
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.get_repository_def().asset_graph
    built = Built()
    with (
        kept_open(settings),
        dg.DagsterInstance.get() as instance,
        (settings.data_dir / "build.log").open("w") as log,
    ):
        wanted = graph.materializable_asset_keys
        if use_case is not None:
            wanted = wanted & dg.AssetSelection.groups(use_case).upstream().resolve(graph)
        raw = {key for key in wanted if key.path[0] == "raw"}
        watching = {key for key in wanted if key.path[0] == "monitoring"}
        learned = {
            key
            for key in wanted
            if key.path[0] in ("trained_models", "predictions")
            and "dbt" not in graph.get(key).kinds
        }
        # One run after the other: only then is it known which data changed, and so what is stale.
        for title, part in (
            ("2/3  landing what is new", raw),
            ("3/3  building what that made stale", wanted - raw - learned - watching),
            ("     ... learning from it", learned),
            ("     ... watching it", watching),
        ):
            stale, before = raw if part is raw else stale_assets(instance, graph) & part, None
            while stale != before:
                below = dg.AssetSelection.keys(*stale).downstream().resolve(graph)
                selected = sorted(part & below)
                if selected or (before is None and title.strip()[0].isdigit()):
                    step(f"{title} ({len(selected)} assets)")
                if not selected:
                    break
                with contextlib.redirect_stdout(log):  # dbt's own lines; ours go to standard error
                    result = job.execute_in_process(
                        run_config={"loggers": {"console": {}}},
                        instance=instance,
                        asset_selection=selected,
                        tags={
                            **_partition_range(graph, selected),
                            STALE: ",".join(sorted(key.path[-1] for key in stale)),
                        },
                        raise_on_error=False,
                    )
                told = result.get_asset_materialization_events()
                built.assets += len({event.asset_key for event in told})
                built.failures += _causes(result)
                if not result.success:
                    built.succeeded = False
                    break
                # A run that was killed may have left other data than Dagster knew of: then once more.
                stale, before = stale_assets(instance, graph) & part - raw, stale
            if not built.succeeded:
                break
        _count_checks(instance, graph, built)
        if built.succeeded:
            _release(settings, instance, built)
        built.checks_warned += tell(settings, instance, graph)
    built.seconds = time.perf_counter() - started
    return built


def tell(settings: Settings, instance: Any, graph: Any) -> list[str]:
    """Tell what is wrong now, once; a text per sink that could not be told. It never fails its caller.

    Args:
        settings: which warehouse and sinks.
        instance: Dagster's, whose history says which checks and steps failed.
        graph: the asset graph.
    """
    import duckdb

    from orchestration.alerting.alerts import watch_now
    from orchestration.defs.history import failed_steps

    if settings.catalog_file is not None and not settings.catalog_file.exists():
        return []
    built = Built()
    _count_checks(instance, graph, built)
    try:
        down = watch_now(
            settings, built.checks_failed, failed_steps(instance, graph, built.checks_failed)
        )
    except MendableError as error:
        down = [f"{error.thing}: {error.arrived}"]
    except duckdb.Error as error:  # a monitoring table of an older shape, say
        down = [str(error).partition("\n")[0]]
    return [f"alerts not told, {one}" for one in down]


def release_if_whole(settings: Settings, instance: Any, graph: Any) -> Release | None:
    """Release what runs of the UI, of schedules and sensors have built, if it goes together and passed its checks.

    Rows that have landed since are no reason to wait: all that was built is made of the same ones before.

    Args:
        settings: which warehouse.
        instance: Dagster's, whose history says what was built.
        graph: the asset graph.

    Returns:
        The release; None if something is stale or failed its checks, is being built, or nothing changed.
    """
    from orchestration.defs.staleness import is_running, stale_assets

    built = Built()
    _count_checks(instance, graph, built)
    with contextlib.suppress(AnotherBuildError), _only_build(settings):
        if (
            not built.checks_failed
            and not is_running(instance)
            and not stale_assets(instance, graph, by_landing=False)
        ):
            _release(settings, instance, built)
    return built.released


def tell_of_decision(settings: Settings, use_case: str) -> None:
    """Tell Dagster of what a person decided, so that a build builds what depends on it, and nothing else."""
    if not (settings.dagster_home / "dagster.yaml").exists():
        return
    import dagster as dg

    from orchestration.defs.history import tell_of_decisions

    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance, connect(settings, read_only=True) as connection:
        tell_of_decisions(instance, connection, use_case)


def _release(settings: Settings, instance: Any, built: Built) -> None:
    """Release what is in the warehouse; what dbt built by itself is tested before."""
    import dagster as dg

    from orchestration.warehouse.masked import write_down
    from orchestration.warehouse.privacy import told
    from orchestration.warehouse.releases import changed_since_release, release

    if built.checks_failed:
        return
    with connect(settings) as connection:
        unaudited = []
        for schema, table, since in changed_since_release(connection):
            event = instance.get_latest_materialization_event(dg.AssetKey([schema, table]))
            if event is None or event.timestamp < since:
                unaudited.append(table)
        if unaudited and not (failed := _failed_tests(unaudited)):
            unaudited = []
        if unaudited:
            built.succeeded = False
            built.failures.append(f"not released: tests that dbt found broken\n{failed}")
            return
        write_down(connection, settings, told().columns)
        built.released = release(
            connection,
            settings,
            checks_passed=built.checks_passed,
            checks_warned=len(built.checks_warned),
        )
        _register(connection, settings, built)


def _register(connection: Any, settings: Settings, built: Built) -> None:
    """Tell the registry of the last release's models; a registry that is down costs no build."""
    from orchestration.registry.register import register
    from orchestration.registry.store import RegistryUnavailableError
    from orchestration.warehouse.releases import releases

    known = releases(connection)
    try:
        if known:
            register(connection, settings, known[-1], say=built.in_force.append)
    except RegistryUnavailableError as error:
        built.checks_warned.append(f"models are not registered yet: {error.thing}, {error.arrived}")


def _failed_tests(models: list[str]) -> str:
    """What dbt says of the error-level tests of models that do not pass; empty if all do."""
    import subprocess

    done = subprocess.run(
        [DBT, "--quiet", "test", "--exclude-resource-type", "unit_test", "--select", *models],
        cwd=PROJECT_ROOT / "dbt_project",
        capture_output=True,
        text=True,
    )
    return (done.stdout + done.stderr).strip() or "dbt test" if done.returncode else ""


@dataclass(frozen=True)
class Materialized:
    """What Dagster wrote down when an asset was last built; tables are `schema.name`."""

    code_version: str | None
    data_version: str | None
    inputs: frozenset[str]
    columns: dict[str, set[tuple[str, str]]]


def last_materialized(settings: Settings) -> dict[str, Materialized]:
    """What Dagster's history says of each asset; nothing where Dagster never ran."""
    if not (settings.dagster_home / "dagster.yaml").exists():
        return {}
    import dagster as dg

    prepare_dagster_home(settings)
    found = {}
    with dg.DagsterInstance.get() as instance:
        for record in instance.get_asset_records():
            event = record.asset_entry.last_materialization
            told = event.asset_materialization if event else None
            if told is None:
                continue
            lineage: Any = told.metadata.get("dagster/column_lineage")
            tags = told.tags or {}
            inputs = {
                tag.removeprefix(_INPUT).replace("/", ".") for tag in tags if tag.startswith(_INPUT)
            }
            found[".".join(told.asset_key.path)] = Materialized(
                code_version=tags.get("dagster/code_version"),
                data_version=tags.get("dagster/data_version"),
                inputs=frozenset(inputs),
                columns={
                    column: {(".".join(dep.asset_key.path), dep.column_name) for dep in deps}
                    for column, deps in (lineage.value.deps_by_column if lineage else {}).items()
                },
            )
    return found


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
        with_parent: stop as well when the process that started this one has ended, however it did,
            and make way for it.

    Raises:
        MendableError: one of `tables` is no such topic, or cannot be landed.
    """
    import signal
    import threading

    if with_parent:
        os.nice(5)  # what is scored goes out first; what lands may wait a little
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
        raise AnotherBuildError(
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

    from orchestration.defs.staleness import partition_keys

    keys = next(filter(None, (partition_keys(graph, key) for key in selected)), None)
    if keys is None:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}


def _count_checks(instance: Any, graph: Any, built: Built) -> None:
    from orchestration.defs.staleness import latest_checks

    for check, (passed, is_error) in sorted(latest_checks(instance, graph).items()):
        if passed:
            built.checks_passed += 1
        else:
            name = f"{check.asset_key.to_user_string()}: {check.name}"
            (built.checks_failed if is_error else built.checks_warned).append(name)
