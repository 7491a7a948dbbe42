"""MLflow's store and registry: open it, find and load the model in force, move the alias that says so.

Which model is in force is one fact: the alias `champion` of the registered model. To move it is one
upsert, so at every moment there is exactly one. A model is our own JSON, loaded by our own code after
its size, its signature and its hash have been checked: nothing in a registry can run anything here.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestration.errors import MendableError, PassingError
from orchestration.registry.described import Described, described
from orchestration.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
MODEL: Final = "model"
"""The artifact's folder: `MLmodel` and `model.json`."""
MOST_BYTES: Final = 64 << 20
"""A larger file is no model of ours."""
_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}


class RegistryUnavailableError(PassingError):
    """MLflow's store did not answer."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        number: MLflow's version number.
        kind: of model, or "".
        version: the model's own name, as predictions have it.
        run_id: the run that tells of its fit.
        source: where its artifact lies.
    """

    name: str
    number: str
    kind: str
    version: str
    run_id: str
    source: str


def embedded_file(settings: Settings) -> Path | None:
    """The embedded store's file, or None if a server keeps it."""
    url = settings.mlflow_url.get_secret_value()
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def exists(settings: Settings) -> bool:
    """Whether there is something to read; a server is asked when it is read."""
    file = embedded_file(settings)
    return file is None or file.exists()


def last_written(settings: Settings) -> int | None:
    """When the embedded store was last written (ns), 0 before it exists; None for a server, which must be asked."""
    file = embedded_file(settings)
    if file is None:
        return None
    return file.stat().st_mtime_ns if file.exists() else 0


def open_store(settings: Settings) -> MlflowClient:
    """MLflow's client on the configured store; the embedded one is created when it is absent.

    Raises:
        RegistryUnavailableError: it does not answer.
    """
    with telling(settings):
        return _opened(
            settings.mlflow_url.get_secret_value(), embedded_file(settings), settings.data_dir
        )


@cache
def _opened(url: str, file: Path | None, data_dir: Path) -> MlflowClient:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # its import sets its own level
        logging.getLogger(name).setLevel(logging.WARNING)

    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(url, url)
    if file is not None:
        client.search_experiments(max_results=1)  # creates the tables
        _follow_the_folder(file, data_dir / "mlflow")
    return client


def champions(settings: Settings, use_case: str) -> dict[str, Registered]:
    """The model in force of each kind; empty before any is.

    Raises:
        RegistryUnavailableError: the store does not answer.
    """
    return _with_alias(settings, use_case, CHAMPION)


def challengers(settings: Settings, use_case: str) -> dict[str, Registered]:
    """The newest model of each kind that waits for its trial."""
    return _with_alias(settings, use_case, CHALLENGER)


def versions(
    settings: Settings, use_case: str, client: MlflowClient | None = None
) -> dict[str, Registered]:
    """Every registered model of a use case, by its own name."""
    if not exists(settings):
        return {}
    of = described(use_case)
    client = client or open_store(settings)
    found: dict[str, Registered] = {}
    with telling(settings):
        token: str | None = None
        while True:
            page = client.search_model_versions(
                f"name LIKE '{use_case}%'", max_results=1000, page_token=token
            )
            found |= {one.tags.get("model_version", ""): _registered(of, one) for one in page}
            token = page.token
            if not token:
                return found


def find(settings: Settings, model_version: str) -> tuple[str, Registered]:
    """The use case and the registered model of a model's own name.

    Raises:
        MendableError: it is not registered.
    """
    use_case = model_version.partition("-")[0]
    found = versions(settings, described(use_case).use_case).get(model_version)
    if found is None:
        raise MendableError(
            f"model {model_version}",
            expected="one of those that the registry knows",
            arrived="it is not among them",
            mend="make models lists them; make build registers those of the last release",
        )
    return use_case, found


def parameters_of(settings: Settings, use_case: str, one: Registered) -> str:
    """A registered model's JSON, after it has been checked.

    Raises:
        MendableError: it is too large, its signature is not that of this code, or it is damaged or
            another model than the registry says.
        RegistryUnavailableError: the store does not answer.
    """
    from mlflow.models import Model as Manifest

    of = described(use_case)
    with telling(settings), _artifact(settings, one) as folder:
        if folder is None:
            raise _foreign(one, "no model.json of at most 64 MB and its MLmodel")
        try:
            manifest: Any = Manifest.load(str(folder))
            told = [column.name for column in manifest.signature.inputs.inputs]
        except Exception as error:  # noqa: BLE001 - whatever a foreign file does to the parser
            raise _foreign(
                one, f"an MLmodel that cannot be read ({type(error).__name__})"
            ) from None
        text = (folder / "model.json").read_text(encoding="utf-8", errors="replace")
    try:
        model = of.load(text)
    except MendableError as error:
        raise _foreign(one, error.arrived) from None
    if told != list(of.inputs(model)):
        raise _foreign(one, "a signature with other inputs than the code gives")
    if model.version != one.version or getattr(model, of.kind or "version") != (
        one.kind if of.kind else one.version
    ):
        raise _foreign(one, f"the model {model.version}")
    return text


