"""Tell MLflow of every trained model of a release: a run with all it takes to make it again, and a version."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from orchestration.duckdb_session import quoted
from orchestration.layers import USE_CASES
from orchestration.registry import decisions, store
from orchestration.registry.described import Described, described
from orchestration.settings import PROJECT_ROOT, Settings
from orchestration.warehouse.frames import read_frame, table_exists

if TYPE_CHECKING:
    import duckdb
    from mlflow import MlflowClient

    from orchestration.warehouse.releases import Release

_METRICS: Final = {
    "silhouette", "auc_roc", "average_precision", "card_precision_100", "out_of_fold_brier_score",
    "remaining_hours_rmse", "remaining_hours_rmse_all", "remaining_hours_mae", "mean_life_rmse",
    "interval_coverage", "brier_score", "calibration_error",
}  # fmt: skip
"""Columns of the trained models' tables that say how good a model is; all others say what it is."""
_PACKAGES: Final = ("lightgbm", "scikit-learn", "numpy", "polars", "duckdb")
Pictures = Callable[["duckdb.DuckDBPyConnection", Described, dict[str, Any]], dict[str, bytes]]


def register(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    release: Release,
    *,
    say: Callable[[str], None] = lambda line: None,
    pictures: Pictures | None = None,
) -> int:
    """Register the models of a release that MLflow does not know, then let the aliases follow the decisions.

    It can be broken off and run again at any point: a model counts as known when its version is there,
    which is written last.

    Args:
        connection: to the warehouse.
        settings: which store.
        release: whose models.
        say: told the version of each model that is newly in force.
        pictures: draws a model's plots, file name to PNG; None is `registry.plots`.

    Returns:
        How many were registered.

    Raises:
        RegistryUnavailableError: the store does not answer.
    """
    mark = settings.data_dir / "mlflow" / "registered"
    told = f"{release.number} {hashlib.sha256(settings.mlflow_url.get_secret_value().encode()).hexdigest()}"
    if mark.exists() and mark.read_text() == told:
        return 0
    added = 0
    for use_case in USE_CASES:
        if not table_exists(connection, "trained_models", use_case):
            continue
        client = store.open_store(settings)
        known = store.versions(settings, use_case, client)
        of = described(use_case)
        for row in _unknown(connection, release, of, set(known)):
            with store.telling(settings):
                _register_one(client, settings, connection, release, of, row, pictures)
            added += 1
        for version in decisions.apply(connection, settings, use_case):
            say(version)
        with store.telling(settings):
            _name_challengers(client, connection, settings, of)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(told)
    return added


def _unknown(
    connection: duckdb.DuckDBPyConnection, release: Release, of: Described, known: set[str]
) -> Iterator[dict[str, Any]]:
    """Rows of the trained models' table at the release whose model is not registered, one at a time."""
    table = f"trained_models.{quoted(of.use_case)} at (version => {release.snapshot_id})"
    kind = quoted(of.kind) if of.kind else "''"
    versions = connection.execute(
        f"select distinct model_version, as_of_at, {kind} from {table} order by as_of_at, model_version"
    ).fetchall()
    for version, *_ in versions:
        if version not in known:
            yield read_frame(
                connection, f"select * from {table} where model_version = ? limit 1", [version]
            ).row(0, named=True)


