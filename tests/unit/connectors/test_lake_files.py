"""Lake files: every file once, every good row of it, every bad line named, whatever the bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.connectors import SOURCE_POSITION, Span, lake_files
from orchestration.connectors import files as shared
from orchestration.connectors.files import csv_rows, formats, ndjson_rows, stores
from orchestration.connectors.json_rows import MAX_FIELDS
from orchestration.connectors.lake_files import LakeFiles, read
from orchestration.errors import MendableError, SourceUnavailableError

REAL_DATA = os.environ.get("WATERSHED_TEST_DATA")
"""Read before a test's own environment is cleaned."""


def lake(folder, file_format="csv", **changes):
    spec = {
        "location": str(folder),
        "pattern": "**/*",
        "file_format": file_format,
        "system": "shop",
        "table": "sales",
        "location_setting": "WATERSHED_SHOP_FILES",
    }
    return LakeFiles(**(spec | changes))


def write(folder: Path, path: str, content) -> Path:
    """A file of bytes, text, or rows as Parquet."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def zstd(raw: bytes) -> bytes:
    return pa.Codec("zstd").compress(raw, asbytes=True)


class Landed:
    """What landing holds after batches: rows and rejected lines by file, and the position."""

    def __init__(self):
        self.rows, self.rejected = defaultdict(list), defaultdict(list)
        self.position, self.transactions = {}, 0

    def land(self, batches, crash_after=None):
        """Land; with `crash_after`, stop after so many batches, in a transaction or between two."""
        rows, rejected = self._copy()
        new = True
        for number, batch in enumerate(batches):
            if number == crash_after:
                return self
            assert batch.first_time
            assert batch.separable
            if new:
                for path in batch.replaces:
                    rows.pop(path, None)
                    for place in [p for p in rejected if p.rpartition(":")[0] == path or p == path]:
                        del rejected[place]
            columns = [n for n in batch.rows.column_names if n != SOURCE_POSITION]
            for row in batch.rows.to_pylist():
                rows[row.get(SOURCE_POSITION, batch.where)].append({n: row[n] for n in columns})
            for line in batch.rejected.to_pylist() if batch.rejected else []:
                rejected[line[SOURCE_POSITION]].append((line["reason"], line["raw"]))
            new = batch.completes
            if new:
                self.rows, self.rejected, self.position = rows, rejected, batch.position
                self.position = json.loads(json.dumps(batch.position))
                self.transactions += 1
                rows, rejected = self._copy()
        return self

    def _copy(self):
        return (
            defaultdict(list, {k: list(v) for k, v in self.rows.items()}),
            defaultdict(list, {k: list(v) for k, v in self.rejected.items()}),
        )

    def load(self, source, span=None, **options):
        return self.land(read(source, self.position, span, **options))

    def values(self):
        return [tuple(row.values()) for path in sorted(self.rows) for row in self.rows[path]]


def landed(source, **options):
    return Landed().load(source, **options)


def one_file(tmp_path, content, file_format="csv", name="a.csv", **changes):
    write(tmp_path, name, content)
    return landed(lake(tmp_path, file_format, **changes))


def reason_of(result):
    ((_, ((reason, raw),)),) = result.rejected.items()
    assert not any(result.rows.values())
    return reason, raw


# Which files


def test_each_format_plain_and_compressed_brings_the_same_rows(tmp_path):
    table = pa.table({"id": ["1", "2"], "name": ["a", "ü"]})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    for file_format, raw in {
        "csv": "id,name\n1,a\n2,ü\n".encode(),
        "ndjson": '{"id":1,"name":"a"}\n{"id":2,"name":"ü"}\n'.encode(),
        "parquet": parquet.getvalue(),
    }.items():
        folder = tmp_path / file_format
        for ending, pack in {"": bytes, ".gz": gzip.compress, ".zst": zstd}.items():
            write(folder, f"x{ending}/a.{file_format}{ending}", pack(raw))
        result = landed(lake(folder, file_format))
        assert result.values() == [("1", "a"), ("2", "ü")] * 3, file_format
        assert not result.rejected


def test_a_file_is_read_once(tmp_path, settled):
    write(tmp_path, "a.csv", "id\n1\n")
    source, result = lake(tmp_path), Landed()
    result.load(source)
    write(tmp_path, "b.csv", "id\n2\n")
    (batch,) = read(source, result.position)
    assert batch.where == "b.csv"
    result.land([batch])
    assert list(read(source, result.position)) == []
    assert result.values() == [("1",), ("2",)]


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that a test need not wait."""
    monkeypatch.setattr(lake_files, "_SETTLED_MICROSECONDS", -(10**12))


def test_a_touched_file_brings_no_rows_and_moves_the_position(tmp_path, settled):
    file = write(tmp_path, "a.csv", "id\n1\n")
    source = lake(tmp_path)
    result = landed(source)
    before = result.position
    os.utime(file, (1, 1))
    (batch,) = read(source, before)
    assert (batch.rows.num_rows, batch.rejected, batch.replaces) == (0, None, ())
    assert batch.completes
    assert batch.position != before
    assert list(read(source, batch.position)) == []


