"""What is different between two releases, or a release and now: shape, rows by key, values, metrics.

All of it is counted by the warehouse, a few queries per table; a table that was not written between
the two is not read. Rows are matched by the key that a test of the dbt project says is unique; without
one they are compared as they are, equal rows counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError
from orchestration.warehouse.frames import current_snapshot
from orchestration.warehouse.releases import (
    changed_tables,
    find,
    released_tables,
    releases,
    tables_of_release,
)

if TYPE_CHECKING:
    import duckdb

NOW = "now"
QUANTILES = (0.05, 0.5, 0.95)
TOLD_FROM = 5
"""A text is named only if so many rows hold it: fewer may be somebody's."""
MOVED_FROM = 0.01
"""Where rows came or went, a column counts as moved if a text's share did by so much, or its mean or a quantile
by so much of the mean or of the distance from the lowest to the highest quantile; those are approximate."""
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_NUMBERS = (*_WHOLE, *(f"U{kind}" for kind in _WHOLE), "FLOAT", "DOUBLE", "DECIMAL")


@dataclass(frozen=True)
class Numbers:
    """Mean and the quantiles `QUANTILES` (approximate) of a column of numbers, nulls left out."""

    mean: float | None
    quantiles: tuple[float | None, ...]


@dataclass(frozen=True)
class ColumnDiff:
    """A column that both sides have.

    Attributes:
        name: of the column.
        rows_changed: rows of the same key with another value; None without a key.
        before, after: of a column of numbers.
        texts: of a column of texts, those whose number of rows changed most: text, before, after.
    """

    name: str
    rows_changed: int | None
    before: Numbers | None = None
    after: Numbers | None = None
    texts: tuple[tuple[str | None, int, int], ...] = ()


@dataclass(frozen=True)
class MetricDiff:
    """The last value of a metric on both sides; None where there is none."""

    metric: str
    before: float | None
    after: float | None


@dataclass
class TableDiff:
    """What is different in one table.

    Attributes:
        table: `schema.name`.
        key: the columns by which rows are matched; empty without one.
        rows_before, rows_after: None where the table is not there.
        added, removed, changed: rows; without a key none counts as changed.
        shape: columns added, removed and retyped, in words.
        columns: what changed in columns of both sides, most rows first.
        metrics: of a table of metrics, those whose last value changed.
    """

    table: str
    key: tuple[str, ...] = ()
    rows_before: int | None = None
    rows_after: int | None = None
    added: int = 0
    removed: int = 0
    changed: int = 0
    shape: list[str] = field(default_factory=list)
    columns: list[ColumnDiff] = field(default_factory=list)
    metrics: list[MetricDiff] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether nothing is different."""
        return not (self.added or self.removed or self.changed or self.shape)

    @property
    def share(self) -> float:
        """Rows that are different, of all there are on either side."""
        rows = max(self.rows_before or 0, self.rows_after or 0, 1)
        return (self.added + self.removed + self.changed) / rows


def unique_keys(manifest: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Table `schema.name` to its key, as a test in dbt's manifest says it is unique; the shortest."""
    nodes = {**manifest["nodes"], **manifest["sources"]}
    found: dict[str, tuple[str, ...]] = {}
    for test in manifest["nodes"].values():
        told = test.get("test_metadata") or {}
        if told.get("name") not in ("unique", "has_unique_key"):
            continue
        of = test.get("attached_node") or next(iter(test["depends_on"]["nodes"]), None)
        node, arguments = nodes.get(of), told["kwargs"]
        if node is None:
            continue
        key = tuple(arguments.get("columns") or [arguments["column_name"]])
        table = f"{node['schema']}.{node.get('alias') or node['name']}"
        if table not in found or len(key) < len(found[table]):
            found[table] = key
    return found


