"""Decisions on which model is in force: a row each, written by builds and by people, never changed.

They stand in `trained_models.<use_case>__decisions`. A build writes what its trials came to; the alias in the
registry follows only when that build is released. What a person decides moves it at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestration.errors import MendableError
from orchestration.registry import store
from orchestration.registry.described import described
from orchestration.settings import Settings
from orchestration.warehouse.connect import connect, transaction, writing
from orchestration.warehouse.frames import read_frame, table_exists

if TYPE_CHECKING:
    import duckdb

Action = Literal["promoted", "refused", "rolled_back", "retraining_requested", "retraining_refused"]
MOVES: Final = ("promoted", "rolled_back")
"""The actions after which another model is in force."""


@dataclass(frozen=True)
class Decision:
    """What was decided, on what grounds.

    Attributes:
        kind: of model, or "".
        action: what was decided.
        model_version: the model that it is about; empty if it is about none.
        as_of_at: up to when what it rests on was known, naive UTC.
        champion_before, champion_after: the model in force, or empty.
        reason: in words.
        metrics: `learning.promotion.Line` per rule.
        decided_by: `build`, `sensor` or a person's user name.
        number: counted from 0 per use case; given when it is written.
    """

    kind: str
    action: Action
    model_version: str
    as_of_at: datetime
    champion_before: str
    champion_after: str
    reason: str
    decided_by: str
    metrics: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    number: int = -1


def table_of(use_case: str) -> str:
    """The table of a use case's decisions."""
    return f"trained_models.{use_case}__decisions"


def prepare(connection: duckdb.DuckDBPyConnection, settings: Settings, use_case: str) -> None:
    """Create the table if it is missing."""
    if table_exists(connection, *table_of(use_case).split(".")):
        return
    with writing(settings, f"creating {table_of(use_case)}"):
        connection.execute("create schema if not exists trained_models")
        connection.execute(
            f"create table if not exists {table_of(use_case)} (decision_number bigint,"
            " decided_at timestamp, use_case varchar, kind varchar, action varchar,"
            " model_version varchar, as_of_at timestamp, champion_before varchar,"
            " champion_after varchar, reason varchar, metrics varchar, decided_by varchar)"
        )


def write(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    use_case: str,
    decisions: Sequence[Decision],
) -> list[int]:
    """Add decisions, in one transaction; their numbers."""
    prepare(connection, settings, use_case)
    table = table_of(use_case)
    with writing(settings, f"writing {table}"), transaction(connection):
        ((first,),) = connection.execute(
            f"select coalesce(max(decision_number) + 1, 0) from {table}"
        ).fetchall()
        for number, one in enumerate(decisions, start=first):
            row = asdict(one)
            connection.execute(
                f"insert into {table} values (?, now() at time zone 'UTC', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    number, use_case, row["kind"], row["action"], row["model_version"], row["as_of_at"],
                    row["champion_before"], row["champion_after"], row["reason"],
                    json.dumps(list(row["metrics"])), row["decided_by"],
                ],
            )  # fmt: skip
    return list(range(first, first + len(decisions)))


def read(connection: duckdb.DuckDBPyConnection, use_case: str) -> list[Decision]:
    """All decisions of a use case, the oldest first."""
    if not table_exists(connection, *table_of(use_case).split(".")):
        return []
    rows = read_frame(
        connection,
        "select kind, action, model_version, as_of_at, champion_before, champion_after, reason,"
        f" decided_by, metrics, decision_number as number from {table_of(use_case)} order by decision_number",
    )
    return [
        Decision(**{**row, "metrics": tuple(json.loads(row["metrics"]))})
        for row in rows.iter_rows(named=True)
    ]


def decided(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """Per kind, the last decision that put a model in force."""
    return {one.kind: one for one in decisions if one.action in MOVES}


def in_force(
    connection: duckdb.DuckDBPyConnection, settings: Settings, use_case: str
) -> dict[str, str]:
    """Per kind, the version of the model that the next trial has to beat.

    That is what the registry says, unless a decision waits for its build to be released. Without an
    answer from the registry it is what was decided last.
    """
    last = decided(read(connection, use_case))
    told = {kind: one.champion_after for kind, one in last.items()}
    try:
        applied = store.applied_decisions(settings, use_case)
        aliases = store.champions(settings, use_case)
    except store.RegistryUnavailableError:
        return told
    for kind, one in aliases.items():
        if kind not in last or last[kind].number <= applied.get(kind, -1):
            told[kind] = one.version
    return told


def apply(connection: duckdb.DuckDBPyConnection, settings: Settings, use_case: str) -> list[str]:
    """Let the registry's aliases follow the decisions; the versions that are newly in force.

    Args:
        connection: to the warehouse; reading is enough.
        settings: which store.
        use_case: whose.
    """
    last = decided(read(connection, use_case))
    applied = store.applied_decisions(settings, use_case)
    waiting = {k: one for k, one in last.items() if one.number > applied.get(k, -1)}
    if not waiting:
        return []
    known = store.versions(settings, use_case)
    moved = []
    for one in waiting.values():
        if one.champion_after in known:
            store.put_in_force(settings, known[one.champion_after], one.number)
            moved.append(one.champion_after)
    return moved


def promote(settings: Settings, model_version: str, reason: str, by: str) -> Decision:
    """A person puts a registered model in force, whatever the trials say.

    Args:
        settings: which warehouse and store.
        model_version: the model's own name.
        reason: why; it is kept.
        by: who.

    Raises:
        MendableError: no such model is registered, it cannot be loaded, or it is in force already.
    """
    use_case, one = store.find(settings, model_version)
    store.parameters_of(settings, use_case, one)
    return _moved(settings, use_case, one, reason, by, "promoted")


def demote(settings: Settings, use_case: str, kind: str, reason: str, by: str) -> Decision:
    """A person puts the model back in force that was so before the present one.

    Raises:
        MendableError: there was none, or it cannot be loaded.
    """
    with connect(settings, read_only=True) as connection:
        moves = [
            one for one in read(connection, use_case) if one.action in MOVES and one.kind == kind
        ]
    now = store.champions(settings, use_case).get(kind)
    # Each step back goes one promotion further; a promotion in between begins anew.
    former: list[str] = []
    for one in moves:
        if one.action == "promoted":
            former.append(one.champion_before)
        elif former:
            former.pop()
    if now is None or not former or not former[-1]:
        kinds = ", ".join(sorted(filter(None, (one.kind for one in moves))))
        raise MendableError(
            f"demote {use_case}{f' {kind}' if kind else ''}",
            expected="a model in force, and one that was before it",
            arrived="none was before it" if now else "no model is in force",
            mend="make models" + (f" (kinds: {kinds})" if kinds else ""),
        )
    _, back = store.find(settings, former[-1])
    store.parameters_of(settings, use_case, back)
    return _moved(settings, use_case, back, reason, by, "rolled_back")


def _moved(
    settings: Settings,
    use_case: str,
    one: store.Registered,
    reason: str,
    by: str,
    action: Action,
) -> Decision:
    now = store.champions(settings, use_case).get(one.kind)
    if now is not None and now.version == one.version:
        raise MendableError(
            f"model {one.version}",
            expected="another one than is in force",
            arrived="it is in force already",
            mend="make models",
        )
    described(use_case)
    with connect(settings) as connection:
        ((moment,),) = connection.execute("select now() at time zone 'UTC'").fetchall()
        decision = Decision(
            one.kind,
            action,
            one.version,
            moment,
            now.version if now else "",
            one.version,
            reason,
            by,
        )
        (number,) = write(connection, settings, use_case, [decision])
    store.put_in_force(settings, one, number)
    return decision
