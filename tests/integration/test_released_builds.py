"""A build that passes its checks is a release; what dbt built by itself is tested before it becomes one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import current_snapshot
from orchestration.warehouse.releases import move, releases, verify
from tests.integration.small_house import BIN, ROOT


def test_a_build_is_a_release_and_its_training_sets_can_be_verified(house):
    listed = house.watershed("releases")
    assert listed.exit_code == 0, listed.output
    assert "in force" in listed.output
    verified = house.watershed("verify", "latest")
    assert verified.exit_code == 0, verified.output
    assert verified.output.count("the same") == len(house.rows("show tables from training_sets"))


def test_a_release_is_rebuilt_from_its_raw_rows_to_the_same_hash_though_more_has_landed(house):
    with connect(house.settings) as connection:
        name = releases(connection)[-1].name
        connection.execute(
            "insert into raw.payments_lake__payments by name"
            " select * replace (transaction_id + 1000000 as transaction_id)"
            " from raw.payments_lake__payments limit 100"
        )
    same = house.watershed("rebuild", name)
    assert same.exit_code == 0, same.output
    assert same.output.count("the same") == len(house.rows("show tables from training_sets"))
    with connect(house.settings) as connection:
        connection.execute(
            "delete from raw.payments_lake__payments where transaction_id >= 1000000"
        )
        connection.execute("update releases.contents set content_hash = 'x' || content_hash")
    other = house.watershed("rebuild", name)
    assert other.exit_code == 1
    assert other.output.count("NOT the same") == same.output.count("the same")
    with connect(house.settings) as connection:
        connection.execute("update releases.contents set content_hash = content_hash[2:]")


def test_what_dbt_builds_alone_is_released_by_the_next_build_if_its_tests_pass(house):
    house.watershed("build")  # so that nothing is stale, whatever has landed meanwhile
    with connect(house.settings) as connection:
        before = releases(connection)[-1]
        connection.execute("update training_sets.train_fraud_detection set transaction_id = 1")
    broken = house.watershed("build")
    assert broken.exit_code == 1
    assert "not released" in broken.output
    assert "train_fraud_detection" in broken.output
    with connect(house.settings, read_only=True) as connection:
        assert releases(connection)[-1] == before
        assert connection.execute(
            "select count(distinct transaction_id) > 1 from published.train_fraud_detection"
        ).fetchone() == (True,)

    mended = house.run(
        BIN / "dbt", "run", "--select", "train_fraud_detection", cwd=ROOT / "dbt_project"
    )
    assert mended.returncode == 0, mended.stdout
    assert house.watershed("build").exit_code == 0
    with connect(house.settings, read_only=True) as connection:
        now = releases(connection)[-1]
        assert now.number == before.number + 1
        # The same rows, made anew.
        table = "training_sets.train_fraud_detection"
        hashes = [
            {name: told for name, told, _ in verify(connection, one.name)}[table]
            for one in (before, now)
        ]
        assert hashes[0] == hashes[1]


def test_others_write_between_the_tables_of_a_dbt_build_and_a_rollback_does_not_wait_for_its_end(
    house,
):
    dbt = [BIN / "dbt", "build", "--exclude-resource-type", "unit_test", "--full-refresh"]
    with ThreadPoolExecutor() as pool, connect(house.settings) as connection:
        name = releases(connection)[-1].name
        begun = current_snapshot(connection)
        running = pool.submit(house.run, *dbt, "--select", "staging", cwd=ROOT / "dbt_project")
        while not running.done():
            move(connection, house.settings, name)
            time.sleep(0.05)
        assert running.result().returncode == 0, running.result().stdout
        rows = connection.execute(
            "select coalesce(commit_message, 'dbt') from snapshots() where snapshot_id > ? order by snapshot_id",
            [begun],
        ).fetchall()
    told = [message for (message,) in rows]
    of_dbt = [place for place, message in enumerate(told) if message == "dbt"]
    assert f"{name} in force" in told[of_dbt[0] : of_dbt[-1]]


def test_what_differs_from_a_release_is_told_for_a_terminal_and_for_a_pull_request(house):
    with connect(house.settings) as connection:
        connection.execute("update training_sets.train_fraud_detection set amount = amount + 1")
    try:
        text = house.watershed("diff", "latest")
        markdown = house.watershed("diff", "latest", "--format", "markdown")
    finally:
        with connect(house.settings) as connection:
            connection.execute("update training_sets.train_fraud_detection set amount = amount - 1")
    ((rows,),) = house.rows("select count(*) from training_sets.train_fraud_detection")
    assert text.exit_code == markdown.exit_code == 0, text.output
    assert f"{rows:,} changed of {rows:,} rows by transaction_id" in text.output
    assert f"amount in {rows:,} rows: mean" in text.output
    assert "| `training_sets.train_fraud_detection` |" in markdown.output
