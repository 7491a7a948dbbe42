"""The command line, `watershed`: what the Makefile's targets call. Every mistake ends in words, not in a trace."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from orchestration.errors import MendableError
from orchestration.settings import ENV_PREFIX, PROJECT_ROOT, Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from orchestration.build import Built

BIN = Path(sys.executable).parent


class _Mendable(click.Group):
    """Prints a `MendableError` as it is and exits with 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MendableError as error:
            click.secho(f"\n{error}", fg="red", err=True)
            ctx.exit(1)


@click.group(cls=_Mendable)
def main() -> None:
    """Watershed: from raw business sources to training sets, and the models that live on them."""


@main.command()
def demo() -> None:
    """Fill the demo's source systems, build everything new, and say what exists now."""
    from orchestration.connectors.event_log import folder_of
    from orchestration.demo import card_payments, retail_db

    console = _console()
    settings = _demo_settings()
    card_payments.require_unmixed(settings)
    console.print("[bold]1/3  the source systems[/]")
    database = Path(settings.value_of("retail_db_url").removeprefix("sqlite:///"))

    def tell(message: str) -> None:
        console.print(f"  {message}")

    retail_db.fill(database, progress=tell)
    if _are_demo_payments(settings):
        stream = folder_of(settings.value_of("payments_stream_url"))
        card_payments.fill(Path(settings.payments_lake_url), stream, progress=tell)
    else:
        tell(
            "card payments: those of WATERSHED_PAYMENTS_LAKE_URL and WATERSHED_PAYMENTS_STREAM_URL"
        )
    with _demo_api(settings):
        built = _build(console, settings)
    _finish(console, settings, built)


@main.command()
def build() -> None:
    """Build everything new from the configured sources."""
    from orchestration.demo import card_payments

    console = _console()
    settings = load_settings()
    card_payments.require_unmixed(settings)
    with _demo_api(settings):
        built = _build(console, settings)
    _finish(console, settings, built)


@main.command()
@click.argument("table")
@click.option("--from", "start", help="From here on: a cursor value, a partition, a path, a time.")
@click.option("--to", "end", help="... and before this.")
@click.option("--accept-gap", is_flag=True, help="Go on although events of a stream are gone.")
def reload(table: str, start: str | None, end: str | None, accept_gap: bool) -> None:
    """Load a part of a source again: TABLE is <system>.<entity>, as in retail_db.transactions.

    Rows that have landed are known again, so what comes of it is only what was missing.
    """
    from orchestration.build import reload

    console = _console()
    settings = load_settings()
    with _demo_api(settings):
        built = reload(settings, table, start, end, accept_gap=accept_gap)
    for failure in built.failures:
        console.print(f"failed {failure}", style="red", markup=False, soft_wrap=True)
    if not built.succeeded:
        sys.exit(1)
    console.print(
        "\nthe ledger has it; next: make build (what it made stale), or"
        ' make sql q="from monitoring.mon_landing__gaps" (what is still missing)'
    )


@main.command()
@click.argument("topics", nargs=-1, required=True)
@click.option("--with-parent", is_flag=True, hidden=True)
def follow(topics: tuple[str, ...], with_parent: bool) -> None:
    """Land streams as their events come, until stopped: TOPICS are <system>.<entity>."""
    from orchestration.build import follow

    if not with_parent:
        click.echo(f"following {', '.join(topics)} (stop with Ctrl-C; nothing is lost)", err=True)
    follow(
        load_settings(),
        topics,
        say=lambda line: None if with_parent else click.echo(line, err=True),
        with_parent=with_parent,
    )


@main.command()
def stream() -> None:
    """Score payments as they are made, and land the stream, until stopped."""
    from orchestration.streaming.serve import serve

    landing = [str(BIN / "watershed"), "follow", "--with-parent"]
    serve(load_settings(), landing, say=lambda line: click.echo(line, err=True))


@main.command()
def check() -> None:
    """Check the description of every source: that its contracts and rules can be understood."""
    import duckdb

    from orchestration.contracts.raw import SOURCES, contract_of, described_tables, line_of
    from orchestration.landing.checking import sql_types, verify

    mistakes, tables = [], 0
    for file in sorted(SOURCES.glob("*/defs.yaml")):
        for table in described_tables(file):
            tables += 1
            try:
                contract = contract_of(file.parent.name, table["name"])
                sql_types(contract)
                with duckdb.connect() as connection:
                    verify(connection, contract)
            except MendableError as error:
                line = line_of(file, table["name"], error.thing.rpartition(" ")[2])
                mistakes.append(f"{file.relative_to(PROJECT_ROOT)}:{line}: {error}")
    for mistake in mistakes:
        click.secho(mistake, fg="red", err=True)
    if mistakes:
        sys.exit(1)
    click.echo(f"{tables} tables of sources are described in words that landing understands")


