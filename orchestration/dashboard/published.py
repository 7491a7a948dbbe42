"""What the page reads: the schema `published`, as of the release in force; its name, and the alerts of now."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse.connect import ALIAS, connect, transaction
from orchestration.warehouse.frames import read_frame
from orchestration.warehouse.releases import PUBLISHED, Release, releases

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    _Rows = Callable[[str, str], pl.DataFrame]


class MovedError(Exception):
    """Another release was put in force since the page began to show one."""


class Published:
    """The release in force, read-only; may be used by several threads.

    Args:
        settings: which warehouse.

    Raises:
        MendableError: there is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._connection = connect(settings, read_only=True)

    def releases(self) -> list[Release]:
        """All releases, the oldest first; one of them is in force.

        Raises:
            MendableError: there is none yet.
        """
        cursor = self._connection.cursor()
        try:
            cursor.execute(f"use {ALIAS}")
            known = releases(cursor)
        finally:
            cursor.close()
        if not known:
            raise MendableError(
                "the page", expected="a release to show", arrived="none yet", mend="make demo"
            )
        return known

    def rows(self, release: str, query: str) -> pl.DataFrame:
        """The rows of a query on the tables of `published`, all of one release.

        Raises:
            MovedError: another release is in force than the one named.
        """
        cursor = self._connection.cursor()
        try:
            cursor.execute(f"use {ALIAS}.{PUBLISHED}")
            with transaction(cursor):  # one snapshot for the name and the rows
                in_force = next((one.name for one in releases(cursor) if one.is_in_force), "")
                if in_force != release:
                    raise MovedError(release)
                return read_frame(cursor, query)
        finally:
            cursor.close()


class Reading:
    """A release as a screen asks for it; what was asked once is remembered.

    Args:
        known: the releases when the screen began.
        rows: `Published.rows`, which may remember.
    """

    def __init__(self, known: list[Release], rows: _Rows) -> None:
        self.releases, self._rows = known, rows
        self.release = next(one for one in known if one.is_in_force)

    def rows(self, query: str) -> pl.DataFrame:
        """The rows of a query on the tables of `published`."""
        return self._rows(self.release.name, query)

    @cached_property
    def tables(self) -> set[str]:
        """The tables that there are."""
        found = self.rows(
            "select view_name from duckdb_views()"
            f" where database_name = '{ALIAS}' and schema_name = '{PUBLISHED}'"
        )
        return set(found["view_name"])

    def has(self, *tables: str) -> bool:
        """Whether all of these tables are there and hold rows."""
        return set(tables) <= self.tables and all(
            not self.rows(f"select 1 from {table} limit 1").is_empty() for table in tables
        )