def put_in_force(settings: Settings, one: Registered, decision: int) -> None:
    """Move the champion's alias to a version: one upsert, in force within a second everywhere.

    Args:
        settings: which store.
        one: the version.
        decision: the number of the decision that says so.
    """
    client = open_store(settings)
    with telling(settings):
        client.set_registered_model_alias(one.name, CHAMPION, one.number)
        client.set_registered_model_tag(one.name, "decision_number", str(decision))


def applied_decisions(settings: Settings, use_case: str) -> dict[str, int]:
    """Per kind, the number of the last decision that the alias follows."""
    return {
        kind: int(model.tags.get("decision_number", -1))
        for kind, model in _registered_models(settings, use_case).items()
    }


def _registered_models(settings: Settings, use_case: str) -> dict[str, Any]:
    if not exists(settings):
        return {}
    of, client = described(use_case), open_store(settings)
    with telling(settings):
        found = client.search_registered_models(f"name LIKE '{use_case}%'", max_results=1000)
    return {of.kind_of(model.name): model for model in found}


def _with_alias(settings: Settings, use_case: str, alias: str) -> dict[str, Registered]:
    of, found = described(use_case), {}
    for kind, model in _registered_models(settings, use_case).items():
        if alias in model.aliases:
            client = open_store(settings)
            with telling(settings):
                one = client.get_model_version(model.name, str(model.aliases[alias]))
            found[kind] = _registered(of, one)
    return found


def _registered(of: Described, one: Any) -> Registered:
    tags = one.tags
    return Registered(
        one.name, str(one.version), of.kind_of(one.name), tags.get("model_version", ""),
        one.run_id or "", one.source or "",
    )  # fmt: skip


@contextmanager
def _artifact(settings: Settings, one: Registered) -> Iterator[Path | None]:
    """A folder with the model's two files; None if they are not there or too large."""
    import tempfile

    needed = {f"{MODEL}/MLmodel", f"{MODEL}/model.json"}
    client = open_store(settings)
    sizes = {file.path: file.file_size or 0 for file in client.list_artifacts(one.run_id, MODEL)}
    if not needed <= sizes.keys() or max(sizes[path] for path in needed) > MOST_BYTES:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(client.download_artifacts(one.run_id, path, folder)) for path in needed]
        yield files[0].parent


def _foreign(one: Registered, arrived: str) -> MendableError:
    return MendableError(
        f"registered model {one.name} version {one.number}",
        expected="the model that the training wrote, unchanged, with the inputs that the code gives it",
        arrived=arrived,
        mend=f"put another in force: make models, then make promote model=... ({one.name})",
    )


def _follow_the_folder(file: Path, folder: Path) -> None:
    """Let the store find its artifacts where they are now, when the data folder was copied or moved."""
    now = folder.resolve().as_uri()
    with closing(sqlite3.connect(file, timeout=30)) as store:
        told = store.execute(
            "select artifact_location from experiments where artifact_location like 'file:%/mlflow/%'"
        ).fetchall()
        for before in {location.rpartition("/")[0] for (location,) in told} - {now}:
            with store:
                for table, column in (
                    ("experiments", "artifact_location"), ("runs", "artifact_uri"),
                    ("model_versions", "source"), ("model_versions", "storage_location"),
                ):  # fmt: skip
                    store.execute(
                        f"update {table} set {column} = ? || substr({column}, ?)"
                        f" where {column} like ? || '/%'",
                        [now, len(before) + 1, before],
                    )


@contextmanager
def telling(settings: Settings) -> Iterator[None]:
    """Turn what MLflow and its database raise into words, without the address, which may hold a password."""
    try:
        yield
    except MendableError:
        raise
    except Exception as error:  # noqa: BLE001 - MLflow, SQLAlchemy and requests have no common base
        file = embedded_file(settings)
        raise RegistryUnavailableError(
            f"the model registry {file or '(WATERSHED_MLFLOW_URL)'}",
            expected="an MLflow store that answers",
            arrived=type(error).__name__,
            mend="start the MLflow server, or correct WATERSHED_MLFLOW_URL; meanwhile the former model"
            " stays in force, and the next build catches up",
        ) from None
