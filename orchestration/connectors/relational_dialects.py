"""What SQLite, PostgreSQL and MySQL do differently for relational.py: attaching, types, and the SQL of reading."""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import urlsplit

import duckdb

from orchestration.duckdb_session import literal, quoted
from orchestration.errors import MendableError

if TYPE_CHECKING:
    from orchestration.connectors.relational import RelationalTable

TIMEOUT_SECONDS = 5
"""How long a connection, or a lock that another program holds on an SQLite file, may take."""

FIRST = "0001-01-01 00:00:00"
"""The least time that Python knows."""

Order = Literal["integer", "decimal", "time", "text"]


@dataclass(frozen=True)
class Column:
    """A column, in its database's SQL.

    Attributes:
        name: as the database spells it.
        sent: its value as it is sent, null where `unfit`.
        unfit: true of values that cannot be sent as what they are; empty: there are none.
        reason: why they cannot.
        text: such a value as text.
        order: how it is ordered as a cursor; None: it cannot be one.
        compared: its value as a cursor is compared.
        nullable: whether what is compared can be missing.
        zoned: it is a time with a zone.
    """

    name: str
    sent: str
    unfit: str = ""
    reason: str = ""
    text: str = ""
    order: Order | None = None
    compared: str = ""
    nullable: bool = True
    zoned: bool = False


class Dialect(ABC):
    """A kind of database. What its methods return is DuckDB's SQL unless they say otherwise."""

    name: ClassVar[str]
    extension: ClassVar[str]
    function: ClassVar[str]
    """DuckDB's function that has the database run a query and streams its rows."""
    now: ClassVar[str]
    """Its own SQL for the time, as naive UTC."""
    locks: ClassVar[bool] = False
    """Whether a read that is under way keeps writers out."""

    def __init__(self, source: RelationalTable) -> None:
        self.source = source

    @abstractmethod
    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Attach the database, read-only, as `source`."""

    @abstractmethod
    def columns(self, connection: duckdb.DuckDBPyConnection) -> list[Column]:
        """The table's columns in its order; none if there is no such table."""

    @abstractmethod
    def tables(self) -> str:
        """The names of some tables that there are."""

    @abstractmethod
    def select(
        self,
        expressions: Sequence[str],
        of: Sequence[Column],
        where: str = "",
        order: str = "",
        without: str = "",
    ) -> str:
        """`expressions`, as c0, c1, ..., over the columns `of` the table.

        `without` is what `surely_before` gave: rows that `where` would leave out anyway.
        """

    def surely_before(self, column: Column, value: str | None) -> str:
        """Its own SQL, true only of rows whose cursor is surely readable and before `value`; or nothing.

        For a database that leaves comparing to DuckDB, so that not every row has to travel for it.
        """
        return ""

    @abstractmethod
    def constant(self, column: Column, value: str) -> str:
        """Its own SQL for a cursor value, to be compared with `column.compared`."""

    @abstractmethod
    def readable(self, column: Column, now: str) -> str:
        """Its own SQL, true of the cursor values that may become the position; empty: of all but null."""

    @abstractmethod
    def edge(self, column: Column, value: str) -> str:
        """Its own SQL for `value`, the least or greatest `column.compared`: its text, or a naive time."""

    def query(self, sql: str) -> str:
        """The rows of `sql`, which the database runs."""
        return f"select * from {self.function}('source', {literal(sql)})"


