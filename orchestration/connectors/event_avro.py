"""Avro records without a container to Arrow columns; what is none of its schema gets its reason.

Fields arrive typed, times and dates as such; records, arrays, maps and unions of several types as JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Mapping
from decimal import Context, Decimal
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError

if TYPE_CHECKING:
    import pyarrow as pa

_ID = "{id}"
_WIDE = Context(prec=1000)
_NOT_AVRO = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
    struct.error,
)
"""What fastavro raises on bytes that are not of the schema."""

Types = dict[str, "pa.DataType | None"]


def avro_decoder(schema: str) -> Callable[[pa.Array], tuple[pa.Table, dict[int, str]]]:
    """From events' bytes, none missing, to rows and the reasons for those that are none, by number.

    Args:
        schema: path of a record's schema in JSON. With `{id}` in it the events carry Confluent's
            header, a zero and four bytes of the schema's number, which takes the place of `{id}`.

    Raises:
        MendableError: a schema cannot be read.
    """
    schemas: dict[str, tuple[Any, Types] | None] = {}
    if _ID not in schema:
        schemas[schema] = _schema(Path(schema))

    def decode(values: pa.Array) -> tuple[pa.Table, dict[int, str]]:
        import pyarrow as pa

        records: dict[int, dict[str, Any]] = {}
        reasons: dict[int, str] = {}
        types = Types()
        for number, content in enumerate(values.to_pylist()):
            path = schema
            if _ID in schema:
                path = schema.replace(_ID, str(int.from_bytes(content[1:5])))
                if path not in schemas:
                    schemas[path] = _schema(Path(path)) if Path(path).exists() else None
                if len(content) < 5 or content[0] != 0 or schemas[path] is None:
                    reasons[number] = "not behind the number of a schema that there is a file of"
                    continue
                content = content[5:]
            parsed, kinds = schemas[path] or (None, {})
            record = _record(parsed, content)
            if record is None:
                reasons[number] = "not Avro of its schema"
                continue
            records[number] = record
            for name, kind in kinds.items():
                types[name] = kind if types.get(name, kind) == kind else None
        try:
            return _table(records.values(), types), reasons
        except (pa.ArrowInvalid, OverflowError):
            for number, record in list(records.items()):
                try:
                    _table([record], types)
                except (pa.ArrowInvalid, OverflowError):
                    del records[number]
                    reasons[number] = "not Avro of its schema"
            return _table(records.values(), types), reasons

    return decode


def _schema(path: Path) -> tuple[Any, Types]:
    """A record's schema as fastavro wants it, and its fields' Arrow types, None for JSON as text."""
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException, UnknownType

    try:
        schema = json.loads(path.read_text())
        types = {field["name"]: _arrow_type(field["type"]) for field in schema["fields"]}
        for field in schema["fields"]:
            if types[field["name"]] is not None:
                field["type"] = _plain(field["type"])
        return parse_schema(schema), types
    except OSError as error:
        arrived = error.strerror or "a file that cannot be read"
    except (ValueError, LookupError, TypeError, SchemaParseException, UnknownType):
        arrived = "another text"
    raise MendableError(
        f"the Avro schema {path}",
        expected="the schema of a record, in JSON",
        arrived=arrived,
        mend="put the producer's schema there, or change avro_schema of the source",
    )


def _record(schema: Any, content: bytes) -> dict[str, Any] | None:
    """The record; None if the bytes are not one of this schema, to the last."""
    from fastavro import schemaless_reader

    stream = BytesIO(content)
    try:
        record: Any = schemaless_reader(stream, schema, None)
    except _NOT_AVRO:
        return None
    return record if stream.tell() == len(content) else None


def _table(
    records: Collection[dict[str, Any]], types: Mapping[str, pa.DataType | None]
) -> pa.Table:
    import pyarrow as pa

    columns = {}
    for name, kind in types.items():
        values = [record.get(name) for record in records]
        if kind is None:
            values = [
                value
                if value is None or isinstance(value, str)
                else json.dumps(value, default=_text)
                for value in values
            ]
        elif pa.types.is_decimal(kind):
            values = [
                None if value is None else _exact(int.from_bytes(value, signed=True), kind.scale)
                for value in values
            ]
        columns[name] = pa.array(values, kind or pa.string())
    return pa.table(columns)


def _exact(unscaled: int, scale: int) -> Decimal:
    return Decimal(unscaled).scaleb(-scale, _WIDE)


def _text(value: Any) -> str:
    """What JSON has no form for: bytes as Avro writes them in JSON, times and decimals as they read."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _arrow_type(avro: Any) -> pa.DataType | None:
    import pyarrow as pa

    if isinstance(avro, list):
        kinds = [kind for kind in avro if kind != "null"]
        return _arrow_type(kinds[0]) if len(kinds) == 1 else None
    avro = avro if isinstance(avro, dict) else {"type": avro}
    logical = avro.get("logicalType", "").removeprefix("local-")
    if logical == "decimal":
        return pa.decimal128(avro["precision"], avro.get("scale", 0))
    return {
        "date": pa.date32(),
        "time-millis": pa.time32("ms"),
        "time-micros": pa.time64("us"),
        "timestamp-millis": pa.timestamp("ms"),
        "timestamp-micros": pa.timestamp("us"),
        "boolean": pa.bool_(),
        "int": pa.int32(),
        "long": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "bytes": pa.binary(),
        "fixed": pa.binary(),
        "string": pa.string(),
        "enum": pa.string(),
    }.get(logical if logical in _TIMES else avro["type"])


_TIMES = ("date", "time-millis", "time-micros", "timestamp-millis", "timestamp-micros")


def _plain(avro: Any) -> Any:
    """The type without its logical one: Arrow takes times as numbers, and fastavro rounds decimals."""
    if isinstance(avro, list):
        return [_plain(kind) for kind in avro]
    if isinstance(avro, dict):
        return {name: value for name, value in avro.items() if name != "logicalType"}
    return avro
