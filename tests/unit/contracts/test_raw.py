"""Contracts of raw tables: what a defs.yaml says is what landing checks, and mistakes in it are named."""

from __future__ import annotations

import duckdb
import pandera.polars as pa
import polars as pl
import pytest

from orchestration.contracts.raw import (
    SOURCES,
    build_contract,
    contract_of,
    described_tables,
    line_of,
    rules_of,
    version_of,
)
from orchestration.errors import MendableError
from orchestration.landing.checking import sql_types, verify

FILES = sorted(SOURCES.glob("*/defs.yaml"))
TABLES = [(f.parent.name, table["name"]) for f in FILES for table in described_tables(f)]


@pytest.mark.parametrize(("system", "entity"), TABLES)
def test_every_described_table_has_a_contract_that_pandera_and_duckdb_understand(system, entity):
    contract = contract_of(system, entity)
    assert contract.name == f"{system}.{entity}"
    assert len(sql_types(contract)) == len(contract.columns)
    with duckdb.connect() as connection:
        verify(connection, contract)


def test_a_contract_in_yaml_is_the_one_in_python():
    contract = build_contract(
        "shop.sales",
        {
            "id": {"dtype": "Int64", "greater_than": 0},
            "amount_usd": {"dtype": "Decimal(12, 2)", "nullable": True},
            "kind": {"dtype": "String", "isin": ["a", "b"]},
            "share": {"dtype": "Float64", "in_range": {"min_value": 0, "max_value": 1}},
        },
        rules={"is_paid": "amount_usd is not null"},
    )
    assert contract.columns == {
        "id": pa.Column(pl.Int64, pa.Check.greater_than(0), name="id"),
        "amount_usd": pa.Column(pl.Decimal(12, 2), nullable=True, name="amount_usd"),
        "kind": pa.Column(pl.String, pa.Check.isin(["a", "b"]), name="kind"),
        "share": pa.Column(pl.Float64, pa.Check.in_range(0, 1), name="share"),
    }
    assert rules_of(contract) == {"is_paid": "amount_usd is not null"}


def test_a_contract_has_another_version_when_it_says_something_else():
    versions = [
        version_of(build_contract("a.b", {"id": spec}, rules=rules, description=text))
        for spec, rules, text in [
            ({"dtype": "Int64"}, {}, "one"),
            ({"dtype": "Int64"}, {}, "in other words"),
            ({"dtype": "Int64", "nullable": True}, {}, "one"),
            ({"dtype": "Int64"}, {"positive": "id > 0"}, "one"),
        ]
    ]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "Int63"},
        {"dtype": "Int64", "greter_than": 0},
        {"dtype": "String", "str_matches": None},
        {"dtype": "Int64", "in_range": {"min_value": 3, "max_value": 1}},
    ],
)
def test_a_mistake_in_a_column_is_named_with_the_file_to_change(spec):
    with pytest.raises(MendableError, match=r"contract of column id[\s\S]*a/defs\.yaml"):
        build_contract("a.b", {"id": spec})


@pytest.mark.parametrize("rule", ["id >", "nobody > 0", "id; drop table x"])
def test_a_rule_that_is_no_condition_over_the_columns_is_named(rule):
    contract = build_contract("a.b", {"id": {"dtype": "Int64"}}, rules={"odd": rule})
    with duckdb.connect() as connection, pytest.raises(MendableError, match="the rule odd"):
        verify(connection, contract)


def test_a_mistake_is_found_on_its_line():
    file = SOURCES / "campaign_api" / "defs.yaml"
    lines = file.read_text().splitlines()
    assert "household_id" in lines[line_of(file, "mailings", "household_id") - 1]
    assert "ends_after" in lines[line_of(file, "campaigns", "ends_after_it_starts") - 1]


def test_a_table_that_nobody_described_is_named():
    with pytest.raises(LookupError, match=r"nobody\.nothing"):
        contract_of("nobody", "nothing")


def test_what_a_column_tells_of_persons_leaves_the_contract_as_it_was():
    plain = build_contract("a.b", {"id": {"dtype": "Int64"}})
    tagged = build_contract("a.b", {"id": {"dtype": "Int64", "privacy": "direct_identifier"}})
    assert version_of(plain) == version_of(tagged)
    assert plain.columns == tagged.columns