class _SQLite(Dialect):
    """An SQLite file. Any value may stand in any column: all are sent as text, and compared by DuckDB."""

    name = "SQLite"
    extension = "sqlite_scanner"
    function = "sqlite_query"
    now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    locks = True
    # The first that a declared type contains, much as in SQLite's own rules.
    _ORDERS: ClassVar[dict[str, Order | None]] = {
        "INT": "integer",
        "CHAR|CLOB|TEXT": "text",
        "BLOB|REAL|FLOA|DOUB|^$": None,
        "DATE|TIME": "time",
        "": "decimal",
    }
    _COMPARED: ClassVar[dict[Order | None, str]] = {
        "integer": "try_cast({} as bigint)",
        "decimal": "try_cast({} as decimal(38, 9))",
        "time": "cast(try_cast({} as timestamptz) as timestamp)",
        "text": "{}",
        None: "",
    }

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        path = Path(self.source.url.removeprefix("sqlite:///"))
        if not path.is_file():  # attaching would create it
            setting = self.source.url_setting
            raise MendableError(
                f"{self.source.system}: the database file {path}",
                expected="an SQLite database",
                arrived="no such file",
                mend=f"make demo fills the demo's database; for another, set {setting}",
            )
        options = f"type sqlite, read_only, busy_timeout {TIMEOUT_SECONDS * 1000}"
        connection.execute(f"attach {literal(str(path))} as source ({options})")

    def tables(self) -> str:
        return self.query(
            "select name from sqlite_master where type in ('table', 'view')"
            " and name not like 'sqlite~_%' escape '~' order by name limit 20"
        )

    def columns(self, connection: duckdb.DuckDBPyConnection) -> list[Column]:
        described = connection.execute(
            self.query(
                "select name, upper(coalesce(type, '')) as type"
                f" from pragma_table_xinfo({literal(self.source.table)}) where hidden <> 1"
            )
        ).fetchall()
        return [self._column(name, declared) for name, declared in described]

    def _column(self, name: str, declared: str) -> Column:
        order = next(o for kind, o in self._ORDERS.items() if re.search(kind, declared))
        value = f"unhex({quoted(name)})"
        column = Column(name, value, text=f"cast({value} as varchar)", order=order)
        if "BLOB" in declared:
            return column
        text = f"try(decode({value}))"
        return replace(
            column,
            sent=text,
            unfit=f"{quoted(name)} is not null and {text} is null",
            reason="not UTF-8",
            compared=self._COMPARED[order].format(text),
        )

    def select(
        self,
        expressions: Sequence[str],
        of: Sequence[Column],
        where: str = "",
        order: str = "",
        without: str = "",
    ) -> str:
        # As hex, because a text may hold any bytes, of which DuckDB takes only UTF-8. SQLite's own
        # text of a float has 15 digits, which not every float survives.
        values = ", ".join(
            f"case when typeof({x}) = 'real' and cast(cast({x} as text) as real) <> {x}"
            f" then hex(printf('%!.17g', {x})) when {x} is not null then hex({x}) end as {x}"
            for x in (quoted(column.name) for column in of)
        )
        kept = f" where not coalesce({without}, 0)" if without else ""
        rows = self.query(f"select {values} from {quoted(self.source.table)}{kept}")
        return _select(expressions, f"({rows})", where, order)

    def surely_before(self, column: Column, value: str | None) -> str:
        x = quoted(column.name)
        if column.order == "integer":
            below = "" if value is None else f" and {x} < {Decimal(value):f}"
            return f"(typeof({x}) = 'integer'{below})"
        if column.order == "time" and value is not None:
            try:  # two days are more than any zone
                day = date.fromisoformat(value[:10]) - timedelta(days=2)
            except (ValueError, OverflowError):
                return ""
            plain = f"strftime('%Y-%m-%d %H:%M:%S', {x}) = {x}"
            return f"(typeof({x}) = 'text' and {plain} and {x} < '{day}')"
        return ""

    def constant(self, column: Column, value: str) -> str:
        if column.order in ("integer", "decimal"):
            return f"{Decimal(value):f}"
        return f"timestamp {literal(value)}" if column.order == "time" else literal(value)

    def readable(self, column: Column, now: str) -> str:
        if column.order == "time":
            return (
                f"{column.compared} between timestamp {literal(FIRST)} and timestamp {literal(now)}"
            )
        return ""

    def edge(self, column: Column, value: str) -> str:
        return value


