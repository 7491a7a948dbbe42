"""`watershed stream`: a process per scorer and one that lands, started and stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from orchestration.connectors import address
from orchestration.errors import PassingError
from orchestration.settings import Settings, variable
from orchestration.streaming import (
    fraud_scoring,
    fraud_state,
    maintenance_scoring,
    maintenance_state,
)
from orchestration.streaming.engine import UseCase, run
from orchestration.streaming.publisher import open_publisher
from orchestration.streaming.topics import topic_of
from orchestration.warehouse.connect import connect, writing

_AGAIN_SECONDS = 5.0
Say = Callable[[str], None]


@contextmanager
def _payments(settings: Settings, say: Say) -> Iterator[UseCase]:
    with fraud_scoring.champion_of(settings, say) as champion:
        yield fraud_scoring.FraudScoring(settings, champion)


@contextmanager
def _machines(settings: Settings, say: Say) -> Iterator[UseCase]:
    with (
        maintenance_state.KnownPlant(settings, say) as plant,
        maintenance_scoring.champions_of(settings, plant, say) as champion,
    ):
        yield maintenance_scoring.MaintenanceScoring(settings, plant, champion)


class Served(NamedTuple):
    """A use case of the stream: its topics, those of them that land, and where to look at what comes out."""

    stream: str
    topics: tuple[str, ...]
    landed: tuple[str, ...]
    look: tuple[str, str]
    opened: Callable[[Settings, Say], AbstractContextManager[UseCase]]


SERVED = {
    "payments": Served(
        fraud_state.STREAM,
        fraud_scoring.TOPICS,
        ("payments", "fraud_reports", "scores"),
        ("alerts", "scores"),
        _payments,
    ),
    "machines": Served(
        maintenance_state.STREAM,
        maintenance_scoring.TOPICS,
        ("readings", "sensor_features", "machine_health", "warnings"),
        ("warnings", "machine_health"),
        _machines,
    ),
}
"""By the name that the command line has for it."""


def serve(
    settings: Settings,
    use_cases: Sequence[str],
    commands: tuple[Sequence[str], Sequence[str]],
    say: Say,
) -> None:
    """Score and land until Ctrl-C or SIGTERM: the first use case in this process, others beside it.

    Args:
        settings: which warehouse and streams.
        use_cases: of `SERVED`.
        commands: the one that lands topics, and the one that scores a use case beside another; topics
            and the use case are added to them.
        say: told how it goes.

    Raises:
        MendableError: a stream or the warehouse cannot be used.
    """
    stopping, (landing, scoring) = _stopping(), commands
    for name in use_cases:
        if not _topics_made(settings, SERVED[name], stopping, say):
            return
    with writing(settings, "opening the warehouse"):
        connect(settings).close()  # a first start makes it
    first, *others = use_cases
    topics = [f"{SERVED[n].stream}.{topic}" for n in use_cases for topic in SERVED[n].landed]
    with ExitStack() as stack:
        for place, name in enumerate(others, 1):
            port = settings.stream_metrics_port and settings.stream_metrics_port + place
            say(_greeting(settings, name, port))
            environment = {variable("stream_metrics_port"): str(port)}
            stack.enter_context(_kept(f"the scorer of {name}", [*scoring, name], say, environment))
        log = settings.data_dir / "landing.log"
        stack.enter_context(_kept("landing", [*landing, *topics], say, log=log))
        say(_greeting(settings, first, settings.stream_metrics_port))
        _score(settings, first, stopping.is_set, say)
    say("make stream goes on from here, make build uses what has landed")


def score_beside(settings: Settings, use_case: str, say: Say) -> None:
    """Score one use case until told to stop, or until the process that started this one has ended.

    Raises:
        MendableError: the stream or the warehouse cannot be used.
    """
    stopping, parent = _stopping(), os.getppid()
    _score(settings, use_case, lambda: stopping.is_set() or os.getppid() != parent, say)


def _score(settings: Settings, name: str, stop: Callable[[], bool], say: Say) -> None:
    served = SERVED[name]
    with (
        open_publisher(topic_of(settings, served.stream, served.topics[0])) as publisher,
        served.opened(settings, say) as use_case,
    ):
        publisher.meet(served.topics)
        done = run(
            use_case, publisher, stop=stop, say=say, metrics_port=settings.stream_metrics_port
        )
    say(
        f"{name} stopped: {done.scored:,} events scored, {done.alerts:,} alerts,"
        f" {done.set_aside.total():,} set aside"
    )


def _stopping() -> threading.Event:
    """Set by Ctrl-C and SIGTERM."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def _greeting(settings: Settings, name: str, port: int) -> str:
    served = SERVED[name]
    url = settings.value_of(f"{served.stream}_url")
    where = url if url.startswith("log://") else address(url)
    metrics = f", metrics on http://127.0.0.1:{port}/metrics" if port else ""
    first, second = served.look
    return (
        f"following {name} at {where}; look: topics {first} and {second} there,"
        f' make sql q="from raw.{served.stream}__{second}"{metrics} (stop with Ctrl-C)'
    )


def _topics_made(settings: Settings, served: Served, stopping: threading.Event, say: Say) -> bool:
    """Whether the topics are there; not if it was stopped while it waited for the broker."""
    wait = 1.0
    with open_publisher(topic_of(settings, served.stream, served.topics[0])) as publisher:
        while not stopping.is_set():
            try:
                if made := publisher.create(dict.fromkeys(served.topics, 1)):
                    say(f"made the topics {', '.join(made)}")
                return True
            except PassingError as error:
                say(f"{error}\n  trying again in {wait:g} s")
                stopping.wait(wait)
                wait = min(2 * wait, 30.0)
    return False


@contextmanager
def _kept(
    name: str,
    command: Sequence[str],
    say: Say,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[None]:
    """A process of its own for as long as the block runs; begun again if it ends.

    Args:
        name: for what is said of it.
        command: what to run.
        say: told when it ended.
        environment: variables beside this process's.
        log: where its output goes; None is where this process's goes.
    """
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.is_set():
            with ExitStack() as files:
                said = files.enter_context(log.open("w")) if log is not None else None
                # A session of its own: Ctrl-C is for this process, which then stops the other.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
            while process.poll() is None:
                if stopping.wait(0.2):
                    process.terminate()  # what has come still lands
                    process.wait()
                    return
            told = ""
            if log is not None:
                lines = log.read_text(errors="replace").splitlines()[-4:]
                told = ":\n  " + "\n  ".join([*lines, f"see {log}"])
            say(f"{name} ended{told}\n  beginning again in {_AGAIN_SECONDS:g} s")
            stopping.wait(_AGAIN_SECONDS)

    thread = threading.Thread(target=keep, name=name)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
