"""Forget a person: out of every table, snapshot, release and file, with a receipt and nothing else left.

In order, so that a kill at any moment leaves something that the same command ends: receipts are begun,
and landing told to keep the person out; the rows leave every snapshot at once (`rewriting`); the releases
get their new hashes; the old files are deleted and the catalog's file is written anew.

What is kept is a keyed hash, never the identifier. A source system is not ours: what it still holds is
set aside when it is landed again. Aggregates over many people, and fitted models, stay; the models that
had seen the person are named.
"""

from __future__ import annotations

import getpass
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.connectors import SOURCE_POSITION
from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse import topics_left
from orchestration.warehouse.catalog_files import CATALOG, catalog_of, sql_type
from orchestration.warehouse.connect import ALIAS, building, connect, transaction, writing
from orchestration.warehouse.frames import table_exists
from orchestration.warehouse.holding import nobody_holding_rows
from orchestration.warehouse.person import TEXT, Person, hash_of, is_told, key_of, pattern, told_in
from orchestration.warehouse.releases import RELEASED_LAYERS, content_hash, find, releases
from orchestration.warehouse.rewriting import Removal, Wanted
from orchestration.warehouse.scrubbing import delete_files, scrub_catalog
from orchestration.warehouse.seen_by import models_trained_on

if TYPE_CHECKING:
    import duckdb

_TABLES = """
    create schema if not exists landing;
    create schema if not exists releases;
    create table if not exists landing.forgotten (
        table_name varchar, column_name varchar, value_hash varchar
    );
    create table if not exists releases.receipts (
        erasure varchar, begun_at timestamp, begun_by varchar, person_hash varchar,
        release_number bigint, schema_name varchar, table_name varchar, rows_removed bigint,
        old_hash varchar, new_hash varchar, is_done boolean
    );
"""


@dataclass
class Forgotten:
    """What went, or would go.

    Attributes:
        tables: per table the rows in all its versions, and the files that held them.
        releases: per release that held the person: table, rows, hash before and after.
        models: the trained models that had learned from rows of the person: table, version, rows; None if
            the snapshot they learned from is expired.
        events: per topic on disk, the events that were emptied; not told by a dry run.
        left: the events of the person that landed from a broker, which still holds them.
    """

    tables: dict[str, tuple[int, int]] = field(default_factory=dict)
    releases: list[tuple[int, str, int, str | None, str | None]] = field(default_factory=list)
    models: list[tuple[str, str, int | None]] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    left: topics_left.Ranges = field(default_factory=dict)


