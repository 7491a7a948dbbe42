"""A small house for integration tests: 150 households, 300 cards, 10 machines, and the command line to build it."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestration.build import prepare_manifest
from orchestration.command_line import main
from orchestration.demo import campaign_api, card_payments, plant, retail_db
from orchestration.demo.card_payments import World
from orchestration.settings import Settings, load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HOUSEHOLDS = 150
PAYMENTS = World(customers=300, terminals=600, first_date=date(2018, 5, 1), days=70)
PLANT = plant.World(models=plant.MODELS[2:], machines=10, days=59, minutes=60)
CANARY = 987654321987
"""A household that shops, with a number that nothing else has: where it stands can be searched for."""
TOKEN = "a/token+that=must~not-leak"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "an/AWS+key=that~must-not-leak",
    "PGPASSWORD": "a/catalog+password=that~must-not-leak",
    "WATERSHED_PRIVACY_KEY": "a/key+of=pseudonyms~must-not-leak",
    "WATERSHED_SHOP_CLIENT_SECRET": "an/OAuth+secret=that~must-not-leak",
}
"""What a build finds in its environment; most are of systems that the house does not have."""


class House:
    """A warehouse with its source systems, and the command line to build it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.database = folder / "retail.sqlite"
        demo = folder / "data" / "demo"
        self.lake, self.stream = demo / "payments_lake", demo / "payments_stream"
        self.plant, self.readings = demo / "plant.sqlite", demo / "plant_stream"
        target = folder / "data" / "dbt"  # the project's own is for all tests
        target.mkdir(parents=True)
        # Else each dbt reads the whole project again.
        shutil.copy(prepare_manifest().with_name("partial_parse.msgpack"), target)
        self.settings = load_settings(data_dir=folder / "data")
        self.environment = {
            "DBT_TARGET_PATH": str(target),
            "DBT_LOG_PATH": str(target / "logs"),
            "WATERSHED_DATA_DIR": str(folder / "data"),
            "WATERSHED_RETAIL_DB_URL": f"sqlite:///{self.database}",
            "WATERSHED_CAMPAIGN_API_URL": self.url,
            "WATERSHED_CAMPAIGN_API_TOKEN": TOKEN,
            "WATERSHED_SEGMENTATION_LAST_MONTH": "2017-03",
            "PYTHONWARNINGS": "ignore",
            **SECRETS,
        }

    def run(
        self, *command: str | Path, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own."""
        outside = {n: v for n, v in os.environ.items() if not n.startswith("WATERSHED_")}
        env = {**outside, **self.environment, **environment}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    def watershed(self, *arguments: str, **environment: str) -> Result:
        """`watershed ...` in this process, which has imported everything already."""
        return CliRunner().invoke(main, arguments, env={**self.environment, **environment})

    def materialize(
        self, asset: str, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[set[str], dict[str, bool]]:
        """Materialise one asset, as the UI does; what is not up to date then, and its checks' results."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DAGSTER_HOME", str(self.settings.dagster_home))
        import dagster as dg  # noqa: TID251

        from orchestration.definitions import definitions  # reads the settings when it is imported
        from orchestration.defs.staleness import not_up_to_date

        defs = definitions()
        with dg.DagsterInstance.get() as instance:
            result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey(asset.split("/"))]
            )
            stale = not_up_to_date(instance, defs.get_repository_def().asset_graph)
        evaluations = result.get_asset_check_evaluations()
        return {"/".join(key.path) for key in stale}, {e.check_name: e.passed for e in evaluations}

    def rows(self, query: str) -> list[tuple]:
        with connect(self.settings, read_only=True) as connection:
            return read_frame(connection, query).rows()

    def contents(self) -> dict[str, list[tuple]]:
        """Every table but landing's bookkeeping and the alerts: rows, and files, which each write makes anew."""
        with connect(self.settings, read_only=True) as connection:
            tables = connection.execute(
                "select schema_name, table_name from duckdb_tables()"
                " where database_name = current_database() and schema_name <> 'landing'"
                " and (schema_name, table_name) <> ('monitoring', 'alerts')"
            ).fetchall()
            return {
                f"{schema}.{table}": connection.execute(
                    f"select count(*), (select list(f order by f) from"
                    f" ducklake_list_files('lake', '{table}', schema => '{schema}') as f)"
                    f" from {schema}.{table}"
                ).fetchall()
                for schema, table in tables
            }


@contextmanager
def built_house(folder: Path) -> Iterator[House]:
    """The house, built by one command in a process of its own; `first` is what that said.

    The campaign API answers for as long as it lasts.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(Settings.model_config, "env_file", None)
        house = House(folder)
        retail_db.fill(house.database, households=HOUSEHOLDS)
        with closing(sqlite3.connect(house.database)) as database, database:
            database.execute(
                f"update transactions set household_id = {CANARY} where household_id = 84"
            )
        card_payments.fill(house.lake, house.stream, PAYMENTS)
        plant.fill(house.plant, house.readings, PLANT)
        with campaign_api.running(house.url, TOKEN, households=HOUSEHOLDS):
            house.first = house.run(BIN / "watershed", "build")
            yield house


def assert_told(result: Result, *parts: str) -> None:
    """The command stopped with exit code 1 and one clear message: no trace, and no secret."""
    output = result.output
    assert result.exit_code == 1, output
    assert result.exception is None or isinstance(result.exception, SystemExit), output
    for part in parts:
        assert part in output
    assert output.count("to mend:") == 1, output
    assert "Traceback" not in output
    assert TOKEN not in output
