"""The upkeep of a team's warehouse, whose catalog is in PostgreSQL."""

from __future__ import annotations

from urllib.parse import urlsplit

from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.maintenance import maintain
from orchestration.warehouse.releases import release, releases, verify


def test_upkeep_merges_and_compresses_and_every_release_holds_what_it_held(
    postgresql_database, monkeypatch
):
    url = urlsplit(postgresql_database)
    monkeypatch.setenv("PGPASSWORD", url.password or "")
    settings = load_settings(
        catalog=f"postgres:dbname={url.path[1:]} host={url.hostname} port={url.port} user={url.username}"
    )
    with connect(settings) as connection:
        connection.execute("create schema training_sets")
        connection.execute(
            "create table training_sets.train_a as select range as id, 0 as build from range(5000)"
        )
        for build in range(1, 4):
            connection.execute(
                f"update training_sets.train_a set build = {build} where hash(id) % 3 = {build - 1}"
            )
            release(connection, settings, checks_passed=1, checks_warned=0)
        done = maintain(connection, settings, keep_days=0)
        assert done.files_merged > 0
        assert done.deletions_compressed > 0
        assert len(releases(connection)) == 3
        for one in releases(connection):
            assert all(told == now for _, told, now in verify(connection, one.name))
        assert maintain(connection, settings, keep_days=0).deletions_compressed == 0
