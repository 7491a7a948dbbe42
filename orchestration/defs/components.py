"""What a `defs.yaml` under defs/raw/ can say: a source system whose tables land in the layer raw."""

from abc import abstractmethod
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, field_validator

from orchestration.defs.vocabulary import code_version, raise_as_failure, table_schema
from orchestration.layers import USE_CASES
from orchestration.settings import Settings, load_settings, variable

if TYPE_CHECKING:
    import pandera.polars as pa

    from orchestration.connectors import Batch, Position
    from orchestration.landing.land import Landed


class RawTableModel(dg.Model):
    """One table or endpoint of a source system."""

    name: str = Field(
        description="Its name at the source, and the entity in raw.<system>__<entity>."
    )
    description: str = Field(
        description="What one row is, for the person who meets it in the graph."
    )
    cursor: str | None = Field(
        None,
        description="The column by which it grows; leave out to replace the whole table when it changed.",
    )


class Source(dg.Component, dg.Model, dg.Resolvable):
    """A source system: one asset per table in `raw`, its contract as checks, freshness and a schedule."""

    system: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="The source system's short name.")
    description: str
    use_case: str = Field(description="The group its assets stand in.")
    owner: str = Field(description="`team:<name>` or an e-mail address.")
    url_setting: str = Field(description="The setting that says where the system is.")
    fresh_within_days: int = Field(gt=0, description="Older than this, its tables count as stale.")
    schedule: str = Field(description="Cron (UTC) of its ingestion; runs while automation is on.")
    tables: list[RawTableModel]

    @field_validator("use_case")
    @classmethod
    def _known_use_case(cls, value: str) -> str:
        if value not in USE_CASES:
            raise ValueError(f"use_case is one of {', '.join(USE_CASES)}")
        return value

    @field_validator("url_setting", "token_setting", check_fields=False)
    @classmethod
    def _known_setting(cls, value: str) -> str:
        if value not in Settings.model_fields:
            raise ValueError(f"{value} is not a setting: see orchestration/settings.py")
        return value

    @abstractmethod
    def kind(self, settings: Settings) -> str:
        """The technology, as the graph shows it."""

    @abstractmethod
    def read(
        self,
        settings: Settings,
        table: RawTableModel,
        contract: "pa.DataFrameSchema",
        position: "Position",
    ) -> "Iterator[Batch]":
        """Read what comes after `position`, through the connector of this kind of source."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The external source assets, the raw assets that land them, and the ingestion schedule."""
        settings = load_settings()
        raw_assets = [self._raw_asset(table) for table in self.tables]
        job = dg.define_asset_job(
            f"ingest_{self.system}",
            selection=dg.AssetSelection.assets(*raw_assets),
            description=f"Land what is new in {self.system}.",
        )
        return dg.Definitions(
            assets=[*(self._source_spec(table, settings) for table in self.tables), *raw_assets],
            jobs=[job],
            schedules=[
                dg.ScheduleDefinition(
                    job=job,
                    cron_schedule=self.schedule,
                    default_status=dg.DefaultScheduleStatus.RUNNING
                    if settings.automation
                    else dg.DefaultScheduleStatus.STOPPED,
                )
            ],
        )

    def _source_key(self, table: RawTableModel) -> dg.AssetKey:
        return dg.AssetKey(["sources", f"{self.system}__{table.name}"])

    def _source_spec(self, table: RawTableModel, settings: Settings) -> dg.AssetSpec:
        return dg.AssetSpec(
            self._source_key(table),
            description=f"{table.description} In {self.system}: {self.description}",
            group_name=self.use_case,
            owners=[self.owner],
            kinds={self.kind(settings)},
            tags={"layer": "sources"},
        )

    def _raw_asset(self, table: RawTableModel) -> dg.AssetsDefinition:
        name = f"{self.system}__{table.name}"
        key = dg.AssetKey(["raw", name])

        @dg.asset(
            key=key,
            deps=[self._source_key(table)],
            description=f"{table.description} As it arrived from {self.system}.",
            group_name=self.use_case,
            owners=[self.owner],
            kinds={self.kind(load_settings()), "duckdb"},
            tags={"layer": "raw"},
            code_version=code_version("landing", f"contracts/{self.system}.py"),
            check_specs=[
                dg.AssetCheckSpec(
                    "matches_contract",
                    asset=key,
                    description=f"Every row that arrived holds the pandera contract in contracts/{self.system}.py.",
                ),
                dg.AssetCheckSpec(
                    "adds_up",
                    asset=key,
                    blocking=True,
                    description="Rows in = rows kept + quarantined + deduplicated.",
                ),
            ],
            freshness_policy=dg.FreshnessPolicy.time_window(
                fail_window=timedelta(days=self.fresh_within_days)
            ),
            retry_policy=dg.RetryPolicy(
                max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
            ),
        )
        def raw_asset(
            context: dg.AssetExecutionContext,
        ) -> Iterator[dg.MaterializeResult[None]]:
            from orchestration.contracts import contract_of
            from orchestration.landing.land import RawTable, land

            settings = load_settings()
            with raise_as_failure():
                contract = contract_of(self.system, table.name)
                landed = land(
                    settings,
                    RawTable(name=name, contract=contract, cursor=table.cursor),
                    read=lambda position: self.read(settings, table, contract, position),
                    progress=context.log.info,
                )
            yield self._result(table, key, contract, landed)

        return raw_asset

    def _result(
        self,
        table: RawTableModel,
        key: dg.AssetKey,
        contract: "pa.DataFrameSchema",
        landed: "Landed",
    ) -> dg.MaterializeResult[None]:
        counts: dict[str, Any] = {
            "rows_in": landed.rows_in,
            "rows_kept": landed.rows_kept,
            "rows_quarantined": landed.rows_quarantined,
            "rows_deduplicated": landed.rows_deduplicated,
        }
        lineage = dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=self._source_key(table), column_name=column)]
                for column in contract.columns
            }
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(landed.data_version),
            metadata={
                "dagster/row_count": landed.rows_total,
                "dagster/column_schema": table_schema(contract),
                "dagster/column_lineage": lineage,
                "dagster/table_name": f"lake.{'.'.join(key.path)}",
                **counts,
                "batches": landed.batches,
                "unexpected_columns": list(landed.unexpected_columns),
                "seconds_landing": round(landed.seconds, 3),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="matches_contract",
                    passed=landed.rows_quarantined == 0,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={
                        "rows_quarantined": landed.rows_quarantined,
                        "reasons": dict(landed.reasons.most_common(20)),
                        "look": f'make sql q="select reason, payload from quarantine.{key.path[-1]}"',
                    },
                ),
                dg.AssetCheckResult(
                    check_name="adds_up",
                    passed=landed.rows_in
                    == landed.rows_kept + landed.rows_quarantined + landed.rows_deduplicated,
                    metadata=counts,
                ),
            ],
        )