def test_a_rewritten_file_brings_its_rows_in_place_of_the_old(tmp_path):
    write(tmp_path, "a.csv", "id\n1\n2\n")
    write(tmp_path, "b.csv", "id\n3\n")
    result = landed(lake(tmp_path))
    write(tmp_path, "a.csv", "id\n2\n4\n5\n")
    batches = list(read(lake(tmp_path), result.position))
    assert batches[0].replaces == ("a.csv",)
    assert result.land(batches).values() == [("2",), ("4",), ("5",), ("3",)]


def test_a_rewrite_of_the_same_size_within_the_clocks_grain_is_noticed(tmp_path, monkeypatch):
    write(tmp_path, "a.csv", "id\n1\n")
    source = lake(tmp_path)
    listing = stores.Folder._file
    monkeypatch.setattr(  # a file system whose clock stands still
        stores.Folder,
        "_file",
        lambda self, address, stat: listing(self, address, stat)._replace(
            modified=lake_files.time.time_ns() // 1000 // 10**9 * 10**9 + 10**9
        ),
    )
    result = landed(source)
    write(tmp_path, "a.csv", "id\n2\n")
    assert result.load(source).values() == [("2",)]


def test_a_rewrite_that_is_broken_keeps_the_old_rows_until_it_is_mended(tmp_path):
    file = write(tmp_path, "a.csv.gz", gzip.compress(b"id\n1\n"))
    source = lake(tmp_path)
    result = landed(source)
    file.write_bytes(gzip.compress(b"id\n2\n")[:-3])
    assert result.load(source).values() == [("1",)]
    assert len(result.rejected["a.csv.gz"]) == 1
    file.write_bytes(gzip.compress(b"id\n2\n"))
    assert result.load(source).values() == [("2",)]
    assert not result.rejected.get("a.csv.gz")


def test_a_deleted_file_keeps_its_rows_and_is_known_when_it_comes_back(tmp_path):
    file = write(tmp_path, "a.csv", "id\n1\n")
    source = lake(tmp_path)
    result = landed(source)
    file.rename(tmp_path.parent / "elsewhere")
    assert list(read(source, result.position)) == []
    (tmp_path.parent / "elsewhere").rename(file)
    assert result.load(source).values() == [("1",)]


def changing(monkeypatch, change):
    """Do `change` once, between the first look at a file and the last."""
    decode, todo = lake_files.decode, [change]

    def decode_and_change(*args):
        yield from decode(*args)
        while todo:
            todo.pop()()

    monkeypatch.setattr(lake_files, "decode", decode_and_change)


def test_a_file_still_being_written_is_left_for_the_next_time(tmp_path, monkeypatch, caplog):
    file = write(tmp_path, "a.csv", "id\n1\n")
    write(tmp_path, "b.csv", "id\n3\n")
    source = lake(tmp_path)
    changing(monkeypatch, lambda: file.write_text("id\n1\n2\n"))
    result = landed(source)
    assert result.values() == [("3",)]
    assert "'a.csv' changed while it was read" in caplog.text
    assert result.load(source).values() == [("1",), ("2",), ("3",)]


def test_a_file_that_vanishes_is_passed_over_and_said(tmp_path, monkeypatch, caplog):
    for name in "abc":
        write(tmp_path, f"{name}.csv", f"id\n{name}\n")
    changing(monkeypatch, lambda: [(tmp_path / f"{name}.csv").unlink() for name in "ab"])
    assert landed(lake(tmp_path)).values() == [("c",)]
    assert "'a.csv' vanished while it was read" in caplog.text
    assert "'b.csv' vanished before it was read" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.csv", ["a.csv", "x/b.csv", "x/y/c.csv"]),
        ("*.csv", ["a.csv"]),
        ("x/**/*.csv", ["x/b.csv", "x/y/c.csv"]),
        ("x/*", ["x/b.csv", "x/d.txt"]),
        ("*/?/c.csv", ["x/y/c.csv"]),
        ("**", ["a.csv", "x/b.csv", "x/d.txt", "x/y/c.csv"]),
        ("a[.]csv", []),
    ],
)
def test_a_pattern_picks_files_by_their_path(tmp_path, pattern, found):
    for path in ("a.csv", "x/b.csv", "x/y/c.csv", "x/d.txt"):
        write(tmp_path, path, "id\n1\n")
    assert sorted(landed(lake(tmp_path, pattern=pattern)).rows) == found


def test_what_other_tools_hide_is_no_data(tmp_path):
    for path in ("_SUCCESS", ".a.csv.crc", "_temporary/0/a.csv", ".git/a.csv", "_day=1/a.csv"):
        write(tmp_path, path, "id\n1\n")
    assert list(landed(lake(tmp_path)).rows) == ["_day=1/a.csv"]


