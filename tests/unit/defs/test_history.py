"""Failed steps and checks of Dagster's history become alerts, and close when they are made good."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace

import dagster as dg  # noqa: TID251 - a small graph of its own
import pytest

from orchestration.build import tell
from orchestration.defs.history import failed_steps, tell_of_decisions
from orchestration.defs.staleness import stale_assets
from orchestration.defs.vocabulary import raise_as_failure, rows_and_version
from orchestration.errors import MendableError
from orchestration.registry import decisions
from orchestration.warehouse.connect import connect


@pytest.fixture
def house():
    """A graph of `poisoned`, which fails while it is, and `made_of_it`; `build()` runs it."""
    state = SimpleNamespace(poisoned=True, passes=True)

    @dg.asset
    def poisoned():
        if state.poisoned:
            with raise_as_failure():
                raise MendableError(
                    "the batch", expected="rows", arrived="none", mend="send it again"
                )

    @dg.asset(deps=[poisoned], check_specs=[dg.AssetCheckSpec("is_right", asset="made_of_it")])
    def made_of_it():
        yield dg.MaterializeResult(
            check_results=[dg.AssetCheckResult(check_name="is_right", passed=state.passes)]
        )

    @dg.asset
    def apart():
        pass

    defs = dg.Definitions([poisoned, made_of_it, apart])
    job = defs.resolve_implicit_global_asset_job_def()
    state.graph = defs.get_repository_def().asset_graph
    with dg.DagsterInstance.ephemeral() as instance:
        state.instance = instance

        def build(*names):
            keys = [dg.AssetKey(name) for name in names] or None
            job.execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)

        state.build = build
        yield state


def test_a_step_that_failed_is_known_with_its_mending_until_it_is_made_good(house):
    house.build()
    assert failed_steps(house.instance, house.graph) == {"poisoned": "send it again"}
    house.build("apart")
    assert failed_steps(house.instance, house.graph) == {"poisoned": "send it again"}
    house.poisoned = False
    house.build("poisoned")  # what was skipped then is still not built, and no failure of its own
    assert failed_steps(house.instance, house.graph) == {}


def test_what_failed_is_told_once_and_closed_when_it_is_made_good(house, settings):
    settings.data_dir.mkdir(parents=True)
    connect(settings).close()
    house.build()
    for _ in range(2):
        assert tell(settings, house.instance, house.graph) == []
    house.poisoned = house.passes = False
    house.build()
    assert tell(settings, house.instance, house.graph) == []
    with connect(settings, read_only=True) as connection:
        rows = connection.execute(
            "select alert_key, severity, times_seen, what_to_do, closed_at is null"
            " from monitoring.alerts order by opened_at"
        ).fetchall()
    assert rows[0] == ("step_failed/send it again", "critical", 2, "send it again", False)
    assert rows[1][0] == "check_failed/made_of_it"
    assert rows[1][-1]
    assert len((settings.data_dir / "alerts.log").read_text().splitlines()) == 2


def test_a_step_that_fails_by_its_own_check_is_told_of_by_the_check_alone():
    @dg.asset(check_specs=[dg.AssetCheckSpec("is_right", asset="scored", blocking=True)])
    def scored():
        yield dg.AssetCheckResult(check_name="is_right", passed=False)
        raise dg.Failure("a frame that breaks its contract is not written", allow_retries=False)

    defs = dg.Definitions([scored])
    graph = defs.get_repository_def().asset_graph
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success
        assert failed_steps(instance, graph) == {"scored": ""}
        assert failed_steps(instance, graph, ["scored: is_right"]) == {}


def test_a_monitoring_table_that_cannot_be_read_is_said_and_fails_no_build(house, settings):
    settings.data_dir.mkdir(parents=True)
    with connect(settings) as connection:
        connection.execute("create schema monitoring")
        connection.execute("create table monitoring.mon_landing__anomalies as select 1 as of_old")
    (text,) = tell(settings, house.instance, house.graph)
    assert text.startswith("alerts not told, Binder Error")


def test_what_a_person_decides_makes_stale_what_depends_on_it_and_nothing_else(settings):
    settings.data_dir.mkdir(parents=True)
    key = ["trained_models", "fraud_detection__decisions"]

    @dg.asset(key="training_set", code_version="1")
    def training_set():
        return dg.MaterializeResult(data_version=dg.DataVersion("the same"))

    @dg.asset(key=key, deps=[training_set], code_version="1")
    def decided():
        with connect(settings) as connection:
            decisions.prepare(connection, settings, "fraud_detection")
            return dg.MaterializeResult(data_version=rows_and_version(connection, ".".join(key))[1])

    @dg.asset(deps=[decided], code_version="1")
    def scored():
        pass

    @dg.asset(deps=[training_set], code_version="1")
    def apart():
        pass

    defs = dg.Definitions([training_set, decided, scored, apart])
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.get_repository_def().asset_graph
    promoted = decisions.Decision("", "promoted", "b", datetime(2024, 1, 1), "a", "b", "so", "ann")
    with dg.DagsterInstance.ephemeral() as instance, connect(settings) as connection:
        tell_of_decisions(instance, connection, "fraud_detection")  # nothing is built yet
        assert job.execute_in_process(instance=instance).success
        tell_of_decisions(instance, connection, "fraud_detection")  # nothing was decided
        assert stale_assets(instance, graph) == set()
        decisions.write(connection, settings, "fraud_detection", [promoted])
        tell_of_decisions(instance, connection, "fraud_detection")
        assert stale_assets(instance, graph) == {dg.AssetKey("scored")}
        job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("scored")])
        assert stale_assets(instance, graph) == set()
