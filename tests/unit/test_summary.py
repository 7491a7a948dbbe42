"""The table a build ends with."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestration.build import Built
from orchestration.summary import print_summary
from orchestration.warehouse.connect import connect


def told(settings, built: Built) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_summary(console, settings, built)
    return console.file.getvalue()


FAILED = Built(succeeded=False, failures=["raw__a: [expected] something else"])


def test_failures_are_shown_before_there_is_a_warehouse(settings):
    text = told(settings, FAILED)
    assert "raw__a: [expected] something else" in text
    assert "the build stopped" in text
    assert not settings.data_dir.exists()


def test_failures_are_shown_when_the_warehouse_cannot_be_read(settings):
    settings.catalog_file.parent.mkdir()
    settings.catalog_file.write_text("not a catalog")
    text = told(settings, FAILED)
    assert "raw__a: [expected] something else" in text
    assert str(settings.catalog_file) in text


@pytest.mark.parametrize("built", [FAILED, Built()])
def test_the_layers_that_exist_are_counted(settings, built):
    with connect(settings) as connection:
        connection.execute("create schema raw; create table raw.a as select 1 as x")
    assert "raw" in told(settings, built).split()


def test_card_payments_are_counted_as_far_as_they_have_come(settings):
    with connect(settings) as connection:
        connection.execute("create schema intermediate")
        connection.execute("create table intermediate.int_payments__merged as from range(1234)")
        connection.execute(
            "create table intermediate.int_fraud_labels__versioned as"
            " from (values (true, timestamp '2018-05-01'), (false, null), (true, null), (true, null))"
            " as labels (is_fraud, superseded_at)"
        )
        before = told(settings, Built())
        connection.execute("create schema predictions")
        connection.execute(
            "create table predictions.payment_scores as select i = 7 as is_alert from range(20) t(i)"
        )
    (counts,) = (line.split() for line in before.splitlines() if "card payments" in line)
    assert counts == ["card", "payments", "1,234", "2"]
    after = told(settings, Built())
    (counts,) = (line.split() for line in after.splitlines() if "card payments" in line)
    assert counts == ["card", "payments", "1,234", "2", "20", "1"]


def test_without_card_payments_there_is_nothing_to_say_of_fraud(settings):
    with connect(settings) as connection:
        connection.execute("create schema intermediate")
        connection.execute(
            "create table intermediate.int_payments__merged as select 1 as x where false"
        )
    assert "fraud detection" not in told(settings, Built())


def test_machines_are_counted_as_far_as_they_have_come(settings):
    with connect(settings) as connection:
        connection.execute("create schema staging")
        connection.execute("create table staging.stg_plant_db__machines as from range(24)")
        connection.execute("create table staging.stg_plant_stream__readings as from range(1234)")
        connection.execute("create schema predictions")
        connection.execute(
            "create table predictions.machine_warnings as"
            " from (values ('opened'), ('acknowledged'), ('closed')) as warnings (state)"
        )
    text = told(settings, Built())
    (counts,) = (line.split() for line in text.splitlines() if line.startswith("machines"))
    assert counts == ["machines", "24", "1,234", "2"]


def test_without_machines_there_is_nothing_to_say_of_maintenance(settings):
    with connect(settings) as connection:
        connection.execute(
            "create schema staging; create table staging.stg_plant_db__machines as from range(0)"
        )
    assert "maintenance" not in told(settings, Built())