class _PostgreSQL(Dialect):
    """A PostgreSQL server, which does all that can be done before the rows travel."""

    name = "PostgreSQL"
    extension = "postgres"
    function = "postgres_query"
    now = "now() at time zone 'UTC'"
    _AS_THEY_ARE: ClassVar[dict[str, Order | None]] = {
        "smallint": "integer",
        "integer": "integer",
        "bigint": "integer",
        "text": "text",
        "character varying": "text",
        "character": "text",
        "date": "time",
        "boolean": None,
        "real": None,
        "double precision": None,
        "uuid": None,
        "bytea": None,
    }
    # The types beneath domains.
    _TYPES = """
        with recursive resolved as (
            select attnum, attname, attnotnull, attndims, atttypid as type, atttypmod as modifier
            from pg_catalog.pg_attribute
            where attrelid = (
                select oid from pg_catalog.pg_class
                where oid = pg_catalog.to_regclass({table}) and relkind in ('r', 'v', 'm', 'f', 'p')
            ) and attnum > 0 and not attisdropped
            union all
            select attnum, attname, attnotnull, attndims, typbasetype, typtypmod
            from resolved join pg_catalog.pg_type on oid = type and typtype = 'd'
        )
        select attname::text as name, pg_catalog.format_type(type, modifier) as type,
            not attnotnull as nullable, attndims::int as dimensions
        from resolved join pg_catalog.pg_type on oid = type and typtype <> 'd'
        order by attnum
    """

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        url = self.source.url
        for option, value in (
            ("connect_timeout", TIMEOUT_SECONDS),
            ("keepalives_idle", 30),  # a server that vanished is noticed in minutes, not hours
        ):
            if f"{option}=" not in url:
                url += f"{'&' if '?' in url else '?'}{option}={value}"
        connection.execute(f"attach {literal(url)} as source (type postgres, read_only)")

    @property
    def _table(self) -> str:
        return ".".join(map(quoted, filter(None, (self.source.schema, self.source.table))))

    def tables(self) -> str:
        return self.query(
            "select distinct table_name::text as name from information_schema.tables where"
            " table_schema not in ('information_schema', 'pg_catalog') order by 1 limit 20"
        )

    def columns(self, connection: duckdb.DuckDBPyConnection) -> list[Column]:
        types = self._TYPES.format(table=literal(self._table))
        return [self._column(*row) for row in connection.execute(self.query(types)).fetchall()]

    def _column(self, name: str, kind: str, nullable: bool, dimensions: int) -> Column:
        x = quoted(name)
        column = Column(name, x, text=f"{x}::text", compared=x, nullable=nullable)
        base = re.sub(r"\(.*?\)", "", kind)
        if base in self._AS_THEY_ARE:
            return replace(column, order=self._AS_THEY_ARE[base])
        if base == "timestamp without time zone":
            unfit = f"{x} >= '294247-01-01' and {x} <> 'infinity'"
            late = _guarded(column, unfit, "a time after the year 294246")
            return replace(late, order="time")
        if base == "timestamp with time zone":
            unfit = f"{x} >= '294247-01-01 00:00+00' and {x} <> 'infinity'"
            utc = replace(column, sent=f"{x} at time zone 'UTC'", order="time", zoned=True)
            return _guarded(utc, unfit, "a time after the year 294246")
        if base == "time without time zone":
            return _guarded(column, f"{x} = '24:00'", "the time 24:00")
        precision = re.fullmatch(r"numeric\((\d+),(-?\d+)\)", kind)
        if precision and 0 <= int(precision[2]) <= int(precision[1]) <= 38:
            decimal = _guarded(column, f"{x} = 'NaN'", "NaN, which a decimal cannot be")
            # CASE loses the precision, and a numeric without one is read as a float.
            return replace(decimal, sent=f"({decimal.sent})::{kind}", order="decimal")
        if base == "numeric":
            return replace(column, sent=f"{x}::text", order="decimal")
        if base == "money":  # its text is in the server's language
            return replace(column, sent=f"{x}::numeric::text")
        if base.endswith("[]"):
            if dimensions == 1 and base.removesuffix("[]") in self._AS_THEY_ARE:
                reason = "an array of more than one dimension"
                return _guarded(column, f"array_ndims({x}) > 1", reason)
            return replace(column, sent=f"to_json({x})::text")
        return replace(column, sent=f"{x}::text")

    def select(
        self,
        expressions: Sequence[str],
        of: Sequence[Column],
        where: str = "",
        order: str = "",
        without: str = "",
    ) -> str:
        return self.query(_select(expressions, self._table, where, order))

    def constant(self, column: Column, value: str) -> str:
        if column.order in ("integer", "decimal"):
            return f"{Decimal(value):f}"
        if column.order == "time":
            return f"'{value}+00'::timestamptz" if column.zoned else f"'{value}'::timestamp"
        return literal(value)

    def readable(self, column: Column, now: str) -> str:
        x = column.compared
        if column.order == "time":
            first, last = self.constant(column, FIRST), self.constant(column, now)
            return f"{x} between {first} and {last}"
        if column.order == "decimal":
            return f"{x}::text not in ('NaN', 'Infinity', '-Infinity')"
        return ""

    def edge(self, column: Column, value: str) -> str:
        if column.order == "time":
            return f"({value}) at time zone 'UTC'" if column.zoned else value
        return f"({value})::text"


