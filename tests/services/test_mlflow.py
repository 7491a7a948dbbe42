"""The registry on a real MLflow server, told by the one setting that names it."""

from __future__ import annotations

import time

import pytest

from orchestration.errors import MendableError
from orchestration.learning.fraud_detection import Model
from orchestration.registry import decisions, store
from orchestration.registry.register import register
from orchestration.settings import load_settings
from orchestration.streaming.fraud_scoring import champion_of
from orchestration.warehouse.connect import connect
from tests.services.conftest import server
from tests.unit.registry.released_models import MODELS, USE_CASE, fill


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A warehouse whose three released models a server was told of."""
    url = server("mlflow")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WATERSHED_DATA_DIR", str(tmp_path_factory.mktemp("house")))
        patched.setenv("WATERSHED_MLFLOW_URL", url.geturl())
        settings = load_settings()
    one = fill(settings)
    with connect(settings) as connection:
        assert register(connection, settings, one) == 3
    return settings


def in_force(settings) -> str:
    return store.champions(settings, USE_CASE)[""].version


def test_the_server_keeps_fits_and_models_and_nothing_is_kept_beside_it(house):
    _, one = store.find(house, MODELS[0].version)
    client = store.open_store(house)
    run = client.get_run(one.run_id)
    assert run.data.params["algorithm"] == "logistic_regression"
    assert run.data.metrics == {"average_precision": 0.5}
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "train_fraud_detection@r1"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert Model.from_json(store.parameters_of(house, USE_CASE, one)).version == MODELS[0].version
    assert in_force(house) == MODELS[0].version  # as decided, and released
    assert not (house.data_dir / "mlflow.db").exists()


def test_registering_again_adds_nothing(house):
    from orchestration.warehouse.releases import releases

    (house.data_dir / "mlflow" / "registered").unlink()
    with connect(house) as connection:
        assert register(connection, house, releases(connection)[-1]) == 0
    assert set(store.versions(house, USE_CASE)) == {model.version for model in MODELS}


def test_a_person_goes_forth_and_back_and_a_stream_follows(house):
    start = in_force(house)
    other = next(one for one in MODELS if one.version != start)
    with champion_of(house, lambda line: None) as champion:
        for move in (
            lambda: decisions.promote(house, other.version, "a trial", "ann"),
            lambda: decisions.demote(house, USE_CASE, "", "it was worse", "ann"),
        ):
            done = move()
            began = time.monotonic()
            while champion().version != done.champion_after:
                assert time.monotonic() - began < 30
                time.sleep(0.01)
    assert in_force(house) == start


def test_what_somebody_put_in_a_models_place_on_the_server_is_not_loaded(house, tmp_path):
    _, one = store.find(house, MODELS[2].version)
    for name, text in (
        ("model.json", MODELS[1].to_json()),
        ("model.json", "import os; os.abort()"),
        ("MLmodel", "!!python/object/apply:os.abort []"),
    ):
        (tmp_path / name).write_text(text)
        store.open_store(house).log_artifact(one.run_id, str(tmp_path / name), store.MODEL)
        with pytest.raises(MendableError, match="unchanged"):
            decisions.promote(house, one.version, "it looks new", "ann")
    assert in_force(house) == MODELS[0].version
