"""The code location Dagster opens: loads defs/, binds resources, executor and console; nothing else."""

from pathlib import Path

import dagster as dg


@dg.definitions
def definitions() -> dg.Definitions:
    """Everything under `orchestration/defs/`, run in one process (one writer on the warehouse)."""
    from orchestration.defs.console import console
    from orchestration.defs.dbt import dbt_resource

    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
        dg.Definitions(
            resources={"dbt": dbt_resource()},
            executor=dg.in_process_executor,
            loggers={"console": console},
        ),
    )