def diff(
    connection: duckdb.DuckDBPyConnection,
    before: str,
    after: str,
    keys: Mapping[str, Sequence[str]],
    *,
    table: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[TableDiff]:
    """Compare the tables of two releases.

    Args:
        connection: to the warehouse; reading is enough.
        before: a release, or `now`.
        after: a release, or `now`.
        keys: table `schema.name` to the columns that identify a row.
        table: only this one, with or without its schema.
        say: told which table is being compared.

    Returns:
        One per table of either side; those that are most different first, those that are the same last.

    Raises:
        MendableError: there is no such release or table, or its files are gone.
    """
    import duckdb

    (old, tables_old), (new, tables_new) = (_side(connection, name) for name in (before, after))
    everything = sorted({*tables_old, *tables_new})
    wanted = [one for one in everything if table in (None, one, one.partition(".")[2])]
    if not wanted:
        raise MendableError(
            f"table {table}",
            expected=f"one of {', '.join(everything) or 'none: there is no table'}",
            arrived="neither side has it",
            mend=f"watershed diff {before} {after}",
        )
    still_there = {f"{schema}.{name}" for schema, name in released_tables(connection)}
    touched = changed_tables(connection, min(old, new))
    found = []
    for one in wanted:
        is_untouched = old == new or one.partition(".")[2] not in touched
        if one in tables_old and one in tables_new and one in still_there and is_untouched:
            found.append(TableDiff(one))
            continue
        say(f"comparing {one}")
        before_sql = _at(one, old) if one in tables_old else None
        after_sql = _at(one, new) if one in tables_new else None
        try:
            found.append(compare(connection, one, before_sql, after_sql, tuple(keys.get(one, ()))))
        except (duckdb.IOException, duckdb.CatalogException, duckdb.HTTPException) as error:
            raise MendableError(
                f"{one} of {before} and {after}",
                expected="its files in the lake",
                arrived=f"{type(error).__name__}: a file is missing or damaged",
                mend="restore the lake's folder from a backup",
            ) from None
    return sorted(found, key=lambda t: (t.is_same, not t.shape, -t.share, t.table))


def compare(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    before: str | None,
    after: str | None,
    key: tuple[str, ...] = (),
) -> TableDiff:
    """Compare two states of a table.

    Args:
        connection: to the warehouse.
        table: its name, `schema.name`.
        before: SQL that can stand after FROM; None where the table is not there.
        after: likewise.
        key: the columns that identify a row; without them, or if they do not, rows are compared whole.
    """
    told = TableDiff(table)
    told.rows_before, told.rows_after = (_count(connection, side) for side in (before, after))
    if before is None or after is None:
        told.added, told.removed = told.rows_after or 0, told.rows_before or 0
        told.shape = ["the table is new" if before is None else "the table is gone"]
        return told
    types = [_types(connection, side) for side in (before, after)]
    told.shape = list(_shape(*types))
    common = [column for column in types[0] if column in types[1]]
    if key and set(key) <= set(common) and _is_unique(connection, (before, after), key):
        told.key = key
    retyped = {
        c
        for c in common
        if types[0][c] != types[1][c] and not (_is_number(types[0][c]) and _is_number(types[1][c]))
    }
    changed: dict[str, int] = {}
    if told.key:
        changed = _by_key(connection, told, before, after, common, retyped)
    else:
        _by_rows(connection, told, before, after, common, retyped)
    if told.added or told.removed or told.changed:
        told.columns = list(
            _columns(connection, told, before, after, types[1], common, retyped, changed)
        )
    if table.endswith("__metrics") and {"metric", "value", "as_of_at"} <= set(common):
        told.metrics = _metrics(connection, before, after)
    return told


def _side(connection: duckdb.DuckDBPyConnection, name: str) -> tuple[int, set[str]]:
    """Snapshot and tables of a release, or of now."""
    if name == NOW:
        tables = released_tables(connection)
        return current_snapshot(connection), {f"{schema}.{table}" for schema, table in tables}
    one = find(releases(connection), name)
    tables = tables_of_release(connection, one)
    return one.snapshot_id, {f"{schema}.{table}" for schema, table in tables}


def _at(table: str, snapshot: int) -> str:
    schema, _, name = table.partition(".")
    return f"(from {quoted(schema)}.{quoted(name)} at (version => {snapshot}))"


def _types(connection: duckdb.DuckDBPyConnection, side: str) -> dict[str, str]:
    rows = connection.execute(f"describe from {side}").fetchall()
    return {name: kind for name, kind, *_ in rows}


def _count(connection: duckdb.DuckDBPyConnection, side: str | None) -> int | None:
    if side is None:
        return None
    ((count,),) = connection.execute(f"select count(*) from {side}").fetchall()
    return int(count)


def _shape(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name, kind in after.items():
        if name not in before:
            yield f"+ {name} {kind}"
    for name, kind in before.items():
        if name not in after:
            yield f"- {name} {kind}"
        elif after[name] != kind:
            yield f"{name} {kind} -> {after[name]}"


def _is_number(kind: str) -> bool:
    return kind.partition("(")[0] in _NUMBERS


def _is_unique(
    connection: duckdb.DuckDBPyConnection, sides: Sequence[str], key: Sequence[str]
) -> bool:
    names = ", ".join(map(quoted, key))
    return not any(
        connection.execute(
            f"select 1 from {side} group by {names} having count(*) > 1 limit 1"
        ).fetchall()
        for side in sides
    )


def _by_key(
    connection: duckdb.DuckDBPyConnection,
    told: TableDiff,
    before: str,
    after: str,
    common: Sequence[str],
    retyped: set[str],
) -> dict[str, int]:
    """Count rows by key; returns in how many each column is another."""
    compared = [column for column in common if column not in told.key]
    different = [
        f"{_plain('b', c, c in retyped)} is distinct from {_plain('a', c, c in retyped)}"
        for c in compared
    ]
    both = "b.is_there and a.is_there"
    matched = " and ".join(
        f"{_plain('b', c, c in retyped)} is not distinct from {_plain('a', c, c in retyped)}"
        for c in told.key
    )
    any_of = f"({' or '.join(different)})" if different else "false"
    counts = [
        "count(*) filter (where b.is_there is null)",
        "count(*) filter (where a.is_there is null)",
        f"count(*) filter (where {both} and {any_of})",
        *(f"count(*) filter (where {both} and {one})" for one in different),
    ]
    columns = ", ".join(map(quoted, common))
    ((added, removed, changed, *each),) = connection.execute(
        f"""
        select {", ".join(counts)}
        from (select true as is_there, {columns} from {before}) as b
        full join (select true as is_there, {columns} from {after}) as a on {matched}
        """
    ).fetchall()
    told.added, told.removed, told.changed = added, removed, changed
    return dict(zip(compared, each, strict=True))


def _by_rows(
    connection: duckdb.DuckDBPyConnection,
    told: TableDiff,
    before: str,
    after: str,
    common: Sequence[str],
    retyped: set[str],
) -> None:
    """Count rows of which one side has more than the other."""
    if not common:
        told.added, told.removed = told.rows_after or 0, told.rows_before or 0
        return
    columns = ", ".join(f"{_plain('t', c, c in retyped)} as {quoted(c)}" for c in common)
    names = ", ".join(map(quoted, common))
    ((added, removed),) = connection.execute(
        f"""
        select coalesce(sum(greatest(more, 0)), 0), coalesce(sum(greatest(-more, 0)), 0) from (
            select sum(one) as more from (
                select {columns}, -1 as one from {before} as t
                union all
                select {columns}, 1 as one from {after} as t
            )
            group by {names}
        )
        """
    ).fetchall()
    told.added, told.removed = int(added), int(removed)


def _plain(side: str, column: str, as_text: bool) -> str:
    """A column of a side; as text where both sides' types cannot be compared."""
    name = f"{side}.{quoted(column)}"
    return f"cast({name} as varchar)" if as_text else name


def _columns(
    connection: duckdb.DuckDBPyConnection,
    told: TableDiff,
    before: str,
    after: str,
    types: Mapping[str, str],
    common: Sequence[str],
    retyped: set[str],
    changed: Mapping[str, int],
) -> Iterator[ColumnDiff]:
    """The columns that changed; of a table with rows more or fewer also those that are distributed anew."""
    moved = [
        column
        for column in common
        if column not in told.key and (changed.get(column) or told.added or told.removed)
    ]
    numbers = [
        c for c in moved if c not in retyped and not c.endswith("_id") and _is_number(types[c])
    ]
    measured = dict(
        zip(
            numbers,
            zip(
                *(_numbers(connection, side, numbers, types) for side in (before, after)),
                strict=True,
            ),
            strict=True,
        )
    )
    found = []
    for column in moved:
        rows = changed.get(column) if told.key else None
        one = ColumnDiff(column, rows)
        if column in measured:
            one = ColumnDiff(column, rows, *measured[column])
            is_moved = any(_moved(*measured[column]))
        elif types[column] in ("VARCHAR", "BOOLEAN") and column not in retyped:
            one = ColumnDiff(column, rows, texts=_texts(connection, before, after, column))
            all_before, all_after = told.rows_before or 1, told.rows_after or 1
            is_moved = any(
                abs(is_now / all_after - was / all_before) > MOVED_FROM
                for _, was, is_now in one.texts
            )
        else:
            is_moved = False
        if rows or is_moved:
            found.append(one)
    yield from sorted(found, key=lambda c: -(c.rows_changed or 0))


def _numbers(
    connection: duckdb.DuckDBPyConnection,
    side: str,
    columns: Sequence[str],
    types: Mapping[str, str],
) -> list[Numbers]:
    if not columns:
        return []
    asked = []
    for column in columns:
        name = f"cast({quoted(column)} as double)"
        finite = f" filter (where isfinite({name}))" if types[column] in ("FLOAT", "DOUBLE") else ""
        asked.append(f"avg({name}){finite}")
        asked.append(f"approx_quantile({name}, {list(QUANTILES)}){finite}")
    (row,) = connection.execute(f"select {', '.join(asked)} from {side}").fetchall()
    return [
        Numbers(mean, tuple(quantiles or (None,) * len(QUANTILES)))
        for mean, quantiles in zip(row[::2], row[1::2], strict=True)
    ]


def _moved(before: Numbers, after: Numbers) -> list[bool]:
    """Whether the mean and each quantile have moved by more than they are inexact."""
    low, *_, high = before.quantiles
    spread = high - low if low is not None and high is not None else 0
    scale = MOVED_FROM * max(spread, abs(before.mean or 0))
    return [
        (was is None) != (now is None)
        or (was is not None and now is not None and abs(now - was) > scale)
        for was, now in zip(
            (before.mean, *before.quantiles), (after.mean, *after.quantiles), strict=True
        )
    ]


def _texts(
    connection: duckdb.DuckDBPyConnection, before: str, after: str, column: str
) -> tuple[tuple[str | None, int, int], ...]:
    name = quoted(column)
    rows = connection.execute(
        f"""
        select left(cast(told as varchar), 60), sum(was)::bigint as was, sum(is_now)::bigint as is_now
        from (
            select {name} as told, count(*) as was, 0 as is_now from {before} group by 1
            union all
            select {name} as told, 0 as was, count(*) as is_now from {after} group by 1
        )
        group by told
        having sum(was) <> sum(is_now) and greatest(sum(was), sum(is_now)) >= {TOLD_FROM}
        order by abs(sum(is_now) - sum(was)) desc, told limit 5
        """
    ).fetchall()
    return tuple((text, was, now) for text, was, now in rows)


def _metrics(connection: duckdb.DuckDBPyConnection, before: str, after: str) -> list[MetricDiff]:
    """The metrics whose last value changed, the most first."""
    last = (
        "(select metric, max_by(cast(value as double), as_of_at) as value from {} group by metric)"
    )
    rows = connection.execute(
        f"""
        select metric, b.value, a.value
        from {last.format(before)} as b full join {last.format(after)} as a using (metric)
        where b.value is distinct from a.value
        order by abs(a.value - b.value) / nullif(abs(b.value), 0) desc nulls first, metric
        """
    ).fetchall()
    return [MetricDiff(*row) for row in rows]


def as_text(before: str, after: str, tables: Sequence[TableDiff], *, columns: int = 6) -> str:
    """The differences in a few lines per table, the worst first."""
    lines = [_headline(before, after, tables)]
    for one in tables:
        if one.is_same:
            continue
        lines += ["", f"{one.table}: {_rows(one)}"]
        lines += [f"  {change}" for change in one.shape]
        lines += [f"  {_metric(metric)}" for metric in one.metrics]
        lines += [f"  {_column(column)}" for column in one.columns[:columns]]
        if len(one.columns) > columns:
            lines.append(f"  and {len(one.columns) - columns} columns more")
    return "\n".join(lines)


def as_markdown(before: str, after: str, tables: Sequence[TableDiff], *, columns: int = 6) -> str:
    """The differences as a pull request shows them: a table of tables, what is in each folded away."""
    different = [one for one in tables if not one.is_same]
    lines = [f"### {_headline(before, after, tables)}"]
    if different:
        lines += [
            "",
            "| table | rows | added | removed | changed | shape |",
            "|---|--:|--:|--:|--:|---|",
        ]
    for one in different:
        was, now = (_number(n) for n in (one.rows_before, one.rows_after))
        rows = was if was == now else f"{was} → {now}"
        shape = "<br>".join(f"`{change}`" for change in one.shape)
        lines.append(
            f"| `{one.table}` | {rows} | {one.added:,} | {one.removed:,} | {one.changed:,} | {shape} |"
        )
    for one in different:
        details = [f"- {_metric(metric)}" for metric in one.metrics]
        details += [f"- {_column(column)}" for column in one.columns[:columns]]
        if len(one.columns) > columns:
            details.append(f"- and {len(one.columns) - columns} columns more")
        if details:
            lines += [
                "",
                f"<details><summary>{one.table}</summary>",
                "",
                *details,
                "",
                "</details>",
            ]
    return "\n".join(lines)


def _headline(before: str, after: str, tables: Sequence[TableDiff]) -> str:
    different = sum(not one.is_same for one in tables)
    return f"{before} to {after}: {different or 'none'} of {len(tables)} tables differ"


def _rows(one: TableDiff) -> str:
    counts = [
        f"{count:,} {word}"
        for count, word in (
            (one.added, "added"), (one.removed, "removed"), (one.changed, "changed"),
        )
        if count
    ]  # fmt: skip
    by = f" by {', '.join(one.key)}" if one.key else ""
    of = one.rows_before if one.rows_after is None else one.rows_after
    return f"{', '.join(counts) or 'the same rows'} of {_number(of)} rows{by}"


def _metric(one: MetricDiff) -> str:
    return f"metric {one.metric}: {_number(one.before)} -> {_number(one.after)}"


def _column(one: ColumnDiff) -> str:
    rows = f" in {one.rows_changed:,} rows" if one.rows_changed else ""
    parts = []
    if one.before and one.after:
        names = ("mean", *(f"p{round(q * 100)}" for q in QUANTILES))
        was, now = ((n.mean, *n.quantiles) for n in (one.before, one.after))
        parts = [
            f"{name} {_number(b)} -> {_number(a)}"
            for name, b, a, is_moved in zip(
                names, was, now, _moved(one.before, one.after), strict=True
            )
            if is_moved or (name == "mean" and _number(b) != _number(a))
        ] or ["distributed alike"]
    parts += [
        f"{'null' if text is None else literal(text)} {was:,} -> {now:,}"
        for text, was, now in one.texts
    ]
    return f"{one.name}{rows}" + (f": {', '.join(parts)}" if parts else "")


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
