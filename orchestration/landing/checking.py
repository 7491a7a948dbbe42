"""Check a batch against its contract: cast it without loss, keep the good rows, give every bad row its reasons."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from orchestration.connectors import SOURCE_POSITION, require_columns
from orchestration.contracts.raw import rules_of
from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import duckdb
    import pyarrow

Drift = Literal["evolve", "freeze", "quarantine"]
"""What happens when rows are not of the contract's shape.

`evolve`: a column that is not in the contract is added to the raw table, and a column whose values
need it is widened (integer to float, decimal to a longer one, date to timestamp). `freeze`: nothing
lands until a person has changed the contract. `quarantine`: rows that hold more than the contract
names are set aside. Under each, a nullable column may be absent, except under `freeze`.
"""

MAX_TEXT_BYTES = 16 * 2**20
"""A longer text sets its row aside: it is a mistake, or belongs into a file."""
MAX_NEW_COLUMNS = 200
"""More columns than this beyond the contract are a mistake of the source, not its growth."""
STAMPS = {"_loaded_at": "TIMESTAMP", "_batch_id": "VARCHAR", SOURCE_POSITION: "VARCHAR"}
"""What landing adds to every raw and quarantined row."""
DELETED = "_is_deleted"
"""The column of a raw table that looks for deletions: true in the row that says a key is gone."""

_ROW = "_row"
_REASONS = "_cast_reasons"
_NOT_A = ": not a "
_INTEGERS = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
)
_FLOATS = ("FLOAT", "DOUBLE")
_TIMES = ("DATE", "TIME", "TIMESTAMP")
_BEYOND_DOUBLE = 2**53


@dataclass(frozen=True)
class Change:
    """One change of a raw table's shape: `added`, `widened` or `absent`."""

    column: str
    change: Literal["added", "widened", "absent"]
    from_type: str
    to_type: str


@dataclass(frozen=True)
class Checked:
    """A batch after its contract.

    Attributes:
        good: the rows that hold the contract, cast to `types`; with `_source_position` if it came.
        bad: the others: `reason`, `payload` (JSON of the row as it arrived), `_source_position`.
        types: the columns of `good` and their SQL types.
        changes: what the raw table has to change for `good` to fit.
    """

    good: pyarrow.Table
    bad: pyarrow.Table
    types: dict[str, str]
    changes: list[Change] = field(default_factory=list)


def sql_types(contract: pa.DataFrameSchema) -> dict[str, str]:
    """Column name to SQL type, in the contract's order."""
    return {name: _sql_type(column.dtype.type) for name, column in contract.columns.items()}


_SQL_TYPES: dict[type[pl.DataType], str] = {
    pl.Int64: "BIGINT",
    pl.Int32: "INTEGER",
    pl.Float64: "DOUBLE",
    pl.String: "VARCHAR",
    pl.Boolean: "BOOLEAN",
    pl.Binary: "BLOB",
    pl.Date: "DATE",
    pl.Time: "TIME",
    pl.Datetime: "TIMESTAMP",
}


def _sql_type(dtype: Any) -> str:
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision},{dtype.scale})"
    if isinstance(dtype, pl.List):
        return f"{_sql_type(dtype.inner)}[]"
    try:
        return _SQL_TYPES[dtype.base_type()]
    except KeyError:
        raise MendableError(
            f"the dtype {dtype}",
            expected="Int64, Int32, Float64, Decimal(p, s), String, Boolean, Binary, Date, Time,"
            " Datetime or List of one",
            arrived=str(dtype),
            mend="change it in the contract",
        ) from None


def verify(connection: duckdb.DuckDBPyConnection, contract: pa.DataFrameSchema) -> None:
    """Fail when a rule of the contract is not SQL over its columns.

    Raises:
        MendableError: it names the rule.
    """
    import duckdb

    row = ", ".join(
        f"cast(null as {kind}) as {quoted(name)}" for name, kind in sql_types(contract).items()
    )
    for name, condition in rules_of(contract).items():
        try:
            connection.execute(f"select cast(({condition}) as boolean) from (select {row})")
        except duckdb.Error as error:
            raise MendableError(
                f"{contract.name}: the rule {name}",
                expected="a SQL condition over the contract's columns",
                arrived=f"{condition}: {str(error).splitlines()[0]}",
                mend="change it in the table's rules",
            ) from None


