"""The schema `masked`: the release in force for people without the right to know whom it is about.

Each view of `published` has one of its name in `masked`, which shows of a column

- that tells of no person, and of a sensitive one: its value;
- that is a quasi-identifier: a time's month, an identifier's pseudonym, a number's first digit, else nothing;
- that is a direct identifier: a pseudonym;
- of which nobody said what it tells: nothing.

A pseudonym is a hash with the key WATERSHED_PRIVACY_KEY, the same wherever a column of that name has
that value, so that joins work. Without a key no hash would hide anything: whoever counts from 1 to the
number of households has them all. So the key is in no view, where the catalog would give it away, but
in the session (`connect` puts it there); in a session without it pseudonyms are null.

A view hides nothing from whoever can read the lake's files: these need a copy of what the views show,
in a lake of its own (`share`). And what it shows is pseudonymous, not anonymous: who knows a few of a
person's purchases may find the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse.connect import transaction, writing
from orchestration.warehouse.frames import table_exists
from orchestration.warehouse.privacy import DIRECT, NONE, QUASI, SENSITIVE

if TYPE_CHECKING:
    import duckdb

MASKED = "masked"
CATALOG_SCHEMA = "watershed_masked"
"""Where a PostgreSQL catalog keeps the catalog of what is shared."""
KEY = "privacy_key"
"""The session's variable that holds the key."""


def write_down(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    columns: Mapping[str, Mapping[str, str]],
) -> None:
    """Keep what columns tell in the warehouse, and show the release in force by it.

    Args:
        connection: a writing connection.
        settings: which warehouse.
        columns: table `schema.name` to column to tag or `none`, as `privacy.told().columns`.
    """
    rows = sorted(
        (*name.split("."), column, tag)
        for name, tags in columns.items()
        for column, tag in tags.items()
    )
    import pyarrow as pa

    if table_exists(connection, "releases", "column_tags"):
        known = connection.execute("from releases.column_tags order by all").fetchall()
        if known == rows:
            return
    with writing(settings, "what columns tell of persons"), transaction(connection):
        connection.execute("create schema if not exists releases")
        connection.execute(
            "create or replace table releases.column_tags"
            " (schema_name varchar, table_name varchar, column_name varchar, tag varchar)"
        )
        if rows:
            names = ("schema_name", "table_name", "column_name", "tag")
            told = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
            connection.register("told", told)
            connection.execute("insert into releases.column_tags from told")
            connection.unregister("told")
        if table_exists(connection, "releases", "moves"):
            mask(connection, anew=True)


def mask(connection: duckdb.DuckDBPyConnection, *, anew: bool = False) -> None:
    """Have a view in `masked` for each of `published`; part of the caller's transaction.

    They read `published`, so a move to another release needs no new ones, but where columns differ.

    Args:
        connection: a writing connection.
        anew: make all of them, because columns have other tags.
    """
    if "column_tags" not in _columns(connection, "releases"):
        return
    tags = {
        (table, column): tag
        for table, column, tag in connection.execute(
            "select table_name, column_name, tag from releases.column_tags"
            " where (schema_name, table_name) in (select (schema_name, table_name) from releases.contents)"
        ).fetchall()
    }
    connection.execute(f"create schema if not exists {MASKED}")
    published, known = _columns(connection, "published"), _columns(connection, MASKED)
    for name in known.keys() - published.keys():
        connection.execute(f"drop view {MASKED}.{quoted(name)}")
    for name, columns in published.items():
        shown = [_shown(column, kind, tags.get((name, column))) for column, kind in columns]
        wanted = [(column, kind) for (column, _), (_, kind) in zip(columns, shown, strict=True)]
        if anew or known.get(name) != wanted:
            values = (
                f"{value} as {quoted(c)}" for (value, _), (c, _) in zip(shown, columns, strict=True)
            )
            connection.execute(
                f"create or replace view {MASKED}.{quoted(name)} as"
                f" select {', '.join(values)} from published.{quoted(name)}"
            )