@main.command()
@click.option("--port", default=3000, show_default=True, help="Where the UI listens on 127.0.0.1.")
def ui(port: int) -> None:
    """Open the graph in Dagster; history is kept in the data folder."""
    from orchestration.build import prepare_dagster_home, prepare_manifest

    settings = load_settings()
    prepare_dagster_home(settings)
    prepare_manifest()
    with _demo_api(settings):
        command = [str(BIN / "dg"), "dev", "--port", str(port), "--no-check-yaml"]
        environment = {
            **os.environ,
            "VIRTUAL_ENV": str(BIN.parent),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        click.echo(f"the graph: http://127.0.0.1:{port}  (stop with Ctrl-C)")
        try:
            sys.exit(subprocess.run(command, cwd=PROJECT_ROOT, env=environment).returncode)
        except KeyboardInterrupt:
            sys.exit(0)


@main.command()
@click.argument("query", required=False)
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table")
def sql(query: str | None, form: str) -> None:
    """A DuckDB shell on the warehouse, or the rows of QUERY. It only reads, and never waits for a build."""
    import duckdb

    from orchestration.warehouse.connect import attach_statement, connect

    settings = load_settings()
    connection = connect(settings, read_only=True)
    if query is None:
        connection.close()
        start = f"{attach_statement(settings, read_only=True)}; use lake;"
        os.execv(BIN / "duckdb", ["duckdb", "-cmd", start])
    try:
        rows = connection.sql(query)
        if rows is None:
            raise MendableError(
                "the query", expected="one that returns rows", arrived="one that returns none",
                mend='make sql q="select ..."',
            )  # fmt: skip
        if form == "csv":
            rows.write_csv("/dev/stdout")
        else:
            rows.show(max_width=_console().width, max_rows=100)
    except duckdb.Error as error:
        raise MendableError(
            "the query",
            expected="SQL that DuckDB can run on the warehouse (it is open read-only)",
            arrived=str(error),
            mend='make sql q="show all tables" lists what is there',
        ) from None


@main.command()
def settings() -> None:
    """Every setting, its value and what it means; secrets are hidden."""
    from rich.table import Table

    table = Table("setting", "value", "what it means", show_lines=True)
    values = load_settings()
    for name, field in Settings.model_fields.items():
        table.add_row(ENV_PREFIX + name.upper(), str(getattr(values, name)), field.description)
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def _is_demo_database(settings: Settings) -> bool:
    return settings.retail_db_url == load_settings(retail_db_url="").retail_db_url


def _are_demo_payments(settings: Settings) -> bool:
    """Whether both the lake and the stream are the demo's; its payments do not mix with others."""
    demo = load_settings(payments_lake_url="", payments_stream_url="")
    return (settings.payments_lake_url, settings.payments_stream_url) == (
        demo.payments_lake_url,
        demo.payments_stream_url,
    )


def _demo_settings() -> Settings:
    """The settings, with a token for the demo's API in `.env` if there is none anywhere."""
    settings = load_settings()
    if not _is_demo_database(settings):
        raise MendableError(
            "make demo",
            expected="the demo's own source systems",
            arrived="WATERSHED_RETAIL_DB_URL points at another database",
            mend="make build (builds from the sources you have set), or unset it to run the demo",
        )
    if not settings.campaign_api_token.get_secret_value():
        env_file = PROJECT_ROOT / ".env"
        env_file.touch(mode=0o600)
        with env_file.open("a") as file:
            file.write(f"{ENV_PREFIX}CAMPAIGN_API_TOKEN={secrets.token_urlsafe(24)}\n")
        settings = load_settings()
    return settings


def _demo_api(settings: Settings) -> ExitStack:
    """The demo's campaign API for as long as the block runs, if it is the one the settings name.

    That is so at its default address, and at any port of this machine beside the demo's database.
    """
    stack = ExitStack()
    local = urlsplit(settings.campaign_api_url).hostname in ("127.0.0.1", "localhost")
    default = Settings.model_fields["campaign_api_url"].default
    if settings.campaign_api_url == default or (local and _is_demo_database(settings)):
        from orchestration.demo import campaign_api

        stack.enter_context(
            campaign_api.running(
                settings.campaign_api_url, settings.campaign_api_token.get_secret_value()
            )
        )
    return stack


def _build(console: Console, settings: Settings) -> Built:
    from orchestration.build import build

    return build(settings, step=lambda title: console.print(f"[bold]{title}[/]"))


def _finish(console: Console, settings: Settings, built: Built) -> None:
    from orchestration.summary import print_summary

    print_summary(console, settings, built)
    if not built.succeeded:
        sys.exit(1)