def check(
    connection: duckdb.DuckDBPyConnection,
    contract: pa.DataFrameSchema,
    rows: pyarrow.Table,
    *,
    drift: Drift = "evolve",
    types: dict[str, str] | None = None,
    may_widen: Callable[[str, str], bool] = lambda column, to: True,
    as_text: Callable[[Sequence[int]], pyarrow.Table] | None = None,
) -> Checked:
    """Split `rows` into those that hold the contract and those that do not, with reasons.

    A value that the column's type cannot hold without loss makes its row bad, and so does NaN or
    infinity, a text beyond `MAX_TEXT_BYTES`, and whatever a check or a rule of the contract refuses.

    Args:
        connection: any DuckDB connection.
        contract: the contract.
        rows: as they arrived, any types.
        drift: what to do about columns and types that the contract does not foresee.
        types: the raw table's columns as they are now, which earlier drift may have made more or
            wider than the contract's; None: the contract's.
        may_widen: asked before a column is widened.
        as_text: gives rows, by their numbers, as they arrived, where `rows` holds what was read of them.

    Raises:
        MendableError: the shape of `rows` is one that `drift` does not admit.
    """
    types = dict(types or sql_types(contract))
    rows, unexpected, absent = _shape(contract, rows, drift, types)
    # Outside the caller's transaction, which would hold every registered batch until its commit.
    connection = connection.cursor()
    connection.execute("set TimeZone = 'UTC'")
    connection.register("arrived", rows)
    try:
        arrived = {
            str(name): str(kind)
            for name, kind, *_ in connection.execute("describe select * from arrived").fetchall()
        }
        changes = [Change(name, "absent", types[name], types[name]) for name in absent]
        if drift == "evolve":
            for name in unexpected:
                if str(rows.schema.field(name).type) != "null":  # else it has no type yet
                    types[name] = _storable(arrived[name])
                    changes.append(Change(name, "added", "", types[name]))
        cast = _cast(
            connection, contract, types, arrived, unexpected if drift == "quarantine" else ()
        )
        if drift == "evolve":
            widened = [
                Change(name, "widened", types[name], to)
                for name in _columns_not_cast(cast)
                if (
                    to := _wider(
                        connection, name, arrived[name], types[name], name in contract.columns
                    )
                )
                and may_widen(name, to)
            ]
            if widened:
                changes += widened
                types |= {change.column: change.to_type for change in widened}
                cast = _cast(connection, contract, types, arrived, ())
        reasons = _reasons_by_row(contract, types, cast)
        good = cast.drop_columns([_REASONS])
        if reasons.is_empty():
            return Checked(good, _no_bad_rows(), types, changes)
        is_good = (
            pl.DataFrame({_ROW: range(good.num_rows)}, schema={_ROW: pl.Int64})
            .join(reasons.select(_ROW, bad=True), on=_ROW, how="left", maintain_order="left")["bad"]
            .is_null()
        )
        if as_text is not None:  # then the bad rows alone are what arrived
            texts = as_text(reasons[_ROW].to_list())
            if SOURCE_POSITION in arrived:
                places = rows[SOURCE_POSITION].take(reasons[_ROW].to_arrow())
                texts = texts.append_column(SOURCE_POSITION, places)
            connection.register("arrived", texts)
            arrived = dict.fromkeys(texts.column_names, "VARCHAR")
            reasons = reasons.with_columns(pl.Series(_ROW, range(len(reasons)), pl.Int64))
        bad = _bad_rows(connection, arrived, reasons)
        return Checked(good.filter(is_good.to_arrow()), bad, types, changes)
    finally:
        connection.close()


def _no_bad_rows() -> pyarrow.Table:
    import pyarrow

    text = pyarrow.string()
    return pyarrow.schema(
        [("reason", text), ("payload", text), (SOURCE_POSITION, text)]
    ).empty_table()