def test_links_are_not_followed_and_what_is_no_file_is_passed_over(tmp_path):
    write(tmp_path, "outside/secret.csv", "id\nsecret\n")
    write(tmp_path, "lake/a.csv", "id\n1\n")
    (tmp_path / "lake/link.csv").symlink_to(tmp_path / "outside/secret.csv")
    (tmp_path / "lake/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "lake/up").symlink_to(tmp_path / "lake")
    os.mkfifo(tmp_path / "lake/pipe.csv")
    assert landed(lake(tmp_path / "lake")).values() == [("1",)]


NAMES = [
    "q'uo\"te",
    "new\nline",
    "zero\u200bwidth",
    "a[1]*?",
    "..",
    "sp ace",
    "%2e%2e",
    ";drop",
    "é",
]


def test_any_name_is_safe(tmp_path):
    for name in NAMES:
        write(tmp_path, f"k={name}/x{name}.csv", "id\n1\n")
    with open(os.fsencode(tmp_path) + b"/not-utf-8-\xff.csv", "w") as file:
        file.write("id\n2\n")
    result = landed(lake(tmp_path))
    assert set(result.rows) == {f"k={n}/x{n}.csv" for n in NAMES} | {"not-utf-8-\\xff.csv"}
    assert not result.rejected
    result.load(lake(tmp_path))
    assert len(result.values()) == len(NAMES) + 1


def test_folders_that_say_key_and_value_are_columns_of_text(tmp_path):
    write(tmp_path, "month=2018-04/day=7/a.csv", "id\n1\n")
    write(tmp_path, "month=a%2Fb%20c/day=__HIVE_DEFAULT_PARTITION__/b.csv", "id\n2\n")
    write(tmp_path, "month=..%2F..%2Fetc/day=/c.csv", "id\n3\n")
    assert [row for rows in landed(lake(tmp_path)).rows.values() for row in rows] == [
        {"id": "3", "month": "../../etc", "day": ""},
        {"id": "1", "month": "2018-04", "day": "7"},
        {"id": "2", "month": "a/b c", "day": None},
    ]


def test_a_files_own_column_goes_before_its_folders(tmp_path):
    write(tmp_path, "Month=4/a.parquet", pa.table({"id": [1], "month": [5]}))
    assert landed(lake(tmp_path, "parquet")).values() == [(1, 5)]


def test_ignored_columns_are_left_out_of_every_format(tmp_path):
    write(tmp_path, "k=1/a.csv", "id,note,note\n1,x,y\n")
    write(tmp_path, "k=1/a.ndjson", '{"id":1,"note":2}\n')
    write(tmp_path, "k=1/a.parquet", pa.table({"id": ["1"], "note": ["x"]}))
    for file_format in ("csv", "ndjson", "parquet"):
        source = lake(tmp_path, file_format, pattern=f"**/*.{file_format}", ignore=("note", "k"))
        assert landed(source).values() == [("1",)], file_format


@pytest.mark.parametrize("file_format", ["csv", "ndjson", "parquet"])
def test_a_file_larger_than_a_batch_lands_in_one_transaction(tmp_path, file_format):
    rows = [{"id": str(n), "name": f"n{n}"} for n in range(2500)]
    write_rows(tmp_path, f"k=1/a.{file_format}", rows)
    batches = list(read(lake(tmp_path, file_format), {}, batch_rows=1000))
    assert [(b.rows.num_rows, b.completes, b.where) for b in batches] == [
        (1000, False, f"k=1/a.{file_format}"),
        (1000, False, f"k=1/a.{file_format}"),
        (500, True, f"k=1/a.{file_format}"),
    ]
    assert batches[0].position == {"files": {}}
    assert Landed().land(batches).values() == [(r["id"], r["name"], "1") for r in rows]


def write_rows(folder, path, rows):
    if path.endswith("parquet"):
        write(folder, path, pa.Table.from_pylist(rows))
    elif path.endswith("ndjson"):
        write(folder, path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        text = io.StringIO()
        csv.writer(text).writerows([list(rows[0]), *(row.values() for row in rows)])
        write(folder, path, text.getvalue())


def test_many_small_files_share_a_transaction_and_each_row_says_its_file(tmp_path):
    for number in range(300):
        write(tmp_path, f"{number:03}.csv", f"id\n{number}\n")
    write(tmp_path, "100.csv", "id\n1,2\n3\n")
    (batch,) = read(lake(tmp_path), {})
    assert batch.where == "300 files from 000.csv to 299.csv"
    assert batch.rows[SOURCE_POSITION].to_pylist()[7] == "007.csv"
    assert batch.rejected[SOURCE_POSITION].to_pylist() == ["100.csv:2"]
    assert len(batch.position["files"]) == 300


def test_files_of_another_shape_are_transactions_of_their_own(tmp_path):
    write(tmp_path, "a.parquet", pa.table({"id": [1]}))
    write(tmp_path, "b.parquet", pa.table({"id": [2], "new": ["x"]}))
    write(tmp_path, "c.parquet", pa.table({"id": [3.5]}))
    batches = list(read(lake(tmp_path, "parquet"), {}))
    assert [(b.where, b.completes, str(b.rows.schema.types)) for b in batches] == [
        ("a.parquet", True, "[DataType(int64)]"),
        ("b.parquet", True, "[DataType(int64), DataType(string)]"),
        ("c.parquet", True, "[DataType(double)]"),
    ]


def test_rows_beyond_memory_wait_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lake_files, "HELD_BYTES", 100)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 200)
    rows = [{"id": str(n)} for n in range(1000)]
    write_rows(tmp_path, "a.csv", rows)
    assert landed(lake(tmp_path)).values() == [(row["id"],) for row in rows]


def test_a_span_reloads_the_files_in_it_in_place_of_their_rows(tmp_path, settled):
    for month in (4, 5, 6):
        write(tmp_path, f"month=2018-0{month}/a.csv", f"id\n{month}\n{month}\n")
    source = lake(tmp_path)
    result = landed(source)
    before = result.position
    span = Span("month=2018-05", "month=2018-06")
    (batch,) = read(source, before, span)
    assert batch.replaces == ("month=2018-05/a.csv",)
    assert batch.position == before
    rows = result.values()
    assert result.land([batch]).values() == rows
    assert [b.rows.num_rows for b in read(source, before, Span(None, "month=2018-06"))] == [4]
    assert [b.rows.num_rows for b in read(source, before, Span())] == [6]


