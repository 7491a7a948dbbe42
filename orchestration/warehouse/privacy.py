"""Privacy: what each column tells of a person, from the source's contract down the lineage.

A raw column says `privacy: direct_identifier`, `quasi_identifier` or `sensitive` in its source's
`defs.yaml`. From there on:

- a copy, renamed or cast, has the tag of what it copies; nobody writes it again;
- what is computed from a tagged column says its own tag, in `config: {meta: {privacy: ...}}` of the
  column, or of the model for all that is computed in it;
- `none` says that it tells of no person any more, and needs a `privacy_reason`;
- a value off which a direct identifier can be read is one, whatever the model says; only the column
  itself can say otherwise, with a reason;
- a table that Python fills says it for all its columns: what it is made of is known only once it is built.

Which rows there are can tell of a person too (a list of those who were defrauded, how many kinds of
things one bought): that is no column's value, and no tag follows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError

if TYPE_CHECKING:
    from orchestration.lineage.graph import Graph

DIRECT, QUASI, SENSITIVE, NONE = "direct_identifier", "quasi_identifier", "sensitive", "none"
TAGS = (DIRECT, QUASI, SENSITIVE)
"""The strongest first."""


@dataclass(frozen=True)
class Said:
    """What a table or column says of itself: a tag or `none`, and why; and where that is written."""

    tag: str | None = None
    reason: str | None = None
    file: str = ""


@dataclass(frozen=True)
class Leak:
    """A column that has to say what it tells of a person, and does not.

    Attributes:
        column: `schema.table.column`.
        origin: the column that its tag comes from, and that tag.
        wanted: the line to add.
        file: the file to add it to.
    """

    column: str
    origin: str
    wanted: str
    file: str

    def __str__(self) -> str:
        return f"{self.file}: {self.column} comes from {self.origin}; add {self.wanted}"


@dataclass
class Privacy:
    """What all columns tell: table `schema.name` to column to tag or `none`; and what is left unsaid.

    Columns of which nothing can be known are in `leaks` only.
    """

    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)


@cache
def tags() -> dict[str, dict[str, str]]:
    """Table `schema.name` to column to tag, of the tagged columns only; no warehouse is needed.

    Raises:
        MendableError: dbt cannot compile the project, or a tag is none of those there are.
    """
    found = {
        table: {column: tag for column, tag in columns.items() if tag != NONE}
        for table, columns in told().columns.items()
    }
    return {table: columns for table, columns in found.items() if columns}


@cache
def told() -> Privacy:
    """What all columns of the project tell, as contracts, dbt's files and the SQL say."""
    from orchestration.build import prepare_manifest
    from orchestration.lineage.graph import described_graph

    manifest = json.loads(prepare_manifest("compile", "target/lineage").read_bytes())
    return follow(described_graph(manifest), said(manifest))


def said(manifest: Mapping[str, Any]) -> dict[tuple[str, str], Said]:
    """What is written: (table `schema.name`, column) to what it says; column is empty for the table.

    Args:
        manifest: dbt's.

    Raises:
        MendableError: a tag is none of those there are.
    """
    from orchestration.contracts.raw import SOURCES, described_tables
    from orchestration.lineage.graph import name_of
    from orchestration.settings import PROJECT_ROOT

    found: dict[tuple[str, str], Said] = {}
    for file in sorted(SOURCES.glob("*/defs.yaml")):
        for table in described_tables(file):
            name, where = f"raw.{file.parent.name}__{table['name']}", file.relative_to(PROJECT_ROOT)
            for column, spec in table["contract"].items():
                found[name, column] = _said(spec, str(where))
    for node in (*manifest["nodes"].values(), *manifest["sources"].values()):
        if node["resource_type"] not in ("model", "seed", "source") or node["schema"] == "raw":
            continue
        patch = str(node.get("patch_path") or node["original_file_path"]).rpartition("://")[2]
        for column, part in {"": node, **node["columns"]}.items():
            found[name_of(node), column] = _said(part["config"]["meta"], f"dbt_project/{patch}")
    for (name, column), one in found.items():
        if one.tag not in (None, NONE, *TAGS):
            raise MendableError(
                f"{one.file}: privacy of {name}{'.' if column else ''}{column}",
                expected=", ".join((*TAGS, NONE)), arrived=str(one.tag), mend="write one of these",
            )  # fmt: skip
    return found


def _said(words: Mapping[str, Any], file: str) -> Said:
    return Said(words.get("privacy"), words.get("privacy_reason"), file)


def follow(graph: Graph, written: Mapping[tuple[str, str], Said]) -> Privacy:
    """Follow what is written down the lineage.

    Until a leak is mended, its column counts as what it comes from: nothing below it is told twice.

    Args:
        graph: tables and what their columns come from.
        written: as `said` returns it.
    """
    follower = _Follower(graph, written)
    found = Privacy()
    for table in graph.tables.values():
        if table.source is None:
            told = {column: follower.tag((table.name, column)) for column in table.columns}
            found.columns[table.name] = {
                column: tag
                for column, tag in told.items()
                if (table.name, column) not in follower.untold
            }
    found.leaks = sorted(follower.leaks.values(), key=lambda leak: leak.column)
    return found