class RelationalSource(Source):
    """A relational database, by URL: SQLite or PostgreSQL."""

    def kind(self, settings: Settings) -> str:
        """`sqlite` or `postgresql`, as the URL says."""
        return settings.value_of(self.url_setting).partition(":")[0]

    def read(
        self,
        settings: Settings,
        table: RawTableModel,
        contract: "pa.DataFrameSchema",
        position: "Position",
    ) -> "Iterator[Batch]":
        """Through connectors/relational.py."""
        from orchestration.connectors.relational import RelationalTable, read

        return read(
            RelationalTable(
                url=settings.value_of(self.url_setting),
                table=table.name,
                columns=tuple(contract.columns),
                system=self.system,
                url_setting=variable(self.url_setting),
                cursor=table.cursor,
            ),
            position,
        )


class RestApiSource(Source):
    """A REST API behind a bearer token, which publishes its records in partitions, such as weeks."""

    token_setting: str = Field(description="The setting that holds the bearer token.")
    path: str = Field(description="Where an entity's records are; {table} stands for its name.")
    partitions: str = Field(description="Where an entity's published partitions are listed.")
    partition: str = Field(description="What a partition is called in queries and in the listing.")

    def kind(self, settings: Settings) -> str:
        """`api`, whatever the settings say."""
        return "api"

    def read(
        self,
        settings: Settings,
        table: RawTableModel,
        contract: "pa.DataFrameSchema",
        position: "Position",
    ) -> "Iterator[Batch]":
        """Through connectors/rest_api.py."""
        from orchestration.connectors.rest_api import RestEndpoint, read

        return read(
            RestEndpoint(
                base_url=settings.value_of(self.url_setting),
                path=self.path.format(table=table.name),
                columns=tuple(contract.columns),
                partitions=self.partitions.format(table=table.name),
                partition=self.partition,
                token=settings.value_of(self.token_setting),
                system=self.system,
                table=table.name,
                url_setting=variable(self.url_setting),
                token_setting=variable(self.token_setting),
            ),
            position,
        )
