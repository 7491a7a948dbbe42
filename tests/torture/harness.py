"""Kill a loader again and again while its source grows, then count whether a row was lost or came twice.

A parent that has imported everything and opened nothing forks a loader per try, so that a try costs what
loading costs. Three ways to die, in turn:

- at a random instant, by SIGKILL from the parent;
- at a named step, by SIGKILL from itself: before or after a statement of landing, a batch of the source,
  or the opening of the warehouse. The names come from the loads themselves, so a statement that landing
  gains is a step without further ado;
- a random moment after a commit has begun, by SIGKILL from the parent.

Nothing of this is in the product: the loader's `connect` is wrapped in the child only.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow  # noqa: F401 - so that the loaders need not

from orchestration.connectors import Batch, Position
from orchestration.landing import land as landing
from orchestration.settings import Settings, load_settings

ROWS_PER_GROWTH = 40
LATE_SECONDS = 8
SECONDS_TO_RESTART = 2.0
SECONDS_TO_END = 60.0
COMMIT = "before commit of rows"
RESTARTED = "after commit of rows"
IMPORTED = "imported "
ESSENTIAL = {
    f"{moment} {step}"
    for moment in ("before", "after")
    for step in (
        "open the warehouse", "read a batch", "begin", "insert into raw", "insert into quarantine",
        "update landing.positions", "insert into landing.ledger", "commit of rows",
    )
}  # fmt: skip


class Row(NamedTuple):
    """A row of a growing source. `amount` is a whole number, but for the rows that a contract rejects."""

    id: int
    happened_at: str
    amount: str
    note: str

    @property
    def is_good(self) -> bool:
        """Whether it belongs into the raw table."""
        return self.amount.isdigit()


@dataclass(frozen=True)
class Source:
    """A source system that grows, and how it is loaded.

    Attributes:
        table: the raw table it is loaded into.
        grow: adds rows; called in a process of its own, always the same.
        read: the connector; called in a loader.
        replaces: whether rows take the place of others, so that fewer may be there than were kept.
        seconds_to_settle: until a source that grows no more reads the same again and again.
        close: ends what was started.
    """

    table: landing.RawTable
    grow: Callable[[list[Row]], None]
    read: Callable[[Position], Iterator[Batch]]
    replaces: bool = False
    seconds_to_settle: float = 0.0
    close: Callable[[], None] = lambda: None


def rows_of(seed: int, growth: int) -> list[Row]:
    """What a source gains by its `growth`-th growth: the same for the same seed."""
    chosen = random.Random(f"{seed}/{growth}")
    rows = []
    for number in range(ROWS_PER_GROWTH):
        second = growth * 10 + number // 4  # four rows share a time: a cursor with ties ...
        if number % 10 == 9:
            second -= LATE_SECONDS  # ... and some come behind it
        amount = str(chosen.randrange(10_000))
        rows.append(
            Row(
                id=growth * ROWS_PER_GROWTH + number,
                happened_at=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(1.6e9 + second)),
                amount=f"~{amount}" if chosen.random() < 0.1 else amount,
                note=chosen.choice(["-", "naïve", 'say "x"; drop table--', "line\nbreak", "🌊"]),
            )
        )
    return rows


@dataclass
class Told:
    """What the kills of a source showed so far."""

    kills: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    """Named step to how often a loader was to kill itself there."""
    hit: Counter[str] = field(default_factory=Counter)
    """Named step to how often it did."""
    restarts: list[float] = field(default_factory=list)
    """Seconds from a loader's start to its first commit of rows."""
    seconds: float = 0.0
    rows: int = 0
    wrong: list[str] = field(default_factory=list)


