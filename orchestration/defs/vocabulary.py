"""Dagster words that several assets share: code versions, failures a person can read, table schemas."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from orchestration.errors import MendableError, SourceUnavailableError
from orchestration.settings import Settings

if TYPE_CHECKING:
    import pandera.polars as pa

_PACKAGE = Path(__file__).resolve().parent.parent


def code_version(*parts: str) -> str:
    """A hash of the source of these files or folders of the package: it changes when the code does."""
    digest = hashlib.sha256()
    for part in parts:
        path = _PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def raise_as_failure() -> Iterator[None]:
    """Turn a `MendableError` into a Dagster failure; only an absent source is worth a retry."""
    try:
        yield
    except MendableError as error:
        raise dg.Failure(
            description=str(error), allow_retries=isinstance(error, SourceUnavailableError)
        ) from None


def table_schema(contract: pa.DataFrameSchema) -> dg.TableSchema:
    """The columns of a pandera contract, as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name,
                type=str(column.dtype),
                description=column.description,
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable,
                    unique=column.unique,
                    other=[str(check.error or check.name) for check in column.checks],
                ),
            )
            for name, column in contract.columns.items()
        ]
    )


def lineage_from(
    columns: Mapping[str, Sequence[tuple[str, str]]],
) -> dg.TableColumnLineage:
    """Column lineage of a Python asset: column to its (`layer/table`, column) sources."""
    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(asset_key=dg.AssetKey(asset.split("/")), column_name=source)
                for asset, source in sources
            ]
            for column, sources in columns.items()
        }
    )


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG that the UI shows in place."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{b64encode(png).decode()})")


def segmented_months(settings: Settings) -> dg.MonthlyPartitionsDefinition:
    """The months that get customer segments, as the settings say."""
    last = settings.segmentation_last_month
    end = None
    if last != "open":
        year, month = map(int, last.split("-"))
        end = f"{year + month // 12}-{month % 12 + 1:02d}-01"
    return dg.MonthlyPartitionsDefinition(
        start_date=f"{settings.segmentation_first_month}-01", end_date=end
    )


def month_end(partition_key: str) -> datetime:
    """The `as_of_at` of a month's partition: the first instant after the month, naive UTC."""
    start = datetime.strptime(partition_key, "%Y-%m-%d")
    return datetime(start.year + start.month // 12, start.month % 12 + 1, 1)