class _MySQL(Dialect):
    """A MySQL or MariaDB server, which does all that can be done before the rows travel."""

    name = "MySQL"
    extension = "mysql"
    function = "mysql_query"
    now = "utc_timestamp(6)"
    _INTEGERS = ("tinyint", "smallint", "mediumint", "int", "bigint", "year")
    _TEXTS = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set")
    _BYTES = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
    _SHAPES = (
        *("geometry", "point", "linestring", "polygon", "geometrycollection"),
        *("geomcollection", "multipoint", "multilinestring", "multipolygon"),
    )
    _patiently = ""

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        parts = urlsplit(self.source.url)
        if "socket=" not in parts.query:
            # The extension would wait for ever for a server that does not speak.
            at = (parts.hostname or "localhost", parts.port or 3306)
            with socket.create_connection(at, TIMEOUT_SECONDS) as probe:
                probe.recv(1)
        connection.execute("set mysql_session_time_zone = '+00:00'")
        connection.execute("set mysql_tinyint1_as_boolean = false")  # it can hold a 2
        url = parts._replace(scheme="mysql").geturl()
        connection.execute(f"attach {literal(url)} as source (type mysql, read_only)")
        version = connection.execute(self.query("select version() as c0")).fetchone()
        if version and "MariaDB" in version[0]:
            # It cuts off a reader that lets it wait for a minute, as one does that waits for the
            # warehouse's lock. MySQL has no such statement; there the next load reads on.
            self._patiently = "set statement net_write_timeout = 3600 for "

    @property
    def _table(self) -> str:
        parts = filter(None, (self.source.schema, self.source.table))
        return ".".join(map(self._quoted, parts))

    @staticmethod
    def _quoted(name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    @staticmethod
    def _text(value: str) -> str:
        """A literal that means the same in each of the server's modes and character sets."""
        return f"_utf8mb4 x'{value.encode().hex()}'"

    def tables(self) -> str:
        schema = self._text(self.source.schema) if self.source.schema else "database()"
        return self.query(
            "select table_name as name from information_schema.tables"
            f" where table_schema = {schema} order by 1 limit 20"
        )

    def columns(self, connection: duckdb.DuckDBPyConnection) -> list[Column]:
        try:
            described = connection.execute(
                self.query(f"show full columns from {self._table}")
            ).fetchall()
        except duckdb.Error as error:
            if "doesn't exist" in str(error):
                return []
            raise
        return [
            self._column(name, kind.lower(), collation or "", null == "YES")
            for name, kind, collation, null, *_ in described
        ]

    def _column(self, name: str, kind: str, collation: str, nullable: bool) -> Column:
        x = self._quoted(name)
        column = Column(name, x, text=f"cast({x} as char)", compared=x, nullable=nullable)
        base = re.split(r"[ (]", kind)[0]
        if base in self._INTEGERS:
            return replace(column, order="integer")
        if base == "decimal":
            digits = int(re.findall(r"\d+", kind)[0])
            return replace(column, sent=x if digits <= 38 else column.text, order="decimal")
        if base in ("date", "datetime", "timestamp"):
            unfit = f"month({x}) = 0 or dayofmonth({x}) = 0"
            zero = _guarded(column, unfit, "a date without a month or day")
            return replace(zero, order="time")
        if base in self._TEXTS:
            # What is compared byte by byte would arrive as bytes.
            sent = f"convert({x} using utf8mb4)" if collation.endswith("_bin") else x
            return replace(column, sent=sent, order="text")
        if base in (*self._BYTES, "float", "double") or kind == "bit(1)":
            return column
        if base == "bit":
            return replace(column, sent=f"{x} + 0")
        return replace(column, sent=f"st_astext({x})" if base in self._SHAPES else column.text)

    def select(
        self,
        expressions: Sequence[str],
        of: Sequence[Column],
        where: str = "",
        order: str = "",
        without: str = "",
    ) -> str:
        return self.query(self._patiently + _select(expressions, self._table, where, order))

    def constant(self, column: Column, value: str) -> str:
        if column.order in ("integer", "decimal"):
            return f"{Decimal(value):f}"
        return f"'{value}'" if column.order == "time" else self._text(value)

    def readable(self, column: Column, now: str) -> str:
        if column.order == "time":
            within = f"{column.compared} between '{FIRST}' and {self.constant(column, now)}"
            return f"{within} and not ({column.unfit})"
        return ""

    def edge(self, column: Column, value: str) -> str:
        return f"cast({value} as char)"


def dialect_of(source: RelationalTable) -> Dialect:
    """The kind of database that the source's URL names.

    Raises:
        MendableError: it names none that can be read.
    """
    kinds: dict[str, Callable[[RelationalTable], Dialect]] = {
        "sqlite:///": _SQLite,
        "postgresql://": _PostgreSQL,
        "postgres://": _PostgreSQL,
        "mysql://": _MySQL,
        "mariadb://": _MySQL,
    }
    for start, kind in kinds.items():
        if source.url.startswith(start):
            return kind(source)
    raise MendableError(
        f"setting {source.url_setting}",
        expected="sqlite:///path/to/file, postgresql://user:password@host:port/database,"
        " or the same with mysql:// or mariadb://",
        arrived="a URL of another form",
        mend=f"change {source.url_setting} in the environment or in .env; see .env.example",
    )


def _select(expressions: Sequence[str], table: str, where: str, order: str) -> str:
    listed = ", ".join(f"{expression} as c{i}" for i, expression in enumerate(expressions))
    return (
        f"select {listed} from {table}"
        f"{f' where {where}' if where else ''}{f' order by {order}' if order else ''}"
    )


def _guarded(column: Column, unfit: str, reason: str) -> Column:
    sent = f"case when {unfit} then null else {column.sent} end"
    return replace(column, sent=sent, unfit=unfit, reason=reason)
