"""What a query is made of: the columns its values come from, and those that decide which rows it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestration.errors import MendableError

if TYPE_CHECKING:
    from sqlglot.optimizer.scope import Scope

Column = tuple[str, str]
"""A table, `schema.name`, and a column of it."""


@dataclass
class Sources:
    """What a query reads.

    Attributes:
        values: column of the query to the columns of tables that its values are computed from.
        carried: the same, but for what is only counted, compared or ordered by: whose values can be
            read off it.
        copied: column to the columns that it is, renamed or cast; nothing if anything is computed.
        rows: columns that decide which rows there are: conditions, joins, groups.
        tables: everything it reads.
    """

    values: dict[str, set[Column]] = field(default_factory=dict)
    carried: dict[str, set[Column]] = field(default_factory=dict)
    copied: dict[str, set[Column]] = field(default_factory=dict)
    rows: set[Column] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)

    def of(self, column: str) -> set[Column]:
        """What a column comes from; of one that the SQL does not name, everything that it may be."""
        found = self.values.get(column)
        return set().union(*self.values.values()) | self.rows if found is None else found

    def carried_of(self, column: str) -> set[Column]:
        """Whose values can be read off a column."""
        return self.carried[column] if column in self.carried else self.of(column)

    def copied_of(self, column: str) -> set[Column]:
        """Which columns a column is; none if it is computed."""
        return self.copied.get(column, set())


def sources_of(sql: str, columns: Mapping[str, Mapping[str, str]]) -> Sources:
    """Read a query of DuckDB's SQL.

    Args:
        sql: one SELECT, its tables as `database.schema.table`.
        columns: table `schema.name` to its columns and their types.

    Raises:
        MendableError: it is not understood.
    """
    from sqlglot import exp, parse_one
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    schema: dict[str, dict[str, Any]] = {}
    for name, types in columns.items():
        layer, _, table = name.partition(".")
        schema.setdefault(layer, {})[table] = dict(types)
    try:
        tree = parse_one(sql, dialect="duckdb")
        databases = {table.catalog for table in tree.find_all(exp.Table) if table.catalog}
        known: dict[str, object] = {**(dict.fromkeys(databases, schema) or schema)}
        tree = qualify(tree, schema=known, dialect="duckdb", validate_qualify_columns=False)
        scope = build_scope(tree)
        assert scope is not None, "a query"
    except SqlglotError as error:
        raise MendableError(
            "the lineage of a query",
            expected="one SELECT as DuckDB runs it",
            arrived=str(error).splitlines()[0],
            mend="write it in SQL that sqlglot reads too",
        ) from None
    return _Reader().read(scope)


_Of = Callable[[Sources, str], set[Column]]
"""`Sources.of`, `Sources.carried_of` or `Sources.copied_of`."""


class _Reader:
    """Reads scopes, the selects of a query, from the inside out; each once."""

    def __init__(self) -> None:
        self.done: dict[int, Sources] = {}

    def read(self, scope: Scope) -> Sources:
        from sqlglot import exp

        if id(scope) in self.done:
            return self.done[id(scope)]
        self.done[id(scope)] = told = Sources()  # of a recursive query: nothing more than the start
        for _, source in scope.selected_sources.values():
            if isinstance(source, exp.Table):
                if source.db:
                    told.tables.add(f"{source.db}.{source.name}")
            else:
                inner = self.read(source)
                told.rows |= inner.rows
                told.tables |= inner.tables
        if isinstance(scope.expression, exp.SetOperation):
            self._set_operation(scope, told)
        elif isinstance(scope.expression, exp.Select):
            self._select(scope, told)
        else:  # unnest and the like: each of its columns comes of all that it reads
            told.rows |= set().union(
                *(self._of(c, scope) for c in scope.expression.find_all(exp.Column))
            )
        return told

    def _set_operation(self, scope: Scope, told: Sources) -> None:
        left, right = (self.read(part) for part in scope.set_operation_scopes)
        for name, other in zip(left.values, right.values, strict=False):  # by their places
            told.values[name] = left.values[name] | right.values[other]
            told.carried[name] = left.carried_of(name) | right.carried_of(other)
            copied = left.copied_of(name), right.copied_of(other)
            told.copied[name] = set().union(*copied) if all(copied) else set()
        told.rows |= left.rows | right.rows
        told.tables |= left.tables | right.tables
        if scope.expression.args.get("distinct") is not False:
            told.rows |= set().union(*told.values.values())

    def _select(self, scope: Scope, told: Sources) -> None:
        from sqlglot import exp

        select = scope.expression
        nested = {id(one.expression): one for one in scope.subquery_scopes}
        windows = {window.name: window for window in select.args.get("windows") or ()}

        ties = _tie_breakers(select)

        def read(node: Any, of: _Of = Sources.of) -> set[Column]:
            found: set[Column] = set()
            for part in _own_parts(node) if of is Sources.of else _carrying_parts(node):
                if isinstance(part, exp.Column):
                    found |= self._of(part, scope, of) if id(part) not in ties else set()
                elif isinstance(part, exp.Query):
                    inner = nested.get(id(part.unnest()))
                    if inner is not None:
                        subquery = self.read(inner)
                        found |= set().union(*(of(subquery, name) for name in subquery.values))
                        found |= subquery.rows if of is Sources.of else set()
                        told.tables |= subquery.tables
                elif isinstance(part, exp.Window) and part.alias in windows and of is Sources.of:
                    found |= read(windows[part.alias])
            return found

        for name, node in select.args.items():
            if name in ("expressions", "with_", "with", "windows", "hint"):
                continue
            if name == "order" and not select.args.get("limit"):
                continue
            for part in node if isinstance(node, list) else [node]:
                if isinstance(part, exp.Expression):
                    told.rows |= read(part)
        for projection in select.expressions:
            values = read(projection)
            if any(isinstance(count.this, exp.Star) for count in projection.find_all(exp.Count)):
                values |= told.rows  # what it counts
            name = projection.alias_or_name
            told.values[name] = values
            told.carried[name] = read(projection, Sources.carried_of)
            told.copied[name] = self._copied(projection, scope)
        if select.args.get("distinct"):
            told.rows |= set().union(*told.values.values())

    def _copied(self, node: Any, scope: Scope) -> set[Column]:
        from sqlglot import exp

        node = node.unalias()
        if isinstance(node, exp.Column):
            return self._of(node, scope, Sources.copied_of)
        if isinstance(node, exp.Cast | exp.Paren):
            return self._copied(node.this, scope)
        if isinstance(node, exp.Coalesce):
            parts = [self._copied(part, scope) for part in (node.this, *node.expressions)]
            return set().union(*parts) if all(parts) else set()
        return set()

    def _of(self, column: Any, scope: Scope, of: _Of = Sources.of) -> set[Column]:
        """The columns of tables that a column in a scope stands for."""
        from sqlglot import exp

        outer: Scope | None = scope
        while outer is not None:
            source = outer.sources.get(column.table)
            if isinstance(source, exp.Table):
                return {(f"{source.db}.{source.name}", column.name)} if source.db else set()
            if source is not None:
                return of(self.read(source), column.name)
            outer = outer.parent
        # Not told whose it is: any that has it.
        return set().union(
            *(
                of(told, column.name)
                for source in scope.sources.values()
                if not isinstance(source, exp.Table)
                and column.name in (told := self.read(source)).values
            )
        )


def _tie_breakers(select: Any) -> set[int]:
    """By which columns ties are broken where QUALIFY takes the first row of each key.

    A column that the row itself carries counts for itself only: if another version of the row wins by
    it, then it is another value.
    """
    from sqlglot import exp

    qualify = select.args.get("qualify")
    carried = {
        (one.unalias().table, one.unalias().name)
        for one in select.expressions
        if isinstance(one.unalias(), exp.Column)
    }
    return {
        id(column)
        for window in (qualify.find_all(exp.Window) if qualify else ())
        if isinstance(window.this, exp.RowNumber) and window.args.get("order")
        for column in window.args["order"].find_all(exp.Column)
        if (column.table, column.name) in carried
    }


def _own_parts(node: Any) -> Iterator[Any]:
    """A node and what is in it, a query within it as one part."""
    from sqlglot import exp

    return node.walk(prune=lambda part: isinstance(part, exp.Query))  # type: ignore[no-any-return]


def _carrying_parts(node: Any) -> Iterator[Any]:
    """The parts of a node whose values can be read off it: not what it counts, compares or orders by."""
    from sqlglot import exp

    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, exp.Window | exp.Filter):
            waiting.append(part.this)
        elif not isinstance(part, exp.Query | exp.Predicate | exp.Count | exp.ApproxDistinct):
            waiting.extend(part.iter_expressions())
