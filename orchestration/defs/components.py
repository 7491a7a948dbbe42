"""What a `defs.yaml` under defs/raw/ can say: a source system whose tables land in the layer raw."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field, ValidationError, field_validator

from orchestration.build import INGESTS
from orchestration.defs.vocabulary import (
    code_version,
    column_lineage,
    raise_as_failure,
    table_schema,
)
from orchestration.layers import USE_CASES
from orchestration.settings import Settings, load_settings, variable

if TYPE_CHECKING:
    from threading import Event

    import pandera.polars as pa

    from orchestration.connectors import Batch, Position, Span
    from orchestration.landing import land as landing

Drift = Literal["evolve", "freeze", "quarantine"]
_NAME = r"^[a-z][a-z0-9_]*$"


class Bounds(dg.Model, dg.Resolvable):
    """From and to, both within."""

    min_value: float | None = None
    max_value: float | None = None


class Column(dg.Model, dg.Resolvable):
    """A column of a contract, in pandera's words: dtype, whether it may be null, and checks of its values."""

    dtype: str = Field(
        pattern=r"^(Int64|Int32|Float64|String|Boolean|Binary|Date|Time|Datetime"
        r"|Decimal\(\d+, ?\d+\)|List\(\w+(\(.*\))?\))$",
        description="Int64, Int32, Float64, Decimal(p, s), String, Boolean, Binary, Date, Time,"
        " Datetime (UTC) or List(one of them).",
    )
    nullable: bool | None = Field(
        None, description="Whether a value may be missing; not by default."
    )
    description: str | None = None
    privacy: Literal["direct_identifier", "quasi_identifier", "sensitive", "none"] | None = Field(
        None, description="What it tells of a person; leave out where no person is in the table."
    )
    privacy_reason: str | None = Field(None, description="Why it is `none` all the same.")
    equal_to: Any = None
    not_equal_to: Any = None
    greater_than: Any = None
    greater_than_or_equal_to: Any = None
    less_than: Any = None
    less_than_or_equal_to: Any = None
    in_range: Bounds | None = None
    isin: list[Any] | None = Field(None, description="The values there are.")
    notin: list[Any] | None = None
    str_matches: str | None = Field(None, description="A regular expression that begins the text.")
    str_contains: str | None = Field(None, description="A regular expression found in the text.")
    str_startswith: str | None = None
    str_endswith: str | None = None
    str_length: Bounds | None = None


class RawTable(dg.Model, dg.Resolvable):
    """One table of a source system, and what its rows must hold."""

    name: str = Field(pattern=_NAME, description="The entity in raw.<system>__<entity>.")
    at_source: str | None = Field(
        None, description="Its name at the source, where that is another than `name`."
    )
    description: str = Field(
        description="What one row is, for the person who meets it in the graph."
    )
    contract: dict[str, Column] = Field(
        min_length=1, description="The columns that must be there, and what their values must be."
    )
    rules: dict[str, str] = Field(
        {}, description="Name to SQL condition over one row, such as `ends_at >= starts_at`."
    )
    key: list[str] = Field([], description="The columns that identify a row at the source.")
    cursor: str | None = Field(
        None,
        description="The column by which it grows; leave out to replace the whole table when it changed.",
    )
    ignore: list[str] = Field(
        [], description="Columns of the source to leave there, such as personal data nobody needs."
    )
    gap_days: int | None = Field(
        None,
        description="Days without a row, by a cursor that is a time, that count as missing; leave"
        " out where rows are sparse by nature.",
    )
    drift: Drift | None = Field(None, description="Its own drift policy instead of the source's.")

    @field_validator("key", "cursor")
    @classmethod
    def _in_contract(cls, value: Any, info: Any) -> Any:
        missing = set([value] if isinstance(value, str) else value or ()) - set(
            info.data.get("contract", {})
        )
        if missing:
            raise ValueError(
                f"{info.field_name} names {', '.join(missing)}: add it to the contract"
            )
        return value


def _distance(overlap: str | None) -> timedelta | float:
    """`2 days`, `90 minutes` or a number, as what can be taken from a cursor."""
    number, _, unit = (overlap or "0").strip().partition(" ")
    return timedelta(**{unit.rstrip("s") + "s": float(number)}) if unit else float(number)


