"""Check a batch against its contract: cast it, keep the good rows, give every bad row its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from orchestration.connectors import unexpected_columns
from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import duckdb
    import pyarrow

_ROW = "_row"


@dataclass(frozen=True)
class Checked:
    """A batch after its contract.

    Attributes:
        good: the rows that hold the contract, cast to its types, columns in its order.
        bad: the others: `reason` and `payload` (JSON of the row as it arrived).
    """

    good: pl.DataFrame
    bad: pl.DataFrame


def sql_types(contract: pa.DataFrameSchema) -> dict[str, str]:
    """Column name to SQL type, in the contract's order."""
    return {name: _sql_type(column.dtype.type) for name, column in contract.columns.items()}


_SQL_TYPES: dict[type[pl.DataType], str] = {
    pl.Int64: "BIGINT",
    pl.Int32: "INTEGER",
    pl.Float64: "DOUBLE",
    pl.String: "VARCHAR",
    pl.Boolean: "BOOLEAN",
    pl.Date: "DATE",
    pl.Datetime: "TIMESTAMP",
}


def _sql_type(dtype: pl.DataType | type[pl.DataType]) -> str:
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision},{dtype.scale})"
    return _SQL_TYPES[dtype.base_type()]


def check(
    connection: duckdb.DuckDBPyConnection, contract: pa.DataFrameSchema, rows: pyarrow.Table
) -> Checked:
    """Split `rows` into those that hold the contract and those that do not, with reasons.

    A value that cannot be cast to the contract's type without loss of meaning makes its row bad;
    columns beyond the contract are left out.

    Raises:
        MendableError: a column of the contract is not in `rows` at all.
    """
    types = sql_types(contract)
    system, _, entity = str(contract.name).partition(".")
    unexpected_columns(system, entity, expected=list(types), arrived=rows.column_names)
    connection.register("arrived", rows)
    try:
        # The arrived types decide which casts can fail; the others cost nothing.
        arrived = {
            str(name): str(kind)
            for name, kind, *_ in connection.execute("describe select * from arrived").fetchall()
        }
        failures = [
            f"case when {quoted(name)} is not null and try_cast({quoted(name)} as {kind}) is null"
            f" then {literal(f'{name}: not a {kind}')} end"
            for name, kind in types.items()
            if arrived[name] != kind
        ]
        reasons = (
            f"list_filter([{', '.join(failures)}], reason -> reason is not null)"
            if failures
            else "null::varchar[]"
        )
        casts = ", ".join(
            f"try_cast({quoted(name)} as {kind}) as {quoted(name)}" for name, kind in types.items()
        )
        cast = pl.DataFrame(
            connection.execute(
                f"select {casts}, {reasons} as {quoted('_cast_reasons')} from arrived"
            ).to_arrow_table()
        )
        bad_reasons = _reasons_by_row(contract, cast)
        frame = cast.drop("_cast_reasons")
        if bad_reasons.is_empty():
            empty = pl.DataFrame(schema={"reason": pl.String, "payload": pl.String})
            return Checked(good=frame, bad=empty)
        numbered = frame.with_row_index(_ROW).cast({_ROW: pl.Int64})
        connection.register("bad_reasons", bad_reasons)
        try:
            payload = ", ".join(f"{quoted(n)} := a.{quoted(n)}" for n in rows.column_names)
            bad = connection.execute(
                f"""
                select r.reason, to_json(struct_pack({payload}))::varchar as payload
                from (select *, row_number() over () - 1 as {_ROW} from arrived) as a
                inner join bad_reasons as r on r.{_ROW} = a.{_ROW}
                order by r.{_ROW}
                """
            ).to_arrow_table()
        finally:
            connection.unregister("bad_reasons")
        good = numbered.join(bad_reasons, on=_ROW, how="anti").drop(_ROW)
        return Checked(good=good, bad=pl.DataFrame(bad))
    finally:
        connection.unregister("arrived")


def _reasons_by_row(contract: pa.DataFrameSchema, cast: pl.DataFrame) -> pl.DataFrame:
    """One line per bad row: `_row` (0-based) and `reason` (all of them, joined by `; `)."""
    found = (
        cast.select("_cast_reasons")
        .with_row_index(_ROW)
        .explode("_cast_reasons")
        .drop_nulls()
        .select(pl.col(_ROW).cast(pl.Int64), reason="_cast_reasons")
    )
    try:
        contract.validate(cast.drop("_cast_reasons"), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        if cases["index"].null_count():
            unplaced = cases.filter(pl.col("index").is_null())["check"].unique().to_list()
            raise MendableError(
                f"the contract of {contract.name}",
                expected="checks that fail row by row",
                arrived=f"a failure of the whole frame: {', '.join(map(str, unplaced))}",
                mend="write the check so that it answers for every row (pandera's element-wise form)",
            ) from None
        by_check = cases.select(
            pl.col("index").cast(pl.Int64).alias(_ROW),
            reason=pl.when(pl.col("schema_context") == "Column")
            .then(pl.concat_str("column", pl.lit(": "), "check"))
            .otherwise("check"),
        )
        # A value that could not be cast is null by now: its first reason says it all.
        found = pl.concat([found, by_check.join(found, on=_ROW, how="anti")])
    return found.group_by(_ROW).agg(pl.col("reason").unique().sort().str.join("; ")).sort(_ROW)