def test_a_file_that_a_span_brings_first_is_not_read_again(tmp_path):
    write(tmp_path, "a.csv", "id\n1\n")
    write(tmp_path, "b.csv", "id\n2\n")
    source = lake(tmp_path)
    result = Landed().load(source, Span("b"))
    assert result.values() == [("2",)]
    assert result.load(source).values() == [("1",), ("2",)]


def test_a_broken_file_is_rejected_once_however_often_its_span_is_reloaded(tmp_path):
    write(tmp_path, "a.parquet", b"PAR1 but no more")
    source = lake(tmp_path, "parquet")
    result = landed(source)
    for _ in range(2):
        result.load(source).load(source, Span())
    assert len(result.rejected["a.parquet"]) == 1


# Files that are not what they should be


def test_a_broken_file_is_one_rejected_row_and_the_others_land(tmp_path):
    good = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(10_000))}), good)
    middle = bytearray(good.getvalue())
    middle[3000:6000] = bytes(3000)
    write(tmp_path, "good.parquet", good.getvalue())
    for name, raw, reason in [
        ("cut", good.getvalue()[:-100], "truncated"),
        ("empty", b"", "empty"),
        ("garbage", os.urandom(5000), "mislabelled"),
        ("middle", bytes(middle), "corrupt"),
        ("text", b"id\n1\n", "mislabelled"),
        ("encrypted", b"PARE" + bytes(100) + b"PARE", "encrypted"),
    ]:
        write(tmp_path, f"{name}.parquet", raw)
        result = landed(lake(tmp_path, "parquet"))
        assert len(result.rows.pop("good.parquet")) == 10_000
        ((said, first),) = result.rejected[f"{name}.parquet"]
        assert reason in said, name
        assert first == raw[:1024]
        before = result.transactions
        (tmp_path / f"{name}.parquet").unlink()
        result.load(lake(tmp_path, "parquet"))
        assert result.transactions <= before + 1


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.csv.gz", b"id\n1\n", "named like gzip, but it is something else"),
        ("a.csv", gzip.compress(b"id\n1\n"), "named like plain csv, but it is gzip"),
        ("a.csv.zst", gzip.compress(b"id\n1\n"), "named like zstd, but it is gzip"),
        ("a.csv", b"PK\x03\x04" + bytes(50), "a ZIP archive or a spreadsheet"),
        ("a.csv", b"PAR1" + bytes(50), "Parquet"),
        ("a.csv", b"\n<!DOCTYPE html><html>Not found", "a web page"),
        ("a.csv.gz", gzip.compress(b"id\n" + os.urandom(9999).hex().encode())[:-20], "truncated"),
        ("a.csv.gz", gzip.compress(b"id\n1\n")[:-6] + b"abcdef", "corrupt"),
        ("a.csv.zst", zstd(b"id\n" + os.urandom(9999).hex().encode())[:-20], "truncated"),
        ("a.csv.gz", gzip.compress(b""), "empty"),
        ("a.csv", b"\n\r\n\n", "nothing but line breaks"),
        ("a.csv", b"id,Id\n1,2\n", "two columns of one name: 'id' and 'Id'"),
        ("a.csv", b"id,\xff\n1,2\n", "header is not UTF-8"),
        ("a.csv", b'id,"x"y\n1,2\n', "header is not a line of CSV"),
        ("a.csv", b"id,_source_position\n1,2\n", "_source_position"),
        ("k=1/K=2/a.csv", b"id\n1\n", "two of its folders"),
        ("a.csv", b"\xff\xfei\0d\0\n\0\x00\xd8", "not text in utf-16-le"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_set_aside_in_words(tmp_path, name, raw, reason):
    said, first = reason_of(one_file(tmp_path, raw, name=name))
    assert reason in said
    assert first == raw[:1024]


def test_a_bomb_is_set_aside_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_EXPANSION_FLOOR", 2**20)
    raw = b"id\n" + b"1\n" * 5_000_000
    for name, packed in (("a.csv.gz", gzip.compress(raw)), ("b.csv.zst", zstd(raw))):
        write(tmp_path, name, packed)
    result = landed(lake(tmp_path))
    assert not any(result.rows.values())
    assert ["a bomb" in reason for ((reason, _),) in result.rejected.values()] == [True, True]


def test_a_file_that_this_user_may_not_read_is_set_aside_until_its_rights_change(tmp_path, settled):
    if os.getuid() != 0:
        pytest.skip("only root can become a user without rights")
    lake_folder = tmp_path / "lake"
    write(lake_folder, "a.csv", "id\n1\n")
    write(lake_folder, "b.csv", "id\n2\n").chmod(0o600)
    write(lake_folder, "closed/c.csv", "id\n3\n")
    (lake_folder / "closed").chmod(0o700)
    source, result = lake(lake_folder), Landed()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/tmp") and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        result.load(source)
        assert list(read(source, result.position)) == []
    finally:
        os.seteuid(0)
    assert result.values() == [("1",)]
    assert set(result.rejected) == {"b.csv", "closed/"}
    (lake_folder / "b.csv").chmod(0o644)
    (lake_folder / "closed").chmod(0o755)
    assert result.load(source).values() == [("1",), ("2",), ("3",)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_file_never_stops_the_load(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("lake")
    kind = data.draw(st.sampled_from(["parquet", "csv", "csv.gz", "ndjson.zst"]))
    table = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(50)), "n": [f"n{i}" for i in range(50)]}), table)
    text = b"id,n\n" + b"".join(b"%d,n%d\n" % (i, i) for i in range(50))
    lines = b"".join(b'{"id":%d,"n":[%d]}\n' % (i, i) for i in range(50))
    whole = {
        "parquet": table.getvalue(),
        "csv": text,
        "csv.gz": gzip.compress(text),
        "ndjson.zst": zstd(lines),
    }[kind]
    raw = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    write(folder, f"a.{kind}", bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    write(folder, f"b.{kind}", whole)
    result = landed(lake(folder, kind.partition(".")[0]))
    assert len(result.rows[f"b.{kind}"]) == 50
    assert set(result.position["files"]) == {f"a.{kind}", f"b.{kind}"}


@pytest.mark.parametrize(
    ("location", "arrived"),
    [("", "nothing"), ("/no/such/folder", "no folder"), ("gs://x", "a URL of another kind")],
)
def test_a_location_that_is_none_is_said_with_its_setting(location, arrived):
    with pytest.raises(MendableError, match="WATERSHED_SHOP_FILES") as caught:
        list(read(lake(location), {}))
    assert arrived in str(caught.value)


def test_a_mistake_in_the_description_is_said_at_once():
    with pytest.raises(MendableError, match="delimiter of one ASCII"):
        lake("x", delimiter="||")
    with pytest.raises(MendableError, match="encoding"):
        lake("x", encoding="klingon")


def test_credentials_in_a_location_are_refused_and_never_shown():
    source = lake("s3://key:s3cret@bucket/x")
    with pytest.raises(MendableError) as caught:
        list(read(source, {}))
    assert "s3cret" not in str(caught.value) + repr(source)


def test_a_store_that_does_not_answer_is_worth_another_try(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    with pytest.raises(SourceUnavailableError, match="no connection") as caught:
        list(read(lake("s3://bucket/x"), {}))
    assert "s3cret" not in str(caught.value)


# CSV


def test_values_are_text_and_nothing_is_null(tmp_path):
    raw = 'a,b,c,d\n007,1e5,,""\n=HYPERLINK("x"),+1,@sum,-2\nNULL,NaN,9223372036854775808,0001-01-01\n'
    assert one_file(tmp_path, raw).values() == [
        ("007", "1e5", None, ""),
        ('=HYPERLINK("x")', "+1", "@sum", "-2"),
        ("NULL", "NaN", "9223372036854775808", "0001-01-01"),
    ]


def test_bad_lines_are_rejected_with_their_number_and_bytes_and_the_good_ones_land(tmp_path):
    raw = (
        b"id,note\r\n"
        b'1,"two\r\nlines, and a ""quote"""\r\n'
        b"2\r\n"
        b"3,x,y\r\n"
        b'4,5" pipe\r\n'
        b'5,"open\r\n'
        b'6,"x"y\r\n'
        b"7,\xff\r\n"
        b"8,a\0b\r\n"
        b"\r\n"
        b"9,a\rb\r\n"
        b"10,\xc3\xbc\r\n"
    )
    result = one_file(tmp_path, raw)
    assert result.values() == [("1", 'two\r\nlines, and a "quote"'), ("4", '5" pipe'), ("10", "ü")]
    assert {place: line for place, (line,) in result.rejected.items()} == {
        "a.csv:4": ("1 fields instead of 2", b"2"),
        "a.csv:5": ("3 fields instead of 2", b"3,x,y"),
        "a.csv:7": (csv_rows._OPEN_QUOTE, b'5,"open'),
        "a.csv:8": (csv_rows._OPEN_QUOTE, b'6,"x"y'),
        "a.csv:9": ("bytes that are not UTF-8", b"7,\xff"),
        "a.csv:10": ("a NUL byte", b"8,a\0b"),
        "a.csv:12": ("a carriage return in the middle of a line", b"9,a\rb"),
    }


def test_a_quote_that_is_never_closed_costs_its_line_only(tmp_path):
    result = one_file(tmp_path, b'id,note\n1,a\n2,"b\n3,c\n4,d')
    assert result.values() == [("1", "a"), ("3", "c"), ("4", "d")]
    assert result.rejected["a.csv:3"] == [(csv_rows._OPEN_QUOTE, b'2,"b')]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_byte_order_marks_are_read_and_left_out(tmp_path, mark):
    text = "id,näme\n1,Ωμέγα\n2,🌊\n"
    raw = (b"\xfe\xff" if mark == "utf-16-be" else b"") + text.encode(mark)
    result = one_file(tmp_path, raw)
    assert result.rows["a.csv"] == [{"id": "1", "näme": "Ωμέγα"}, {"id": "2", "näme": "🌊"}]


def test_an_encoding_that_is_given_is_used_and_what_it_does_not_know_is_rejected(tmp_path):
    result = one_file(tmp_path, b"id,n\n1,\x80\n2,\x81\n", encoding="cp1252")
    assert result.values() == [("1", "€")]
    assert list(result.rejected) == ["a.csv:3"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_out(tmp_path, delimiter):
    rows = [["id", "note, and more"], ["1", "a;b"], ["2", "c|d"], ["3", "1,5"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    assert one_file(tmp_path, text.getvalue()).values() == [tuple(row) for row in rows[1:]]


def test_a_delimiter_and_a_header_can_be_given(tmp_path):
    result = one_file(tmp_path, "1 a,b\n2 c\n", delimiter=" ", header=("id", "note"))
    assert result.rows["a.csv"] == [{"id": "1", "note": "a,b"}, {"id": "2", "note": "c"}]


def test_a_column_without_a_name_is_called_by_its_place(tmp_path):
    assert one_file(tmp_path, ",id,\n0,1,x\n").rows["a.csv"] == [
        {"column0": "0", "id": "1", "column2": "x"}
    ]


def test_a_header_without_rows_is_no_error(tmp_path):
    result = one_file(tmp_path, "id,name")
    assert (result.values(), dict(result.rejected), result.transactions) == ([], {}, 1)


def test_ten_thousand_columns_are_columns(tmp_path):
    names = [f"c{n}" for n in range(10_000)]
    result = one_file(tmp_path, ",".join(names) + "\n" + ",".join(names) + "\n")
    assert result.values() == [tuple(names)]


def test_a_line_longer_than_the_limit_is_rejected_and_the_next_ones_land(tmp_path, monkeypatch):
    for module in (shared, csv_rows, ndjson_rows):
        monkeypatch.setattr(module, "LINE_BYTES", 2**16)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2**14)
    long = "x" * 2**18
    raw = f'id,n\n1,a\n2,{long}\n3,"{long}"\n4,b\n5,"' + "y\n" * 2**17 + "6,c\n"
    result = one_file(tmp_path, raw)
    assert [v for v in result.values() if len(v[0]) == 1 and v[0] != "y"] == [
        ("1", "a"),
        ("4", "b"),
        ("6", "c"),
    ]
    assert result.rejected["a.csv:3"][0][1] == b"2," + b"x" * 1022
    assert result.rejected["a.csv:4"][0][1] == b'3,"' + b"x" * 1021
    assert result.rejected["a.csv:6"] == [(csv_rows._OPEN_QUOTE, b'5,"y')]
    lines = f'{{"id":1}}\n{{"id":"{long}"}}\n{{"id":3}}\n'
    result = one_file(tmp_path / "json", lines, "ndjson", "a.ndjson")
    assert result.values() == [("1",), ("3",)]
    assert result.rejected["a.ndjson:2"][0][1] == lines.splitlines()[1][:1024].encode()


def reference(text: bytes, columns: int):
    """The grammar of csv_rows, read byte by byte."""
    rows, bad, place = [], [], 0
    while place < len(text):
        number = text.count(b"\n", 0, place) + 2
        record, fields, at = None, [], place
        while True:
            if text[at : at + 1] == b'"':
                value, at = b"", at + 1
                while True:
                    end = text.find(b'"', at)
                    if end < 0:
                        break
                    value, at = value + text[at:end], end + 1
                    if text[at : at + 1] != b'"':
                        break
                    value, at = value + b'"', at + 1
                if end < 0:
                    break
                fields.append(value.decode("utf-8", "replace"))
            else:
                begin = at
                while text[at : at + 1] not in (b",", b"\r", b"\n", b""):
                    at += 1
                fields.append(text[begin:at].decode("utf-8", "replace") or None)
            if text[at : at + 1] == b",":
                at += 1
                continue
            if text[at : at + 2] == b"\r\n":
                at += 2
                record = text[place:at]
            elif at == len(text) or text[at : at + 1] == b"\n":
                at += 1
                record = text[place:at]
            break
        if record is None:
            at = text.find(b"\n", place) + 1 or len(text)
            bad.append((number, text[place:at].rstrip(b"\r\n")))
        elif record.strip(b"\r\n"):
            good = len(fields) == columns and b"\0" not in record
            try:
                record.decode()
            except UnicodeDecodeError:
                good = False
            if good:
                rows.append(tuple(fields))
            else:
                bad.append((number, record.rstrip(b"\r\n")))
        place = at
    return rows, bad


PARTS = [b"a", b",", b'"', b"\n", b"\r\n", b'""', b',"', b'",', "é".encode()] * 4 + [b"\xff", b"\0"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=40), st.integers(1, 3), st.integers(8, 60))
def test_csv_is_read_by_its_grammar_wherever_blocks_are_cut(parts, columns, block_bytes):
    text = b"".join(parts)
    raw = ",".join("abc"[:columns]).encode() + b"\n" + text
    blocks = iter([raw[n : n + block_bytes] for n in range(0, len(raw), block_bytes)])
    rows, bad = [], []
    for piece in csv_rows.csv_rows(lake("x", delimiter=","), blocks):
        rows += [tuple(row.values()) for row in piece.rows.to_pylist()]
        bad += [(line.number, line.raw) for line in piece.bad]
    assert (rows, bad) == reference(text, columns)


# NDJSON


def ndjson(tmp_path, *lines):
    return one_file(tmp_path, "\n".join(lines) + "\n", "ndjson", "a.ndjson")


def test_json_values_are_text_and_numbers_keep_their_value(tmp_path):
    result = ndjson(
        tmp_path,
        '{"n": 100000000000000000000000, "d": 1.10, "e": 1E400, "b": true, "s": "tru\\u00e9"}',
        '{"n": 9223372036854775808, "d": -0, "e": 0.12345678901234567890123, "b": "x", "s": ""}',
    )
    assert [tuple(map(Decimal, row[:3])) for row in result.values()] == [
        (Decimal(10) ** 23, Decimal("1.1"), Decimal("1E400")),
        (Decimal(2**63), Decimal(0), Decimal("0.12345678901234567890123")),
    ]
    assert [row[3:] for row in result.values()] == [("true", "trué"), ("x", "")]


def test_nested_json_is_json_whose_numbers_keep_their_value(tmp_path):
    nested = '{"a":[1.10,2e5,"é\\"",null,true,{"b":100000000000000000000000}],"c":{}}'
    result = ndjson(tmp_path, f'{{"x":{nested},"y":1}}')
    ((value, one),) = result.values()
    assert one == "1"
    assert json.loads(value, parse_float=Decimal) == json.loads(nested, parse_float=Decimal)


def test_json_without_a_key_is_null_and_new_keys_are_columns_of_the_whole_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ndjson_rows, "_ROWS_AT_ONCE", 2)
    result = ndjson(tmp_path, '{"a":1}', '{"b":null,"c":false}', "", " \r", '{"c":"x","a":2}\r')
    assert result.rows["a.ndjson"] == [
        {"a": "1", "b": None, "c": None},
        {"a": None, "b": None, "c": "false"},
        {"a": "2", "b": None, "c": "x"},
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a":1,"a":2}', "a field twice"),
        ('{"A":1}', "key 'A' beside 'a'"),
        ('{"a":1', "not JSON"),
        ('{"a":1}{"a":2}', "not JSON"),
        ("[1,2]", "not an object"),
        ("{}", "a JSON object without a value"),
        ('{"a":null,"b":null}', "a JSON object without a value"),
        ('{"":1}', "a field without a name"),
        ("a,b,c", "not JSON"),
        ('{"a":"\\ud800"}', "not JSON"),
        ('{"a":01}', "not JSON"),
        ('{"a":' + "[" * 50_000 + "1.00000000000000001" + "]" * 50_000 + "}", "nested too deeply"),
    ],
)
def test_a_bad_json_line_is_rejected_and_the_good_ones_land(tmp_path, line, reason):
    result = ndjson(tmp_path, '{"a":1}', "", line, '{"a":2}')
    assert [first for first, *_ in result.values()] == ["1", "2"]
    ((said, raw),) = result.rejected["a.ndjson:3"]
    assert reason in said
    assert raw == line.encode()


def test_a_line_without_a_value_is_rejected_whatever_stands_beside_it(tmp_path):
    for lines in (["{}"], ["{}", '{"a":null}'], ["", "{}", '{"a":1}']):
        result = one_file(tmp_path, "\n".join(lines), "ndjson")
        bad = [number for number, line in enumerate(lines, 1) if line and "1" not in line]
        assert list(result.rejected) == [f"a.csv:{number}" for number in bad]


def test_not_a_number_is_sent_as_text_which_no_number_column_takes(tmp_path):
    assert ndjson(tmp_path, '{"a":NaN}', '{"a":-Infinity}').values() == [("NaN",), ("-Infinity",)]


def test_a_json_line_that_is_not_utf_8_is_rejected(tmp_path):
    result = one_file(tmp_path, b'{"a":1}\n{"a":"\xff"}\n', "ndjson", "a.ndjson")
    assert (result.values(), list(result.rejected)) == ([("1",)], ["a.ndjson:2"])


def test_keys_that_are_data_set_the_file_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson_rows, "MAX_COLUMNS", 10)
    lines = "".join(f'{{"key{n}":1}}\n' for n in range(11))
    assert "more than 10 different keys" in reason_of(one_file(tmp_path, lines, "ndjson"))[0]


