"""Rights per role on a real PostgreSQL catalog: who may only read cannot write, who may see the masked sees no more."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import duckdb
import psycopg
import pytest

from orchestration.duckdb_session import open_session
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.masked import share, write_down
from orchestration.warehouse.privacy import DIRECT, SENSITIVE
from orchestration.warehouse.releases import release
from orchestration.warehouse.roles import ANALYST, ENGINEER, MASKED, role_statements

PASSWORD = "only-for-this-test"


@pytest.fixture
def house(postgresql_database, tmp_path, monkeypatch):
    """A released warehouse of a superuser's, three people with a role each, and how to attach as one of them."""
    monkeypatch.setenv("WATERSHED_PRIVACY_KEY", "of-sixteen-letters-or-more")
    url = urlsplit(postgresql_database)
    place = f"dbname={url.path[1:]} host={url.hostname} port={url.port}"
    monkeypatch.setenv("PGPASSWORD", url.password or "")
    settings = load_settings(
        data_dir=tmp_path / "data", catalog=f"postgres:{place} user={url.username}"
    )
    with connect(settings) as connection:
        connection.execute("create schema features")
        connection.execute(
            "create table features.sales as select range as card_id, 'wine' as thing from range(50)"
        )
        write_down(
            connection, settings, {"features.sales": {"card_id": DIRECT, "thing": SENSITIVE}}
        )
        release(connection, settings, checks_passed=1, checks_warned=0)
        attach_masked = share(connection, settings)[1]
    people = {f"{url.path[1:]}_{role}": role for role in (ENGINEER, ANALYST, MASKED)}
    with psycopg.connect(postgresql_database, autocommit=True) as admin:
        for _ in range(2):  # again changes nothing
            admin.execute(role_statements(settings))
        for name, role in people.items():
            admin.execute(f"create user {name} password '{PASSWORD}'")
            admin.execute(f"grant {role} to {name}")
            if role == ENGINEER:
                admin.execute(f"alter role {name} set role {ENGINEER}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)

    def as_one(role: str, *, masked: bool = False) -> duckdb.DuckDBPyConnection:
        user = next(name for name, its in people.items() if its == role)
        session = open_session(memory_limit="1GB", extensions=["ducklake", "postgres"])
        if masked:
            session.execute(attach_masked.replace(f"user={url.username}", f"user={user}"))
        else:
            session.execute(
                f"attach 'ducklake:postgres:{place} user={user}' as lake (data_path '{settings.lake_path}')"
            )
        session.execute("use lake")
        return session

    yield as_one
    with psycopg.connect(postgresql_database, autocommit=True) as admin:
        for role in (*people, ANALYST, MASKED, ENGINEER):
            admin.execute(f"drop owned by {role} cascade")
        admin.execute(f"drop role {', '.join(people)}")


def test_an_engineer_writes_and_an_analyst_reads_what_was_written_since(
    house: Callable[..., duckdb.DuckDBPyConnection],
):
    with house(ENGINEER) as engineer:
        engineer.execute("insert into features.sales select 99, 'bread'")
        engineer.execute("create table features.later as select 1 as n")  # kept in the catalog
        engineer.execute("alter table features.sales add column more int")
    with house(ANALYST) as analyst:
        assert analyst.execute("select count(*), count(more) from features.sales").fetchall() == [
            (51, 0)
        ]
        assert analyst.execute("from features.later").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into features.sales select 1, 'x'", "delete from features.sales", "drop table features.sales",
        "create table features.mine as select 1 as n", "create or replace view published.sales as select 1 as n",
        "call ducklake_expire_snapshots('lake', older_than => now())",
    ],
)  # fmt: skip
def test_an_analyst_cannot_write_whatever_the_statement(house, statement):
    with house(ANALYST) as analyst:
        with pytest.raises(duckdb.Error, match="permission denied"):
            analyst.execute(statement)
        assert analyst.execute("select count(*) from published.sales").fetchall() == [(50,)]


def test_who_may_see_what_is_masked_sees_nothing_else(house):
    with house(MASKED, masked=True) as reader:
        rows = reader.execute("from published.sales").fetchall()
        assert len({card for card, _ in rows}) == 50
        assert all(len(card) == 32 and thing == "wine" for card, thing in rows)
    with pytest.raises(duckdb.Error, match="permission denied"):
        house(MASKED)