def _register_one(
    client: MlflowClient,
    settings: Settings,
    connection: duckdb.DuckDBPyConnection,
    release: Release,
    of: Described,
    row: dict[str, Any],
    pictures: Pictures | None,
) -> None:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.models import Model as Manifest

    from orchestration.registry.plots import pictures_of

    kind = str(row[of.kind]) if of.kind else ""
    name, version = of.name_of(kind), row["model_version"]
    model = of.load(row["parameters"])
    now = int(time.time() * 1000)
    experiment = _experiment(client, settings, of.use_case)
    run = client.create_run(experiment, start_time=now, run_name=version)
    run_id = run.info.run_id
    values = {
        key: value
        for key, value in row.items()
        if key not in ("parameters", "criterion") and value is not None
    }
    facts = {
        key: value.isoformat() if isinstance(value, datetime) else str(value)
        for key, value in values.items()
        if key not in _METRICS and key != "is_champion"
    }
    tags = {"model_version": version, "kind": kind, "release": release.name} | {
        "code_version": release.code_version,
        "snapshot_id": str(release.snapshot_id),
        "training_set": f"{of.training_set}@{release.name}",
        "python": platform.python_version(),
        "packages": " ".join(f"{name}=={metadata.version(name)}" for name in _PACKAGES),
        "lock_sha256": _lock_hash(),
    }
    client.log_batch(
        run_id,
        metrics=[
            Metric(key, float(value), now, 0)
            for key, value in values.items()
            if key in _METRICS and math.isfinite(value)
        ],
        params=[Param(key, value[:5000]) for key, value in facts.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    client.log_inputs(run_id, datasets=[_dataset(connection, release, of)])
    with TemporaryDirectory() as folder:
        files = Path(folder)
        (files / store.MODEL).mkdir()
        (files / store.MODEL / "model.json").write_text(row["parameters"], encoding="utf-8")
        manifest: Any = Manifest(
            artifact_path=store.MODEL, run_id=run_id, signature=_signature(of, model),
            flavors={"watershed": {"data": "model.json", "use_case": of.use_case, "kind": kind}},
        )  # fmt: skip
        manifest.save(str(files / store.MODEL / "MLmodel"))
        drawn = (pictures or pictures_of)(connection, of, row)
        for file, png in drawn.items():
            (files / "plots").mkdir(exist_ok=True)
            (files / "plots" / file).write_bytes(png)
        client.log_artifacts(run_id, folder)
    client.set_terminated(run_id)
    _ensure_registered(client, name, of, kind)
    client.create_model_version(
        name, f"{run.info.artifact_uri}/{store.MODEL}", run_id=run_id,
        tags={"model_version": version, "algorithm": facts.get("algorithm", ""), "release": release.name},
    )  # fmt: skip


def _experiment(client: MlflowClient, settings: Settings, use_case: str) -> str:
    found = client.get_experiment_by_name(use_case)
    if found is not None:
        return str(found.experiment_id)
    where = None
    if store.embedded_file(settings) is not None:
        where = (settings.data_dir / "mlflow" / use_case).resolve().as_uri()
    return str(client.create_experiment(use_case, artifact_location=where))


def _ensure_registered(client: MlflowClient, name: str, of: Described, kind: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"use_case": of.use_case, "kind": kind})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _dataset(connection: duckdb.DuckDBPyConnection, release: Release, of: Described) -> Any:
    """The training set as MLflow knows data: `train_x@r3` and the hash that the release wrote down.

    MLflow keeps one dataset of a name and digest for all runs, so nothing of a single run is in it.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    ((content_hash, rows),) = connection.execute(
        "select any_value(content_hash), any_value(rows_count) from releases.contents"
        " where release_number = ? and table_name = ?",
        [release.number, of.training_set],
    ).fetchall() or [("", 0)]
    content_hash = content_hash or ""
    source = {
        "table": f"training_sets.{of.training_set}",
        "release": release.name,
        "snapshot_id": release.snapshot_id,
        "content_hash": content_hash,
    }
    return DatasetInput(
        Dataset(
            name=f"{of.training_set}@{release.name}",
            digest=content_hash
            if len(content_hash) <= 36
            else hashlib.sha256(content_hash.encode()).hexdigest()[:16],
            source_type="ducklake",
            source=json.dumps(source),
            profile=json.dumps({"rows": rows}),
        ),
        [InputTag("mlflow.data.context", "training")],
    )


def _signature(of: Described, model: Any) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec("double", name) for name in of.inputs(model)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in of.outputs]),
    )


def _name_challengers(
    client: MlflowClient, connection: duckdb.DuckDBPyConnection, settings: Settings, of: Described
) -> None:
    """Point the alias `challenger` of each kind at the newest model that is neither decided on nor in force."""
    kind = quoted(of.kind) if of.kind else "''"
    chosen = "is_champion" if of.use_case != "customer_segmentation" else "true"
    newest: dict[str, str] = dict(
        connection.execute(
            f"select {kind}, max_by(model_version, as_of_at)"
            f" from trained_models.{quoted(of.use_case)} where {chosen} group by all"
        ).fetchall()
    )
    tried = {one.model_version for one in decisions.read(connection, of.use_case)}
    now = store.champions(settings, of.use_case)
    before = store.challengers(settings, of.use_case)
    known = store.versions(settings, of.use_case, client)
    for which, version in newest.items():
        waits = (
            version in known
            and version not in tried
            and (which not in now or now[which].version != version)
        )
        if waits and (which not in before or before[which].version != version):
            client.set_registered_model_alias(
                known[version].name, store.CHALLENGER, known[version].number
            )
        elif not waits and which in before:
            client.delete_registered_model_alias(before[which].name, store.CHALLENGER)


def _lock_hash() -> str:
    lock = PROJECT_ROOT / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "unknown"