class _Follower:
    """Finds the tag of each column once, those it comes from first."""

    def __init__(self, graph: Graph, written: Mapping[tuple[str, str], Said]) -> None:
        self.graph, self.written = graph, written
        self.found: dict[tuple[str, str], str] = {}
        self.leaks: dict[tuple[str, str], Leak] = {}
        self.untold: set[tuple[str, str]] = set()
        self.identifiers = {
            column: table
            for (table, column), one in written.items()
            if one.tag == DIRECT and table.startswith("raw.")
        }

    def tag(self, column: tuple[str, str]) -> str:
        if column not in self.found:
            self.found[column] = NONE  # of what comes from itself: nothing more
            self.found[column] = self._tag(*column)
        return self.found[column]

    def _tag(self, name: str, column: str) -> str:
        table = self.graph.tables.get(name)
        if table is None or table.source is not None:
            return NONE
        own, whole = self.written.get((name, column), Said()), self.written.get((name, ""), Said())
        if name.startswith("raw."):
            if own.tag == NONE and not own.reason:
                self._leak(
                    name, column, "the source", f"privacy_reason: why {column} tells nothing"
                )
            return own.tag or NONE
        if not table.inputs and (name, "") in self.written:  # Python fills it, or it is a seed
            return self._unfollowed(name, column, own, whole)
        values = {source: self.tag(source) for source in sorted(table.values.get(column, ()))}
        copied = [self.tag(source) for source in table.copied.get(column, ())]
        read_off = [c for c in sorted(table.carried.get(column, ())) if self.tag(c) == DIRECT]
        strongest = _strongest(values.values())
        if own.tag is not None:
            # What is computed may tell another thing than what it is made of; a copy does not.
            least = DIRECT if read_off else _strongest(copied)
            if own.tag == NONE and least == NONE:
                least = strongest
            if (*TAGS, NONE).index(own.tag) > (*TAGS, NONE).index(least) and not own.reason:
                origin = read_off[0] if read_off else _first(values, least)
                self._leak(name, column, self._named(origin), "privacy_reason: why it tells less")
            return own.tag
        if read_off:
            if not copied:
                wanted = f"privacy: {DIRECT}, or another tag and a privacy_reason"
                self._leak(name, column, self._named(read_off[0]), wanted)
            return DIRECT
        if whole.tag == NONE and whole.reason:
            return NONE
        if copied or strongest == NONE:
            return _strongest(copied)
        if whole.tag is not None and whole.tag != NONE:
            return whole.tag
        wanted = f"privacy: {' | '.join(TAGS[1:])}, or none and a privacy_reason"
        self._leak(name, column, self._named(_first(values, strongest)), wanted)
        return QUASI if strongest == DIRECT else strongest

    def _unfollowed(self, name: str, column: str, own: Said, whole: Said) -> str:
        """Of a table whose lineage the code does not say: its own words, and the names of identifiers."""
        if column in self.identifiers and (
            own.tag is None or (own.tag != DIRECT and not own.reason)
        ):
            origin = self._named((self.identifiers[column], column))
            self._leak(name, column, origin, f"privacy: {DIRECT}")
            return DIRECT
        said = own if own.tag is not None else whole
        if said.tag is None and not name.startswith("seeds."):
            wanted = f"privacy: {' | '.join(TAGS)}, or none and a privacy_reason"
            self._leak(name, "", "Python", wanted)
            self.untold.add((name, column))
        elif said.tag == NONE and not said.reason:
            self._leak(name, column, "Python", "privacy_reason: why it tells of nobody")
        return said.tag or NONE

    def _named(self, column: tuple[str, str]) -> str:
        """The column of a source that a column's tag comes from."""
        tag, here = self.tag(column), column
        while not here[0].startswith("raw."):
            values = self.graph.tables[here[0]].values.get(here[1], ())
            above = next((one for one in sorted(values) if self.tag(one) == tag), None)
            if above is None:
                break
            here = above
        return f"{'.'.join(column)} ({tag}{f' of {chr(46).join(here)}' if here != column else ''})"

    def _leak(self, name: str, column: str, origin: str, wanted: str) -> None:
        file = self.written.get((name, column)) or self.written.get((name, "")) or Said()
        what = f"{name}.{column}" if column else name
        line, comma, otherwise = wanted.partition(", ")
        if not name.startswith("raw."):
            line = f"config: {{meta: {{{line}}}}}"
        self.leaks[name, column] = Leak(what, origin, line + comma + otherwise, file.file)


def _strongest(found: Any) -> str:
    found = set(found)
    return next((tag for tag in TAGS if tag in found), NONE)


def _first(values: Mapping[tuple[str, str], str], tag: str) -> tuple[str, str]:
    return next(column for column, its in values.items() if its == tag)
