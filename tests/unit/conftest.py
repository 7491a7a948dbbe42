"""What the unit tests share: the SQL of the models, compiled once."""

from __future__ import annotations

import json

import pytest

from orchestration.build import prepare_manifest


@pytest.fixture(scope="session")
def compiled() -> dict[str, str]:
    """`schema.table` of each model to its SQL, as dbt compiles it; lineage reads the same manifest."""
    manifest = json.loads(prepare_manifest("compile", "target/lineage").read_bytes())
    return {
        f"{node['schema']}.{node['name']}": node["compiled_code"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
    }