def share(connection: duckdb.DuckDBPyConnection, settings: Settings) -> tuple[list[str], str]:
    """Copy what the views of `masked` show into a lake of its own, for people who may read nothing else.

    The copy has a catalog of its own (in PostgreSQL a schema of its own) and a folder or bucket of its
    own, so that rights can be given to them alone. It keeps no history: what an earlier copy showed,
    of people who were forgotten since too, is deleted, files and all.

    Args:
        connection: to the warehouse, with the key in it; reading is enough.
        settings: which warehouse.

    Returns:
        The tables, and the ATTACH for their readers.

    Raises:
        MendableError: there is no key, or nothing has been released.
    """
    import duckdb

    if not settings.privacy_key.get_secret_value():
        raise MendableError(
            "sharing what is masked", expected="a key to make pseudonyms with", arrived="none",
            mend="WATERSHED_PRIVACY_KEY=$(openssl rand -hex 32) in .env",
        )  # fmt: skip
    names = sorted(_columns(connection, MASKED))
    if not names:
        raise MendableError(
            "sharing what is masked", expected="a release", arrived="none yet", mend="make build"
        )
    shared = f"{MASKED}_lake"
    place = f"ducklake:{settings.catalog}"
    options = [f"data_path {literal(settings.masked_lake_path)}"]
    if settings.catalog_file is None:
        options.append(f"metadata_schema '{CATALOG_SCHEMA}'")
    else:
        place = f"ducklake:sqlite:{settings.catalog_file.with_name('masked.sqlite')}"
    with writing(settings, "sharing what is masked"):
        try:
            # Rows that were kept in the catalog would stay in its free pages: all go into files.
            kept = ", ".join((*options, "data_inlining_row_limit 0"))
            connection.execute(f"attach {literal(place)} as {shared} ({kept})")
            _copy(connection, names, shared)
            connection.execute(f"detach {shared}")
        except duckdb.Error as error:
            raise MendableError(
                f"sharing what is masked at {settings.masked_lake_path}",
                expected="a catalog and a folder or bucket that this user can write to",
                arrived=f"{type(error).__name__} (details withheld)",
                mend="check WATERSHED_MASKED_LAKE_PATH and, with PostgreSQL, the right to create"
                f" the schema {CATALOG_SCHEMA}: make roles",
            ) from None
    return names, f"attach {literal(place)} as lake ({', '.join((*options, 'read_only'))});"


def _copy(connection: duckdb.DuckDBPyConnection, names: list[str], shared: str) -> None:
    """Replace the tables of the attached lake `shared` by what the views show, and delete what was before."""
    with transaction(connection):
        connection.execute(f"create schema if not exists {shared}.published")
        for (gone,) in connection.execute(
            "select table_name from duckdb_tables() where database_name = ?"
            " and schema_name = 'published' and not list_contains(?, table_name)",
            [shared, names],
        ).fetchall():
            connection.execute(f"drop table {shared}.published.{quoted(gone)}")
        for name in names:
            connection.execute(
                f"create or replace table {shared}.published.{quoted(name)} as"
                f" from {MASKED}.{quoted(name)}"
            )
    connection.execute(f"call ducklake_expire_snapshots('{shared}', older_than => now())")
    connection.execute(f"call ducklake_cleanup_old_files('{shared}', cleanup_all => true)")


def _columns(
    connection: duckdb.DuckDBPyConnection, schema: str
) -> dict[str, list[tuple[str, str]]]:
    """The tables and views of a schema, each with its columns and their types."""
    found: dict[str, list[tuple[str, str]]] = {}
    for view, column, kind in connection.execute(
        "select table_name, column_name, data_type from duckdb_columns()"
        f" where database_name = current_database() and schema_name = {literal(schema)}"
        " order by table_name, column_index",
    ).fetchall():
        found.setdefault(view, []).append((column, kind))
    return found


def _shown(column: str, kind: str, tag: str | None) -> tuple[str, str]:
    """SQL for what is shown of a column of type `kind`, and the type of that."""
    name = quoted(column)
    if tag in (NONE, SENSITIVE):
        return name, kind
    if tag == DIRECT or (tag == QUASI and column.endswith("_id")):
        # A hash within a hash, as HMAC has it; the name keeps card 5 apart from household 5.
        text = f"{literal(column + '/')} || cast({name} as varchar)"
        key = f"getvariable('{KEY}')"
        return f"left(sha256({key} || sha256({key} || {text})), 32)", "VARCHAR"
    if tag == QUASI and (kind == "DATE" or kind.startswith("TIMESTAMP")):
        return f"cast(date_trunc('month', {name}) as {kind})", kind
    if tag == QUASI and kind.startswith(("BIGINT", "INTEGER", "DOUBLE", "DECIMAL")):
        digit = f"power(10, floor(log10(abs(nullif({name}, 0)))))"
        return f"cast(coalesce(trunc({name} / {digit}) * {digit}, {name} * 0) as {kind})", kind
    return f"cast(null as {kind})", kind
