"""Who may do what where the catalog is PostgreSQL: the SQL that its owner runs once.

DuckLake has no users of its own. Who can read the catalog's tables and the data path can read every
row of every version; who can write both can write everything. So there are as many rights as there are
catalogs with a data path of their own, and that is two: the warehouse, and what `share` copies of it.

- `watershed_engineer` writes the warehouse: builds, releases, forgets, shares.
- `watershed_analyst` reads all of it, and writes nothing.
- `watershed_masked` reads what was shared, and has no right to the warehouse's catalog.

The files need the like: engineers may read and write both paths, analysts read both, the others read
`masked_lake_path` alone (a bucket's policy, or the folder's group). A schema or table of the warehouse
cannot be kept from its readers by grants on the catalog: the paths of all files stand in one table.
"""

from __future__ import annotations

from orchestration.errors import MendableError
from orchestration.settings import Settings
from orchestration.warehouse.masked import CATALOG_SCHEMA

ENGINEER, ANALYST, MASKED = "watershed_engineer", "watershed_analyst", "watershed_masked"

_ROLE = "if not exists (select from pg_roles where rolname = '{0}') then create role {0} nologin; end if;"
_OWNED = """
do $$
declare one record;
begin
    for one in
        select schemaname, tablename from pg_tables
        where schemaname = '{schema}' and tablename like 'ducklake\\_%'
    loop
        execute format('alter table %I.%I owner to {engineer}', one.schemaname, one.tablename);
    end loop;
end $$;"""
_READ = """
grant usage on schema {schema} to {reader};
grant select on all tables in schema {schema} to {reader};
alter default privileges for role {engineer} in schema {schema} grant select on tables to {reader};"""


def role_statements(settings: Settings) -> str:
    """The SQL that makes the three roles; running it again changes nothing, and mends what is missing.

    Raises:
        MendableError: the catalog is no PostgreSQL.
    """
    if settings.catalog_file is not None:
        raise MendableError(
            "rights per role",
            expected="a catalog in PostgreSQL",
            arrived="an embedded one: who can read its file can read everything",
            mend="set WATERSHED_CATALOG=postgres:..., or give others a copy of what is masked: make share",
        )
    roles = "\n    ".join(_ROLE.format(role) for role in (ENGINEER, ANALYST, MASKED))
    parts = [
        "-- run it as the database's owner or a superuser; then give people a role:",
        f"--   grant {ANALYST} to anna;",
        "-- one who writes does so as the role, so that all tables are the role's:",
        f"--   grant {ENGINEER} to ben; alter role ben set role {ENGINEER};",
        f"do $$ begin\n    {roles}\nend $$;",
        f"create schema if not exists {CATALOG_SCHEMA} authorization {ENGINEER};",
        f"grant usage, create on schema public to {ENGINEER};",
        "revoke create on schema public from public;",
    ]
    for schema, readers in (("public", [ANALYST]), (CATALOG_SCHEMA, [ANALYST, MASKED])):
        parts.append(_OWNED.format(schema=schema, engineer=ENGINEER))
        for reader in readers:
            parts.append(_READ.format(schema=schema, reader=reader, engineer=ENGINEER))
    return "\n".join(parts) + "\n"