def torture(
    source: Source,
    folder: Path,
    kills: int,
    seed: int,
    told: Told,
    sabotage: Callable[[str], str | None] = lambda step: None,
    progress: Callable[[int], None] = lambda kills: None,
    restart_within: float = SECONDS_TO_RESTART,
) -> None:
    """Kill the loader of an empty source `kills` times, into a new warehouse, and tell what was wrong.

    `sabotage` gets every step before it is taken and may give a statement to run first: so a test
    can break the loader, and see that it is noticed.
    """
    began = time.monotonic()
    chosen = random.Random(seed)
    settings = load_settings(
        data_dir=folder / "data", catalog="", lake_path="", threads=1, memory_limit="500MB"
    )
    ways = ("step", "instant", "step", "commit")
    killed = 0
    with _growing(source, seed) as grow:
        grow(wait=True)
        watched = _try(settings, source, sabotage, None)
        if watched.error:
            told.wrong.append(f"a loader failed: {watched.error}")
            return
        if missing := ESSENTIAL - set(watched.steps):
            told.wrong.append(f"steps that no kill can reach: {', '.join(sorted(missing))}")
        for module in watched.modules:
            with suppress(ImportError):
                import_module(module)
        whole, commit = watched.seconds, 0.02
        told.tried.update(dict.fromkeys(watched.steps, 0))
        while killed < kills and not told.wrong:
            if chosen.random() < 0.7:
                grow(wait=chosen.random() < 0.5)
            way = ways[killed % len(ways)]
            if way == "instant":
                plan = _Plan(after=chosen.uniform(0, whole * 1.1))
            elif way == "commit":
                plan = _Plan(COMMIT, chosen.choice((1, 2)), after=chosen.uniform(0, 1.2 * commit))
            else:
                step = min(sorted(told.tried), key=lambda step: told.tried[step])
                nth = chosen.choice((1, 1, 2)) if told.tried[step] else 1
                plan = _Plan(step, nth, suicide=True)
                told.tried[step] += 1
            done = _try(settings, source, sabotage, plan)
            if done.error:
                told.wrong.append(f"a loader failed: {done.error}")
            if done.restart is not None:
                told.restarts.append(done.restart)
                if done.restart > restart_within:
                    told.wrong.append(f"its first commit took {done.restart:.1f} s")
            if done.commit is not None:
                commit = (commit + done.commit) / 2
            if done.killed:
                killed += 1
                progress(killed)
                told.hit[step] += way == "step"
            else:
                whole = (whole + done.seconds) / 2
            told.tried.update(dict.fromkeys(done.steps, 0))
        grown = grow(wait=True)
    expected = [row for growth in range(grown) for row in rows_of(seed, growth)]
    try:
        told.wrong += in_child(lambda: _what_is_wrong(settings, source, expected))
    except RuntimeError as error:
        told.wrong.append(f"the load to the end failed: {error}")
    told.kills += killed
    told.rows += len(expected)
    told.seconds += time.monotonic() - began


