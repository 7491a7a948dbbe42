"""Secrets are where the person put them and nowhere else: canaries, and a search of all that a build leaves."""

from __future__ import annotations

import base64
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import duckdb
import pytest

from orchestration.connectors.event_stream import EventTopic
from orchestration.connectors.http_client import ClientCredentials
from orchestration.connectors.lake_files import LakeFiles
from orchestration.connectors.relational import RelationalTable
from orchestration.connectors.rest_api import RestEndpoint
from orchestration.contracts import raw
from orchestration.duckdb_session import quoted
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from tests.integration.small_house import BIN, ROOT, SECRETS, TOKEN

CLOSED = "127.0.0.1:1"
REFUSED_TOKEN = "r3fused/token+of=the~API"
PASSWORD = "pass/w0rd+of=the~shop"
DATABASE_URL = f"postgresql://watershed:{quote(PASSWORD, safe='')}@{CLOSED}/retail"
CANARIES = (TOKEN, REFUSED_TOKEN, PASSWORD, *SECRETS.values())

TABLE = "{name: orders, description: An order., contract: {order_id: {dtype: Int64}}}"
SOURCE = """
type: orchestration.defs.components.{kind}
attributes:
  system: {system}
  description: A system that does not let us in.
  use_case: customer_segmentation
  owner: team:data
  url_setting: {system}_url
  fresh_within_days: 1
  schedule: "0 6 * * *"
  tables: [{table}]
"""
OAUTH = """
  oauth:
    token_url_setting: shop_token_url
    client_id_setting: shop_client_id
    client_secret_setting: shop_client_secret
"""


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it may stand in a text: itself, quoted for a URL, in Base64 at any offset."""
    yield from {part.encode() for part in (secret, quote(secret, safe=""), quote(secret))}
    for offset in range(3):
        padded = b"\0" * offset + secret.encode()
        own = slice(-(-offset * 4 // 3), len(padded) // 3 * 4)  # what no neighbour has a bit in
        yield base64.b64encode(padded)[own]
        yield base64.urlsafe_b64encode(padded)[own]


FORMS = tuple({form for secret in CANARIES for form in forms(secret)})


def leaks(content: str | bytes) -> list[bytes]:
    """The forms of canaries in it."""
    data = content.encode() if isinstance(content, str) else content
    return [form for form in FORMS if form in data]


def leaks_in_files(paths: Iterable[Path]) -> dict[str, list[bytes]]:
    """The forms of canaries by file: in its bytes, and for SQLite in its values, unpacked."""
    found: dict[str, list[bytes]] = {}
    for path in (path for path in paths if path.is_file()):
        content = path.read_bytes()
        if content.startswith(b"SQLite format 3"):
            content += b"\0".join(sqlite_values(path))
        if of_file := leaks(content):
            found[str(path)] = of_file
    return found


def sqlite_values(path: Path) -> Iterator[bytes]:
    """Every value of a database, whole, however SQLite cuts it up and Dagster packs it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for row in database.execute(f"select * from {quoted(table.decode())}"):
                for value in row:
                    if not isinstance(value, bytes):
                        continue
                    yield value
                    if value[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
                        yield zlib.decompress(value)


def leaks_in_tables(connection) -> dict[str, int]:
    """How many rows of each table hold a canary, in any column that can hold a text."""
    found = {}
    either = "|".join(re.escape(form.decode()) for form in FORMS)
    for schema, table, columns in connection.execute(
        "select schema_name, table_name, list(column_name) filter (not regexp_full_match(data_type,"
        " '[A-Z]*INT|INTEGER|DOUBLE|FLOAT|BOOLEAN|DATE|DECIMAL.*|TIME.*')) from duckdb_columns()"
        " where database_name = current_database() and not internal group by all"
    ).fetchall():
        texts = ", ".join(["''", *(f"{quoted(name)}::varchar" for name in columns or ())])
        ((rows,),) = connection.execute(
            f"select count(*) from {quoted(schema)}.{quoted(table)}"
            f" where regexp_matches(concat_ws(' ', {texts}), ?)",
            [either],
        ).fetchall()
        found[f"{schema}.{table}"] = rows
    return found


def written(house) -> list[Path]:
    """Every file that a build writes."""
    folders = (house.settings.data_dir, ROOT / "dbt_project/target", ROOT / "dbt_project/logs")
    return [path for folder in folders for path in folder.rglob("*")]


def assert_nothing_written_leaks(house) -> None:
    assert leaks_in_files(written(house)) == {}
    with connect(house.settings, read_only=True) as connection:
        tables = leaks_in_tables(connection)
    assert {"raw", "landing", "predictions"} <= {table.partition(".")[0] for table in tables}
    assert {table: rows for table, rows in tables.items() if rows} == {}


@pytest.fixture
def refusing_service():
    """Refuses every request and sends back all that was in it."""

    class Refusal(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            told = f"{self.path}\n{self.headers}\n".encode() + body
            self.server.told.append(told)
            self.send_response(401)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = answer

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    server.told = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("secret", CANARIES)
def test_the_search_finds_what_it_looks_for(tmp_path, secret):
    assert leaks(f"token={secret}")
    assert leaks(f"url=http://user:{quote(secret, safe='')}@host")
    for name in ("", "n", "na", "nam"):
        assert leaks(base64.b64encode(f"{name}{secret}:".encode()))
        assert leaks(base64.urlsafe_b64encode(f"{name}{secret}:".encode()))
    plain, packed = tmp_path / "build.log", tmp_path / "events.db"
    plain.write_text(f"{'-' * 10_000}{secret}")
    with closing(sqlite3.connect(packed)) as database:
        database.execute("create table snapshots (id, body)")
        database.execute("insert into snapshots values (1, ?)", [zlib.compress(secret.encode())])
        database.commit()
    assert leaks_in_files(tmp_path.iterdir()).keys() == {str(plain), str(packed)}
    with duckdb.connect() as connection:
        connection.execute("create table t (a integer, b struct(c varchar[]), d blob)")
        connection.execute("create table n (a integer)")
        connection.execute("insert into t values (1, {c: ['', 'x']}, ''::blob)")
        assert leaks_in_tables(connection) == {"main.t": 0, "main.n": 0}
        connection.execute("insert into t values (1, {c: ['', ?]}, null)", [f"..{secret}.."])
        connection.execute("insert into t values (1, null, ?)", [secret.encode()])
        assert leaks_in_tables(connection) == {"main.t": 2, "main.n": 0}


def test_a_good_build_leaves_no_secret_anywhere(house):
    assert house.first.returncode == 0, house.first.stderr
    assert leaks(house.first.stdout + house.first.stderr) == []
    assert_nothing_written_leaks(house)


def test_a_failing_build_leaves_no_secret_anywhere(house):
    secrets = {
        "WATERSHED_RETAIL_DB_URL": DATABASE_URL,
        "WATERSHED_CAMPAIGN_API_TOKEN": REFUSED_TOKEN,
    }
    failed = house.run(BIN / "watershed", "build", **secrets)
    output = failed.stdout + failed.stderr
    assert failed.returncode == 1, output
    assert f"PostgreSQL at {CLOSED}" in output
    assert "a token that the API refuses" in output
    assert leaks(output) == []
    assert_nothing_written_leaks(house)


def test_sources_that_refuse_leave_no_secret_anywhere(
    house, refusing_service, tmp_path, monkeypatch, capfd
):
    for system, kind, further in (
        ("shop", "RestApiSource", OAUTH),
        ("lake", "LakeFilesSource", ""),
        ("stream", "EventStreamSource", ""),
    ):
        (tmp_path / system).mkdir()
        description = SOURCE.format(kind=kind, system=system, table=TABLE) + further
        (tmp_path / system / "defs.yaml").write_text(description)
    monkeypatch.setattr(raw, "SOURCES", tmp_path)
    service = f"http://127.0.0.1:{refusing_service.server_port}"
    for name, value in {
        **house.environment,
        "DAGSTER_HOME": str(house.settings.dagster_home),
        "WATERSHED_SHOP_URL": service,
        "WATERSHED_SHOP_TOKEN_URL": f"{service}/token",
        "WATERSHED_SHOP_CLIENT_ID": "watershed",
        "WATERSHED_LAKE_URL": "s3://bucket/prefix",
        "WATERSHED_STREAM_URL": f"kafka://watershed:{quote(PASSWORD, safe='')}@{CLOSED}",
        "AWS_ACCESS_KEY_ID": "watershed",
        "AWS_ENDPOINT_URL": f"http://{CLOSED}",
    }.items():
        monkeypatch.setenv(name, value)

    import dagster as dg  # noqa: TID251

    from orchestration.defs import components

    monkeypatch.setattr(components, "code_version", lambda *_: "of this test")
    sources = [components.described_source(system) for system in ("shop", "lake", "stream")]
    assets = [source._raw_asset(source.tables[0]) for source in sources]
    with dg.DagsterInstance.get() as instance:
        result = dg.materialize(assets, instance=instance, raise_on_error=False)
    causes = {
        e.step_key: e.step_failure_data for e in result.filter_events(lambda e: e.is_step_failure)
    }
    assert causes.keys() == {"raw__shop__orders", "raw__lake__orders", "raw__stream__orders"}
    # the secret was sent, and came back
    assert leaks(b"".join(refusing_service.told))
    assert "credentials that it refuses" in str(causes["raw__shop__orders"])
    assert "a store that answers" in str(causes["raw__lake__orders"])
    assert "a broker that answers" in str(causes["raw__stream__orders"])
    assert leaks(str(causes) + "".join(capfd.readouterr())) == []
    assert_nothing_written_leaks(house)


def test_the_settings_show_no_secret(house, monkeypatch):
    shown = house.watershed("settings", WATERSHED_RETAIL_DB_URL=DATABASE_URL, COLUMNS="400")
    assert shown.exit_code == 0
    assert "WATERSHED_RETAIL_DB_URL" in shown.output
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(retail_db_url=DATABASE_URL)
    assert settings.value_of("shop_client_secret") == SECRETS["WATERSHED_SHOP_CLIENT_SECRET"]
    assert settings.value_of("retail_db_url") == DATABASE_URL
    texts = [shown.output, repr(settings), str(settings), settings.model_dump_json()]
    assert leaks("\n".join(texts)) == []


def test_a_source_as_text_shows_no_secret():
    oauth = ClientCredentials(
        token_url=f"https://watershed:{quote(PASSWORD, safe='')}@shop.example/token",
        client_id="watershed",
        client_secret=SECRETS["WATERSHED_SHOP_CLIENT_SECRET"],
        url_setting="WATERSHED_SHOP_TOKEN_URL",
        id_setting="WATERSHED_SHOP_CLIENT_ID",
        secret_setting="WATERSHED_SHOP_CLIENT_SECRET",
    )
    named = {"system": "shop", "table": "orders", "url_setting": "WATERSHED_SHOP_URL"}
    api = {"base_url": DATABASE_URL, "path": "/v1/orders", **named}
    sources = [
        oauth,
        RestEndpoint(token=TOKEN, token_setting="WATERSHED_SHOP_TOKEN", **api),
        RestEndpoint(oauth=oauth, params={"key": TOKEN}, **api),
        RelationalTable(url=DATABASE_URL, **named),
        LakeFiles(
            location=f"s3://watershed:{PASSWORD}@bucket/prefix",
            pattern="**",
            file_format="parquet",
            system="shop",
            table="orders",
            location_setting="WATERSHED_SHOP_URL",
        ),
        EventTopic(
            url=f"kafka://watershed:{quote(PASSWORD, safe='')}@{CLOSED}",
            topic="orders",
            options={"sasl.password": PASSWORD},
            **named,
        ),
    ]
    assert leaks(repr(sources) + "".join(map(str, sources))) == []
