"""Whose rows are whose: the columns that identify a person, by lineage and by the names that staging gives."""

from __future__ import annotations

import json
from pathlib import Path

from orchestration.errors import MendableError
from orchestration.lineage.graph import Graph
from orchestration.warehouse.diff import unique_keys
from orchestration.warehouse.person import Person


def person_of(graph: Graph, manifest: Path, column: str, value: str) -> Person:
    """The person of an identifier's value.

    Staging gives a quantity one name, which it keeps from there on; before, raw tables may call it
    otherwise, which lineage tells. A key of one column of a table that holds the identifier names a
    row of one person, wherever else it stands.

    Raises:
        MendableError: staging has no such column.
    """
    named = {
        table.name for table in graph.tables.values()
        if column in table.columns and table.name.startswith("staging.")
    }  # fmt: skip
    if not named:
        raise MendableError(
            f"the identifier {column}",
            expected="a column of staging, such as customer_id or household_id",
            arrived="no staging table has one of that name",
            mend='make forget person=customer_id=431; make sql q="show all tables" lists columns',
        )
    keys = {
        key[0]
        for table, key in unique_keys(json.loads(manifest.read_bytes())).items()
        if len(key) == 1 and table in graph.tables and column in graph.tables[table].columns
    } - {column}
    elsewhere = {
        source
        for table in named
        for source in graph.tables[table].values.get(column, set())
        if source[1] != column and len(graph.tables[table].values[column]) == 1
    }
    return Person(column, value, frozenset(elsewhere), frozenset(keys))