def _what_is_wrong(settings: Settings, source: Source, expected: list[Row]) -> list[str]:
    """Load to the end, then compare the warehouse with the source."""
    wrong = []
    ends = []

    def read_from(position: Position) -> Iterator[Batch]:
        ends.append(position)
        return source.read(position)

    time.sleep(source.seconds_to_settle)
    landing.land(settings, source.table, source.read)
    again = landing.land(settings, source.table, read_from)
    if again.rows_kept or again.rows_quarantined:
        wrong.append(f"a load at the end of the source still found {again.rows_kept} rows")
    landing.land(settings, source.table, read_from)
    if ends[0] != ends[1]:
        wrong.append(f"the position at the end moved from {ends[0]} to {ends[1]}")
    name = source.table.name
    with landing.connect(settings, read_only=True) as connection:

        def all_of(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql).fetchall()

        raw = all_of(f"select id, amount from raw.{name}")
        quarantine = all_of(
            rf"select regexp_extract(coalesce(payload, decode(raw, 'replace')), '\d+')::bigint from quarantine.{name}"
        )
        ledger = all_of(
            "select rows_in, rows_kept, rows_quarantined, rows_deduplicated from landing.ledger"
        )
    for what, rows, arrived in (
        ("raw", [row for row in expected if row.is_good], Counter(id for id, _ in raw)),
        ("quarantine", [r for r in expected if not r.is_good], Counter(id for (id,) in quarantine)),
    ):
        lost = [row.id for row in rows if row.id not in arrived]
        twice = [id for id, count in arrived.items() if count > 1]
        strange = arrived.keys() - {row.id for row in rows}
        for kind, ids in (("lost", lost), ("duplicated", twice), ("not of the source", strange)):
            if ids:
                wrong.append(f"{what}: {len(ids)} rows {kind}, such as {sorted(ids)[:5]}")
    amounts = {row.id: int(row.amount) for row in expected if row.is_good}
    if changed := [id for id, amount in raw if amounts.get(id) != amount]:
        wrong.append(f"raw: {len(changed)} rows changed, such as {sorted(changed)[:5]}")
    if off := [line for line in ledger if line[0] != sum(line[1:])]:
        wrong.append(f"ledger: {len(off)} lines do not add up, such as {off[0]}")
    kept, quarantined = (sum(line[n] for line in ledger) for n in (1, 2))
    fits = int.__ge__ if source.replaces else int.__eq__
    if not fits(kept, len(raw)) or not fits(quarantined, len(quarantine)):
        wrong.append(
            f"ledger: {kept} kept and {quarantined} quarantined,"
            f" but {len(raw)} and {len(quarantine)} are there"
        )
    return wrong


# --- a loader that can be killed ----------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """When to kill: `after` seconds, counted from the `nth` time of `step` or from the fork."""

    step: str | None = None
    nth: int = 1
    after: float = 0.0
    suicide: bool = False


@dataclass
class _Done:
    """How a try ended.

    Attributes:
        killed: whether by a signal; otherwise it loaded to the end.
        seconds: from the fork to its end.
        restart: from the fork to the first commit of rows, if it came.
        commit: how long that commit took.
        steps: what it did, in order.
        modules: what it had to import.
        error: what went wrong.
    """

    killed: bool = False
    seconds: float = 0.0
    restart: float | None = None
    commit: float | None = None
    steps: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    error: str = ""