def test_a_thousand_keys_are_columns_and_a_row_of_more_is_rejected(tmp_path):
    row = {f"k{n}": str(n) for n in range(MAX_FIELDS)}
    result = ndjson(tmp_path, json.dumps(row), '{"k0":"x"}', json.dumps(row | {"more": 1}))
    assert result.rows["a.ndjson"][0] == row
    assert Counter(result.rows["a.ndjson"][1].values()) == {None: MAX_FIELDS - 1, "x": 1}
    assert list(result.rejected) == ["a.ndjson:3"]


def test_small_ndjson_files_with_fewer_keys_share_a_transaction(tmp_path):
    write(tmp_path, "a.ndjson", '{"id":1,"note":"x"}\n')
    write(tmp_path, "b.ndjson", '{"id":2}\n')
    (batch,) = read(lake(tmp_path, "ndjson"), {})
    assert batch.rows["note"].to_pylist() == ["x", None]


JSON = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), JSON), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_every_json_value_comes_back_wherever_blocks_are_cut(rows, block_bytes):
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    blocks = iter([text[n : n + block_bytes] for n in range(0, len(text), block_bytes)])
    pieces = list(ndjson_rows.ndjson_rows(lake("x", "ndjson"), blocks))
    valued = [any(value is not None for value in row.values()) for row in rows]
    bad = [line.number for piece in pieces for line in piece.bad]
    assert bad == [number for number, good in enumerate(valued, 1) if not good]
    arrived = [row for piece in pieces for row in piece.rows.to_pylist()]
    for row, came in zip(
        [row for row, good in zip(rows, valued, strict=True) if good], arrived, strict=True
    ):
        for key, value in row.items():
            if value is None or isinstance(value, str):
                assert came.get(key) == value
            else:
                assert json.loads(came[key]) == value


