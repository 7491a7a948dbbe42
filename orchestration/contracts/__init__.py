"""Contracts: pandera schemas of frames, one file per source system or use case.

A raw table `raw.<system>__<entity>` has its contract in `contracts/<system>.py` under the name
`<ENTITY>`. A change that readers would notice raises the schema's `version`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandera.polars as pa


def contract_of(system: str, entity: str) -> pa.DataFrameSchema:
    """The contract of `raw.<system>__<entity>`.

    Raises:
        LookupError: there is none; the message says where it belongs.
    """
    try:
        schema: pa.DataFrameSchema = getattr(
            import_module(f"orchestration.contracts.{system}"), entity.upper()
        )
    except (ModuleNotFoundError, AttributeError):
        raise LookupError(
            f"no contract for {system}.{entity}: write {entity.upper()} in"
            f" orchestration/contracts/{system}.py"
        ) from None
    return schema


def version_of(schema: pa.DataFrameSchema) -> str:
    """The contract's version, as it stands in the ledger."""
    return str((schema.metadata or {})["version"])
