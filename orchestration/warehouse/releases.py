"""Releases: builds that passed every check, by name; the schema `published` is the one in force.

A release is a snapshot of the warehouse with a name: `r1`, `r2`, ... Nothing is copied. Each table of
the layers from `features` on has a view of its name in `published`, which reads it as of the release
in force. Releasing, rolling back and rolling forward replace these views, and write down that they did,
in one transaction: a reader sees all of one release or all of another, whatever is killed when.

A training set of a release is named `<table>@<release>`. What is in it is written down as a hash that
does not depend on the order of its rows, on threads or on the engine.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.layers import LAYERS
from orchestration.settings import PROJECT_ROOT, Settings
from orchestration.warehouse.connect import ALIAS, building, transaction, writing
from orchestration.warehouse.frames import WRITES, current_snapshot, table_exists
from orchestration.warehouse.masked import mask

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

PUBLISHED = "published"
RELEASED_LAYERS = LAYERS[LAYERS.index("features") :]
_TABLES = """
    create schema if not exists releases;
    create table if not exists releases.history (
        release_number bigint, snapshot_id bigint, released_at timestamp, released_by varchar,
        code_version varchar, checks_passed bigint, checks_warned bigint, rows_count bigint
    );
    create table if not exists releases.contents (
        release_number bigint, schema_name varchar, table_name varchar, rows_count bigint,
        content_hash varchar
    );
    create table if not exists releases.moves (
        move_number bigint, moved_at timestamp, moved_by varchar, release_number bigint
    );
"""


@dataclass(frozen=True)
class Release:
    """A build that passed every error-level check.

    Attributes:
        number: counted from 1; its name is `r<number>`.
        snapshot_id: the snapshot of the warehouse that it names.
        released_at: when, naive UTC.
        released_by: the user of the machine that built it.
        code_version: the commit of the project, with `+` if files differed from it.
        checks_passed, checks_warned: checks by their last result.
        rows_count: rows of all its tables.
        is_in_force: whether readers of `published` see this one.
    """

    number: int
    snapshot_id: int
    released_at: datetime
    released_by: str
    code_version: str
    checks_passed: int
    checks_warned: int
    rows_count: int
    is_in_force: bool

    @property
    def name(self) -> str:
        """What people call it."""
        return f"r{self.number}"


def release(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    *,
    checks_passed: int,
    checks_warned: int,
) -> Release | None:
    """Make what is in the warehouse now a release, and put it in force.

    Args:
        connection: a writing connection.
        settings: which warehouse.
        checks_passed: how many checks of the build passed; those that are errors all did.
        checks_warned: how many did not.

    Returns:
        The release; None if no table has changed since the last one: who rolled it back does not get it
        again by the next scheduled run, but by rolling forward.
    """
    with building(settings, "releasing"):
        with writing(settings, "releasing"):
            _prepare(connection)
        with transaction(
            connection
        ):  # which sees one snapshot, whoever writes while rows are hashed
            snapshot = current_snapshot(connection)
            before = releases(connection)
            if before and not changed_tables(connection, before[-1].snapshot_id):
                return None
            number = before[-1].number + 1 if before else 1
            contents = list(_contents(connection, snapshot, before[-1] if before else None))
        with writing(settings, "releasing"), _said(connection, f"release r{number}"):
            connection.executemany(
                f"insert into releases.contents values ({number}, ?, ?, ?, ?)", contents
            )
            connection.execute(
                "insert into releases.history values (?, ?, now() at time zone 'UTC', ?, ?, ?, ?, ?)",
                [
                    number, snapshot, getpass.getuser(), code_version(), checks_passed,
                    checks_warned, sum(rows for *_, rows, _ in contents),
                ],
            )  # fmt: skip
            _put_in_force(connection, number, snapshot)
    return releases(connection)[-1]


def changed_since_release(
    connection: duckdb.DuckDBPyConnection,
) -> list[tuple[str, str, float]]:
    """Schema and name of what was written after the last release, and that one's time (epoch seconds)."""
    known = releases(connection)
    if not known:
        return [(schema, table, 0.0) for schema, table in released_tables(connection)]
    since = known[-1].released_at.replace(tzinfo=UTC).timestamp()
    changed = changed_tables(connection, known[-1].snapshot_id)
    return [
        (schema, table, since) for schema, table in released_tables(connection) if table in changed
    ]


def releases(connection: duckdb.DuckDBPyConnection) -> list[Release]:
    """All releases, the oldest first."""
    if not table_exists(connection, "releases", "moves"):
        return []
    rows = connection.execute(
        """
        select *, release_number = (
            select max_by(release_number, move_number) from releases.moves
        )
        from releases.history order by release_number
        """
    ).fetchall()
    return [Release(*row) for row in rows]