# Parquet


def test_parquet_types_come_as_they_are(tmp_path):
    day = pa.scalar(-719_162, pa.int32()).cast(pa.date32())
    table = pa.table(
        {
            "big": pa.array([2**64 - 1], pa.uint64()),
            "money": pa.array([Decimal("1.10")], pa.decimal128(12, 2)),
            "huge": pa.array([Decimal(10) ** 50], pa.decimal256(60, 2)),
            "nan": [float("nan")],
            "year_1": pa.array([day.as_py()], pa.date32()),
            "at": pa.array([0], pa.timestamp("us", "UTC")),
            "list": [[1, 2]],
            "code": pa.array(["x"]).dictionary_encode(),
        }
    )
    write(tmp_path, "a.parquet", table)
    (batch,) = read(lake(tmp_path, "parquet"), {})
    kinds = dict(zip(batch.rows.column_names, map(str, batch.rows.schema.types), strict=True))
    assert kinds == {
        "big": "uint64",
        "money": "decimal128(12, 2)",
        "huge": "string",
        "nan": "double",
        "year_1": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "list": "list<element: int64>",
        "code": "string",
    }
    (row,) = batch.rows.to_pylist()
    assert Decimal(row["huge"]) == Decimal(10) ** 50
    assert str(row["year_1"]) == "0001-01-01"