def _shape(
    contract: pa.DataFrameSchema, rows: pyarrow.Table, drift: Drift, types: dict[str, str]
) -> tuple[pyarrow.Table, tuple[str, ...], tuple[str, ...]]:
    """The rows under the table's own spelling of names; the columns beyond, and those that are absent."""
    system, _, entity = str(contract.name).partition(".")
    known = {name.lower(): name for name in (SOURCE_POSITION, *types)}
    names = [known.get(name.lower(), name) for name in rows.column_names]
    reserved = {name.lower() for name in (*STAMPS, DELETED, _ROW, _REASONS)} - {SOURCE_POSITION}
    seen: set[str] = set()
    for name in names:
        problem = (
            "two columns of the same name (upper and lower case are one)"
            if name.lower() in seen
            else f"the name {name}, which landing uses itself"
            if name.lower() in reserved
            else "a name that is empty, longer than 200 characters or holds unprintable ones"
            if not 0 < len(name) <= 200 or any(unicodedata.category(c)[0] == "C" for c in name)
            else None
        )
        if problem:
            shown = "".join(c if c.isprintable() else "?" for c in name)[:80]
            raise MendableError(
                f"{system}.{entity}: column {shown!r}",
                expected="columns that can stand side by side in one table",
                arrived=problem,
                mend="rename it at the source, or name it under `ignore` in the table's description",
            )
        seen.add(name.lower())
    absent = tuple(name for name in types if name not in names)
    columns = contract.columns
    require_columns(
        system,
        entity,
        expected=[
            name for name, column in columns.items() if drift == "freeze" or not column.nullable
        ],
        arrived=names,
    )
    unexpected = tuple(name for name in names if name not in types and name != SOURCE_POSITION)
    if unexpected and (drift == "freeze" or len(unexpected) > MAX_NEW_COLUMNS):
        raise MendableError(
            f"{system}.{entity}: {len(unexpected):,} columns that are not in its contract",
            expected=f"the columns of its contract: {', '.join(columns)}",
            arrived=", ".join(unexpected[:20]) + (", ..." if len(unexpected) > 20 else ""),
            mend="add them to the contract, name them under `ignore`, or let the table evolve"
            f" (drift: evolve takes up to {MAX_NEW_COLUMNS}); nothing was loaded",
        )
    return rows.rename_columns(names), unexpected, tuple(n for n in absent if n in columns)


def _storable(kind: str) -> str:
    """The type in which a raw table keeps a column that came as `kind` beyond the contract."""
    if kind.startswith(("TIMESTAMP", "DATETIME")):
        return "TIMESTAMP"
    if kind in (*_INTEGERS, *_FLOATS, *_TIMES, "BOOLEAN", "BLOB") or kind.startswith("DECIMAL"):
        return kind
    return "VARCHAR"


def _cast(
    connection: duckdb.DuckDBPyConnection,
    contract: pa.DataFrameSchema,
    types: dict[str, str],
    arrived: dict[str, str],
    forbidden: Iterable[str],
) -> pyarrow.Table:
    """The rows in `types`, with a list of what cannot be cast, and which rules do not hold."""
    import duckdb

    casts: list[str] = []
    reasons = [
        f"case when {quoted(name)} is not null then {literal(f'{name}: not in the contract')} end"
        for name in forbidden
    ]
    for name, kind in types.items():
        if name not in arrived:
            casts.append(f"cast(null as {kind}) as {quoted(name)}")
            continue
        cast, fails = _conversion(quoted(name), arrived[name], kind)
        casts.append(f"{cast} as {quoted(name)}")
        for condition, reason in (
            (fails, f"{_NOT_A}{kind}"),
            (f"not isfinite({cast})" if kind in _FLOATS else None, ": not a finite number"),
            (f"strlen({cast}) > {MAX_TEXT_BYTES}" if kind == "VARCHAR" else None, ": longer than 16 MiB"),
        ):  # fmt: skip
            if condition:
                reasons.append(f"case when {condition} then {literal(name + reason)} end")
    rules = [
        f"case when not ({condition}) then {literal(name)} end"
        for name, condition in rules_of(contract).items()
    ]
    position = [quoted(SOURCE_POSITION)] if SOURCE_POSITION in arrived else []
    cast_reasons = _list_of(reasons)
    inner = f"select {', '.join([*casts, *position])}, {cast_reasons} as {_REASONS} from arrived"
    if rules:
        everything = ", ".join([*map(quoted, types), *position])
        inner = (
            f"select {everything}, list_concat({_REASONS}, {_list_of(rules)}) as {_REASONS}"
            f" from ({inner})"
        )
    try:
        return connection.execute(inner).to_arrow_table()
    except duckdb.Error:
        verify(connection, contract)
        raise


