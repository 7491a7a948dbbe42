"""Connect to the warehouse: attach the DuckLake as `lake`, and take the writer's lock."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestration.duckdb_session import literal, load_extensions, open_session
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import Settings, load_settings

if TYPE_CHECKING:
    import duckdb
    from filelock import BaseFileLock

ALIAS = "lake"
"""The warehouse's database name in every connection: `lake.features.feat_household__purchases`."""

COMPRESSION = "zstd"
"""Of the lake's Parquet files: half the room of the default."""

_ATTACHING = threading.Lock()
"""DuckLake's ATTACH IF NOT EXISTS is not for two threads of one DuckDB at once."""


def attach_statement(settings: Settings, *, read_only: bool = False, migrate: bool = False) -> str:
    """The ATTACH that opens the warehouse in any DuckDB of the pinned version."""
    options = [f"data_path {literal(settings.lake_path)}", "override_data_path true"]
    if settings.catalog_file is not None:
        options.append("meta_busy_timeout 10000")
    if read_only:
        options.append("read_only")
    elif settings.catalog_file is not None:
        # Once set, the file stays in WAL mode; a reader that set it too would wait for every other.
        options.append("meta_journal_mode 'WAL'")
    if settings.encrypted:
        options.append("encrypted true")
    if migrate:
        options.append("automatic_migration true")
    return f"attach if not exists {literal('ducklake:' + settings.catalog)} as {ALIAS} ({', '.join(options)})"


def extension_names(settings: Settings) -> list[str]:
    """The extensions that the configured catalog and lake need."""
    names = ["ducklake", "sqlite_scanner" if settings.catalog_file is not None else "postgres"]
    if _is_in_a_store(settings):
        return [*names, "httpfs", "aws"]
    return [*names, "httpfs"] if settings.encrypted else names  # which brings OpenSSL


def _is_in_a_store(settings: Settings) -> bool:
    return "://" in settings.lake_path or "://" in settings.masked_lake_path


def _store_secret() -> str:
    """Credentials of the lake's store as AWS's own tools find them, its endpoint from AWS_ENDPOINT_URL."""
    options = ["type s3", "provider credential_chain"]
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(endpoint)
        options += [
            f"endpoint {literal(parts.netloc)}",
            "url_style 'path'",
            f"use_ssl {str(parts.scheme == 'https').lower()}",
        ]
    return f"create or replace secret lake_store ({', '.join(options)})"


