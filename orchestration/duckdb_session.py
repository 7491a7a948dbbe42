"""Opening a DuckDB connection: pinned extensions from their wheels, memory limit, threads, private errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb


def load_extensions(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    """Load extensions by the names of their wheels (`ducklake`, `postgres`, `mysql`, `sqlite_scanner`, ...).

    The signed binary is copied from the wheel into DuckDB's extension folder the first time;
    nothing is downloaded. A plain `duckdb` shell of the same version finds it there as well.
    """
    from duckdb_extensions import import_extension

    for name in names:
        import_extension(name, con=connection)
        connection.load_extension(f"{name}_scanner" if name in ("postgres", "mysql") else name)


def open_session(
    *, memory_limit: str, threads: int = 0, extensions: Iterable[str] = (), name: str = ""
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection within `memory_limit` (such as `2GB`); 0 threads is one per core.

    Connections of one `name`, which are alike, share a DuckDB for as long as one of them is open: what is
    attached, the extensions, the memory and the threads. Temporary tables and settings are each one's own.
    """
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": memory_limit}
    if threads:
        config["threads"] = threads
    connection = duckdb.connect(f":memory:{name}", config=config)
    load_extensions(connection, extensions)
    return connection


def quoted(identifier: str) -> str:
    """`identifier` as a quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