def forget(
    settings: Settings,
    person: Person,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Forgotten:
    """Remove every row of a person from every snapshot, release and file.

    Args:
        settings: which warehouse.
        person: who.
        dry_run: only say what would go.
        say: told how it goes.

    Raises:
        MendableError: no table has such a column, or the catalog is not one that can be rewritten.
        WarehouseBusyError: somebody else builds, writes or reads; running it again ends it.
    """
    key_of(settings)
    with connect(settings, read_only=dry_run) as connection:
        if dry_run:
            with catalog_of(connection, settings) as cursor:
                return _look(connection, cursor, settings, person)[1]
        with (
            nobody_holding_rows(settings),
            building(settings, "forgetting a person"),  # a release hashes rows, and writes the hash
            writing(settings, "forgetting a person"),
        ):
            connection.execute("set TimeZone = 'UTC'")
            with transaction(connection):
                connection.execute(_TABLES + topics_left.TABLE)
            _settle(connection)
            erasure, what, values = "", Forgotten(), set[str]()
            with catalog_of(connection, settings) as cursor:
                removal, what, values = _look(connection, cursor, settings, person)
                what.events = _erase_events(settings, person, values)
                if what.tables:
                    say("writing the files anew, without the person ...")
                erasure = _begin(connection, settings, person, what, values)
                removal.expect_one_more()
                if what.tables:
                    removal.remove(erasure)
            _settle(connection)
            say("deleting the old files ...")
            delete_files(connection, settings)
    scrub_catalog(settings)
    return what


def _erase_events(settings: Settings, person: Person, values: set[str]) -> dict[str, int]:
    """Empty the person's events in the logs on disk; a broker's topics are not ours."""
    from orchestration.connectors.event_log import erase

    names = {person.column, *(column for _, column in person.elsewhere)}
    is_person = re.compile(told_in(names, person.value).encode())
    key = re.compile(pattern(person.row_keys, r'([^",}\s]+)').encode())

    def is_out(value: bytes) -> bool:
        found = key.search(value) if person.row_keys else None
        return bool(is_person.search(value) or (found and found[1].decode() in values))

    found: dict[str, int] = {}
    for folder, topics in topics_left.topics_on_disk(settings).items():
        for topic in topics:
            if count := erase(Path(folder), topic, is_out):
                found[topic] = found.get(topic, 0) + count
    return found


def receipts_of(
    connection: duckdb.DuckDBPyConnection, release: str
) -> list[tuple[str, datetime, int]]:
    """What was erased from a release's hashed tables: table, when, rows."""
    if not table_exists(connection, "releases", "receipts"):
        return []
    return connection.execute(
        "select schema_name || '.' || table_name, begun_at, rows_removed from releases.receipts"
        " where is_done and new_hash is not null and release_number = ? order by 2, 1",
        [find(releases(connection), release).number],
    ).fetchall()


def _look(
    connection: duckdb.DuckDBPyConnection,
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    person: Person,
) -> tuple[Removal, Forgotten, set[str]]:
    """Find the person's rows, and what they stand in; also the row keys that they have."""
    removal = Removal(cursor, settings)
    columns = cursor.execute(
        f"""
        select t.table_id, s.schema_name || '.' || t.table_name, c.column_id,
            list(distinct c.column_name), any_value(c.column_type)
        from (select distinct on (table_id) * from {CATALOG}.ducklake_table order by begin_snapshot desc) as t
        join (select distinct on (schema_id) * from {CATALOG}.ducklake_schema) as s
            on s.schema_id = t.schema_id
        join {CATALOG}.ducklake_column as c on c.table_id = t.table_id and c.parent_column is null
        group by all
        """
    ).fetchall()
    value, names = literal(person.value), {person.column, *(c for _, c in person.elsewhere)}
    direct: dict[int, Wanted] = {}
    keys: dict[int, list[int]] = {}
    by_key: list[tuple[int, str, int]] = []
    for table, name, column, called, kind in columns:
        to = sql_type(kind)
        is_identifier = person.column in called or any(
            (name, one) in person.elsewhere for one in called
        )
        if is_identifier:
            one = direct.setdefault(table, Wanted(table, name, {}, {}))
            typed = f"try_cast({value} as {to})"
            one.conditions[column] = f"{{}} = {typed}"
            if kind != "varchar":
                one.equals[column] = (typed, to)
        elif name.startswith("quarantine.") and called[0] in ("payload", "raw"):
            one = direct.setdefault(table, Wanted(table, name, {}, {}))
            one.conditions[column] = is_told(names, person.value)
        if person.row_keys & {*called}:
            keys.setdefault(table, []).append(column)
            by_key.append((table, name, column))
    if all(one.name.startswith("quarantine.") for one in direct.values()):
        raise MendableError(
            f"the identifier {person.column}",
            expected="a column of a table of the warehouse",
            arrived="no table has one of that name",
            mend='make sql q="from duckdb_columns()" lists them',
        )
    values = removal.find(list(direct.values()), keys)
    if values:
        linked: dict[int, Wanted] = {}
        cursor.execute("create or replace temp table row_keys (value varchar)")
        cursor.executemany("insert into row_keys values (?)", [[one] for one in sorted(values)])
        for table, name, column in by_key:
            if table in direct and not name.startswith("quarantine."):
                continue  # the rows say themselves whose they are
            linked.setdefault(table, Wanted(table, name, {})).conditions[column] = (
                "cast({} as varchar) in (select value from row_keys)"
            )
        keyed = literal(pattern(person.row_keys, r"([^\",}\s]+)"))
        for table, name, column, called, _ in columns:
            if name.startswith("quarantine.") and called[0] in ("payload", "raw"):
                linked.setdefault(table, Wanted(table, name, {})).conditions[column] = (
                    f"regexp_extract({TEXT}, {keyed}, 1) in (select value from row_keys)"
                )
        removal.find(list(linked.values()))
        removal.wanted |= {n: direct[n] for n in direct.keys() & linked.keys()}
    what = Forgotten(removal.found())
    what.left = topics_left.left_in_topics(settings, removal.told(SOURCE_POSITION))
    _look_in_releases(connection, person, values, what)
    connection.execute("create or replace temp table row_keys (value varchar)")
    if values:
        connection.executemany("insert into row_keys values (?)", [[one] for one in sorted(values)])
    what.models = models_trained_on(connection, person.column, person.value, person.row_keys)
    return removal, what, values


def _look_in_releases(
    connection: duckdb.DuckDBPyConnection, person: Person, values: set[str], what: Forgotten
) -> None:
    """The releases' rows of the person, and the hashes that they have without."""
    touched = {name for name in what.tables if name.split(".")[0] in RELEASED_LAYERS}
    if not touched or not table_exists(connection, "releases", "contents"):
        return
    known: dict[tuple[str, int], tuple[int, str]] = {}
    written: dict[str, list[int]] = {}
    for name, snapshot in connection.execute(
        """
        select distinct s.schema_name || '.' || t.table_name, unnest(list_distinct([
            t.begin_snapshot, f.begin_snapshot, f.end_snapshot, d.begin_snapshot, d.end_snapshot
        ]))
        from {m}.ducklake_table as t
        join {m}.ducklake_schema as s using (schema_id)
        left join {m}.ducklake_data_file as f using (table_id)
        left join {m}.ducklake_delete_file as d using (table_id)
        """.replace("{m}", f"__ducklake_metadata_{ALIAS}")
    ).fetchall():
        if snapshot is not None:
            written.setdefault(name, []).append(snapshot)
    for number, snapshot, schema, table, old in connection.execute(
        "select c.release_number, h.snapshot_id, schema_name, table_name, content_hash"
        " from releases.contents as c join releases.history as h using (release_number) order by all"
    ).fetchall():
        name = f"{schema}.{table}"
        if name not in touched:
            continue
        # Small writes are kept in the catalog, and tell no number here: those are asked one by one.
        at = (old or "", max((s for s in written.get(name, ()) if s <= snapshot), default=snapshot))
        if old is None and (name, at[1]) in known:
            part = known[name, at[1]]
        else:
            there = {
                column
                for column, *_ in connection.execute(
                    f"describe from {quoted(schema)}.{quoted(table)} at (version => {snapshot})"
                ).fetchall()
            }
            listed = ", ".join(map(literal, sorted(values)))
            where = " or ".join(
                f"cast({quoted(key)} as varchar) in ({listed})" for key in person.row_keys & there
            )
            if person.column in there:
                where = f"{quoted(person.column)} = {literal(person.value)}"
            if old is None:
                ((rows,),) = connection.execute(
                    f"select count(*) from {quoted(schema)}.{quoted(table)}"
                    f" at (version => {snapshot}) where {where}"
                ).fetchall()
                part = (rows, "")
                known[name, at[1]] = part
            else:
                told = content_hash(connection, schema, table, snapshot, where)
                part = (int(told.split("-")[1]), told)
        rows, told = part
        if rows:
            new = None
            if old is not None:
                head, count, total = old.split("-", 2)
                left = int(total, 16) - int(told.split("-", 2)[2], 16)
                new = f"{head}-{int(count) - rows}-{left:x}"
            what.releases.append((number, name, rows, old, new))


def _begin(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    person: Person,
    what: Forgotten,
    values: set[str],
) -> str:
    """Write down receipts that are not done, and tell landing whom to keep out; the erasure's name."""
    kept_out = [("*", person.column, hash_of(settings, person.column, person.value))]
    kept_out += [
        (table, column, hash_of(settings, column, person.value))
        for table, column in sorted(person.elsewhere)
    ]
    kept_out += [
        ("*", key, hash_of(settings, key, one)) for key in person.row_keys for one in values
    ]
    erasure = f"forget {hashlib.sha256(repr((kept_out, what)).encode()).hexdigest()[:12]}"
    receipts = [
        (number, *name.split("."), rows, old, new) for number, name, rows, old, new in what.releases
    ]
    with transaction(connection):
        connection.execute(
            f"insert into landing.forgotten select * from (values {_rows_of(kept_out)})"
            " except select * from landing.forgotten"
        )
        topics_left.write_down(connection, what.left)
        if what.tables:
            connection.executemany(
                "insert into releases.receipts values"
                " (?, now() at time zone 'UTC', ?, ?, ?, ?, ?, ?, ?, ?, false)",
                [
                    [erasure, getpass.getuser(), kept_out[0][2], *one]
                    for one in receipts or [(None,) * 6]
                ],
            )
    return erasure


def _rows_of(rows: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"({', '.join(map(literal, row))})" for row in rows)


def _settle(connection: duckdb.DuckDBPyConnection) -> None:
    """End what was begun: the releases' new hashes if the rows are gone, nothing if they are not."""
    done = f"""
        erasure in (
            select commit_message from __ducklake_metadata_{ALIAS}.ducklake_snapshot_changes
            where commit_message is not null
        )
    """
    open_ = connection.execute(
        f"select distinct erasure, {done} from releases.receipts where not is_done"
    ).fetchall()
    for erasure, is_gone in open_:
        ours = f"erasure = {literal(erasure)} and not is_done"
        with transaction(connection):
            if not is_gone:
                connection.execute(f"delete from releases.receipts where {ours}")
                continue
            if table_exists(connection, "releases", "history"):
                connection.execute(
                    f"""
                    update releases.contents as c
                    set rows_count = c.rows_count - r.rows_removed,
                        content_hash = coalesce(r.new_hash, c.content_hash)
                    from releases.receipts as r
                    where {ours} and r.release_number = c.release_number
                        and r.schema_name = c.schema_name and r.table_name = c.table_name
                    """
                )
                connection.execute(
                    f"""
                    update releases.history as h set rows_count = h.rows_count - r.rows_removed
                    from (
                        select release_number, sum(rows_removed) as rows_removed
                        from releases.receipts where {ours} group by 1
                    ) as r
                    where r.release_number = h.release_number
                    """
                )
            connection.execute(f"update releases.receipts set is_done = true where {ours}")


def as_text(what: Forgotten, dry_run: bool) -> str:
    """What went, for a terminal; without the identifier."""
    lines = [
        f"  {table}: {rows:,} rows in all its versions, {files:,} files"
        for table, (rows, files) in sorted(what.tables.items())
    ] or ["  no table, release or file holds the person"]
    lines += [f"  events in topic {topic}: {n:,} emptied" for topic, n in what.events.items()]
    if what.left:
        lines.append("a broker holds events of the person, which its owner deletes:")
        lines += topics_left.as_lines(what.left)
        lines.append('  all of them: make sql q="from landing.left_in_topics"')
    numbers = sorted({number for number, *_ in what.releases})
    lines.append(f"releases that hold the person: {', '.join(f'r{n}' for n in numbers) or 'none'}")
    lines += [f"  {name}@r{n}: {old} -> {new}" for n, name, _, old, new in what.releases if new]
    lines.append(f"trained models that have learned from the person: {len(what.models) or 'none'}")
    for _, version, count in sorted(what.models, key=str):
        told = "it may be: its training set is expired" if count is None else f"{count:,} rows"
        lines.append(f"  {version}: {told}")
    lines.append(
        "not touched: source systems, brokers among them (what they send of the person is set aside as"
        " forgotten), aggregates over many people, the fitted models, backups, and until the next make share"
        " the copy of what is masked"
    )
    head = "this would go (nothing was changed):" if dry_run else "this is gone:"
    end = "" if dry_run else '\nreceipts: make sql q="from releases.receipts"'
    return "\n".join([head, *lines]) + end