def move(connection: duckdb.DuckDBPyConnection, settings: Settings, to: str | int) -> Release:
    """Put another release in force: nothing is built, and nothing is lost.

    Args:
        connection: a writing connection.
        settings: which warehouse.
        to: the release's name; or -1 for the one before that in force, 1 for the one after it.

    Raises:
        MendableError: there is no such release, or another one was put in force meanwhile.
    """
    known = releases(connection)
    in_force = next((r for r in known if r.is_in_force), None)
    if isinstance(to, str):
        target = find(known, to)
    else:
        place = known.index(in_force) + to if in_force else -1
        if not 0 <= place < len(known):
            way = "before" if to < 0 else "after"
            raise _unknown(f"{way} {in_force.name if in_force else 'any'}", known)
        target = known[place]
    with writing(settings, f"putting {target.name} in force"):
        now = next((r for r in releases(connection) if r.is_in_force), None)
        if now != in_force:
            raise MendableError(
                f"putting {target.name} in force",
                expected=f"{in_force.name if in_force else 'no release'} in force, as when you asked",
                arrived=f"{now.name if now else 'none'}: somebody else was faster",
                mend="make releases, and decide again",
            )
        with _said(connection, f"{target.name} in force"):
            _put_in_force(connection, target.number, target.snapshot_id)
    return next(r for r in releases(connection) if r.number == target.number)


def tables_of_release(connection: duckdb.DuckDBPyConnection, one: Release) -> list[tuple[str, str]]:
    """Schema and name of the tables of a release."""
    return connection.execute(
        "select schema_name, table_name from releases.contents where release_number = ? order by all",
        [one.number],
    ).fetchall()


def find(known: Sequence[Release], name: str) -> Release:
    """The release of a name; `in_force` and `latest` are names too.

    Raises:
        MendableError: there is none.
    """
    for one in known:
        if name == one.name or (name == "in_force" and one.is_in_force):
            return one
    if name == "latest" and known:
        return known[-1]
    raise _unknown(name, known)


def training_set(connection: duckdb.DuckDBPyConnection, reference: str) -> pa.Table:
    """The rows of a released table, such as `train_fraud_detection@r3`.

    Args:
        connection: to the warehouse; reading is enough.
        reference: `<table>@<release>`; without a release it is the one in force.

    Raises:
        MendableError: there is no such table or release.
    """
    schema, table, one = resolve(connection, reference)
    return connection.execute(f"from {_at(schema, table, one.snapshot_id)}").to_arrow_table()


def resolve(connection: duckdb.DuckDBPyConnection, reference: str) -> tuple[str, str, Release]:
    """Schema, table and release of a reference `<table>@<release>`."""
    table, _, name = reference.partition("@")
    one = find(releases(connection), name or "in_force")
    found = connection.execute(
        "select schema_name from releases.contents where release_number = ? and table_name = ?",
        [one.number, table],
    ).fetchone()
    if found is None:
        tables = connection.execute(
            "select table_name from releases.contents where release_number = ? order by 1",
            [one.number],
        ).fetchall()
        raise MendableError(
            reference,
            expected=f"a table of {one.name}: {', '.join(name for (name,) in tables)}",
            arrived=table,
            mend="name one of them, as in train_fraud_detection@in_force",
        )
    return str(found[0]), table, one


def verify(
    connection: duckdb.DuckDBPyConnection, name: str, settings: Settings | None = None
) -> list[tuple[str, str, str]]:
    """Hash a release's training sets again.

    Args:
        connection: to the warehouse; reading is enough.
        name: of the release.
        settings: which warehouse, to look for its files where they cannot be read.

    Returns:
        Table, hash as it was released and hash as it is now, of each.

    Raises:
        MendableError: there is no such release, or its data cannot be read.
    """
    import duckdb

    from orchestration.warehouse.files import damaged, explain_damage

    known = releases(connection)
    one = find(known, name)
    rows = connection.execute(
        "select schema_name, table_name, content_hash from releases.contents"
        " where release_number = ? and content_hash is not null order by all",
        [one.number],
    ).fetchall()
    try:
        return [
            (f"{schema}.{table}", told, content_hash(connection, schema, table, one.snapshot_id))
            for schema, table, told in rows
        ]
    except duckdb.Error as error:
        if settings is not None and (damage := damaged(connection, settings)):
            raise explain_damage(damage, known) from None
        raise MendableError(
            f"release {one.name}",
            expected="its files in the lake, as they were released",
            arrived=f"{type(error).__name__}: a file is missing or damaged",
            mend="restore the lake's folder from a backup, or release anew: make build",
        ) from None


def content_hash(
    connection: duckdb.DuckDBPyConnection,
    schema: str,
    table: str,
    snapshot: int,
    where: str = "true",
) -> str:
    r"""A hash of a table's columns and rows at a snapshot, or of those rows for which SQL is true.

    Each row is the text of its columns in the order of their names, with the unit separator
    (ASCII 31) between them: a double with nine decimals, a time to the microsecond, null as `\N`.
    The hash is one of the columns' names, the number of rows, and the sum of the first 15 hexadecimal
    digits of each row's MD5.
    """
    at = _at(schema, table, snapshot)
    columns = connection.execute(f"describe from {at}").fetchall()
    texts = [_text(name, kind) for name, kind, *_ in sorted(columns)]
    names = "|".join(name for name, *_ in sorted(columns))
    ((rows, total),) = connection.execute(
        f"""
        select count(*), coalesce(sum(cast('0x' || left(md5(concat_ws(chr(31), {", ".join(texts)})), 15)
            as bigint)), 0)
        from {at} where {where}
        """
    ).fetchall()
    ((head,),) = connection.execute("select left(md5(?), 8)", [names]).fetchall()
    return f"{head}-{rows}-{total:x}"