def _list_of(reasons: list[str]) -> str:
    if not reasons:
        return "cast(null as varchar[])"
    # No list is made for the rows without a reason, which are nearly all.
    any_reason = " or ".join(f"({reason}) is not null" for reason in reasons)
    listed = f"list_filter([{', '.join(reasons)}], lambda reason: reason is not null)"
    return f"case when {any_reason} then {listed} end"


def _conversion(value: str, source: str, target: str) -> tuple[str, str | None]:
    """SQL that casts `value`, and SQL that is true where that would lose something."""
    if source == target:
        return value, None
    nested = source.startswith(("STRUCT", "MAP", "UNION", "VARIANT")) or source.endswith("]")
    if target == "VARCHAR":
        return (
            f"cast(to_json({value}) as varchar)" if nested else f"cast({value} as varchar)"
        ), None
    cast = f"try_cast({value} as {target})"
    is_text = source in ("VARCHAR", "JSON")
    is_number = source in (*_INTEGERS, *_FLOATS) or source.startswith("DECIMAL")
    same = "true"
    if target in (*_INTEGERS, *_FLOATS) or target.startswith("DECIMAL"):
        if not is_text and not is_number:
            same = "false"
        elif target in _FLOATS:
            same = f"try_cast({cast} as {source}) = {value}" if source in _INTEGERS else "true"
        elif source in _FLOATS:
            same = f"try_cast({cast} as {source}) = {value}"
        elif source.startswith("DECIMAL"):
            same = f"{cast} = {value}"
        elif source in _INTEGERS:
            same = "true"  # beyond the target's range the cast itself is null
        else:
            scale = _precision(target)[1] if target.startswith("DECIMAL") else 0
            # In few digits with an exponent a double is exact enough to tell numbers apart.
            same = (
                f"case when cast({cast} as varchar) = {value} then true"
                f" when not regexp_matches({value}, '[.eE]') then true"
                f" when not regexp_matches({value}, '[eE]')"
                f" then length(rtrim(split_part({value}, '.', 2), '0 ')) <= {scale}"
                f" else length({value}) <= 20"
                f" and try_cast({value} as double) = cast({cast} as double) end"
            )
    elif target == "DATE":
        same = f"try_cast({value} as timestamp) = cast({cast} as timestamp)"
    elif target == "BOOLEAN":
        same = f"{value} in (0, 1)" if is_number else "true" if is_text else "false"
    elif target in _TIMES and is_number:
        same = "false"
    return cast, f"{value} is not null and not coalesce({cast} is not null and {same}, false)"


def _precision(decimal: str) -> tuple[int, int]:
    """Precision and scale of `DECIMAL(p,s)`."""
    precision, scale = re.findall(r"\d+", decimal)
    return int(precision), int(scale)


def _columns_not_cast(cast: pyarrow.Table) -> list[str]:
    """The columns that hold a value which their type cannot."""
    reasons = pl.Series(cast[_REASONS]).drop_nulls()
    if reasons.is_empty():
        return []
    texts = reasons.explode().drop_nulls().unique().sort().to_list()
    return [text.rpartition(_NOT_A)[0] for text in texts if _NOT_A in text and "finite" not in text]


