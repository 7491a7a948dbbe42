"""Sources described by a file: each kind lands from its description alone, the one in CONTRIBUTING.md first."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from orchestration.connectors.event_log import Producer, create_topic
from orchestration.contracts import raw
from orchestration.defs.components import EventStreamSource, Reload, described_source
from orchestration.errors import MendableError
from orchestration.landing.land import land
from orchestration.settings import load_settings
from orchestration.warehouse.connect import connect, writing

ROOT = Path(__file__).resolve().parents[3]
EVENTS = """
type: orchestration.defs.components.{kind}
attributes:
  system: shop
  description: A shop.
  use_case: customer_segmentation
  owner: team:shop
  url_setting: shop_url
  fresh_within_days: 1
  schedule: "0 3 * * *"
{more}
  tables:
    - name: sales
      description: A sale.
      contract:
        sale_id: {{dtype: Int64, greater_than: 0}}
        amount_usd: {{dtype: "Decimal(12, 2)"}}
"""


@pytest.fixture
def describe(monkeypatch, tmp_path):
    """Describes a source in a folder of its own."""
    monkeypatch.setattr(raw, "SOURCES", tmp_path / "raw")

    def describe(text):
        system = yaml.safe_load(text)["attributes"]["system"]
        file = tmp_path / "raw" / system / "defs.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        return described_source(system)

    return describe


def land_all(settings, source, **reload):
    (table,) = source.tables
    read = Reload(**reload)
    return land(
        settings,
        source.raw_table(table),
        lambda position: source.read(settings, table, position, read),
    )


def rows_of(settings, query):
    with connect(settings, read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_the_example_in_contributing_lands_a_table(settings, describe, monkeypatch, tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    source = describe(example)
    file = tmp_path / "erp.sqlite"
    with closing(sqlite3.connect(file)) as database:
        database.executescript(
            """
            create table "Order Lines" (order_id integer, line integer, customer_name text,
                amount numeric, state text, changed_at timestamp, paid_at timestamp);
            insert into "Order Lines" values
                (1, 1, 'Ada', '1.50', 'open', '2026-01-05', null),
                (1, 2, 'Ada', '1.505', 'open', '2026-01-05', null),
                (2, 1, 'Bob', '2.00', 'paid', '2026-01-06', '2026-01-05'),
                (3, 1, 'Eve', '3.00', 'paid', '2026-01-06', '2026-01-07');
            """
        )
    monkeypatch.setenv("WATERSHED_ERP_URL", f"sqlite:///{file}")
    landed = land_all(settings, source)
    assert (landed.rows_in, landed.rows_kept, landed.rows_quarantined) == (4, 3, 1)
    assert dict(landed.reasons) == {"paid_after_it_changed": 1}
    columns = [name for name, *_ in rows_of(settings, "describe raw.erp__orders")]
    assert "customer_name" not in columns
    with closing(sqlite3.connect(file)) as database:
        database.executescript("""delete from "Order Lines" where order_id = 3""")
    land_all(settings, source)
    assert rows_of(settings, "select order_id from raw.erp__orders where _is_deleted") == [(3,)]
    again = land_all(settings, source, reload_from="2026-01-01", reload_to="2026-02-01")
    assert again.rows_kept == 0


def test_files_land_from_their_description(settings, describe, monkeypatch, tmp_path):
    source = describe(EVENTS.format(kind="LakeFilesSource", more="  file_format: csv"))
    folder = tmp_path / "lake" / "sales"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("sale_id,amount_usd\n1,2.50\n0,1.00\n")
    monkeypatch.setenv("WATERSHED_SHOP_URL", str(tmp_path / "lake"))
    landed = land_all(settings, source)
    assert (landed.rows_kept, landed.rows_quarantined) == (1, 1)
    assert land_all(settings, source).rows_in == 0


@pytest.fixture
def stream(describe, monkeypatch, tmp_path):
    create_topic(tmp_path / "log", "sales")
    monkeypatch.setenv("WATERSHED_SHOP_URL", f"log://{tmp_path / 'log'}")
    with Producer(tmp_path / "log", "sales") as producer:
        yield describe(EVENTS.format(kind="EventStreamSource", more="")), producer


def event(number):
    return json.dumps({"sale_id": number, "amount_usd": 1.5}).encode()


def test_a_stream_is_drained_from_its_description(settings, stream):
    source, producer = stream
    for value in (event(1), b"\xff poison", event(2)):
        producer.append(None, value)
    landed = land_all(settings, source)
    assert (landed.rows_kept, landed.rows_quarantined) == (2, 1)
    producer.append(None, event(3))
    assert land_all(settings, source).rows_in == 1
    assert rows_of(
        settings, "select sale_id, _source_position from raw.shop__sales order by 1"
    ) == [
        (1, "sales/0/0"),
        (2, "sales/0/2"),
        (3, "sales/0/3"),
    ]


def test_a_stream_is_followed_until_it_is_told_to_stop(settings, stream):
    source, producer = stream
    assert isinstance(source, EventStreamSource)
    producer.append(None, event(1))
    said, stop = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 1:
            producer.append(None, event(2))
        else:
            stop.set()

    source.follow(settings, source.tables[0], stop=stop, say=say)
    assert rows_of(settings, "select sale_id from raw.shop__sales order by 1") == [(1,), (2,)]


def test_a_follower_outwaits_another_writer_and_loses_nothing(stream, monkeypatch):
    source, producer = stream
    settings = load_settings(lock_timeout_seconds=0.1)
    said, stop = [], threading.Event()
    busy = writing(settings, "a long build")
    busy.__enter__()

    def say(line):
        said.append(line)
        if len(said) == 1:
            producer.append(None, event(1))
            busy.__exit__(None, None, None)
        if "landed" in line:
            stop.set()

    source.follow(settings, source.tables[0], stop=stop, say=say)
    assert "a long build" in said[0]
    assert rows_of(settings, "select sale_id from raw.shop__sales") == [(1,)]


def test_a_source_that_nobody_described_is_named_with_those_that_are(describe):
    describe(EVENTS.format(kind="EventStreamSource", more=""))
    with pytest.raises(MendableError, match=r"the source erp[\s\S]*one of shop"):
        described_source("erp")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("greater_than: 0", "greter_than"),
        ("use_case: customer_segmentation", "use_case"),
        ("name: sales", "name"),
    ],
)
def test_a_mistake_in_a_description_is_not_accepted(describe, wrong, told):
    text = EVENTS.format(kind="EventStreamSource", more="")
    instead = {
        "greater_than: 0": "greter_than: 0",
        "use_case: customer_segmentation": "use_case: nobody",
        "name: sales": "name: Sales!",
    }[wrong]
    with pytest.raises(MendableError, match=rf"{told}[\s\S]*make lint"):
        describe(text.replace(wrong, instead))
