"""Every setting a person would change, with its default; read from the environment or `.env`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestration.errors import MendableError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
ENV_PREFIX = "WATERSHED_"
_PASSWORD = re.compile(r"password\s*=|://[^/@]*:(?!\d+(/|$))[^@]*@", re.IGNORECASE)
"""In a connection string, or after the user in a URL; a port is none."""


class Settings(BaseSettings):
    """The settings. Each is an environment variable `WATERSHED_<NAME>`; the environment wins over `.env`.

    `.env.example` is this class in the form people copy; a test keeps the two equal.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=PROJECT_ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        validate_default=True,
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(
        Path("data"),
        description="Folder for everything Watershed writes: catalog, lake, run history, demo sources. "
        "A relative path starts at the project's root.",
    )
    catalog: str = Field(
        "",
        description="DuckLake catalog. Empty: sqlite:<data_dir>/catalog.sqlite. For a team: "
        "postgres:dbname=lake host=... (password in PGPASSWORD or ~/.pgpass).",
    )
    lake_path: str = Field(
        "",
        description="Where the lake's Parquet files live: a folder or s3://bucket/prefix/. "
        "Empty: <data_dir>/lake/.",
    )
    encrypted: bool = Field(
        False,
        description="Encrypts the lake's files, with keys that the catalog holds; decided when the warehouse is"
        " created. The catalog, and the few rows it holds itself, are not encrypted.",
    )
    memory_limit: str = Field("2GB", description="Most memory one DuckDB connection may use.")
    threads: int = Field(0, ge=0, description="Threads per DuckDB connection; 0 is one per core.")
    lock_timeout_seconds: float = Field(
        60.0, ge=0, description="How long a writer waits for another writer before it gives up."
    )
    retail_db_url: SecretStr = Field(
        SecretStr(""),
        description="The retailer's database: sqlite:///path/to/file or postgresql://user:password@host/db. "
        "Empty: the demo's SQLite file, <data_dir>/demo/retail.sqlite.",
    )
    campaign_api_url: str = Field(
        "http://127.0.0.1:8471",
        description="Base URL of the campaign API. Default: the demo's service.",
    )
    campaign_api_token: SecretStr = Field(
        SecretStr(""),
        description="Bearer token of the campaign API. `make demo` writes a random one to `.env` if unset.",
    )
    payments_lake_url: str = Field(
        "",
        description="Folder or s3://bucket/prefix/ of past card payments (Parquet). "
        "Empty: the demo's, <data_dir>/demo/payments_lake.",
    )
    payments_stream_url: SecretStr = Field(
        SecretStr(""),
        description="Card payments as they are made: kafka://[user:password@]host:9092 or log:///folder. "
        "Empty: the demo's log on disk, <data_dir>/demo/payments_stream.",
    )
    plant_db_url: SecretStr = Field(
        SecretStr(""),
        description="The plant's database of machines and their maintenance: sqlite:///path/to/file or"
        " postgresql://user:password@host/db. Empty: the demo's SQLite file, <data_dir>/demo/plant.sqlite.",
    )
    plant_stream_url: SecretStr = Field(
        SecretStr(""),
        description="Sensor readings as they are made: kafka://[user:password@]host:9092 or log:///folder. "
        "Empty: the demo's log on disk, <data_dir>/demo/plant_stream.",
    )
    stream_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Where `make stream` serves Prometheus metrics on 127.0.0.1; 0 is nowhere.",
    )
    serving_host: str = Field(
        "127.0.0.1",
        description="Address on which `make serve` answers. One that others can reach takes a token, and"
        " a proxy before it that speaks TLS.",
    )
    serving_port: int = Field(
        8484, ge=1, le=65535, description="Port on which `make serve` answers."
    )
    serving_token: SecretStr = Field(
        SecretStr(""),
        description="Bearer token that callers of `make serve` must show. Empty: none, on this machine only.",
    )
    page_port: int = Field(
        8501, ge=1, le=65535, description="Port of 127.0.0.1 on which `make page` shows the page."
    )
    mlflow_url: SecretStr = Field(
        SecretStr(""),
        description="MLflow's store and registry of trained models: sqlite:///path/to/file, postgresql://... "
        "or a server's http(s)://... Empty: an SQLite file, <data_dir>/mlflow.db, no server.",
    )
    segmentation_first_month: str = Field(
        "2017-01",
        pattern=r"^\d{4}-\d{2}$",
        description="First month that gets customer segments (YYYY-MM).",
    )
    segmentation_last_month: str = Field(
        "2017-12",
        pattern=r"^(\d{4}-\d{2}|open)$",
        description="Last month that gets customer segments; `open` keeps adding months as they end. "
        "The default is where the demo's data stops.",
    )
    privacy_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the pseudonyms in the schema `masked`, and of the hashes by which landing keeps out who"
        " was forgotten; 16 characters or more: `openssl rand -hex 32`. Empty: identifiers there are null. `make"
        " demo` writes a random one to `.env` if unset; keep it, and away from the data folder.",
    )
    masked_lake_path: str = Field(
        "",
        description="Where `make share` puts the Parquet files of what is masked: a folder or"
        " s3://bucket/prefix/ that others may read. Empty: <data_dir>/masked_lake/.",
    )
    automation: bool = Field(
        False, description="Switches every schedule on: weekly API ingestion, monthly segmentation."
    )

    alert_webhook_url: SecretStr = Field(
        SecretStr(""),
        description="Slack-compatible webhook that alerts are posted to. Empty: none.",
    )
    alert_webhook_severity: Literal["info", "warning", "critical"] = Field(
        "warning", description="Least severity that is posted: info, warning or critical."
    )
    alert_email_url: SecretStr = Field(
        SecretStr(""),
        description="Mail server and addresses for alerts: "
        "smtps://user:password@host:465/?from=a@example.com&to=b@example.com. Empty: none.",
    )
    alert_email_severity: Literal["info", "warning", "critical"] = Field(
        "critical", description="Least severity that is mailed: info, warning or critical."
    )

    @field_validator("data_dir")
    @classmethod
    def _from_project_root(cls, value: Path) -> Path:
        return PROJECT_ROOT / value.expanduser()

    @field_validator("catalog")
    @classmethod
    def _embedded_by_default(cls, value: str, info: ValidationInfo) -> str:
        kind, _, path = (value or f"sqlite:{info.data['data_dir']}/catalog.sqlite").partition(":")
        return f"{kind}:{PROJECT_ROOT / path if kind == 'sqlite' else path}"

    @field_validator("lake_path", "masked_lake_path")
    @classmethod
    def _in_data_dir_by_default(cls, value: str, info: ValidationInfo) -> str:
        name = "lake" if info.field_name == "lake_path" else "masked_lake"
        value = value or f"{info.data['data_dir']}/{name}"
        return (value if "://" in value else str(PROJECT_ROOT / value)).rstrip("/") + "/"

    @field_validator("retail_db_url")
    @classmethod
    def _demo_by_default(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        demo = f"sqlite:///{info.data['data_dir']}/demo/retail.sqlite"
        return SecretStr(value.get_secret_value() or demo)

    @field_validator("payments_lake_url")
    @classmethod
    def _demo_lake_by_default(cls, value: str, info: ValidationInfo) -> str:
        value = value or f"{info.data['data_dir']}/demo/payments_lake"
        return value if "://" in value else str(PROJECT_ROOT / Path(value).expanduser())

    @field_validator("payments_stream_url")
    @classmethod
    def _demo_stream_by_default(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        demo = f"log://{quote(str(info.data['data_dir']))}/demo/payments_stream"
        return SecretStr(value.get_secret_value() or demo)

    @field_validator("plant_db_url")
    @classmethod
    def _demo_plant_by_default(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        demo = f"sqlite:///{info.data['data_dir']}/demo/plant.sqlite"
        return SecretStr(value.get_secret_value() or demo)

    @field_validator("plant_stream_url")
    @classmethod
    def _demo_readings_by_default(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        demo = f"log://{quote(str(info.data['data_dir']))}/demo/plant_stream"
        return SecretStr(value.get_secret_value() or demo)

    @field_validator("privacy_key")
    @classmethod
    def _not_to_be_guessed(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 16:
            raise PydanticCustomError("short", "a key that can be guessed")
        return value

    @field_validator("mlflow_url")
    @classmethod
    def _embedded_store_by_default(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        return SecretStr(value.get_secret_value() or f"sqlite:///{info.data['data_dir']}/mlflow.db")

    @field_validator("catalog", "lake_path", "campaign_api_url", "payments_lake_url")
    @classmethod
    def _without_password(cls, value: str) -> str:
        if _PASSWORD.search(value):
            raise PydanticCustomError("password", "a password, which this setting would show")
        return value

    @property
    def catalog_file(self) -> Path | None:
        """The embedded catalog's file, or None when the catalog is a server."""
        kind, _, path = self.catalog.partition(":")
        return Path(path) if kind == "sqlite" else None

    @property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its run history."""
        return self.data_dir / "dagster"

    def value_of(self, name: str) -> str:
        """The setting `name` as plain text; if it is a secret, hand it to the source and nowhere else.

        A source that was added has settings of its own, which need no field here: they are read
        from the environment or `.env` under the same prefix.

        Raises:
            MendableError: it is not one of the fields and not set anywhere.
        """
        if name in Settings.model_fields:
            value = getattr(self, name)
            return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        found = os.environ.get(variable(name)) or _env_file_values().get(variable(name))
        if not found:
            raise MendableError(
                f"setting {variable(name)}",
                expected="a value in the environment or in .env",
                arrived="none",
                mend=f"add a line {variable(name)}=... to {PROJECT_ROOT / '.env'}",
            )
        return found


def _env_file_values() -> dict[str, str | None]:
    """What `.env` says, whether or not it is a field."""
    from dotenv import dotenv_values

    file = Settings.model_config.get("env_file")
    return dotenv_values(file) if isinstance(file, Path) else {}


def _require_private(file: Any) -> None:
    """Refuse a `.env` that others on the machine can read: it holds passwords."""
    if isinstance(file, Path) and file.exists() and file.stat().st_mode & 0o077:
        raise MendableError(
            f"the settings file {file}",
            expected="a file that only its owner can read, because it holds passwords",
            arrived=f"permissions {file.stat().st_mode & 0o777:o}",
            mend=f"chmod 600 {file}",
        )


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + setting.upper()


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; a mistake in one is a `MendableError` that names it."""
    _require_private(Settings.model_config.get("env_file"))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = variable("_".join(str(part) for part in first["loc"]))
        field = Settings.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        raise MendableError(
            f"setting {name}",
            expected=(field.description or "") if field else first["msg"],
            arrived=first["msg"],
            mend=f"change {name} in the environment or in {PROJECT_ROOT / '.env'}; see .env.example",
        ) from None
