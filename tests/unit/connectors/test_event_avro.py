"""Avro to columns: typed, exact, and nothing but records of the schema."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO

import fastavro
import pyarrow as pa
import pytest

from orchestration.connectors.event_avro import avro_decoder
from orchestration.errors import MendableError

SCHEMA = {
    "type": "record",
    "name": "payment",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "customer", "type": ["null", "string"]},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "paid_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "due", "type": ["null", {"type": "int", "logicalType": "date"}]},
        {"name": "share", "type": "double"},
        {"name": "kind", "type": {"type": "enum", "name": "kind", "symbols": ["card", "cash"]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "either", "type": ["null", "long", "string"]},
    ],
}  # fmt: skip
RECORD = {
    "id": 2**63 - 1,
    "customer": "Zoë",
    "amount": Decimal("1234567890.10"),
    "paid_at": datetime(2026, 1, 31, 12, 0, 0, 5000, UTC),
    "due": date(2026, 2, 1),
    "share": 0.1,
    "kind": "cash",
    "tags": ["a", "b"],
    "either": 5,
}


def encoded(record, schema=SCHEMA):
    content = BytesIO()
    fastavro.schemaless_writer(content, fastavro.parse_schema(schema), record)
    return content.getvalue()


def decoded(decode, values):
    return decode(pa.array(values, pa.binary()))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "payment.avsc").write_text(json.dumps(SCHEMA))
    return str(tmp_path / "payment.avsc")


def test_fields_arrive_typed_and_nested_ones_as_json(path):
    empty = RECORD | {"customer": None, "due": None, "either": None, "tags": []}
    table, reasons = decoded(avro_decoder(path), [encoded(RECORD), encoded(empty)])
    assert reasons == {}
    naive = datetime(2026, 1, 31, 12, 0, 0, 5000)
    assert table.to_pylist() == [
        RECORD | {"paid_at": naive, "tags": '["a", "b"]', "either": "5"},
        empty | {"paid_at": naive, "tags": "[]"},
    ]
    assert table.schema.field("amount").type == pa.decimal128(12, 2)


def test_bytes_that_are_no_record_of_the_schema_are_set_aside_and_the_others_arrive(path):
    good = encoded(RECORD)
    bad = [b"", b"{}", good[:-1], good + b"\0", b"\xff" * 40]
    table, reasons = decoded(avro_decoder(path), [good, *bad, good])
    assert (table.num_rows, list(reasons)) == (2, [1, 2, 3, 4, 5])


def test_a_value_beyond_its_declared_type_is_set_aside_and_not_rounded(path):
    raw = json.loads(json.dumps(SCHEMA))
    raw["fields"][2]["type"] = "bytes"
    raw["fields"][4]["type"] = ["null", "long"]
    plain = RECORD | {"paid_at": 0, "amount": (5).to_bytes(1), "due": 3}
    values = [
        encoded(plain, raw),
        encoded(plain | {"amount": (10**13 + 1).to_bytes(9)}, raw),
        encoded(plain | {"due": 2**40}, raw),
    ]
    table, reasons = decoded(avro_decoder(path), values)
    assert table["amount"].to_pylist() == [Decimal("0.05")]
    assert list(reasons) == [1, 2]


def test_no_bytes_whatever_stop_the_decoder(path):
    decode, good, chance = avro_decoder(path), encoded(RECORD), random.Random(7)
    values = []
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        values.append(bytes(content[: chance.randrange(1, 2 * len(content))]))
    table, reasons = decoded(decode, values)
    assert table.num_rows + len(reasons) == 3000
    assert len(reasons) > 1000


def test_confluents_header_chooses_the_schema_and_fields_of_several_types_come_as_text(tmp_path):
    for number, kind in ((7, "long"), (8, "string")):
        schema = {"type": "record", "name": "e", "fields": [{"name": "v", "type": kind}]}
        (tmp_path / f"e-{number}.avsc").write_text(json.dumps(schema))
    decode = avro_decoder(str(tmp_path / "e-{id}.avsc"))

    def message(number, value, kind, magic=b"\0"):
        schema = {"type": "record", "name": "e", "fields": [{"name": "v", "type": kind}]}
        return magic + number.to_bytes(4) + encoded({"v": value}, schema)

    table, reasons = decoded(decode, [message(7, 1, "long"), message(7, 2, "long")])
    assert (table["v"].to_pylist(), reasons) == ([1, 2], {})
    values = [message(7, 1, "long"), message(8, "x", "string"), message(9, 1, "long"),
              message(7, 1, "long", magic=b"\1"), b"\0\0"]  # fmt: skip
    table, reasons = decoded(decode, values)
    assert (table["v"].to_pylist(), list(reasons)) == (["1", "x"], [2, 3, 4])


@pytest.mark.parametrize("content", [None, "", "{", '"string"', "[]", '{"type": "record"}'])
def test_a_schema_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "x.avsc"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MendableError, match="schema of a record") as caught:
        avro_decoder(str(path))
    assert str(path) in str(caught.value)
