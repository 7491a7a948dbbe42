"""Keep out who was forgotten: their rows are set aside without a word of what they say, known by a keyed hash."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestration.connectors import SOURCE_POSITION
from orchestration.duckdb_session import literal, quoted
from orchestration.settings import Settings
from orchestration.warehouse.frames import table_exists
from orchestration.warehouse.person import TEXT, key_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow

REASON = "forgotten"


class KeepOut:
    """What of a raw table is not to land again.

    Args:
        settings: for the key of the hashes.
        connection: to the warehouse.
        table: `raw.<name>`.

    Raises:
        MendableError: somebody was forgotten, and the key is not set.
    """

    def __init__(
        self, settings: Settings, connection: duckdb.DuckDBPyConnection, table: str
    ) -> None:
        self._connection, self._table = connection, table
        self._columns: list[str] = []
        if table_exists(connection, "landing", "forgotten"):
            rows = connection.execute(
                "select distinct column_name from landing.forgotten"
                " where table_name in ('*', ?) order by 1",
                [table],
            ).fetchall()
            self._columns = [column for (column,) in rows]
        if self._columns:
            self._key = key_of(settings)

    def from_good(self, good: pyarrow.Table) -> tuple[pyarrow.Table, pyarrow.Table]:
        """The rows that may land, and lines for the quarantine in the place of those that may not."""
        import pyarrow

        columns = [column for column in self._columns if column in good.column_names]
        position = SOURCE_POSITION if SOURCE_POSITION in good.column_names else "null::varchar"
        out = " or ".join(self._is_out(c, f"cast({quoted(c)} as varchar)") for c in columns)
        if not columns:
            nothing = [("reason", pyarrow.string()), (SOURCE_POSITION, pyarrow.string())]
            return good, pyarrow.schema(nothing).empty_table()
        out, keys = f"coalesce({out}, false)", [self._key] * len(columns)
        lines = self._connection.execute(
            f"select '{REASON}' as reason, {position} as {SOURCE_POSITION} from good where {out}",
            keys,
        ).to_arrow_table()
        if lines.num_rows:
            good = self._connection.execute(f"from good where not ({out})", keys).to_arrow_table()
        return good, lines

    def from_bad(self, bad: pyarrow.Table) -> pyarrow.Table:
        """Rows to set aside, those of somebody forgotten without reason, payload and bytes."""
        there = [name for name in ("payload", "raw") if name in bad.column_names]
        if not self._columns or not there or bad.num_rows == 0:
            return bad
        parts = []
        for column in self._columns:
            pattern = literal(rf'(?i)"{re.escape(column)}"\s*:\s*"?\s*([^",}}\s]+)')
            for name in there:
                text = TEXT.replace("{}", name)
                parts.append(self._is_out(column, f"regexp_extract({text}, {pattern}, 1)"))
        out = ", ".join(f"case when is_out then null else {name} end as {name}" for name in there)
        return self._connection.execute(
            f"""
            select * exclude (is_out)
                replace (case when is_out then '{REASON}' else reason end as reason, {out})
            from (select *, coalesce({" or ".join(parts)}, false) as is_out from bad)
            """,
            [self._key] * len(parts),
        ).to_arrow_table()

    def _is_out(self, column: str, value: str) -> str:
        """SQL that is true where a value's hash is one of those kept out; takes the key as parameter."""
        return (
            f"sha256(? || chr(31) || {literal(column)} || chr(31) || {value}) in ("
            f"select value_hash from landing.forgotten where column_name = {literal(column)}"
            f" and table_name in ('*', {literal(self._table)}))"
        )
