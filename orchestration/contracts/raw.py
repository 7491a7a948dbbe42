"""The contracts of raw tables: pandera schemas, read from the `defs.yaml` that describes their source.

A table's `contract` there is what pandera calls the columns of a schema, in pandera's own YAML; its
`rules` are SQL conditions over a row, which hold or are unknown. Both may only say what can be told
of one row by itself, because landing splits a batch by them row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pandera.polars as pa

PRIVACY_WORDS = ("privacy", "privacy_reason")
"""What a column says of persons, which is not for pandera: orchestration/warehouse/privacy.py reads it."""

SOURCES = Path(__file__).resolve().parent.parent / "defs" / "raw"
"""A folder per source system, each with its `defs.yaml`."""


def contract_of(system: str, entity: str) -> pa.DataFrameSchema:
    """The contract of `raw.<system>__<entity>`.

    Raises:
        LookupError: no `defs.yaml` describes that table.
        MendableError: pandera does not understand it.
    """
    file = SOURCES / system / "defs.yaml"
    for table in described_tables(file) if file.exists() else ():
        if table["name"] == entity:
            return build_contract(
                f"{system}.{entity}",
                table["contract"],
                rules=table.get("rules"),
                description=table["description"],
            )
    raise LookupError(f"no contract for {system}.{entity}: describe the table in {file}")


def described_tables(file: Path) -> list[dict[str, Any]]:
    """The tables that a `defs.yaml` describes, each as it stands there."""
    import yaml

    tables: list[dict[str, Any]] = yaml.safe_load(file.read_text())["attributes"]["tables"]
    return tables


def line_of(file: Path, entity: str, word: str) -> int:
    """The line on which a table's description in `file` says `word`, a column or a rule."""
    import yaml

    document = yaml.compose(file.read_text())
    assert document is not None
    tables = _entry(_entry(document, "attributes")[1], "tables")[1]
    for table in tables.value:
        if _entry(table, "name")[1].value == entity:
            for section in ("contract", "rules"):
                found = next((k for k, v in table.value if k.value == section), None)
                if found is not None:
                    for key, _ in _entry(table, section)[1].value:
                        if key.value == word:
                            return int(key.start_mark.line) + 1
            return int(table.start_mark.line) + 1
    return 1


def _entry(mapping: Any, name: str) -> tuple[Any, Any]:
    """Key and value of an entry of a YAML mapping."""
    return next((key, value) for key, value in mapping.value if key.value == name)


def build_contract(
    name: str,
    columns: Mapping[str, Mapping[str, Any]],
    *,
    rules: Mapping[str, str] | None = None,
    description: str | None = None,
) -> pa.DataFrameSchema:
    """A schema from pandera's YAML form of its columns; `metadata` holds its rules and its version.

    Args:
        name: `<system>.<entity>`.
        columns: column name to `dtype`, `nullable`, `description` and pandera's checks by name; its
            privacy may change without a new version of the contract.
        rules: name of a rule to its SQL condition.
        description: what one row is.

    Raises:
        MendableError: pandera does not know a dtype or a check, or an argument of a check is wrong.
    """
    rules = dict(rules or {})
    columns = {
        column: {word: value for word, value in spec.items() if word not in PRIVACY_WORDS}
        for column, spec in columns.items()
    }
    schema = None
    for column, spec in columns.items():
        try:
            one = _column_schema(column, spec)
        except Exception as error:  # noqa: BLE001 - pandera raises many kinds for a wrong spec
            raise MendableError(
                f"{name}: the contract of column {column}",
                expected="a polars dtype and pandera checks, such as"
                " {dtype: Int64, greater_than: 0} or {dtype: String, nullable: true}",
                arrived=f"{dict(spec)}: {str(error).splitlines()[0]}",
                mend=f"change it in orchestration/defs/raw/{name.partition('.')[0]}/defs.yaml",
            ) from None
        schema = one if schema is None else schema.add_columns(one.columns)
    assert schema is not None, f"{name} has no columns"
    schema.name = name
    schema.description = description
    content = json.dumps({"columns": columns, "rules": rules}, sort_keys=True, default=str)
    version = hashlib.sha256(content.encode()).hexdigest()[:8]
    schema.metadata = {"version": version, "rules": rules}
    return schema


def _column_schema(column: str, spec: Mapping[str, Any]) -> pa.DataFrameSchema:
    """A schema of this one column; pandera itself passes over a check that it does not know."""
    import pandera.polars as pa
    from pandera.io.polars_io import deserialize_schema

    for word in spec:
        if word not in {"dtype", "nullable", "description"} and not hasattr(pa.Check, word):
            raise ValueError(f"pandera has no check {word}")
    described = {"schema_type": "polars_dataframe", "columns": {column: dict(spec)}}
    schema: pa.DataFrameSchema = deserialize_schema(described)  # type: ignore[no-untyped-call]
    return schema


def version_of(schema: pa.DataFrameSchema) -> str:
    """The contract's version, a hash of what it says, as it stands in the ledger."""
    return str((schema.metadata or {})["version"])


def rules_of(schema: pa.DataFrameSchema) -> dict[str, str]:
    """The contract's SQL conditions over a row, by name."""
    return dict((schema.metadata or {}).get("rules", {}))
