"""Readers beside writers for seconds; `python -m tests.torture.readers` does it for an hour, with dbt and the UI."""

from __future__ import annotations

from orchestration.warehouse.connect import connect
from tests.torture.readers import mark_and_release, run


def test_readers_of_published_see_whole_releases_and_no_lock_beside_writers(settings):
    with connect(settings) as connection:
        for schema in ("raw", "features", "training_sets"):
            connection.execute(f"create schema {schema}")
        connection.execute(
            "create table training_sets.train_customer_segmentation as select 1 as id"
        )
        mark_and_release(connection, settings, 0)
    parts = {"land": 1, "release_and_roll": 1, "read": 3}
    done, wrong = run(settings.data_dir, 10, parts)
    assert not wrong
    assert done["commits"] > 0
    assert done["moves"] > 0
    assert done["reads"] > 10
    assert done["mixtures"] == 0
