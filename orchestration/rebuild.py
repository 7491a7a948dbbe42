"""Rebuild a release's training sets from the raw rows of its time, with the code of its time, and compare.

The rows that landed are read as of the moment when staging read them, into a warehouse of its own that
is removed afterwards. dbt builds it anew, from a checkout of the release's commit if the project's
files have changed since. What comes out has the hash that was released, or the table is named.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.build import DBT
from orchestration.duckdb_session import quoted
from orchestration.errors import MendableError
from orchestration.settings import PROJECT_ROOT, Settings, load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import WRITES, current_snapshot
from orchestration.warehouse.holding import holding_rows
from orchestration.warehouse.releases import (
    Release,
    code_version,
    content_hash,
    find,
    releases,
)

if TYPE_CHECKING:
    import duckdb

_BATCH_ROWS = 122_880


def rebuild(
    settings: Settings, name: str, say: Callable[[str], None]
) -> list[tuple[str, str, str]]:
    """Build a release's training sets again, from nothing but its raw rows.

    Args:
        settings: which warehouse; it is only read.
        name: of the release.
        say: told how it goes.

    Returns:
        Table, hash as it was released and hash as it was rebuilt, of each.

    Raises:
        MendableError: there is no such release, or its raw rows or its code are gone, or dbt fails.
    """
    with (
        holding_rows(settings, f"the rebuild of {name}"),
        connect(settings, read_only=True) as warehouse,
    ):
        one = find(releases(warehouse), name)
        told = warehouse.execute(
            "select table_name, content_hash from releases.contents"
            " where release_number = ? and content_hash is not null order by 1",
            [one.number],
        ).fetchall()
        place = settings.data_dir / "rebuild" / one.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            with _code_of(one, place, say) as code:
                scratch = load_settings(data_dir=place / "data", catalog="", lake_path="")
                staged = _staged(code, place)
                _copy_raw(warehouse, scratch, _versions(warehouse, one, staged), say)
                say("building its training sets with dbt ...")
                _dbt(
                    code, place, "build", "--select", "+path:models/training_sets",
                    "--exclude-resource-type", "test", "unit_test",
                )  # fmt: skip
            with connect(scratch, read_only=True) as rebuilt:
                snapshot = current_snapshot(rebuilt)
                found = [
                    (table, before, content_hash(rebuilt, "training_sets", table, snapshot))
                    for table, before in told
                ]
                for table, before, now in found:
                    if before != now:
                        say(_differing(warehouse, rebuilt, table, one))
                return found
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _code_of(one: Release, place: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The project as the release was built with it: this one if it still is that, or a checkout."""
    commit = one.code_version.rstrip("+")
    if code_version() == one.code_version or commit == "unknown":
        if commit != one.code_version or commit == "unknown":
            say(
                f"the code of {one.name} was not committed; rebuilding with the files that are here"
            )
        yield PROJECT_ROOT
        return
    if commit != one.code_version:
        say(
            f"{one.name} was built with files that differed from {commit}; rebuilding with {commit}"
        )
    checkout = place / "code"
    added = _git("worktree", "add", "--detach", "--force", str(checkout), commit)
    if added.returncode:
        raise MendableError(
            f"the code of {one.name}",
            expected=f"commit {commit} in this repository",
            arrived="git does not know it",
            mend="git fetch --all, then run the command again",
        )
    try:
        yield checkout
    finally:
        _git("worktree", "remove", "--force", str(checkout))


def _staged(code: Path, place: Path) -> dict[str, list[str]]:
    """Raw table to the staging models that read it."""
    _dbt(code, place, "parse")
    manifest = json.loads((place / "target" / "manifest.json").read_bytes())
    found: dict[str, list[str]] = {}
    for node in manifest["nodes"].values():
        for source in node.get("depends_on", {}).get("nodes", []):
            if source.startswith("source.watershed.raw."):
                found.setdefault(source.rpartition(".")[2], []).append(node["name"])
    return found


def _versions(
    warehouse: duckdb.DuckDBPyConnection, one: Release, staged: dict[str, list[str]]
) -> dict[str, int]:
    """Raw table to the snapshot that staging read: the one before a staging model was last written.

    What landed between that and the release changed nothing in staging, or staging would have been written.
    """
    made = dict(
        warehouse.execute(
            f"select name, max(snapshot_id) from ({WRITES}) where snapshot_id <= ? group by 1",
            [one.snapshot_id],
        ).fetchall()
    )
    return {
        raw: max(made.get(f"staging.{model}", one.snapshot_id + 1) for model in models) - 1
        for raw, models in staged.items()
    }


def _copy_raw(
    warehouse: duckdb.DuckDBPyConnection,
    scratch: Settings,
    versions: dict[str, int],
    say: Callable[[str], None],
) -> None:
    import duckdb

    with connect(scratch) as target:
        target.execute("create schema raw")
        for table, snapshot in sorted(versions.items()):
            try:
                rows = warehouse.execute(f"from raw.{quoted(table)} at (version => {snapshot})")
                target.register("arrived", rows.to_arrow_reader(_BATCH_ROWS))
                target.execute(f"create table raw.{quoted(table)} as from arrived")
            except duckdb.Error as error:
                raise MendableError(
                    f"raw.{table} at snapshot {snapshot}",
                    expected="the rows that the release was built from",
                    arrived=type(error).__name__,
                    mend="restore the lake's folder from a backup; rows that were erased do not come back",
                ) from None
            ((count,),) = target.execute(f"select count(*) from raw.{quoted(table)}").fetchall()
            say(f"raw.{table} as staging read it at snapshot {snapshot}: {count:,} rows")


def _differing(
    warehouse: duckdb.DuckDBPyConnection,
    rebuilt: duckdb.DuckDBPyConnection,
    table: str,
    one: Release,
) -> str:
    """Which rows of the release do not come out again, by their numbers in the table, not by what they hold."""
    name = quoted(table)
    hashes = rebuilt.execute(f"select hash({name}) as hash from training_sets.{name}")
    warehouse.register("rebuilt", hashes.to_arrow_table())
    try:
        ((gone, first, new),) = warehouse.execute(
            f"""
            with held as (
                select rowid as row_number, hash({name}) as hash
                from training_sets.{name} at (version => {one.snapshot_id})
            )
            select
                count(*), list(row_number order by row_number)[:10],
                (select count(*) from rebuilt anti join held using (hash))
            from held anti join rebuilt using (hash)
            """
        ).fetchall()
    finally:
        warehouse.unregister("rebuilt")
    where = f" (rowid {', '.join(map(str, first))}{', ...' if gone > 10 else ''})" if gone else ""
    return f"{table}: {gone:,} rows of {one.name} do not come out again{where}; {new:,} others do"


def _dbt(code: Path, place: Path, *arguments: str) -> None:
    done = subprocess.run(
        [DBT, "--quiet", *arguments],
        cwd=code / "dbt_project",
        env={
            **os.environ,
            "PYTHONPATH": str(code),  # before the installed project
            "DBT_TARGET_PATH": str(place / "target"),
            "WATERSHED_DATA_DIR": str(place / "data"),
            "WATERSHED_CATALOG": "",
            "WATERSHED_LAKE_PATH": "",
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise MendableError(
            f"dbt {arguments[0]} of the release's code",
            expected="to build its training sets from its raw rows",
            arrived=(done.stdout + done.stderr).strip()[-2000:],
            mend="if the code needs other packages, rebuild from a checkout of its commit: make install",
        )


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True)
