"""The registry knows every released model once, says which is in force, and loads only what is whole."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from orchestration.errors import MendableError
from orchestration.learning.fraud_detection import FEATURES, Model
from orchestration.registry import decisions, store
from orchestration.registry.register import register
from orchestration.registry.trace import trace
from orchestration.settings import load_settings
from orchestration.streaming.fraud_scoring import champion_of
from orchestration.warehouse.connect import connect
from tests.unit.registry.released_models import MODELS, USE_CASE, decision, fill


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A warehouse with three models, released and registered once for all tests of this file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WATERSHED_DATA_DIR", str(tmp_path_factory.mktemp("registry")))
        settings = load_settings()
    one = fill(settings)
    with connect(settings) as connection:
        assert register(connection, settings, one) == 3
    return settings


def in_force(settings) -> str:
    return store.champions(settings, USE_CASE)[""].version


def test_a_run_says_all_it_takes_to_make_the_model_again(house):
    _, one = store.find(house, MODELS[0].version)
    run = store.open_store(house).get_run(one.run_id)
    assert run.data.params["algorithm"] == "logistic_regression"
    assert run.data.metrics == {"average_precision": 0.5}
    assert {"code_version", "packages", "python", "lock_sha256", "release"} <= set(run.data.tags)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "train_fraud_detection@r1"
    source = json.loads(dataset.dataset.source)
    assert source["content_hash"].count("-") == 2
    assert run.data.params["training_content_hash"] == "abc4"


def test_registering_again_adds_nothing_and_loses_nothing(house):
    (house.data_dir / "mlflow" / "registered").unlink()
    with connect(house) as connection:
        from orchestration.warehouse.releases import releases

        assert register(connection, house, releases(connection)[-1]) == 0
    assert set(store.versions(house, USE_CASE)) == {model.version for model in MODELS}


def test_what_a_build_decided_is_in_force_once_it_is_released(house):
    assert MODELS[0].version in {one.version for one in store.versions(house, USE_CASE).values()}
    with connect(house) as connection:
        before = in_force(house)
        last = decisions.read(connection, USE_CASE)[-1]
        decisions.write(connection, house, USE_CASE, [decision(MODELS[1], before)])
        assert in_force(house) == before  # decided, not released
        assert decisions.in_force(connection, house, USE_CASE)[""] == MODELS[1].version
        assert decisions.apply(connection, house, USE_CASE) == [MODELS[1].version]
        assert in_force(house) == MODELS[1].version
        assert decisions.apply(connection, house, USE_CASE) == []
        assert decisions.read(connection, USE_CASE)[-1].number == last.number + 1


def test_a_person_goes_forth_and_back_and_a_stream_follows(house):
    decisions_before = in_force(house)
    other = next(m for m in MODELS if m.version != decisions_before)
    said: list[str] = []
    with champion_of(house, said.append) as champion:
        assert champion().version == decisions_before
        for move in (
            lambda: decisions.promote(house, other.version, "a trial", "ann"),
            lambda: decisions.demote(house, USE_CASE, "", "it was worse", "ann"),
        ):
            done = move()
            began = time.monotonic()
            while champion().version != done.champion_after:
                assert time.monotonic() - began < 30
                time.sleep(0.01)
    assert in_force(house) == decisions_before
    with connect(house, read_only=True) as connection:
        last = decisions.read(connection, USE_CASE)[-1]
    assert (last.action, last.reason, last.decided_by) == ("rolled_back", "it was worse", "ann")


def test_at_no_moment_are_there_no_champion_or_two(house):
    known = store.versions(house, USE_CASE)
    start, stop, seen = in_force(house), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            seen.append(len(store.champions(house, USE_CASE)))

    watcher = threading.Thread(target=look)
    watcher.start()
    turn = 0
    while watcher.is_alive() and (turn < 30 or len(seen) <= 10):
        store.put_in_force(house, known[MODELS[turn % 3].version], 1000 + turn)
        turn += 1
    stop.set()
    watcher.join()
    store.put_in_force(house, known[start], 1000 + turn)
    assert len(seen) > 10
    assert set(seen) == {1}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.json", lambda text: text.replace('"alert_threshold":0.5', '"alert_threshold":0.6')),
        ("model.json", lambda text: "import os; os.abort()"),
        ("model.json", lambda text: MODELS[1].to_json()),
        ("MLmodel", lambda text: text.replace("is_night", "is_knight")),
        ("MLmodel", lambda text: "!!python/object/apply:os.abort []"),
    ],
)
def test_a_model_that_is_damaged_or_foreign_is_refused_and_the_former_stays(house, file, damage):
    start = in_force(house)
    victim = MODELS[2]
    known = store.versions(house, USE_CASE)
    (path,) = Path(house.data_dir).glob(
        f"mlflow/{USE_CASE}/{known[victim.version].run_id}/artifacts/model/{file}"
    )
    whole, said = path.read_text(), []
    path.write_text(damage(whole))
    try:
        with pytest.raises(MendableError, match="expected"):
            decisions.promote(house, victim.version, "it looks new", "ann")
        with champion_of(house, said.append) as champion:
            assert champion().version == start
            store.put_in_force(house, known[victim.version], 3000)
            for _ in range(3):
                champion.look()
            assert champion().version == start
        assert sum("cannot be loaded" in line for line in said) == 1
    finally:
        path.write_text(whole)
        store.put_in_force(house, known[start], 3001)


def test_a_registry_that_is_away_leaves_the_former_in_force(house, monkeypatch):
    said: list[str] = []
    with champion_of(house, said.append) as champion:
        version = champion().version

        def away(*_: object) -> None:
            raise store.RegistryUnavailableError("r", expected="e", arrived="a", mend="m")

        monkeypatch.setattr(store, "champions", away)
        monkeypatch.setattr(store, "last_written", lambda settings: None)  # as with a server
        for _ in range(3):
            champion.look()
        assert champion().version == version
        assert sum("cannot be loaded" in line for line in said) == 1
        with connect(house) as connection:
            assert decisions.in_force(connection, house, USE_CASE)[""]


def test_without_a_registry_the_rule_scores_and_nothing_is_created(settings):
    with champion_of(settings, lambda line: None) as champion:
        assert champion().version == "baseline_rule"
    assert not (settings.data_dir / "mlflow.db").exists()


def test_a_store_that_does_not_answer_is_told_without_its_password(settings, monkeypatch):
    monkeypatch.setenv("WATERSHED_MLFLOW_URL", "http://user:secret-word@127.0.0.1:9")
    with pytest.raises(store.RegistryUnavailableError) as told:
        store.champions(load_settings(), USE_CASE)
    assert "secret-word" not in str(told.value)


def test_a_copied_data_folder_finds_its_models_and_not_the_others(house, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(house.data_dir, tmp_path / "copy")
    monkeypatch.setenv("WATERSHED_DATA_DIR", str(tmp_path / "copy"))
    copy = load_settings()
    _, one = store.find(copy, MODELS[0].version)
    assert str(tmp_path / "copy") in one.source
    assert Model.from_json(store.parameters_of(copy, USE_CASE, one)).version == MODELS[0].version


def test_a_prediction_leads_to_its_model_training_set_release_and_source_rows(house):
    with connect(house, read_only=True) as connection:
        lines = list(
            trace(
                connection,
                house,
                "predictions.payment_scores",
                "transaction_id=1",
                ["raw.payments"],
            )
        )
        with pytest.raises(MendableError, match="no row"):
            list(trace(connection, house, "predictions.payment_scores", "transaction_id=9", []))
    told = "\n".join(lines)
    for part in (
        MODELS[2].version, "train_fraud_detection@r1", "2018-05-15", "2018-05-22", "abc18",
        "batch b1 at p1",
    ):  # fmt: skip
        assert part in told


def test_the_signature_names_the_inputs_in_the_order_of_the_matrix(house):
    from mlflow.models import Model as Manifest

    _, one = store.find(house, MODELS[0].version)
    manifest = Manifest.load(one.source.removeprefix("file://"))
    assert [column.name for column in manifest.signature.inputs.inputs] == list(FEATURES)
    assert np.isfinite(MODELS[0].score(np.zeros((1, len(FEATURES))))).all()
