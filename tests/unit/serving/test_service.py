"""The service answers scores, keeps good records whatever else comes, and holds its limits."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import datetime, timedelta

import httpx
import numpy as np
import orjson
import polars as pl
import pytest
from starlette.testclient import TestClient

from orchestration.errors import MendableError
from orchestration.learning import fraud_detection, machine_health
from orchestration.learning.customer_segmentation import (
    FEATURES,
    ScaledFeature,
    SegmentationModel,
)
from orchestration.serving import service
from orchestration.serving.service import MOST_BYTES, MOST_RECORDS, create_app, serve
from orchestration.serving.use_cases import (
    HouseholdAnswer,
    MachineAnswer,
    PaymentAnswer,
    RecencyRule,
    UseCase,
    household_record,
    machine_record,
    machine_scores,
    payment_record,
    score_households,
    score_payments,
)
from orchestration.settings import load_settings

TOKEN = "a-token-of-some-length"
FRAUD = "/v1/fraud_detection/scores"
MACHINES = "/v1/predictive_maintenance/scores"
HOUSEHOLDS = "/v1/customer_segmentation/scores"
PAYMENT = {
    "amount": 80.0,
    "is_weekend": False,
    "is_night": True,
    **dict.fromkeys((n for n in fraud_detection.FEATURES if "_count_" in n), 4),
    **dict.fromkeys((n for n in fraud_detection.FEATURES if "_avg_" in n), 20.0),
    **dict.fromkeys((n for n in fraud_detection.FEATURES if "_share_" in n), 0.0),
}
HOUSEHOLD = {
    "days_since_last_purchase": 3,
    "baskets_count_90d": 20,
    "sales_usd_sum_90d": 500.0,
    "basket_usd_avg_90d": 25.0,
    "departments_count_90d": 9,
    "retail_discount_share_90d": 0.1,
    "coupon_lines_share_90d": 0.0,
    "campaign_response_rate_365d": None,
    "private_label_share_90d": 0.2,
    "fresh_share_90d": 0.1,
    "sales_trend_60d": -0.2,
}


@pytest.fixture(scope="module")
def fraud_model():
    draw, rows = np.random.default_rng(0), 3_000
    amount = draw.integers(100, 15_000, rows) / 100
    frame = pl.DataFrame(
        {
            "transaction_id": np.arange(rows),
            "as_of_at": [datetime(2018, 7, 23) + timedelta(minutes=3 * i) for i in range(rows)],
            "customer_id": draw.integers(0, 500, rows),
            **{name: draw.integers(1, 300, rows) for name in fraud_detection.FEATURES},
            "amount": amount,
            "label": amount > 140,
        }
    )
    return fraud_detection.fit(frame, "logistic_regression", cards_per_day=30)


def segmentation_model() -> SegmentationModel:
    """Two segments: those who spend, and those who do not."""
    features = tuple(ScaledFeature(f.trait, f.column, f.shape, 1.0, 1.0) for f in FEATURES)
    spending = [1.0 if f.trait == "monetary" else 0.0 for f in FEATURES]
    return SegmentationModel(
        datetime(2018, 1, 1), features, 3.0,
        (tuple(spending), tuple(-x for x in spending)), ("Champions", "Light shoppers"),
    )  # fmt: skip


def use_cases(fraud, segmentation=None):
    rule = machine_health.baseline_rule(["vibration_mm_s", "pressure_bar"])
    segmentation = segmentation or segmentation_model()

    def one():
        return ("",)

    def models():
        return {"press"}

    return {
        "fraud_detection": UseCase(
            payment_record(), PaymentAnswer, lambda _: fraud, one, score_payments
        ),
        "predictive_maintenance": UseCase(
            machine_record(), MachineAnswer, lambda _: rule, models, machine_scores(models)
        ),
        "customer_segmentation": UseCase(
            household_record(), HouseholdAnswer, lambda _: segmentation, one, score_households
        ),
    }


@pytest.fixture
def client(fraud_model):
    return TestClient(create_app(use_cases(fraud_model)))


def post(client, path, *records, **headers):
    return client.post(path, json={"records": records}, headers=headers)


def test_a_payment_is_scored_as_the_model_scores_it(client, fraud_model):
    suspicious = {**PAYMENT, "amount": 149.0}
    told = post(client, FRAUD, PAYMENT, suspicious).json()
    matrix = np.array(
        [[r[n] for n in fraud_detection.FEATURES] for r in (PAYMENT, suspicious)], float
    )
    expected = fraud_model.score(matrix)
    assert [one["score"] for one in told["results"]] == expected.tolist()
    assert [one["is_alert"] for one in told["results"]] == [False, True]
    assert {one["model_version"] for one in told["results"]} == {fraud_model.version}
    quiet, alert = told["results"]
    assert quiet["reasons"] == []
    assert alert["reasons"] == fraud_model.reasons(matrix[1:], expected[1:])[0]
    assert told["rejected"] == []


def test_reasons_come_for_all_when_asked(client):
    told = post(client, f"{FRAUD}?reasons=all", PAYMENT).json()
    assert told["results"][0]["reasons"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": -1.0}, "amount"),
        ({"amount": "80"}, "amount"),
        ({"amount": 1e300}, "amount"),
        ({"amount": None}, "amount"),
        ({"is_night": 1}, "is_night"),
        ({"customer_payments_count_1d": 0}, "customer_payments_count_1d"),
        ({"customer_payments_count_1d": 10**23}, "customer_payments_count_1d"),
        ({"terminal_fraud_share_1d": 1.01}, "terminal_fraud_share_1d"),
        ({"amonut": 3.0}, "amonut"),
    ],
)
def test_a_bad_record_is_named_by_position_and_field_and_costs_no_good_one(client, change, field):
    answer = post(client, FRAUD, PAYMENT, {**PAYMENT, **change}, PAYMENT)
    told = answer.json()
    assert answer.status_code == 200
    assert [one["position"] for one in told["results"]] == [0, 2]
    assert [one["position"] for one in told["rejected"]] == [1]
    assert [one["field"] for one in told["rejected"][0]["problems"]] == [field]


@pytest.mark.parametrize("record", [3, None, [], "payment", {}])
def test_what_is_no_record_is_rejected_alone(client, record):
    told = post(client, FRAUD, record, PAYMENT).json()
    assert [one["position"] for one in told["results"]] == [1]
    assert told["rejected"][0]["position"] == 0


def test_a_request_without_a_good_record_is_unprocessable(client):
    assert post(client, FRAUD, {}).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"records": [NaN]}', 400),
        (b"[]", 400),
        (b'{"records": []}', 400),
        (b'{"records": {}}', 400),
        (orjson.dumps({"records": [0] * (MOST_RECORDS + 1)}), 413),
        (b" " * (MOST_BYTES + 1), 413),
    ],
)
def test_what_is_no_request_is_refused(client, body, status):
    answer = client.post(FRAUD, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status


def test_a_body_that_does_not_say_its_length_is_cut_off_at_the_limit(client):
    def parts():
        for _ in range(MOST_BYTES // 65_536 + 2):
            yield b" " * 65_536

    answer = client.post(FRAUD, content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_page_in_a_browser_cannot_ask_unnoticed(client):
    answer = client.post(FRAUD, content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_a_large_request_is_answered_like_a_small_one(client):
    large = post(client, FRAUD, *[PAYMENT] * MOST_RECORDS).json()["results"]
    small = post(client, FRAUD, PAYMENT).json()["results"][0]
    assert [one["position"] for one in large] == list(range(MOST_RECORDS))
    assert [one["score"] for one in large] == pytest.approx([small["score"]] * MOST_RECORDS)


def test_a_machine_is_scored_by_its_model_and_others_are_rejected(client):
    sensors = {"vibration_mm_s": {"deviation_distance_24h": 12.0, "is_stuck": False}}
    told = post(
        client,
        MACHINES,
        {"machine_model": "press", "sensors": sensors, "episode_hours": 30},
        {"machine_model": "lathe", "sensors": sensors},
        {"machine_model": "press", "sensors": {"noise_db": {"deviation_distance_24h": 1.0}}},
        {"machine_model": "press", "sensors": {"vibration_mm_s": {"loudness": 1.0}}},
    ).json()
    (answer,) = told["results"]
    assert answer["failure_probability"] == pytest.approx(144 / 180)
    assert answer["is_alert"] is True
    assert "vibration_mm_s is 12.0 standard deviations above" in answer["reasons"][0]
    assert answer["remaining_hours"] is None
    assert answer["model_version"] == "baseline_rule"
    assert [(one["position"], one["problems"][0]["field"].split(".")[0]) for one in told["rejected"]] == [
        (1, "machine_model"),
        (2, "sensors"),
        (3, "sensors"),
    ]  # fmt: skip


def test_a_household_gets_its_segment_and_what_marks_it(client):
    told = post(client, HOUSEHOLDS, HOUSEHOLD, {**HOUSEHOLD, "sales_usd_sum_90d": 0.0}).json()
    rich, poor = told["results"]
    assert (rich["segment_name"], poor["segment_name"]) == ("Champions", "Light shoppers")
    assert rich["reasons"][0].startswith("Spend much: 3.0 standard deviations above")
    assert poor["reasons"][0].startswith("Spend little: 1.0 standard deviations below")
    assert 0 < rich["confidence"] <= 1


def test_without_a_champion_the_baseline_answers_and_health_is_degraded(fraud_model):
    rule = fraud_detection.BaselineRule()
    client = TestClient(create_app(use_cases(rule, RecencyRule())))
    told = post(client, FRAUD, {**PAYMENT, "amount": 500.0}).json()["results"][0]
    assert (told["score"], told["is_alert"], told["model_version"]) == (1.0, True, "baseline_rule")
    lapsed = post(client, HOUSEHOLDS, {**HOUSEHOLD, "days_since_last_purchase": None}).json()
    assert lapsed["results"][0]["segment_name"] == "Lapsed customers"
    health = client.get("/health").json()
    assert health["status"] == "degraded"
    assert {model["is_champion"] for model in health["models"]} == {False}


def test_health_names_the_models_and_their_age(client, fraud_model):
    models = {one["use_case"]: one for one in client.get("/health").json()["models"]}
    assert models["fraud_detection"]["model_version"] == fraud_model.version
    assert models["fraud_detection"]["age_days"] > 0
    assert models["predictive_maintenance"]["kind"] == "press"


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer é"]
)
def test_without_the_token_nothing_but_health_is_said(fraud_model, shown):
    client = TestClient(create_app(use_cases(fraud_model), TOKEN))
    headers = {} if shown is None else {"authorization": shown.encode()}
    assert client.post(FRAUD, json={"records": [PAYMENT]}, headers=headers).status_code == 401
    assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/health", headers=headers).status_code == 200


def test_with_the_token_scores_and_metrics_are_answered(fraud_model):
    client = TestClient(create_app(use_cases(fraud_model), TOKEN))
    client.headers["authorization"] = f"Bearer {TOKEN}"
    post(client, FRAUD, PAYMENT, {**PAYMENT, "amount": 149.0}, {})
    metrics = client.get("/metrics").text
    assert (
        'watershed_serving_records_total{outcome="scored",use_case="fraud_detection"} 2.0'
        in metrics
    )
    assert (
        'watershed_serving_records_total{outcome="rejected",use_case="fraud_detection"} 1.0'
        in metrics
    )
    assert (
        'watershed_serving_records_total{outcome="alerts",use_case="fraud_detection"} 1.0'
        in metrics
    )
    assert 'watershed_serving_seconds_count{use_case="fraud_detection"} 1.0' in metrics
    assert 'watershed_serving_champion{kind="",use_case="fraud_detection"} 1.0' in metrics


def test_an_address_that_others_can_reach_takes_a_token():
    with pytest.raises(MendableError, match="token"):
        serve(load_settings(serving_host="0.0.0.0"), lambda _: None)


def test_a_port_that_is_taken_is_told(fraud_model):
    with service._listening("127.0.0.1", 0) as taken, pytest.raises(MendableError, match="port"):
        serve(load_settings(serving_port=taken.getsockname()[1]), lambda _: None)


def test_nothing_of_a_request_is_logged(client, caplog):
    caplog.set_level(logging.DEBUG, "orchestration")
    caplog.set_level(logging.DEBUG, "uvicorn")
    post(client, FRAUD, {**PAYMENT, "amount": 77_777.25}, {"amount": "77777.25"})
    assert "77777" not in caplog.text


def test_the_description_loads_nothing_from_elsewhere_and_knows_every_input(client):
    described = client.get("/openapi.json").json()
    items = described["paths"][FRAUD]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert list(items["properties"]["records"]["items"]["properties"]) == list(
        fraud_detection.FEATURES
    )
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_in_a_flood_those_beyond_the_limit_are_told_to_come_again_and_the_others_are_answered(
    fraud_model,
):
    app, body = create_app(use_cases(fraud_model)), orjson.dumps({"records": [PAYMENT]})

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            headers = {"content-type": "application/json"}
            asked = [client.post(FRAUD, content=body, headers=headers) for _ in range(100)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    refused = [one for one in answers if one.status_code == 429]
    scored = [one for one in answers if one.status_code == 200]
    assert len(refused) + len(scored) == 100
    assert len(refused) >= 100 - 2 * service.MOST_SMALL
    assert len(scored) >= service.MOST_SMALL
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    after = TestClient(app)
    assert post(after, FRAUD, PAYMENT).status_code == 200


def test_a_large_request_does_not_hold_up_a_small_one(fraud_model):
    begun, let_go = threading.Event(), threading.Event()
    cases = use_cases(fraud_model)
    slow = cases["fraud_detection"]

    def score(champion, records, all_reasons):
        if len(records) > 1:
            begun.set()
            assert let_go.wait(10)
        return score_payments(champion, records, all_reasons)

    cases["fraud_detection"] = UseCase(slow.record, slow.answer, slow.champion, slow.kinds, score)
    app, headers = create_app(cases), {"content-type": "application/json"}
    large = orjson.dumps({"records": [PAYMENT] * 100})
    small = orjson.dumps({"records": [PAYMENT]})

    async def both() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            waiting = asyncio.create_task(client.post(FRAUD, content=large, headers=headers))
            await asyncio.to_thread(begun.wait, 10)
            quick = await client.post(FRAUD, content=small, headers=headers)
            assert not waiting.done()
            let_go.set()
            return quick, await waiting

    quick, slow_one = asyncio.run(both())
    assert (quick.status_code, slow_one.status_code) == (200, 200)