class Reload(dg.Config):  # type: ignore[misc]
    """Leave both empty to load what is new; give one or both to load a part of the source again."""

    reload_from: str | None = Field(
        None,
        description="Load again from here on: a value of the cursor, a partition's name, a file's"
        " path, a time, as the source counts.",
    )
    reload_to: str | None = Field(None, description="... and before this.")
    accept_gap: bool = Field(
        False, description="An event stream goes on although events are gone that were not read."
    )

    @property
    def span(self) -> "Span | None":
        """The part to load again, if there is one."""
        from orchestration.connectors import Span

        if not self.reload_from and not self.reload_to:
            return None
        return Span(self.reload_from or None, self.reload_to or None)


class Source(dg.Component, dg.Model, dg.Resolvable):
    """A source system: one asset per table in `raw`, its contract as checks, freshness and a schedule."""

    system: str = Field(
        pattern=_NAME, description="The source system's short name; its folder's too."
    )
    description: str
    use_case: str = Field(description="The group its assets stand in.")
    owner: str = Field(description="`team:<name>` or an e-mail address.")
    url_setting: str = Field(
        pattern=_NAME,
        description="The setting that says where the system is: `erp_url` is WATERSHED_ERP_URL.",
    )
    fresh_within_days: float = Field(
        gt=0, description="Older than this, its tables count as stale."
    )
    schedule: str = Field(description="Cron (UTC) of its ingestion; runs while automation is on.")
    drift: Drift = Field(
        "evolve",
        description="What happens to rows that are not of the contract's shape: `evolve` adds"
        " columns and widens types, `freeze` stops the load, `quarantine` sets the rows aside.",
    )
    tables: Sequence[RawTable]

    @field_validator("use_case")
    @classmethod
    def _known_use_case(cls, value: str) -> str:
        if value not in USE_CASES:
            raise ValueError(f"use_case is one of {', '.join(USE_CASES)}")
        return value

    @abstractmethod
    def kind(self, settings: Settings) -> str:
        """The technology, as the graph shows it."""

    @abstractmethod
    def read(
        self, settings: Settings, table: Any, position: "Position", reload: Reload
    ) -> "Iterator[Batch]":
        """Read what comes after `position`, or a part again, through this kind's connector."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The external source assets, the raw assets that land them, and the ingestion schedule."""
        if context.path.name != self.system:
            raise ValueError(f"system {self.system} is described in the folder {context.path.name}")
        settings = load_settings()
        raw_assets = [self._raw_asset(table) for table in self.tables]
        job = dg.define_asset_job(
            f"{INGESTS}{self.system}",
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
                    description=f"Asks {self.system} for what is new; on while automation is.",
                    default_status=dg.DefaultScheduleStatus.RUNNING
                    if settings.automation
                    else dg.DefaultScheduleStatus.STOPPED,
                )
            ],
        )

    def raw_table(self, table: RawTable) -> "landing.RawTable":
        """The table as landing takes it."""
        from orchestration.contracts.raw import contract_of
        from orchestration.landing import land as landing

        return landing.RawTable(
            name=f"{self.system}__{table.name}",
            contract=contract_of(self.system, table.name),
            cursor=table.cursor,
            key=tuple(table.key),
            drift=table.drift or self.drift,
            deletes=getattr(table, "deletes", False),
            gap_days=table.gap_days,
        )

    def _source_key(self, table: RawTable) -> dg.AssetKey:
        return dg.AssetKey(["sources", f"{self.system}__{table.name}"])

    def _source_spec(self, table: RawTable, settings: Settings) -> dg.AssetSpec:
        return dg.AssetSpec(
            self._source_key(table),
            description=f"{table.description} In {self.system}: {self.description}",
            group_name=self.use_case,
            owners=[self.owner],
            kinds={self.kind(settings)},
            tags={"layer": "sources"},
        )

    def _raw_asset(self, table: RawTable) -> dg.AssetsDefinition:
        name = f"{self.system}__{table.name}"
        key = dg.AssetKey(["raw", name])
        file = f"defs/raw/{self.system}/defs.yaml"

        @dg.asset(
            key=key,
            deps=[self._source_key(table)],
            description=f"{table.description} As it arrived from {self.system}.",
            group_name=self.use_case,
            owners=[self.owner],
            kinds={self.kind(load_settings()), "duckdb"},
            tags={"layer": "raw"},
            metadata={"dagster/table_name": f"lake.{'.'.join(key.path)}"},
            code_version=code_version("landing", file),
            check_specs=[
                dg.AssetCheckSpec(
                    "matches_contract",
                    asset=key,
                    description=f"Every row that arrived holds the contract in {file}.",
                ),
                dg.AssetCheckSpec(
                    "keeps_its_shape",
                    asset=key,
                    description="The source's columns and types are those of the contract.",
                ),
                dg.AssetCheckSpec(
                    "adds_up",
                    asset=key,
                    blocking=True,
                    description="Rows in = rows kept + quarantined + deduplicated, in every line"
                    " of the ledger, and the table holds what the ledger says.",
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
            context: dg.AssetExecutionContext, config: Reload
        ) -> Iterator[dg.MaterializeResult[None]]:
            from orchestration.landing.land import land

            settings = load_settings()
            with raise_as_failure():
                raw = self.raw_table(table)
                landed = land(
                    settings,
                    raw,
                    read=lambda position: self.read(settings, table, position, config),
                    progress=context.log.info,
                )
            yield self._result(table, key, raw.contract, landed)

        return raw_asset

    def _result(
        self,
        table: RawTable,
        key: dg.AssetKey,
        contract: "pa.DataFrameSchema",
        landed: "landing.Landed",
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
        changes = [
            f"{c.column}: {c.change}"
            + {"added": f" as {c.to_type}", "widened": f" from {c.from_type} to {c.to_type}"}.get(
                c.change, ""
            )
            for c in landed.changes
        ]
        return dg.MaterializeResult(
            data_version=dg.DataVersion(landed.data_version),
            metadata={
                "dagster/row_count": landed.rows_total,
                "dagster/column_schema": table_schema(contract),
                **column_lineage(lineage),
                **counts,
                "transactions": landed.transactions,
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
                    check_name="keeps_its_shape",
                    passed=not changes,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"changes": changes, "drift_policy": table.drift or self.drift},
                ),
                dg.AssetCheckResult(check_name="adds_up", passed=landed.adds_up, metadata=counts),
            ],
        )


class RelationalTable(RawTable):
    """A table of a relational database."""

    overlap: str | None = Field(
        None,
        description="How far behind the cursor rows may still be committed: a duration such as"
        " `2 days`, or a number for a numeric cursor. That much is read again each time.",
    )
    deletes: bool = Field(
        False,
        description="Compare keys and mark rows that are gone with _is_deleted; needs a key and a cursor.",
    )
    db_schema: str | None = Field(None, description="The schema it stands in, if not the default.")


class RelationalSource(Source):
    """A relational database, by URL: SQLite, PostgreSQL, MySQL or MariaDB."""

    tables: Sequence[RelationalTable]

    def kind(self, settings: Settings) -> str:
        """`sqlite`, `postgresql` or `mysql`, as the URL says."""
        return settings.value_of(self.url_setting).partition(":")[0]

    def read(
        self,
        settings: Settings,
        table: RelationalTable,
        position: "Position",
        reload: Reload,
    ) -> "Iterator[Batch]":
        """Through connectors/relational.py."""
        from orchestration.connectors import relational

        return relational.read(
            relational.RelationalTable(
                url=settings.value_of(self.url_setting),
                table=table.at_source or table.name,
                system=self.system,
                url_setting=variable(self.url_setting),
                columns=tuple(table.contract),
                ignore=tuple(table.ignore),
                key=tuple(table.key),
                cursor=table.cursor,
                overlap=table.overlap,
                deletes=table.deletes,
                schema=table.db_schema,
            ),
            position,
            reload.span,
        )


class RestTable(RawTable):
    """An endpoint of a REST API."""

    path: str | None = Field(None, description="Its path, if it is not the source's.")
    start_param: str | None = Field(
        None, description="The query parameter for the cursor's value to begin at."
    )
    end_param: str | None = Field(
        None, description="The query parameter for the value to end before, for a reload."
    )
    since: str = Field("", description="The cursor's value to begin at the first time.")
    overlap: str | None = Field(
        None, description="How far before the last value to ask again: `2 days`, or a number."
    )
    params: dict[str, str] = Field({}, description="Further query parameters.")
    fields_param: str | None = Field(
        None,
        description="The query parameter that takes the names of the fields wanted; the contract's are asked for.",
    )


class Pages(dg.Model, dg.Resolvable):
    """How an API cuts its records into pages; what is left out has the usual name."""

    kind: Literal["page_number", "offset", "cursor", "link_header", "next_url", "single"]
    param: str | None = Field(None, description="Query parameter of the page, offset or cursor.")
    size_param: str | None = Field(None, description="Query parameter of the page size.")
    size: int = Field(500, description="Records to ask for at a time.")
    first: int = Field(1, description="The number of the first page.")
    total: str | None = Field(None, description="JSON path of the number of pages, or of records.")
    next: str | None = Field(None, description="JSON path of the next cursor or URL.")
    has_more: str | None = Field(None, description="JSON path of whether another page follows.")


class OAuth(dg.Model, dg.Resolvable):
    """OAuth2 client credentials: the settings that hold them."""

    token_url_setting: str
    client_id_setting: str
    client_secret_setting: str
    scope: str = ""


class RestApiSource(Source):
    """A REST API: its records come in published partitions, in a range of a cursor, or whole."""

    tables: Sequence[RestTable]
    path: str = Field("/{table}", description="Where an entity's records are; {table} is its name.")
    records: str = Field(
        "data", description="JSON path of the records in an answer; `$` is itself."
    )
    pagination: Pages = Field(
        Pages.model_validate({"kind": "page_number"}),
        description="How the API cuts records into pages.",
    )
    token_setting: str | None = Field(None, description="The setting that holds a bearer token.")
    oauth: OAuth | None = Field(None, description="OAuth2 client credentials instead of a token.")
    partitions: str | None = Field(
        None, description="Where an entity's published partitions are listed, if it has any."
    )
    partition: str | None = Field(
        None, description="What a partition is called in queries and in the listing."
    )

    def kind(self, settings: Settings) -> str:
        """`api`, whatever the settings say."""
        return "api"

    def read(
        self, settings: Settings, table: RestTable, position: "Position", reload: Reload
    ) -> "Iterator[Batch]":
        """Through connectors/rest_api.py."""
        from orchestration.connectors import rest_api
        from orchestration.connectors.http_client import ClientCredentials

        name = table.at_source or table.name
        oauth = None
        if self.oauth is not None:
            oauth = ClientCredentials(
                token_url=settings.value_of(self.oauth.token_url_setting),
                client_id=settings.value_of(self.oauth.client_id_setting),
                client_secret=settings.value_of(self.oauth.client_secret_setting),
                url_setting=variable(self.oauth.token_url_setting),
                id_setting=variable(self.oauth.client_id_setting),
                secret_setting=variable(self.oauth.client_secret_setting),
                scope=self.oauth.scope,
            )
        return rest_api.read(
            rest_api.RestEndpoint(
                base_url=settings.value_of(self.url_setting),
                path=(table.path or self.path).format(table=name),
                system=self.system,
                table=name,
                url_setting=variable(self.url_setting),
                columns=tuple(table.contract),
                ignore=tuple(table.ignore),
                records=self.records,
                pagination=rest_api.Pagination(**self.pagination.model_dump()),
                token=settings.value_of(self.token_setting) if self.token_setting else "",
                token_setting=variable(self.token_setting) if self.token_setting else "",
                oauth=oauth,
                fields=tuple(table.contract) if table.fields_param else (),
                fields_param=table.fields_param or "fields",
                params=table.params,
                partitions=(self.partitions or "").format(table=name),
                partition=self.partition or "",
                cursor=(table.cursor or "") if table.start_param else "",
                start_param=table.start_param or "",
                end_param=table.end_param or "",
                since=table.since,
                overlap=_distance(table.overlap),
            ),
            position,
            reload.span,
        )


class LakeTable(RawTable):
    """A set of files in a lake."""

    pattern: str | None = Field(None, description="Which files, such as `orders/**/*.parquet`.")
    file_format: Literal["parquet", "csv", "ndjson"] | None = Field(
        None, description="What is in them, if not what the source says."
    )
    header: list[str] = Field([], description="The columns of CSV files without a header line.")
    delimiter: str = Field(
        "", description="What separates the fields of CSV; found out if not said."
    )
    encoding: str = Field("utf-8", description="The encoding of texts without a byte order mark.")


class LakeFilesSource(Source):
    """A data lake's files, in a folder or an S3 bucket: Parquet, CSV, NDJSON, plain, gz or zst."""

    tables: Sequence[LakeTable]
    pattern: str = Field("{table}/**", description="Which files; {table} is the entity's name.")
    file_format: Literal["parquet", "csv", "ndjson"] = "parquet"

    def kind(self, settings: Settings) -> str:
        """`s3` or `file`, as the URL says."""
        return "s3" if settings.value_of(self.url_setting).startswith("s3://") else "file"

    def read(
        self, settings: Settings, table: LakeTable, position: "Position", reload: Reload
    ) -> "Iterator[Batch]":
        """Through connectors/lake_files.py."""
        from orchestration.connectors import lake_files

        name, location = table.at_source or table.name, settings.value_of(self.url_setting)
        if Path(location).is_relative_to(settings.data_dir):  # ours: a demo may not have filled it
            Path(location).mkdir(parents=True, exist_ok=True)
        return lake_files.read(
            lake_files.LakeFiles(
                location=location,
                pattern=table.pattern or self.pattern.format(table=name),
                file_format=table.file_format or self.file_format,
                system=self.system,
                table=name,
                location_setting=variable(self.url_setting),
                ignore=tuple(table.ignore),
                header=tuple(table.header),
                delimiter=table.delimiter,
                encoding=table.encoding,
            ),
            position,
            reload.span,
        )


class Topic(RawTable):
    """A topic of events."""

    decode: Literal["json", "avro"] = Field(
        "json", description="How an event's bytes become a row."
    )
    avro_schema: str = Field("", description="Path of the events' Avro schema.")
    max_event_bytes: int = Field(2**20, description="A larger event is set aside.")


class EventStreamSource(Source):
    """A stream of events: Kafka, or the embedded log on disk."""

    tables: Sequence[Topic]

    def kind(self, settings: Settings) -> str:
        """`kafka` or `log`, as the URL says."""
        return settings.value_of(self.url_setting).partition(":")[0]

    def topic(self, settings: Settings, table: Topic, *, accept_gap: bool = False) -> Any:
        """The topic as connectors/event_stream.py takes it."""
        from orchestration.connectors import event_log, event_stream
        from orchestration.landing.checking import sql_types

        url, topic = settings.value_of(self.url_setting), table.at_source or table.name
        if url.startswith("log://"):  # as a Kafka broker does when it is asked for a new topic
            event_log.create_topic(event_log.folder_of(url), topic)
        return event_stream.EventTopic(
            url=url,
            topic=topic,
            system=self.system,
            table=table.name,
            url_setting=variable(self.url_setting),
            columns=tuple(table.contract),
            types=sql_types(self.raw_table(table).contract),
            ignore=tuple(table.ignore),
            decode=table.decode,
            avro_schema=table.avro_schema,
            max_event_bytes=table.max_event_bytes,
            accept_gap=accept_gap,
        )

    def read(
        self, settings: Settings, table: Topic, position: "Position", reload: Reload
    ) -> "Iterator[Batch]":
        """Drain the topic until caught up, through connectors/event_stream.py."""
        from orchestration.connectors import event_stream

        return event_stream.read(
            self.topic(settings, table, accept_gap=reload.accept_gap), position, reload.span
        )

    def follow(
        self, settings: Settings, table: Topic, stop: "Event", say: Callable[[str], None]
    ) -> None:
        """Keep landing the topic until `stop` is set; what passes, such as a broker away, is waited out.

        So is another writer that holds the warehouse, for as long as it does.
        """
        from orchestration.connectors import event_stream
        from orchestration.errors import PassingError
        from orchestration.landing.land import land

        topic, wait = self.topic(settings, table), 1.0

        def told(line: str) -> None:
            nonlocal wait
            wait = 1.0
            say(line)

        while not stop.is_set():
            try:
                land(
                    settings,
                    self.raw_table(table),
                    read=lambda position: event_stream.follow(topic, position, stop=stop.is_set),
                    progress=told,
                    read_ahead=False,
                )
            except PassingError as error:
                say(f"{error}\n  trying again in {wait:g} s")
                stop.wait(wait)
                wait = min(wait * 2, 60)


def described_source(system: str) -> Source:
    """The source that `defs/raw/<system>/defs.yaml` describes, without the rest of the graph.

    Raises:
        MendableError: there is none, or its description is wrong.
    """
    import yaml

    from orchestration.contracts.raw import SOURCES
    from orchestration.errors import MendableError

    file = SOURCES / system / "defs.yaml"
    if not file.exists():
        raise MendableError(
            f"the source {system}",
            expected=f"one of {', '.join(sorted(f.parent.name for f in SOURCES.glob('*/defs.yaml')))}",
            arrived=system,
            mend="name one of these, or describe it as CONTRIBUTING.md says",
        )
    described = yaml.safe_load(file.read_text())
    kind = globals()[described["type"].rpartition(".")[2]]
    try:
        source: Source = kind(**described["attributes"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise MendableError(
            f"the description of {system}: {'.'.join(map(str, first['loc']))}",
            expected="what CONTRIBUTING.md says of a source",
            arrived=first["msg"],
            mend="make lint shows the line",
        ) from None
    return source
