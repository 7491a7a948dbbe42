"""The layout's laws: which file belongs where, who may import whom, and that data only flows to the right."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.layers import LAYERS, USE_CASES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "orchestration"
MODELS = ROOT / "dbt_project" / "models"
MODULES = sorted(PACKAGE.rglob("*.py"))
PREFIXES = {
    "staging": "stg_",
    "intermediate": "int_",
    "features": "feat_",
    "training_sets": "train_",
    "predictions": "",  # named as the tables that Python fills beside it
    "monitoring": "mon_",
}


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_imports(folder: str) -> set[str]:
    return {name for path in (PACKAGE / folder).rglob("*.py") for name in imports_of(path)}


def imported_from(names: set[str], room: str) -> set[str]:
    return {
        n for n in names if n == f"orchestration.{room}" or n.startswith(f"orchestration.{room}.")
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_modules_first_line_says_what_belongs_in_it(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", "`"))


@pytest.mark.parametrize("room", ["connectors", "learning"])
def test_connectors_and_learning_know_neither_warehouse_nor_landing_nor_each_other(room):
    other = {"connectors": "learning", "learning": "connectors"}[room]
    names = package_imports(room)
    for forbidden in ("warehouse", "landing", "defs", "demo", other):
        assert not imported_from(names, forbidden)


def test_nothing_imports_the_demo_but_the_command_line_and_tests():
    importers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if imported_from(imports_of(path), "demo") and "demo" not in path.parts
    }
    assert importers == {"command_line.py"}


def test_only_definitions_and_build_import_defs():
    importers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if imported_from(imports_of(path), "defs") and "defs" not in path.parts
    }
    assert importers <= {"definitions.py", "build.py"}


def test_every_model_stands_in_a_layer_with_its_prefix_beside_its_yaml():
    models = sorted(MODELS.rglob("*.sql"))
    assert models
    for model in models:
        layer = model.relative_to(MODELS).parts[0]
        assert model.stem.startswith(PREFIXES[layer]), model
        assert model.with_suffix(".yml").exists(), f"{model} has no YAML of the same stem"
    for model in (MODELS / "features").rglob("*.sql"):
        assert model.parent.name in USE_CASES, model


def test_only_staging_reads_raw():
    for model in MODELS.rglob("*.sql"):
        if model.relative_to(MODELS).parts[0] != "staging":
            assert not re.search(r"source\(\s*['\"]raw['\"]", model.read_text()), model


def test_every_singular_test_states_a_claim():
    for test in (ROOT / "dbt_project" / "tests").glob("*.sql"):
        assert test.stem.startswith("assert_"), test


def test_every_seed_has_its_documentation_beside_it():
    seeds = sorted((ROOT / "seeds").glob("*.csv"))
    assert seeds
    for seed in seeds:
        assert seed.with_suffix(".yml").exists(), seed


def test_the_env_example_is_the_settings():
    from orchestration.settings import ENV_PREFIX, Settings

    text = (ROOT / ".env.example").read_text()
    named = re.findall(rf"^#?{ENV_PREFIX}(\w+)=", text, flags=re.MULTILINE)
    assert [name.lower() for name in named] == list(Settings.model_fields)


def test_make_help_names_every_target_a_person_may_call():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    documented = re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE)
    assert phony
    assert set(documented) == set(phony.group(1).split())


@pytest.fixture(scope="module")
def graph() -> dict:
    """The asset graph as a fresh process sees it: keys, dependencies, owners, groups."""
    script = """
import json
from orchestration.definitions import definitions
graph = definitions().get_repository_def().asset_graph
print(json.dumps({
    "/".join(key.path): {
        "deps": ["/".join(parent.path) for parent in graph.get(key).parent_keys],
        "group": graph.get(key).group_name,
        "owners": list(graph.get(key).owners),
        "description": graph.get(key).description,
        "kinds": sorted(graph.get(key).kinds),
        "checks": [check.name for check in graph.asset_check_keys if check.asset_key == key],
        "code_version": graph.get(key).code_version,
        "materializable": graph.get(key).is_materializable,
    }
    for key in graph.get_all_asset_keys()
}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_edge_of_the_graph_points_to_an_earlier_layer(graph):
    order = {layer: number for number, layer in enumerate(LAYERS)}
    for key, asset in graph.items():
        for parent in asset["deps"]:
            assert order[parent.split("/")[0]] <= order[key.split("/")[0]], f"{parent} -> {key}"


def test_every_asset_is_its_schema_and_table(graph):
    for key in graph:
        layer, _, table = key.partition("/")
        assert layer in LAYERS
        assert re.fullmatch(r"[a-z][a-z0-9_]*", table), key


def test_every_asset_has_an_owner_a_use_case_a_description_and_a_kind(graph):
    for key, asset in graph.items():
        assert asset["owners"], key
        assert asset["group"] in USE_CASES, key
        assert asset["description"], key
        assert asset["kinds"], key


def test_every_built_asset_is_checked_and_has_a_code_version(graph):
    for key, asset in graph.items():
        if asset["materializable"]:
            assert asset["checks"], f"{key} has no check"
            assert asset["code_version"], f"{key} has no code version"


def test_the_ledger_is_read_after_every_raw_table_has_landed(graph):
    raw = {key for key in graph if key.startswith("raw/")}
    assert raw
    assert set(graph["landing/ledger"]["deps"]) == raw


def test_only_the_layers_at_the_ends_of_the_path_lack_a_reader(graph):
    read = {parent for asset in graph.values() for parent in asset["deps"]}
    unread = {key for key in graph if key not in read and not key.startswith("monitoring/")}
    assert not unread
