"""The whole customer segmentation graph: through Dagster against its steps by hand, first run against second."""

from __future__ import annotations

import secrets
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import BIN, ROOT, row, seconds
from orchestration.demo import campaign_api, plant, retail_db

_LAND = """
import sys
from orchestration.contracts.raw import contract_of
from orchestration.connectors import relational, rest_api
from orchestration.landing.land import RawTable, land
from orchestration.settings import load_settings
settings = load_settings()
def by_table(system, entity, cursor, source, read):
    contract = contract_of(system, entity)
    source = source(tuple(contract.columns))
    table = RawTable(f"{system}__{entity}", contract, cursor)
    land(settings, table, lambda position: read(source, position))
for entity, cursor in (
    ("transactions", "transaction_timestamp"), ("products", None), ("demographics", None)
):
    by_table("retail_db", entity, cursor, lambda columns: relational.RelationalTable(
        url=settings.value_of("retail_db_url"), table=entity, columns=columns,
        system="retail_db", url_setting="", cursor=cursor), relational.read)
for entity in ("campaigns", "mailings", "redemptions"):
    by_table("campaign_api", entity, "published_at", lambda columns: rest_api.RestEndpoint(
        base_url=settings.campaign_api_url, path=f"/v1/{entity}", columns=columns,
        partitions=f"/v1/{entity}/weeks", partition="week",
        token=settings.value_of("campaign_api_token"), system="campaign_api", table=entity,
        url_setting="", token_setting=""), rest_api.read)
"""
_LEARN = """
from orchestration.defs.trained_models.customer_segmentation import _row
from orchestration.learning import customer_segmentation_plots as plots
from orchestration.learning.customer_segmentation import describe, fit, predict
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect
from orchestration.warehouse.frames import read_frame, replace_part
settings = load_settings()
training_set = "training_sets.train_customer_segmentation"
previous = None
with connect(settings) as lake:
    archetypes = read_frame(lake, "from seeds.segment_archetypes")
    months = read_frame(lake, f"select distinct as_of_at from {training_set} order by 1")
    for as_of_at in months["as_of_at"]:
        frame = read_frame(lake, f"from {training_set} where as_of_at = ?", [as_of_at])
        fitted = fit(frame, archetypes, previous)
        segments = predict(fitted.model, frame)
        words = describe(fitted.model, frame, segments, archetypes, previous)
        replace_part(lake, settings, {
            "trained_models.customer_segmentation": _row(fitted, frame, 0),
            "trained_models.customer_segmentation__segments": words,
            "predictions.customer_segments": segments,
        }, where="as_of_at", equals=as_of_at)
        plots.draw_segments(fitted.model, frame, segments, archetypes)
        if previous is not None:
            plots.draw_migration(previous, segments, archetypes)
        previous = segments
"""


def measure(runs: int = 3) -> Iterator[tuple[str, ...]]:
    """Two rows, from `runs` rounds on fresh warehouses over the same source systems."""
    token = secrets.token_hex(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    through, again, by_hand = [], [], []
    with tempfile.TemporaryDirectory() as folder, campaign_api.running(url, token):
        database = Path(folder) / "retail.sqlite"
        retail_db.fill(database)
        machines, readings = Path(folder) / "plant.sqlite", Path(folder) / "plant_stream"
        plant.fill(machines, readings, plant.World(machines=1, days=1))  # not what is measured
        for number in range(runs):
            environment = {
                "WATERSHED_RETAIL_DB_URL": f"sqlite:///{database}",
                "WATERSHED_PLANT_DB_URL": f"sqlite:///{machines}",
                "WATERSHED_PLANT_STREAM_URL": f"log://{readings}",
                "WATERSHED_CAMPAIGN_API_URL": url,
                "WATERSHED_CAMPAIGN_API_TOKEN": token,
            }
            environment["WATERSHED_DATA_DIR"] = f"{folder}/through_{number}"
            through.append(seconds([BIN / "watershed", "build"], environment=environment))
            again.append(seconds([BIN / "watershed", "build"], environment=environment))
            environment["WATERSHED_DATA_DIR"] = f"{folder}/by_hand_{number}"
            by_hand.append(_by_hand(environment))
    middle = statistics.median
    yield row("graph through Dagster / its steps by hand", middle(through), middle(by_hand), 1.5)
    yield row("second run with nothing new / first run", middle(again), middle(through), 0.25)


def _by_hand(environment: dict[str, str]) -> float:
    """Land, `dbt build`, fit and score twelve months, `dbt build` of what watches them."""
    dbt = [BIN / "dbt", "build", "--exclude-resource-type", "unit_test"]
    project = ROOT / "dbt_project"
    return sum(
        (
            seconds([sys.executable, "-c", _LAND], environment=environment),
            seconds([*dbt, "--exclude", "path:models/monitoring"], project, environment),
            seconds([sys.executable, "-c", _LEARN], environment=environment),
            seconds([*dbt, "--select", "path:models/monitoring"], project, environment),
        )
    )
