"""Lineage for people and programs: a tree for the terminal, OpenLineage events, a picture for the browser."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from orchestration.layers import LAYERS
from orchestration.lineage.graph import ROWS, Graph, Reached, Table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    from orchestration.lineage.query import Column

NAMED = 8
"""So many columns of a table are named in the tree; the others are counted."""
_SPEC = "https://openlineage.io/spec"
_NAMESPACE = "watershed"


def as_tree(graph: Graph, reached: Reached) -> Group:
    """What a person reads in a terminal: tables, each once, with their versions and the columns that count."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text
    from rich.tree import Tree

    columns, others = _by_table(graph, reached.values), _by_table(graph, reached.rows)
    roots = _by_table(graph, reached.start)
    shown: set[str] = set()

    def grow(tree: Tree, name: str) -> None:
        shown.add(name)
        again = []
        for following in _neighbours(graph, reached, name, columns):
            if following in shown:
                again.append(following)
            else:
                grow(tree.add(_label(graph.tables[following], columns[following])), following)
        if again:
            tree.add(Text(f"and {len(again)} shown elsewhere: {', '.join(again)}", style="dim"))

    parts: list[Tree | Text | Padding] = []
    for name in roots:
        tree = Tree(_label(graph.tables[name], columns[name]), guide_style="dim")
        grow(tree, name)
        parts.append(tree)
    if others:
        told = (
            "also touched, through which rows there are (conditions, joins, groups):"
            if reached.is_down
            else "which rows there are is also decided by (conditions, joins, groups):"
        )
        parts.append(Text(f"\n{told}"))
        for name, names in others.items():
            parts.append(
                Padding(Text(f"{name}: ").append(_named(graph.tables[name], names)), (0, 0, 0, 2))
            )
    way = "touches" if reached.is_down else "comes from"
    tables = {*columns, *others} - set(roots)
    counted = sum(len(names) for name, names in columns.items() if name in tables)
    parts.append(
        Text(f"\n{way} {counted:,} columns by value, {len(tables):,} tables in all", style="bold")
    )
    return Group(*parts)


def as_openlineage(graph: Graph, reached: Reached) -> Iterator[str]:
    """One OpenLineage JobEvent per table that is made of others, a JSON object per line.

    Column lineage, schema and version are the facets of the specification 2-0-2; a version is
    `snapshot <number>`, of a source the position up to which it was read.
    """
    columns = _by_table(graph, reached.values | reached.rows)
    for name in columns:
        table = graph.tables[name]
        inputs = [graph.tables[one] for one in sorted(table.inputs) if one in graph.tables]
        if not inputs:
            continue
        yield json.dumps(
            {
                "eventTime": f"{table.written.at if table.written else _no_time():%Y-%m-%dT%H:%M:%S.%fZ}",
                "producer": _producer(),
                "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/JobEvent",
                "job": {"namespace": _NAMESPACE, "name": name},
                "inputs": [_dataset(one) for one in inputs],
                "outputs": [_dataset(table, _column_lineage(graph, table, columns[name]))],
            }
        )


