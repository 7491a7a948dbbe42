"""The stand-in for the retailer's database: fills SQLite or PostgreSQL with three tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from orchestration.connectors import address
from orchestration.demo.dataset import last_household, parquet_file, reading
from orchestration.duckdb_session import literal, open_session
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import duckdb

TABLES = {
    "transactions": """
        create table transactions (
            household_id bigint not null,
            store_id bigint not null,
            basket_id bigint not null,
            product_id bigint not null,
            quantity bigint not null,
            sales_value numeric(12, 2) not null,
            retail_disc numeric(12, 2) not null,
            coupon_disc numeric(12, 2) not null,
            coupon_match_disc numeric(12, 2) not null,
            transaction_timestamp timestamp not null,
            primary key (basket_id, product_id)
        );
        create index transactions_by_time on transactions (transaction_timestamp);
        """,
    "products": """
        create table products (
            product_id bigint primary key,
            manufacturer_id bigint not null,
            department text,
            brand text not null,
            product_category text,
            product_type text,
            package_size text
        );
        """,
    "demographics": """
        create table demographics (
            household_id bigint primary key,
            age text not null,
            income text not null,
            home_ownership text,
            marital_status text,
            household_size text not null,
            household_comp text not null,
            kids_count text not null
        );
        """,
}
"""Table name to the statements that create it, in SQL that SQLite and PostgreSQL share."""

_QUERIES = {
    "transactions": """
        select
            household_id, store_id, basket_id, product_id, quantity,
            cast(sales_value as decimal(12, 2)),
            cast(retail_disc as decimal(12, 2)),
            cast(coupon_disc as decimal(12, 2)),
            cast(coupon_match_disc as decimal(12, 2)),
            transaction_timestamp
        from {parquet}
        where household_id <= {last_household}
        order by basket_id, product_id
        """,
    "products": """
        select
            product_id, manufacturer_id, department, brand,
            product_category, product_type, package_size
        from {parquet}
        order by product_id
        """,
    "demographics": """
        select
            household_id, age, income, home_ownership, marital_status,
            household_size, household_comp, kids_count
        from {parquet}
        where household_id <= {last_household}
        order by household_id
        """,
}
_INSERT_ROWS = 250_000


def fill(
    path: Path,
    households: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, int]:
    """Fill an SQLite file, unless it already holds just this data.

    The file appears, or is replaced, in one step once it is complete, so that a reader never sees
    half of it and a crash leaves what was there before.

    Args:
        path: the file.
        households: only the first so many households' purchases and demographics; None is all.
        progress: told how far it is, at least once a second.

    Returns:
        Table name to number of rows.

    Raises:
        MendableError: the demo's data is missing or damaged, or the file cannot be written.
    """
    import duckdb
    from filelock import FileLock

    edition = _edition(households)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            rows = _rows_of_edition(path, edition)
            if rows is None:
                partial = path.with_suffix(".partial")
                try:
                    rows = _create(partial, edition, households, progress)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
            return rows
    except (OSError, sqlite3.Error, duckdb.Error) as error:
        raise MendableError(
            f"the demo's database {path}",
            expected="a file this user can write, and 200 MB of room",
            arrived=f"{type(error).__name__}: {error}",
            mend="make room, or set WATERSHED_DATA_DIR to another folder in .env; then run again",
        ) from None


def fill_postgresql(url: str, households: int | None = None) -> dict[str, int]:
    """Fill an empty PostgreSQL database, all or nothing; arguments and result as those of `fill`.

    Raises:
        MendableError: the database does not answer, is not empty, or cannot be written.
    """
    import duckdb

    with open_session(memory_limit="1GB", extensions=["postgres"]) as connection:
        try:
            connection.execute(f"attach {literal(url)} as retail (type postgres)")
            connection.execute("begin transaction")
            for statements in TABLES.values():
                connection.execute(f"call postgres_execute('retail', {literal(statements)})")
            rows = _insert(connection, households, lambda message: None)
            connection.execute("commit")
        except duckdb.Error as error:  # its text holds the password
            raise MendableError(
                f"PostgreSQL at {address(url)}",
                expected="an empty database this user can write",
                arrived=type(error).__name__,
                mend="check the URL and look into the database with psql",
            ) from None
    return rows


def _edition(households: int | None) -> int:
    """A number that changes when the data, the tables or the choice of households does."""
    sizes = [parquet_file(table).stat().st_size for table in TABLES]
    return crc32(repr((TABLES, sizes, households)).encode()) >> 1 or 1


def _rows_of_edition(path: Path, edition: int) -> dict[str, int] | None:
    """The rows of each table of a file, or None when it is not of this edition."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path)) as database:
            if database.execute("pragma user_version").fetchone() != (edition,):
                return None
            return {
                table: database.execute(f"select count(*) from {table}").fetchone()[0]
                for table in TABLES
            }
    except sqlite3.DatabaseError:
        return None


def _create(
    path: Path, edition: int, households: int | None, progress: Callable[[str], None]
) -> dict[str, int]:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("".join(TABLES.values()))
    with open_session(memory_limit="1GB", extensions=["sqlite_scanner"]) as connection:
        # Without a journal: nobody reads this file before it is complete.
        connection.execute(
            f"attach {literal(str(path))} as retail (type sqlite, journal_mode 'off')"
        )
        rows = _insert(connection, households, progress)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"pragma user_version = {edition}")
    return rows


def _insert(
    connection: duckdb.DuckDBPyConnection,
    households: int | None,
    progress: Callable[[str], None],
) -> dict[str, int]:
    """Copy the data into the attached database `retail`; returns table name to number of rows."""
    last = last_household(connection, households)
    counts = {}
    for table, query in _QUERIES.items():
        with reading(table) as parquet:
            connection.execute(
                "create temp table arriving as "
                + query.format(parquet=parquet, last_household=last)
            )
        total = _number(connection, "select count(*) from arriving")
        counts[table] = 0
        for start in range(0, total, _INSERT_ROWS):
            counts[table] += _number(
                connection,
                f"insert into retail.{table}"
                f" select * from arriving limit {_INSERT_ROWS} offset {start}",
            )
            progress(f"{table}: {counts[table]:,} of {total:,} rows")
        connection.execute("drop table arriving")
    return counts


def _number(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return int(row[0])
