"""`watershed serve` on the small house: what it answers over HTTP is what the trained models say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import httpx
import numpy as np
import pytest

from orchestration.learning import fraud_detection
from tests.integration.small_house import BIN, ROOT

SERVING_TOKEN = "a/serving+token=that~must-not-leak"


@pytest.fixture(scope="module")
def served(house, tmp_path_factory):
    """A client of the service, and where the service's log is."""
    # 28 frauds to learn from are too few to beat the rule; a person may know better.
    ((trained,),) = house.rows(
        "select max_by(model_version, as_of_at) from trained_models.fraud_detection where is_champion"
    )
    promoted = house.watershed("promote", trained, "--reason", "to try it")
    assert promoted.exit_code == 0 or "in force" in promoted.output, promoted.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = {n: v for n, v in os.environ.items() if not n.startswith("WATERSHED_")}
    own = {"WATERSHED_SERVING_PORT": str(port), "WATERSHED_SERVING_TOKEN": SERVING_TOKEN}
    log = tmp_path_factory.mktemp("serving") / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [BIN / "watershed", "serve"], cwd=ROOT, env={**outside, **house.environment, **own},
            stdout=said, stderr=said,
        )  # fmt: skip
    headers = {"authorization": f"Bearer {SERVING_TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        deadline = time.monotonic() + 90
        while True:
            try:
                client.get("/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield client, log
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_stored_payments_are_scored_as_the_champion_scores_them(house, served):
    client, _ = served
    columns = ", ".join(fraud_detection.FEATURES)
    rows = house.rows(
        f"select {columns} from features.feat_payment__windows order by transaction_id limit 200"
    )
    records = [dict(zip(fraud_detection.FEATURES, row, strict=True)) for row in rows]
    records = [{**record, "amount": float(record["amount"])} for record in records]
    answer = client.post("/v1/fraud_detection/scores", json={"records": records})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    (version,) = {one["model_version"] for one in results}
    ((text,),) = house.rows(
        f"select parameters from trained_models.fraud_detection where model_version = '{version}'"
    )
    expected = fraud_detection.Model.from_json(text).score(np.array(rows, np.float64))
    assert [one["score"] for one in results] == expected.tolist()


def test_a_stored_machine_hour_is_scored_by_the_champion_of_its_model(house, served):
    client, _ = served
    rows = house.rows(
        """
        select h.machine_model, s.sensor, s.deviation_avg_24h, s.deviation_distance_24h, s.is_stuck
        from features.feat_sensor__windows as s
        inner join features.feat_machine__history as h using (machine_id, as_of_at)
        where (s.machine_id, s.as_of_at) = (
            select (machine_id, as_of_at) from features.feat_machine__history
            order by as_of_at desc, machine_id limit 1
        )
        """
    )
    sensors = {
        sensor: {"deviation_avg_24h": mean, "deviation_distance_24h": distance, "is_stuck": stuck}
        for _, sensor, mean, distance, stuck in rows
    }
    record = {"machine_model": rows[0][0], "sensors": sensors}
    answer = client.post(
        "/v1/predictive_maintenance/scores?reasons=all", json={"records": [record]}
    ).json()
    assert not answer["rejected"]
    assert 0 <= answer["results"][0]["failure_probability"] <= 1
    assert answer["results"][0]["reasons"]


def test_stored_households_fit_the_endpoint_as_they_are(house, served):
    from orchestration.learning.customer_segmentation import FEATURES

    client, _ = served
    columns = [feature.column for feature in FEATURES]
    rows = house.rows(
        f"select {', '.join(columns)} from training_sets.train_customer_segmentation limit 1000"
    )
    records = [
        {
            name: value if isinstance(value, int) or value is None else float(value)
            for name, value in zip(columns, row, strict=True)
        }
        for row in rows
    ]
    answer = client.post("/v1/customer_segmentation/scores", json={"records": records})
    assert answer.status_code == 200, answer.text[:500]
    assert not answer.json()["rejected"]
    assert len(answer.json()["results"]) == len(rows)


def test_neither_the_token_nor_a_payment_is_in_the_log(served):
    client, log = served
    client.post("/v1/fraud_detection/scores", json={"records": [{"amount": 98765.25}]})
    client.post("/v1/fraud_detection/scores", headers={"authorization": "Bearer wrong"}, json={})
    told = log.read_text()
    assert "scores on http://127.0.0.1" in told
    assert SERVING_TOKEN not in told
    assert "98765" not in told
    assert "Traceback" not in told
