"""Leave nothing of what was deleted: files that nothing refers to, and what the catalog keeps of its own old rows.

A database does not overwrite what it deletes. SQLite keeps it in free pages and its log; PostgreSQL in
dead rows, and in its statistics, which hold samples. Both are written anew here. Of PostgreSQL the
write-ahead log, and copies made of it, are its administrator's: they pass as the server recycles them.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import literal, open_session
from orchestration.errors import MendableError, WarehouseBusyError
from orchestration.settings import Settings
from orchestration.warehouse.connect import ALIAS

if TYPE_CHECKING:
    import duckdb

_SERVER = "server"
_STATISTICS = "pg_catalog.pg_statistic"


def delete_files(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Delete the files that nothing refers to; of a shared catalog only those that no writer may be at."""
    connection.execute(
        f"call ducklake_cleanup_old_files('{ALIAS}', cleanup_all => true)"
    ).fetchall()
    which = (
        "cleanup_all => true"
        if settings.catalog_file is not None
        else "older_than => now() - interval 1 day"
    )
    connection.execute(f"call ducklake_delete_orphaned_files('{ALIAS}', {which})").fetchall()


def scrub_catalog(settings: Settings) -> None:
    """Write the catalog's own tables anew; nobody of this process may be connected to it.

    Raises:
        WarehouseBusyError: somebody still reads what was deleted; running it again ends it.
        MendableError: the catalog's user has no right to this.
    """
    if settings.catalog_file is not None:
        _scrub_sqlite(settings, settings.catalog_file)
    else:
        _scrub_postgresql(settings)


def _scrub_sqlite(settings: Settings, file: Path) -> None:
    with sqlite3.connect(file, timeout=settings.lock_timeout_seconds) as catalog:
        catalog.isolation_level = None
        catalog.execute("pragma secure_delete = on")
        catalog.execute("vacuum")
        busy, *_ = catalog.execute("pragma wal_checkpoint(truncate)").fetchone()
    catalog.close()
    if busy:
        raise _busy(f"the catalog's log beside {file}", "to be emptied")


def _scrub_postgresql(settings: Settings) -> None:
    with open_session(memory_limit=settings.memory_limit, extensions=["postgres"]) as session:
        session.execute(f"attach {literal(_impatient(settings))} as {_SERVER} (type postgres)")
        _wait_for_readers(session, settings)
        before = _stored(session)
        # Its own rows last: each table's old samples become dead rows of it.
        for table in [*sorted(before.keys() - {_STATISTICS}), _STATISTICS]:
            _ask(session, f"vacuum (full, analyze) {table}")
        after = _stored(session)
        kept = sorted(table for table in before if before[table] == after.get(table))
    if kept:
        raise MendableError(
            "the catalog's tables in PostgreSQL",
            expected="to be written anew, by their owner and the owner of the database",
            arrived=f"no right to that for {', '.join(kept)}: the rows are gone, their bytes may not be",
            mend=f'let the owner run: psql -c "vacuum (full, analyze) {kept[0]}", and so for each',
        )


def _impatient(settings: Settings) -> str:
    """Where the catalog is, for connections that wait for a lock no longer than the settings say."""
    _, _, where = settings.catalog.partition(":")
    wait = max(1, int(settings.lock_timeout_seconds * 1000))
    if "://" not in where:
        return f"{where} options='-c lock_timeout={wait}'"
    return f"{where}{'&' if '?' in where else '?'}options=-c%20lock_timeout%3D{wait}"


def _wait_for_readers(session: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Wait until no transaction is older than this: what one of them may still see, is kept for it."""
    ((now,),) = _rows(session, "select txid_current()::text")
    began = time.monotonic()
    older = (
        "select count(*) from pg_stat_activity where pid <> pg_backend_pid()"
        f" and age(backend_xmin) > age('{now}'::xid)"
    )
    while _rows(session, older) != [(0,)]:
        if time.monotonic() - began >= settings.lock_timeout_seconds:
            raise _busy("the catalog in PostgreSQL", "no transaction from before the removal")
        time.sleep(0.1)


def _stored(session: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The catalog's tables, and PostgreSQL's statistics, with the file that each stands in."""
    return dict(
        _rows(
            session,
            r"""
            select
                format('%I.%I', n.nspname, c.relname),
                pg_relation_filenode(c.oid)::bigint
            from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
            where c.relkind = 'r' and (
                (c.relname like 'ducklake\_%' and n.nspname = current_schema())
                or c.oid = 'pg_catalog.pg_statistic'::regclass
            )
            """,
        )
    )


def _ask(session: duckdb.DuckDBPyConnection, statement: str) -> None:
    import duckdb

    try:
        session.execute(
            f"call postgres_execute('{_SERVER}', {literal(statement)}, use_transaction => false)"
        ).fetchall()
    except duckdb.Error as error:
        if "lock timeout" not in str(error):
            raise
        raise _busy("the catalog in PostgreSQL", "its tables free to be written anew") from None


def _rows(session: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    """Each question is a transaction of its own, so that none sees the answers of before."""
    return session.execute(
        f"from postgres_query('{_SERVER}', {literal(sql)}, use_transaction => false)"
    ).fetchall()


def _busy(thing: str, expected: str) -> WarehouseBusyError:
    return WarehouseBusyError(
        thing,
        expected=expected,
        arrived="somebody is reading the warehouse; the person's rows are gone from every snapshot",
        mend="close what reads (make ui, a shell) and run the command again: it ends this",
    )