def test_old_timestamps_keep_their_year(tmp_path):
    at = pa.array([-62_135_596_800_000_000], pa.timestamp("us"))  # year 1
    pq.write_table(pa.table({"at": at}), tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)  # fmt: skip
    (batch,) = read(lake(tmp_path, "parquet"), {})
    assert batch.rows["at"].cast(pa.int64()).to_pylist() == [-62_135_596_800_000_000]


def test_parquet_text_that_is_not_utf_8_is_rejected_row_by_row(tmp_path):
    raw = pa.array([b"a", b"\xff\xfe", None, b"b"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    write(tmp_path, "a.parquet", pa.table({"id": [1, 2, 3, 4], "n": text}))
    result = landed(lake(tmp_path, "parquet"))
    assert result.values() == [(1, "a"), (3, None), (4, "b")]
    assert result.rejected["a.parquet:2"] == [("'n': bytes that are not UTF-8", b"\xff\xfe")]


def test_a_huge_field_comes_in_batches_of_few_rows(tmp_path):
    write(tmp_path, "a.parquet", pa.table({"x": [letter * 30_000_000 for letter in "abcd"]}))
    batches = list(read(lake(tmp_path, "parquet"), {}))
    assert sum(batch.rows.num_rows for batch in batches) == 4
    assert max(batch.rows.nbytes for batch in batches) < 70_000_000


# Over time


CONTENT = st.lists(st.sampled_from(["1", "2", "3", "bad,line"]), max_size=4)
PATHS = ["a.csv", "b.csv.gz", "k=1/c.csv", "d.csv"]
PATHS = ["a.csv", "b.csv.gz", "k=1/c.csv", "d.csv"]
STEP = st.tuples(
    st.dictionaries(st.sampled_from(PATHS), CONTENT, max_size=3),
    st.sets(st.sampled_from(PATHS), max_size=1),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([None, Span("a", "b"), Span()]),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(STEP, max_size=6), st.integers(1, 3))
def test_every_good_row_is_there_once_after_any_writes_crashes_and_reloads(
    tmp_path_factory, steps, batch_rows
):
    folder = tmp_path_factory.mktemp("lake")
    source, result, expected = lake(folder), Landed(), {}
    for written, deleted, crash_after, span in steps:
        for path in deleted:
            (folder / path).unlink(missing_ok=True)
        for path, lines in written.items():
            raw = "".join(f"{line}\n" for line in ["id", *lines]).encode()
            write(folder, path, gzip.compress(raw) if path.endswith("gz") else raw)
            good = [line for line in lines if line.isdigit()]
            if good or not lines:  # one with bad lines only leaves the old rows where they are
                expected[path] = good
        result.land(read(source, result.position, span, batch_rows=batch_rows), crash_after)
        result.load(source, batch_rows=batch_rows)
        found = {path: [row["id"] for row in rows] for path, rows in result.rows.items() if rows}
        assert found == {path: ids for path, ids in expected.items() if ids}


def test_the_real_card_payments_land_whole():
    if not REAL_DATA or not Path(REAL_DATA, "card_payments").is_dir():
        pytest.skip("WATERSHED_TEST_DATA names no folder with card_payments")
    folder = Path(REAL_DATA, "card_payments")
    source = lake(folder, "parquet", pattern="**/*.parquet")
    rows, months = 0, Counter()
    for batch in read(source, {}):
        rows += batch.rows.num_rows
        months.update(batch.rows["month"].to_pylist())
    direct = pq.read_table(folder, partitioning="hive")
    assert rows == direct.num_rows
    assert months == Counter(direct["month"].cast(pa.string()).to_pylist())