class _Watched:
    """A DuckDB connection that names what it does before and after each statement."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        at: Callable[[str], None],
        sabotage: Callable[[str], str | None],
    ) -> None:
        self._connection, self._at, self._sabotage = connection, at, sabotage
        self._has_rows = False
        # Statements name Arrow tables of their caller, which is now one frame further up.
        connection.execute("set python_scan_all_frames = true")

    def execute(self, statement: str, *parameters: Any) -> duckdb.DuckDBPyConnection:
        step = self._step(statement)
        if first := self._sabotage(step):
            self._connection.execute(first)
        self._at(f"before {step}")
        result = self._connection.execute(statement, *parameters)
        self._at(f"after {step}")
        return result

    def _step(self, statement: str) -> str:
        words = statement.replace('"', " ").split()
        if words[0] == "commit":
            return f"commit of {'rows' if self._has_rows else 'tables'}"
        if words[0] == "begin":
            self._has_rows = False
            return "begin"
        named = re.match(
            r"\s*(insert into|update|delete from|alter table|create\b.*?)\s+(raw|quarantine|landing\.\w+)\b",
            statement,
        )
        step = " ".join(named.groups()) if named else words[0]
        self._has_rows |= step == "insert into landing.ledger"
        return step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _try(
    settings: Settings,
    source: Source,
    sabotage: Callable[[str], str | None],
    plan: _Plan | None,
) -> _Done:
    """Fork a loader, kill it as planned, and tell how far it came."""
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _load(settings, source, sabotage, plan, writing)
    os.close(writing)
    done = _Done()
    ends = began + SECONDS_TO_END
    if plan and not plan.suicide and plan.step is None:
        ends = began + plan.after
    seen, text = 0, b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, ends - time.monotonic()))
        now = time.monotonic()
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        told = os.read(reading, 65536)
        if not told:
            break
        *lines, text = (text + told).split(b"\n")
        for line in lines:
            step = line.decode()
            if step.startswith(IMPORTED):
                done.modules.append(step.removeprefix(IMPORTED))
                continue
            done.steps.append(step)
            if step == COMMIT:
                committing = now
            elif step == RESTARTED and done.restart is None:
                done.restart, done.commit = now - began, now - committing
            if plan and not plan.suicide and step == plan.step:
                seen += 1
                if seen == plan.nth:
                    ends = now + plan.after
    _, status = os.waitpid(child, 0)
    os.close(reading)
    done.seconds = time.monotonic() - began
    done.killed = os.WIFSIGNALED(status)
    if done.killed and ends == began + SECONDS_TO_END and not (plan and plan.suicide):
        done.error = f"no end after {SECONDS_TO_END:g} s; its last step was {done.steps[-1:]}"
    elif not done.killed and os.WEXITSTATUS(status):
        done.error = text.decode().replace("\r", "\n")
    return done


def _load(
    settings: Settings,
    source: Source,
    sabotage: Callable[[str], str | None],
    plan: _Plan | None,
    out: int,
) -> None:
    """The loader: runs in the child and does not return."""
    times: Counter[str] = Counter()
    imported = set(sys.modules)

    def at(step: str) -> None:
        times[step] += 1
        if plan and plan.suicide and step == plan.step and times[step] == plan.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(out, f"{step}\n".encode())

    def connect(settings: Settings) -> Any:
        at("before open the warehouse")
        connection = opened(settings)
        at("after open the warehouse")
        return _Watched(connection, at, sabotage)

    def read(position: Position) -> Iterator[Batch]:
        batches = source.read(position)
        while True:
            at("before read a batch")
            batch = next(batches, None)
            if batch is None:
                return
            at("after read a batch")
            yield batch

    opened, landing.connect = landing.connect, connect  # type: ignore[assignment]
    try:
        landing.land(settings, source.table, read)
        if plan is None:
            lazy = sys.modules.keys() - imported
            os.write(out, "".join(f"{IMPORTED}{name}\n" for name in sorted(lazy)).encode())
    except BaseException:  # noqa: BLE001 - a child must never return into the parent's code
        os.write(out, traceback.format_exc().replace("\n", "\r").encode())
        os._exit(1)
    os._exit(0)


# --- helpers ------------------------------------------------------------------------------------


@contextmanager
def _growing(source: Source, seed: int) -> Iterator[Callable[..., int]]:
    """A process that makes the source grow whenever it is told; gives how often it has."""
    asking, asked = os.pipe()
    answering, answered = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(asked)
        os.close(answering)
        try:
            growth = 0
            while os.read(asking, 1):
                source.grow(rows_of(seed, growth))
                growth += 1
                os.write(answered, b".")
        except BaseException:  # noqa: BLE001 - a child must never return into the parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(asking)
    os.close(answered)
    grown = answers = 0

    def grow(*, wait: bool) -> int:
        nonlocal grown, answers
        grown += 1
        os.write(asked, b".")
        while wait and answers < grown:
            told = len(os.read(answering, 1024))
            if not told:
                raise RuntimeError("the source cannot grow; see above")
            answers += told
        return grown

    try:
        yield grow
    finally:
        os.close(asked)
        os.close(answering)
        os.waitpid(child, 0)


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work`, done in a fork, so that this process opens nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = work(), ""
        except BaseException:  # noqa: BLE001 - a child must never return into the parent's code
            result = None, traceback.format_exc()
        with os.fdopen(writing, "wb") as out:
            pickle.dump(result, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        result, error = pickle.load(told)
    os.waitpid(child, 0)
    if error:
        raise RuntimeError(error)
    return result
