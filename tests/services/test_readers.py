"""Readers beside writers and the UI for seconds; `python -m tests.torture.readers` does it for an hour, with dbt."""

from __future__ import annotations

import socket

import pytest

from orchestration.warehouse.connect import connect
from tests.torture.readers import look, mark_and_release, run


def test_readers_of_published_see_whole_releases_and_no_lock_beside_writers(settings):
    with connect(settings) as connection:
        for schema in ("raw", "features", "training_sets"):
            connection.execute(f"create schema {schema}")
        connection.execute(
            "create table training_sets.train_customer_segmentation as select 1 as id"
        )
        mark_and_release(connection, settings, 0)
    parts = {"land": 1, "release_and_roll": 1, "look": 1, "read": 3}
    done, wrong = run(settings.data_dir, 10, parts)
    assert not wrong
    assert done["commits"] > 0
    assert done["moves"] > 0
    assert done["reads"] > 10
    assert done["ui answers"] > 0
    assert done["mixtures"] == 0


def test_torture_fails_with_what_the_ui_said_if_it_does_not_come_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv(
            "WATERSHED_CAMPAIGN_API_URL", f"http://127.0.0.1:{other.getsockname()[1]}"
        )
        with pytest.raises(RuntimeError, match="another program listens there"):
            look(1)
