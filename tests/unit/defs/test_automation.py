"""What schedules and sensors start is built whole, and released though other rows have landed meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import dagster as dg  # noqa: TID251 - a small graph of its own
import pytest
from filelock import FileLock

from orchestration.build import prepare_manifest, release_if_whole
from orchestration.warehouse.connect import connect


@pytest.mark.parametrize(
    "name", ["retrain_fraud_detection", "retrain_predictive_maintenance", "segment_customers"]
)
def test_a_job_builds_all_that_depends_on_what_it_builds(name):
    prepare_manifest()
    from orchestration.definitions import definitions

    defs = definitions()
    graph = defs.get_repository_def().asset_graph
    selected = set(defs.resolve_job_def(name).asset_layer.executable_asset_keys)
    data = {key for key in selected if key.path[0] != "seeds"}
    below = dg.AssetSelection.assets(*data).downstream().resolve(graph)
    assert {key for key in below if key in graph.materializable_asset_keys} <= selected
    assert dg.AssetKey(["monitoring", "mon_models__decided"]) in selected


@pytest.fixture
def house(settings):
    """`raw` -> `staged` -> `feat` in a warehouse; `build(...)` runs some, `state.landed` is what raw holds."""
    state = SimpleNamespace(landed=1)
    settings.data_dir.mkdir(parents=True)
    connect(settings).close()

    def asset(layer, name, deps, rows):
        @dg.asset(key=[layer, name], deps=deps, code_version="1")
        def one():
            with connect(settings) as connection:
                connection.execute(f"create schema if not exists {layer}")
                connection.execute(
                    f"create or replace table {layer}.{name} as select {rows()} as n"
                )
            return dg.MaterializeResult(data_version=dg.DataVersion(str(rows())))

        return one

    assets = [
        asset("raw", "events", [], lambda: state.landed),
        asset("staging", "stg_events", [["raw", "events"]], lambda: state.landed),
        asset("features", "feat_events", [["staging", "stg_events"]], lambda: state.landed),
    ]
    defs = dg.Definitions(assets)
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.get_repository_def().asset_graph
    with dg.DagsterInstance.ephemeral() as instance:

        def build(*names):
            keys = [dg.AssetKey(name.split("/")) for name in names] or None
            assert job.execute_in_process(instance=instance, asset_selection=keys).success

        def released():
            one = release_if_whole(settings, instance, graph)
            return one and one.name

        state.build, state.released, state.instance, state.settings = (
            build,
            released,
            instance,
            settings,
        )
        yield state


def test_rows_that_have_landed_since_keep_no_run_from_being_released(house):
    house.build("raw/events")
    assert house.released() is None  # the features are missing
    house.build()
    house.landed = 2
    house.build("raw/events")
    assert house.released() == "r1"
    assert house.released() is None  # nothing has changed
    house.build("staging/stg_events")
    assert house.released() is None  # the features are of the rows before
    house.build("features/feat_events")
    assert house.released() == "r2"


def test_what_is_being_built_is_not_released_but_landing_goes_on_beside_it(house):
    house.build()
    with FileLock(house.settings.data_dir / "build.lock"):
        assert house.released() is None

    def run_of(name):
        job = dg.JobDefinition(name=name, graph_def=dg.GraphDefinition(name=name))
        return house.instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.STARTED, tags={".dagster/grpc_info": "{}"}
        )

    building = run_of("retrain")
    run_of("ingest_events")
    assert house.released() is None
    house.instance.report_run_canceled(building)
    assert house.released() == "r1"
