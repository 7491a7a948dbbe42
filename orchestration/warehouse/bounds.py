"""The least and greatest values that the catalog keeps of a table's columns, taken anew from what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestration.duckdb_session import literal, quoted
from orchestration.warehouse.catalog_files import CATALOG, ever_named, rows_of, sql_type

if TYPE_CHECKING:
    import duckdb


def tighten(
    cursor: duckdb.DuckDBPyConnection,
    tables: set[int],
    equals: Mapping[int, Mapping[int, tuple[str, str]]],
    inlined: Mapping[int, Sequence[str]],
) -> None:
    """Make the bounds of whole tables those of what is left; also where only a bound names the value.

    Args:
        cursor: of `catalog_of`, in the transaction in which the rows went.
        tables: the numbers of those that rows went from.
        equals: number of a table and of its column to a value and its type, which no bound is to name.
        inlined: number of a table to the tables of the catalog in which rows of it are kept.
    """
    tables = {*tables}
    for table, columns in equals.items():
        for number, (value, kind) in columns.items():
            if rows_of(
                cursor,
                f"select 1 from {{c}}.ducklake_table_column_stats where table_id = {table}"
                f" and column_id = {number} and (try_cast(min_value as {kind}) = {value}"
                f" or try_cast(max_value as {kind}) = {value})",
            ):
                tables.add(table)
    ours = f"list_contains({sorted(tables)}::bigint[], table_id)"
    cursor.execute(
        "create or replace temp table bounds"
        " (table_id bigint, column_id bigint, low varchar, high varchar, is_told boolean)"
    )
    cursor.execute(
        f"""
        create or replace temp table kinds as
        select table_id, column_id, arg_max(column_type, begin_snapshot) as kind
        from {CATALOG}.ducklake_column where {ours} group by 1, 2
        """
    )
    # Two values tell of nobody, and what is nested has bounds of its own.
    for kind, of_kind in rows_of(
        cursor,
        "select kind, list([table_id, column_id]) from kinds"
        " where kind not in ('boolean', 'list', 'struct', 'map') group by 1",
    ):
        to = sql_type(kind)
        known = f"(table_id, column_id) in (select (table_id, column_id) from kinds where kind = {literal(kind)})"
        parts = [
            f"""
            select table_id, column_id, try_cast(min_value as {to}) as low,
                try_cast(max_value as {to}) as high,
                min_value is not null or coalesce(null_count >= value_count, false) as is_told
            from {{c}}.ducklake_file_column_stats where {known}
            """,
            # also where no row is left
            "select table_id, column_id, null, null, null from {c}.ducklake_table_column_stats"
            f" where {known}",
        ]
        for table in tables & inlined.keys():
            numbers = {name: n for n, name in ever_named(cursor, table)}
            ours_of_kind = {n for t, n in of_kind if t == table}
            for stored in inlined[table]:
                named = {
                    numbers[name]: name
                    for name, *_ in rows_of(cursor, f"describe {{c}}.{quoted(stored)}")
                    if name in numbers and kind != "blob"
                }
                for number in ours_of_kind:
                    told = "null, null, false"  # of what is nested, or not kept as text
                    if number in named:
                        value = f"try_cast({quoted(named[number])} as {to})"
                        told = f"min({value}), max({value}), true"
                    parts.append(
                        f"select {table}, {number}, {told}"
                        f" from {{c}}.{quoted(stored)} having count(*) > 0"
                    )
        rows_of(
            cursor,
            "insert into bounds select table_id, column_id, min(low)::varchar,"
            f" max(high)::varchar, bool_and(is_told) from ({' union all '.join(parts)})"
            " group by 1, 2",
        )
    # Without a row, or where a file does not tell, there are no bounds.
    for table, column, low, high in rows_of(
        cursor,
        """
        from (
            select table_id, column_id, case when is_told then low end as low,
                case when is_told then high end as high
            from bounds
        )
        join {c}.ducklake_table_column_stats as s using (table_id, column_id)
        select table_id, column_id, low, high
        where low is distinct from s.min_value or high is distinct from s.max_value
        """,
    ):
        cursor.execute(
            f"update {CATALOG}.ducklake_table_column_stats set min_value = ?, max_value = ?"
            f" where table_id = {table} and column_id = {column}",
            [low, high],
        )