def code_version() -> str:
    """The commit of the project, with `+` if files differ from it; `unknown` without git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() or "unknown"


def _text(column: str, kind: str) -> str:
    name = quoted(column)
    if kind in ("DOUBLE", "FLOAT"):
        # A double prints differently from engine to engine; an integer does not.
        name = (
            f"case when isfinite({name}) then cast(cast(floor({name} * 1e9 + 0.5) as decimal(38, 0))"
            f" as varchar) else cast({name} as varchar) end"
        )
    elif kind.startswith("TIMESTAMP"):
        name = f"strftime({name}, '%Y-%m-%d %H:%M:%S.%f')"
    return f"coalesce(cast({name} as varchar), '\\N')"


def _prepare(connection: duckdb.DuckDBPyConnection) -> None:
    if not table_exists(connection, "releases", "moves"):
        with transaction(connection):
            connection.execute(_TABLES)
            connection.execute(f"create schema if not exists {PUBLISHED}")


def released_tables(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Schema and name of the tables that a release is made of."""
    return connection.execute(
        "select schema_name, table_name from duckdb_tables()"
        " where database_name = current_database() and list_contains(?, schema_name)"
        " and (schema_name, table_name) <> ('monitoring', 'alerts')"  # which are of now, not of a release
        " order by all",
        [list(RELEASED_LAYERS)],
    ).fetchall()


def changed_tables(connection: duckdb.DuckDBPyConnection, since: int) -> set[str]:
    """The tables that a release is made of that were written after a snapshot, by name."""
    names = {f"{schema}.{table}": table for schema, table in released_tables(connection)}
    touched = connection.execute(
        f"select distinct name from ({WRITES}) where snapshot_id > ?", [since]
    ).fetchall()
    return {names[name] for (name,) in touched if name in names}


def _contents(
    connection: duckdb.DuckDBPyConnection, snapshot: int, before: Release | None
) -> Iterator[tuple[str, str, int, str | None]]:
    """Schema, name, rows and, of a training set, the hash; what has not changed is not hashed again."""
    known: dict[str, str] = {}
    if before is not None:
        changed = changed_tables(connection, before.snapshot_id)
        rows = connection.execute(
            "select table_name, content_hash from releases.contents"
            " where release_number = ? and content_hash is not null",
            [before.number],
        ).fetchall()
        known = {table: told for table, told in rows if table not in changed}
    for schema, table in released_tables(connection):
        ((rows_count,),) = connection.execute(
            f"select count(*) from {_at(schema, table, snapshot)}"
        ).fetchall()
        told = None
        if schema == "training_sets":
            told = known.get(table) or content_hash(connection, schema, table, snapshot)
        yield schema, table, rows_count, told


def _put_in_force(connection: duckdb.DuckDBPyConnection, number: int, snapshot: int) -> None:
    """Point every view of `published` at the release."""
    tables = connection.execute(
        f"select schema_name, table_name from releases.contents where release_number = {number}"
    ).fetchall()
    views = connection.execute(
        "select view_name from duckdb_views()"
        f" where database_name = current_database() and schema_name = '{PUBLISHED}'"
    ).fetchall()
    for name in {view for (view,) in views} - {table for _, table in tables}:
        connection.execute(f"drop view {PUBLISHED}.{quoted(name)}")
    for schema, table in tables:
        connection.execute(
            f"create or replace view {PUBLISHED}.{quoted(table)} as from {_at(schema, table, snapshot)}"
        )
    mask(connection)
    connection.execute(
        "insert into releases.moves select coalesce(max(move_number), 0) + 1,"
        f" now() at time zone 'UTC', {literal(getpass.getuser())}, {number} from releases.moves",
    )


@contextmanager
def _said(connection: duckdb.DuckDBPyConnection, message: str) -> Iterator[None]:
    """A transaction with a message, which the list of snapshots shows."""
    with transaction(connection):
        who, what = literal(getpass.getuser()), literal(message)
        connection.execute(f"call {ALIAS}.set_commit_message({who}, {what})")
        yield


def _at(schema: str, table: str, snapshot: int) -> str:
    return f"{quoted(schema)}.{quoted(table)} at (version => {snapshot})"


def _unknown(name: str, known: Sequence[Release]) -> MendableError:
    listed = ", ".join(one.name for one in known[-5:])
    return MendableError(
        f"release {name}",
        expected=f"one of the {len(known)} releases{f' (the last: {listed})' if known else ''}",
        arrived="there is none" if known else "no release yet",
        mend="make releases" if known else "make demo",
    )