def _wider(
    connection: duckdb.DuckDBPyConnection, name: str, source: str, target: str, in_contract: bool
) -> str | None:
    """The narrowest type above `target` that holds the most of what `target` cannot; None if none helps."""
    value = quoted(name)
    _, fails = _conversion(value, source, target)
    candidates = {"INTEGER": ["BIGINT", "DOUBLE"], "BIGINT": ["DOUBLE"], "DATE": ["TIMESTAMP"]}.get(
        target, []
    )
    if target.startswith("DECIMAL"):
        row = connection.execute(
            rf"""
            select max(length(ltrim(split_part(digits, '.', 1), '+-0 '))),
                max(length(rtrim(split_part(digits, '.', 2), '0 ')))
            from (select cast({value} as varchar) as digits from arrived where {fails})
            where regexp_full_match(digits, '\s*[+-]?[0-9]+(\.[0-9]+)?\s*')
            """
        ).fetchone()
        if row is not None and row[0] is not None:
            precision, scale = _precision(target)
            whole, fraction = max(precision - scale, row[0]), max(scale, row[1])
            # A long fraction is what a float leaves behind, not a unit of anything.
            if whole + fraction <= 38 and row[1] <= 12:
                candidates = [f"DECIMAL({whole + fraction},{fraction})"]
    if not in_contract:
        candidates = [*candidates, "VARCHAR"]
    if not candidates:
        return None
    conditions = [fails, *(_conversion(value, source, candidate)[1] for candidate in candidates)]
    # An integer too long for its column is a mistake, no reason to make all of them floats.
    conditions = [
        f"{condition or 'false'} or abs(try_cast({value} as double)) > {_BEYOND_DOUBLE}"
        if candidate == "DOUBLE"
        else condition
        for candidate, condition in zip([target, *candidates], conditions, strict=True)
    ]
    counted = connection.execute(
        "select "
        + ", ".join(f"count(*) filter ({c or 'false'})" for c in conditions)
        + " from arrived"
    ).fetchone()
    assert counted is not None
    now, *then = counted
    best = min(then)
    return candidates[then.index(best)] if best < now else None


def _polars_type(kind: str) -> pl.DataType | type[pl.DataType]:
    if kind.startswith("DECIMAL"):
        return pl.Decimal(*_precision(kind))
    return {"TIMESTAMP": pl.Datetime("us"), "DOUBLE": pl.Float64(), "BIGINT": pl.Int64()}[kind]


def _reasons_by_row(
    contract: pa.DataFrameSchema, types: dict[str, str], cast: pyarrow.Table
) -> pl.DataFrame:
    """One line per bad row: `_row` (0-based) and `reason` (all of them, joined by `; `)."""
    frame = pl.DataFrame(cast)
    found = (
        frame.select(_REASONS)
        .with_row_index(_ROW)
        .drop_nulls()
        .explode(_REASONS)
        .drop_nulls()
        .select(pl.col(_ROW).cast(pl.Int64), reason=_REASONS)
    )
    wider = {
        name: {"dtype": _polars_type(types[name])}
        for name, kind in sql_types(contract).items()
        if types[name] != kind
    }
    if wider:
        contract = contract.update_columns(wider)
    try:
        contract.validate(frame.select(list(contract.columns)), lazy=True)
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


def _bad_rows(
    connection: duckdb.DuckDBPyConnection, arrived: dict[str, str], reasons: pl.DataFrame
) -> pyarrow.Table:
    """The bad rows as they arrived, long texts cut."""
    cut = {
        name: f"case when strlen(a.{quoted(name)}) > 65536 then a.{quoted(name)}[:1000] || '...'"
        f" else a.{quoted(name)} end"
        for name, kind in arrived.items()
        if kind == "VARCHAR"
    }
    payload = ", ".join(
        f"{quoted(name)} := {cut.get(name, 'a.' + quoted(name))}"
        for name in arrived
        if name != SOURCE_POSITION
    )
    position = f"a.{SOURCE_POSITION}" if SOURCE_POSITION in arrived else "cast(null as varchar)"
    connection.register("bad_reasons", reasons.to_arrow())
    try:
        return connection.execute(
            f"""
            select r.reason, cast(to_json(struct_pack({payload})) as varchar) as payload,
                {position} as {SOURCE_POSITION}
            from (select *, row_number() over () - 1 as {_ROW} from arrived) as a
            inner join bad_reasons as r on r.{_ROW} = a.{_ROW}
            order by r.{_ROW}
            """
        ).to_arrow_table()
    finally:
        connection.unregister("bad_reasons")
