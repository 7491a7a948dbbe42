"""A real PostgreSQL: as a source system, and as the warehouse's catalog. `.ci/run` starts one."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pyarrow as arrow
import pytest

from orchestration.connectors import Batch
from orchestration.connectors.relational import RelationalTable, read
from orchestration.contracts import contract_of
from orchestration.demo import retail_db
from orchestration.errors import SourceUnavailableError
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame

SERVER = os.environ.get("TEST_POSTGRESQL_URL")
pytestmark = pytest.mark.skipif(
    SERVER is None, reason="TEST_POSTGRESQL_URL names no server; .ci/run starts one"
)
HOUSEHOLDS = 30


@pytest.fixture
def database(request) -> str:
    """A fresh database's URL."""
    name = f"t_{abs(hash(request.node.name)) % 10**9}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")
        connection.execute(f"create database {name}")
    return urlunsplit(urlsplit(SERVER)._replace(path=f"/{name}"))


def frame_of(settings, query):
    with connect(settings, read_only=True) as connection:
        return read_frame(connection, query)


def land_table(settings, url, entity, cursor=None):
    contract = contract_of("retail_db", entity)
    source = RelationalTable(
        url=url,
        table=entity,
        columns=tuple(contract.columns),
        system="retail_db",
        url_setting="WATERSHED_RETAIL_DB_URL",
        cursor=cursor,
    )
    table = RawTable(f"retail_db__{entity}", contract, cursor=cursor)
    return land(settings, table, lambda position: read(source, position))


@pytest.mark.parametrize(
    ("entity", "cursor"),
    [("transactions", "transaction_timestamp"), ("products", None), ("demographics", None)],
)
def test_the_same_rows_land_from_postgresql_as_from_sqlite(tmp_path, database, entity, cursor):
    retail_db.fill_postgresql(database, households=HOUSEHOLDS)
    retail_db.fill(tmp_path / "retail.sqlite", households=HOUSEHOLDS)
    columns = ", ".join(contract_of("retail_db", entity).columns)
    frames = []
    for url in (database, f"sqlite:///{tmp_path}/retail.sqlite"):
        settings = load_settings(data_dir=tmp_path / url.partition(":")[0])
        landed = land_table(settings, url, entity, cursor)
        assert landed.rows_quarantined == 0
        assert landed.rows_kept == landed.rows_in > 0
        frames.append(
            frame_of(settings, f"select {columns} from raw.retail_db__{entity} order by all")
        )
    assert frames[0].equals(frames[1])


def test_a_wrong_password_is_told_without_the_password(settings, database):
    parts = urlsplit(database)
    wrong = database.replace(f":{parts.password}@", ":s3cr3t-but-wrong@")
    with pytest.raises(SourceUnavailableError) as caught:
        land_table(settings, wrong, "products")
    assert "s3cr3t" not in str(caught.value)
    assert "WATERSHED_RETAIL_DB_URL" in str(caught.value)


def test_a_postgresql_catalog_holds_the_warehouse_and_a_replay_changes_nothing(
    tmp_path, database, monkeypatch
):
    parts = urlsplit(database)
    monkeypatch.setenv("PGPASSWORD", str(parts.password))
    catalog = (
        f"postgres:dbname={parts.path[1:]} host={parts.hostname} port={parts.port}"
        f" user={parts.username}"
    )
    settings = load_settings(data_dir=tmp_path / "data", catalog=catalog)
    contract = contract_of("campaign_api", "mailings")

    def rows(first):
        ids = list(range(first, first + 500))
        return arrow.table(
            {
                "campaign_id": [1] * 500,
                "household_id": ids,
                "published_at": ["2017-01-02T00:00:00Z"] * 500,
            }
        )

    def load(name):
        table = RawTable(f"campaign_api__{name}", contract, cursor="published_at")
        return land(settings, table, lambda position: iter([Batch(rows(1), {"week": "a"})]))

    assert [load(name).rows_kept for name in ("mailings", "mailings")] == [500, 0]
    assert frame_of(settings, "from raw.campaign_api__mailings").height == 500
    assert "password" not in str(settings).lower().replace("secretstr", "")