def as_svg(graph: Graph, reached: Reached) -> str:
    """A picture for the browser: a column per layer, a box per table; pointing at one lists its columns."""
    values = _by_table(graph, reached.values)
    everything = _by_table(graph, reached.values | reached.rows)
    start = {name for name, _ in reached.start}
    layers = [[name for name in everything if name.partition(".")[0] == layer] for layer in LAYERS]
    layers = [names for names in layers if names]
    width, height, gap = 250, 34, 60
    size = (len(layers) * (width + gap), max(map(len, layers)) * (height + 14) + 60)
    place = {
        name: (x * (width + gap) + gap // 2, 50 + y * (height + 14))
        for x, names in enumerate(layers)
        for y, name in enumerate(names)
    }
    lines, boxes = [], []
    for name in everything:
        for source in sorted(graph.tables[name].inputs & everything.keys()):
            by_value = name in values and source in values
            (x1, y1), (x2, y2) = place[source], place[name]
            x1, y1, y2 = x1 + width, y1 + height // 2, y2 + height // 2
            bend = max((x2 - x1) // 2, 30)
            lines.append(
                f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"'
                f"{'' if by_value else ' class=rows'}/>".replace("class=rows", 'class="rows"')
            )
        table = graph.tables[name]
        x, y = place[name]
        kind = "start" if name in start else "value" if name in values else "by-rows"
        listed = "\n".join([name, *_versions(table), "", *everything[name]])
        boxes.append(
            f'<g class="{kind}"><title>{escape(listed)}</title>'
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'
            f'<text x="{x + 8}" y="{y + 15}">{escape(name.partition(".")[2][:38])}</text>'
            f'<text x="{x + 8}" y="{y + 28}" class="small">'
            f"{escape(shorten(', '.join(_versions(table)[:2]), 44, placeholder=' ...'))}</text></g>"
        )
    heads = [
        f'<text x="{x * (width + gap) + gap // 2}" y="30" class="layer">{names[0].partition(".")[0]}</text>'
        for x, names in enumerate(layers)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
        f' viewBox="0 0 {size[0]} {size[1]}"><style>'
        "svg{background:#fff;font:12px system-ui,sans-serif}path{fill:none;stroke:#4477aa;opacity:.7}"
        ".rows{stroke:#bbb;stroke-dasharray:4 3}rect{fill:#eef3f8;stroke:#4477aa}"
        ".by-rows rect{fill:#f6f6f6;stroke:#bbb}.start rect{fill:#ffe9c7;stroke:#cc7711}"
        ".small{font-size:10px;fill:#666}.layer{font-weight:bold}</style>"
        + "".join((*heads, *lines, *boxes))
        + "</svg>\n"
    )


def _neighbours(
    graph: Graph, reached: Reached, name: str, columns: dict[str, list[str]]
) -> list[str]:
    """The tables next to one, on the way of the walk and by value."""

    def reads(table: str, source: str) -> bool:
        values = graph.tables[table].values
        return any(
            (source, one) in reached.values
            for column in columns[table]
            for other, one in values.get(column, ())
            if other == source
        )

    if reached.is_down:
        return [one for one in columns if name in graph.tables[one].inputs and reads(one, name)]
    # The nearest layer first.
    return [
        one for one in reversed(columns) if one in graph.tables[name].inputs and reads(name, one)
    ]


def _by_table(graph: Graph, columns: Iterable[Column]) -> dict[str, list[str]]:
    """Table to the columns of it, both in their own order."""
    found: dict[str, set[str]] = {}
    for table, column in columns:
        if table in graph.tables:
            found.setdefault(table, set()).add(column)
    return {
        name: [one for one in table.columns if one in found[name]]
        for name, table in graph.tables.items()
        if name in found
    }


def _label(table: Table, columns: list[str]) -> Text:
    from rich.text import Text

    label = Text(f"{table.name}\n", style="bold").append(_named(table, columns))
    versions = ", ".join(_versions(table))
    return label.append(f"  [{versions}]", style="not bold dim") if versions else label


def _named(table: Table, columns: list[str]) -> Text:
    from rich.text import Text

    more = len(columns) - NAMED
    if not columns:
        told = "its rows"
    elif len(columns) == len(table.columns) > 3:
        told = f"all {len(columns)} columns"
    else:
        told = ", ".join(columns[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return Text(told, style="not bold cyan")


def _versions(table: Table) -> list[str]:
    """What is known of the version of a table, a few words each."""
    told = []
    if table.source:
        told.append(f"{table.source[1]} in {table.source[0]}")
        if table.landed:
            told.append(f"read to {_short(table.landed.position)}")
    if table.written:
        told.append(
            f"{table.written.release or 'not released'}, snapshot {table.written.snapshot_id}"
        )
    if table.code_version:
        told.append(f"code {table.code_version[:8]}")
    if table.landed and not table.source:
        told.append(f"batch {table.landed.batch_id[:8]}")
    return told


def _short(position: str) -> str:
    """Where a source stood, in a few words; of many files the last."""
    try:
        parts = json.loads(position)
    except ValueError:
        return position
    if not isinstance(parts, dict):
        return position
    if isinstance(parts.get("files"), dict) and parts["files"]:
        return f"{max(parts['files'])} ({len(parts['files'])} files)"
    offsets = [f"offset {parts[name]} of partition {name}" for name in parts if name.isdigit()]
    told = ", ".join(offsets or [f"{name} {value}" for name, value in parts.items()])
    return told if len(told) < 60 else f"{told[:57]}..."


def _dataset(table: Table, column_lineage: dict[str, Any] | None = None) -> dict[str, Any]:
    namespace, name = table.source or (_NAMESPACE, table.name)
    facets: dict[str, Any] = {}
    if table.columns:
        facets["schema"] = _facet(
            "Schema", "1-2-0",
            fields=[
                {"name": column, **({"type": kind} if kind else {})}
                for column, kind in table.columns.items()
            ],
        )  # fmt: skip
    version = (
        table.landed and table.landed.position
        if table.source
        else table.written and f"snapshot {table.written.snapshot_id}"
    )
    if version:
        facets["version"] = _facet("DatasetVersion", "1-0-1", datasetVersion=version)
    if column_lineage:
        facets["columnLineage"] = column_lineage
    return {"namespace": namespace, "name": name, "facets": facets}


def _column_lineage(graph: Graph, table: Table, columns: list[str]) -> dict[str, Any]:
    def fields(sources: Iterable[Column], kind: str) -> list[dict[str, Any]]:
        listed = []
        for name, column in sorted(sources):
            one = graph.tables.get(name)
            if one is None or column == ROWS:
                continue
            namespace, dataset = one.source or (_NAMESPACE, name)
            listed.append(
                {
                    "namespace": namespace, "name": dataset, "field": column,
                    "transformations": [{"type": kind}],
                }
            )  # fmt: skip
        return listed

    return _facet(
        "ColumnLineage", "1-2-0",
        fields={c: {"inputFields": fields(table.values.get(c, ()), "DIRECT")} for c in columns},
        dataset=fields(table.rows, "INDIRECT"),
    )  # fmt: skip


def _facet(name: str, version: str, **content: Any) -> dict[str, Any]:
    facet = f"{name}DatasetFacet"
    return {
        "_producer": _producer(),
        "_schemaURL": f"{_SPEC}/facets/{version}/{facet}.json#/$defs/{facet}",
        **content,
    }


def _producer() -> str:
    from orchestration.warehouse.releases import code_version

    return f"urn:watershed:{code_version()}"


def _no_time() -> Any:
    from datetime import datetime

    return datetime(1970, 1, 1)