def attach(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    *,
    read_only: bool = False,
    migrate: bool = False,
) -> None:
    """Attach the warehouse to `connection` as `lake`. Creates it when absent, unless read-only.

    With `migrate`, the catalog of an older version becomes one of this version.

    Raises:
        MendableError: the catalog or the data folder cannot be reached or written, or there is
            nothing to read yet.
    """
    import duckdb

    if settings.catalog_file is not None:
        if read_only and not settings.catalog_file.exists():
            raise MendableError(
                f"the warehouse at {settings.catalog_file}",
                expected="a DuckLake catalog",
                arrived="no such file: nothing has been built yet",
                mend="make demo",
            )
        # readers need it too: WAL
        require_writable(settings.catalog_file.parent)
    load_extensions(connection, extension_names(settings))
    if _is_in_a_store(settings):
        try:
            connection.execute(_store_secret())
        except duckdb.Error:
            raise MendableError(
                f"the lake at {settings.lake_path}",
                expected="credentials as AWS's own tools find them",
                arrived="none",
                mend="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            ) from None
    try:
        with nullcontext() if read_only else _opening(settings):
            is_new = settings.catalog_file is not None and not settings.catalog_file.exists()
            connection.execute(attach_statement(settings, read_only=read_only, migrate=migrate))
            if settings.catalog_file is None and not read_only:
                snapshot = f"from ducklake_current_snapshot('{ALIAS}')"
                is_new = connection.execute(snapshot).fetchall() == [(0,)]
            if is_new:
                set_option(connection, "parquet_compression", COMPRESSION)
    except duckdb.Error as error:
        _explain(error, settings)
        where = settings.catalog_file or f"{settings.catalog.partition(':')[0]} catalog"
        raise MendableError(
            f"the warehouse catalog ({where})",
            expected="a DuckLake catalog that answers",
            arrived=type(error).__name__
            + (f": {error}" if settings.catalog_file else " (details withheld)"),
            mend="check WATERSHED_CATALOG and WATERSHED_DATA_DIR in .env, then run the command again",
        ) from None


@contextmanager
def _opening(settings: Settings) -> Iterator[None]:
    """Only one at a time opens the embedded catalog to write: the first creates it, and must not be disturbed."""
    lock = _acquire(settings, "opener", "opening the warehouse")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def set_option(connection: duckdb.DuckDBPyConnection, name: str, value: str) -> None:
    """Set one of DuckLake's options, which the catalog keeps for all who write."""
    connection.execute(f"call ducklake_set_option('{ALIAS}', {literal(name)}, {literal(value)})")


def _explain(error: duckdb.Error, settings: Settings) -> None:
    """Say what DuckLake means where there is something to do about it."""
    told = str(error)
    if "Failed to set encryption" in told:
        raise MendableError(
            f"the warehouse at {settings.lake_path}",
            expected="WATERSHED_ENCRYPTED as it was when the warehouse was created",
            arrived="WATERSHED_ENCRYPTED=true, and files that are not encrypted",
            mend="unset it; or build anew with it, in another WATERSHED_DATA_DIR",
        ) from None
    if found := re.search(
        r"version mismatch: catalog version is (\S+), .* version (\S+)\. To", told
    ):
        theirs, ours = found.groups()
        older = [int(n) for n in re.findall(r"\d+", theirs)] < [
            int(n) for n in re.findall(r"\d+", ours)
        ]
        raise MendableError(
            "the warehouse catalog",
            expected=f"DuckLake version {ours}",
            arrived=f"version {theirs}, of {'an older' if older else 'a newer'} release of DuckDB",
            mend="make backup to=<folder>, then make migrate: readers of the older release can no longer open it"
            if older
            else "git pull, then make install",
        ) from None


def connect(
    settings: Settings | None = None, *, read_only: bool = False
) -> duckdb.DuckDBPyConnection:
    """A connection whose default database is the warehouse.

    Readers (`read_only=True`) never wait for writers. A writer holds `writing(settings)` around
    its transaction.
    """
    settings = settings or load_settings()
    alike = (
        attach_statement(settings, read_only=read_only),
        settings.memory_limit,
        settings.threads,
    )
    connection = open_session(
        memory_limit=settings.memory_limit,
        threads=settings.threads,
        name=hashlib.sha256(repr(alike).encode()).hexdigest(),
    )
    try:
        with _ATTACHING:
            attach(connection, settings, read_only=read_only)
        connection.execute(f"use {ALIAS}")
        if key := settings.privacy_key.get_secret_value():  # what pseudonyms are made with
            connection.execute(f"set variable privacy_key = {literal(key)}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def kept_open(settings: Settings) -> Iterator[None]:
    """While the block runs, connections of this process come twenty times faster.

    They share a DuckDB, which need not load and verify its extensions again, nor DuckLake read the catalog.

    Raises:
        MendableError: as `connect`.
    """
    with connect(settings), connect(settings, read_only=True):
        yield


@contextmanager
def writing(settings: Settings, doing: str) -> Iterator[None]:
    """Hold the embedded catalog's writer lock; a PostgreSQL catalog needs none and takes none.

    The lock is the operating system's, so a killed writer leaves nothing to clean up.

    Args:
        settings: which warehouse.
        doing: a few words for whoever has to wait, such as `landing retail_db.transactions`.

    Raises:
        WarehouseBusyError: another writer held the lock for longer than `lock_timeout_seconds`.
    """
    lock = acquire_writer_lock(settings, doing)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def building(settings: Settings, doing: str) -> Iterator[None]:
    """Hold what keeps dbt from starting, and wait until it has ended, on the embedded catalog.

    dbt holds it from its start to its end, and the writer's lock only while it writes a table: so whoever
    needs all tables of one build, and none of the next, holds this, and others write in between.

    Args:
        settings: which warehouse.
        doing: a few words for whoever has to wait.

    Raises:
        WarehouseBusyError: dbt still ran after `lock_timeout_seconds`.
    """
    lock = acquire_builder_lock(settings, doing)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def acquire_writer_lock(settings: Settings, doing: str) -> BaseFileLock | None:
    """Take the writer's lock and keep it until `release()` or the end of the process."""
    return _acquire(settings, "writer", doing)


def acquire_builder_lock(settings: Settings, doing: str) -> BaseFileLock | None:
    """Take the lock of `building` and keep it until `release()` or the end of the process."""
    return _acquire(settings, "builder", doing)


def _acquire(settings: Settings, role: str, doing: str) -> BaseFileLock | None:
    if settings.catalog_file is None:
        return None
    from filelock import FileLock, Timeout

    require_writable(settings.catalog_file.parent)
    path = settings.catalog_file.with_suffix(f".{role}.lock")
    holder = settings.catalog_file.with_suffix(f".{role}.json")
    # dbt takes it in one of DuckDB's threads and gives it back in another.
    lock = FileLock(path, timeout=0, thread_local=False)
    began, told = time.monotonic(), False
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            try:
                who = json.loads(holder.read_text())
                by = f"{who['doing']} (process {who['pid']})"
            except (OSError, ValueError, KeyError):
                by = "another process"
            waited = time.monotonic() - began
            if waited >= settings.lock_timeout_seconds:
                raise WarehouseBusyError(
                    f"the warehouse at {settings.catalog_file}",
                    expected=f"to be the only {role}",
                    arrived=f"{by} is at work, and was still after {settings.lock_timeout_seconds:g} s",
                    mend="wait until it has finished, then run the command again "
                    "(WATERSHED_LOCK_TIMEOUT_SECONDS sets how long to wait)",
                ) from None
            if waited > 2 and not told:  # topics that land side by side take turns all the time
                print(f"waiting for {by} to finish ...", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.1 if role == "builder" else 0.02)
    holder.write_text(json.dumps({"pid": os.getpid(), "doing": doing}))
    return lock


def require_writable(folder: Path) -> None:
    """Create the folder if need be; fail early and clearly when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise MendableError(
            f"the data folder {folder}",
            expected="a folder this user can write to",
            arrived="it is read-only or cannot be created",
            mend=f"chmod u+w {folder}, or set WATERSHED_DATA_DIR to another folder in .env",
        )


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit when the block ends, roll back when it raises."""
    connection.execute("begin transaction")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")
