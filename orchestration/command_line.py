"""The command line, `watershed`: what the Makefile's targets call. Every mistake ends in words, not in a trace."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import click

from orchestration.errors import MendableError
from orchestration.settings import ENV_PREFIX, PROJECT_ROOT, Settings, load_settings, variable

if TYPE_CHECKING:
    from datetime import datetime

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
    from orchestration.demo import card_payments, plant, retail_db

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
    if _is_demo_plant(settings):
        machines = Path(settings.value_of("plant_db_url").removeprefix("sqlite:///"))
        plant.fill(machines, folder_of(settings.value_of("plant_stream_url")), progress=tell)
    else:
        tell("machines: those of WATERSHED_PLANT_DB_URL and WATERSHED_PLANT_STREAM_URL")
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
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--set", "name", default="FD001", show_default=True, help="Which of its sets.")
def turbofan(folder: Path, name: str) -> None:
    """Run NASA's turbofan set in FOLDER through predictive maintenance, in a data folder of its own."""
    from orchestration.connectors.event_log import folder_of
    from orchestration.demo import turbofan
    from orchestration.summary import print_turbofan

    console = _console()
    own = load_settings().data_dir / f"turbofan_{name}"
    os.environ |= {
        f"{ENV_PREFIX}DATA_DIR": str(own),
        f"{ENV_PREFIX}CATALOG": f"sqlite:{own / 'catalog.sqlite'}",
        f"{ENV_PREFIX}LAKE_PATH": str(own / "lake"),
        f"{ENV_PREFIX}PLANT_DB_URL": f"sqlite:///{own / 'plant.sqlite'}",
        f"{ENV_PREFIX}PLANT_STREAM_URL": f"log://{quote(str(own / 'plant_stream'))}",
    }
    settings = load_settings()
    console.print(f"[bold]1/3  the set {name} as machines, readings and failures[/]")
    turbofan.fill(
        folder,
        name,
        own / "plant.sqlite",
        folder_of(settings.value_of("plant_stream_url")),
        progress=lambda message: console.print(f"  {message}"),
    )
    built = _build(console, settings, use_case="predictive_maintenance")
    print_turbofan(console, settings, built, name)
    if not built.succeeded:
        sys.exit(1)


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
@click.argument("use_case", required=False, type=click.Choice(["payments", "machines"]))
@click.option("--beside", is_flag=True, hidden=True)
def stream(use_case: str | None, beside: bool) -> None:
    """Score payments and machines as their events come, and land the streams, until stopped."""
    from orchestration.streaming.serve import SERVED, score_beside, serve

    watershed = str(BIN / "watershed")

    def say(line: str) -> None:
        click.echo(line, err=True)

    if use_case and beside:
        score_beside(load_settings(), use_case, say)
        return
    commands = ([watershed, "follow", "--with-parent"], [watershed, "stream", "--beside"])
    serve(load_settings(), [use_case] if use_case else list(SERVED), commands, say)


@main.command()
@click.argument("warning_id")
def acknowledge(warning_id: str) -> None:
    """Say that somebody takes care of a machine's warning."""
    from orchestration.streaming.maintenance_scoring import acknowledge as tell

    tell(load_settings(), warning_id)
    click.echo(f"acknowledged {warning_id}; the scorer marks it, at once if make stream runs")


@main.command()
def serve() -> None:
    """Answer scores over HTTP until stopped: POST /v1/<use_case>/scores, GET /health, GET /metrics."""
    from orchestration.serving.service import serve

    serve(load_settings(), lambda line: click.echo(line, err=True))


@main.command()
def page() -> None:
    """Show the page for the business in a browser: the published tables, a screen for each decision."""
    settings = load_settings()
    if not (BIN / "streamlit").exists():
        raise MendableError(
            "the page", expected="the packages of the extra demo", arrived="no streamlit",
            mend="pip install 'watershed[demo]', or make install",
        )  # fmt: skip
    options = {
        "server.address": "127.0.0.1",
        "server.port": str(settings.page_port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "global.developmentMode": "false",
        "theme.light.primaryColor": "#0068c9",
        "theme.dark.primaryColor": "#83c9ff",
    }
    script = Path(__file__).parent / "dashboard" / "page.py"
    flags = [f"--{name}={value}" for name, value in options.items()]
    click.echo(f"the page: http://127.0.0.1:{settings.page_port}  (stop with Ctrl-C)", err=True)
    os.execv(BIN / "streamlit", ["streamlit", "run", str(script), *flags])


@main.command()
def check() -> None:
    """Check that every source's contract can be understood, and that no column hides what it tells of a person."""
    import duckdb

    from orchestration.contracts.raw import SOURCES, contract_of, described_tables, line_of
    from orchestration.landing.checking import sql_types, verify
    from orchestration.warehouse.privacy import tags, told

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
    mistakes = mistakes or [str(leak) for leak in told().leaks]
    for mistake in mistakes:
        click.secho(mistake, fg="red", err=True)
    if mistakes:
        sys.exit(1)
    tagged = sum(len(columns) for columns in tags().values())
    click.echo(f"{tables} tables of sources are described in words that landing understands")
    click.echo(f"{tagged} columns tell of persons and say so; every other is told of none")


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
        if (
            key := settings.privacy_key.get_secret_value()
        ):  # not on the command line, which all can see
            os.environ[f"{ENV_PREFIX}PRIVACY_KEY"] = key
            start += f" set variable privacy_key = getenv('{ENV_PREFIX}PRIVACY_KEY');"
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
def releases() -> None:
    """List the releases: what readers of `published` see, and saw before."""
    from rich.table import Table

    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.releases import releases

    with connect(load_settings(), read_only=True) as connection:
        known = releases(connection)
    if not known:
        raise MendableError(
            "the releases", expected="builds that passed every check", arrived="none yet",
            mend="make demo",
        )  # fmt: skip
    table = Table(
        "release", "", "released at", "by", "code", "rows", "checks", box=None, pad_edge=False
    )
    for one in reversed(known[-50:]):
        table.add_row(
            one.name, "in force" if one.is_in_force else "", f"{one.released_at:%Y-%m-%d %H:%M}",
            one.released_by, one.code_version, f"{one.rows_count:,}",
            f"{one.checks_passed} ok, {one.checks_warned} !",
        )  # fmt: skip
    console = _console()
    console.print(table)
    if len(known) > 50:
        console.print(f'and {len(known) - 50:,} before: make sql q="from releases.history"')
    console.print("\n  make rollback, make rollforward: a step back or forth; to=r3 names one")


@main.command()
@click.option("--to", "name", help="A release, such as r3; without it the one before.")
def rollback(name: str | None) -> None:
    """Put an earlier release in force; nothing is built, nothing is lost."""
    _move(name or -1)


@main.command()
@click.option("--to", "name", help="A release, such as r3; without it the one after.")
def rollforward(name: str | None) -> None:
    """Put a later release in force again."""
    _move(name or 1)


@main.command()
def share() -> None:
    """Copy what `masked` shows of the release in force to where people without further rights may read it."""
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.masked import share

    settings = load_settings()
    with connect(settings, read_only=True) as connection:
        tables, attach = share(connection, settings)
    click.echo(
        f"{len(tables)} tables are in {settings.masked_lake_path}; who may read them:\n{attach}"
    )


@main.command()
def roles() -> None:
    """Print the SQL that gives engineers, analysts and readers of what is masked their rights (PostgreSQL)."""
    from orchestration.warehouse.roles import role_statements

    click.echo(role_statements(load_settings()))


@main.command()
@click.argument("release", default="in_force")
def verify(release: str) -> None:
    """Prove that a release's training sets still hold the rows that were released."""
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.erasure import receipts_of
    from orchestration.warehouse.releases import verify

    settings = load_settings()
    with connect(settings, read_only=True) as connection:
        found = verify(connection, release, settings)
        erased = receipts_of(connection, release)
    _compare(release, found, erased)


@main.command()
@click.argument("to", type=click.Path(path_type=Path, file_okay=False))
def backup(to: Path) -> None:
    """Copy the warehouse, with its run history, to the folder TO; work may go on meanwhile."""
    from orchestration.warehouse.backup import backup
    from orchestration.warehouse.holding import holding_rows

    settings = load_settings()
    with holding_rows(settings, "the backup"):
        backup(settings, to, say=click.echo)
    click.echo(f"{to} holds the warehouse; to get it back: make restore from={to}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
def restore(source: Path) -> None:
    """Put the backup SOURCE into an empty data folder, and verify every release of it."""
    from orchestration.warehouse.backup import restore

    settings = load_settings()
    restore(settings, source, say=click.echo)
    click.echo(f"restored into {settings.data_dir}; see: make releases")


@main.command()
def migrate() -> None:
    """Bring the catalog of an older DuckLake to the version of this one; make a backup before."""
    from orchestration.duckdb_session import open_session
    from orchestration.warehouse.connect import attach, building, writing

    settings = load_settings()
    with (
        building(settings, "migrating"),
        writing(settings, "migrating"),
        open_session(memory_limit="1GB") as connection,
    ):
        attach(connection, settings, migrate=True)
    click.echo("the catalog has the version that this DuckLake needs; see: make releases")


@main.command()
@click.argument("release", default="in_force")
def rebuild(release: str) -> None:
    """Build a release's training sets again from its raw rows, with its code, and compare."""
    from orchestration.rebuild import rebuild
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.erasure import receipts_of

    settings = load_settings()
    found = rebuild(settings, release, say=click.echo)
    with connect(settings, read_only=True) as connection:
        erased = receipts_of(connection, release)
    _compare(release, found, erased, is_rebuilt=True)


@main.command()
@click.argument("column")
@click.argument("value")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
def forget(column: str, value: str, dry_run: bool) -> None:
    """Forget a person, such as `customer_id 431`: out of every table, snapshot, release and file."""
    from orchestration.build import prepare_manifest
    from orchestration.lineage.graph import read_graph
    from orchestration.lineage.identifiers import person_of
    from orchestration.warehouse.erasure import as_text, forget

    settings = _with_secret("privacy_key", load_settings())
    person = person_of(read_graph(settings), prepare_manifest(), column, value)
    what = forget(settings, person, dry_run=dry_run, say=lambda line: click.echo(line, err=True))
    click.echo(as_text(what, dry_run))


@main.command()
@click.argument("before")
@click.argument("after", default="now")
@click.option("--table", help="Only this table, such as train_fraud_detection.")
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown"]), default="text",
    help="For the terminal, or to paste into a pull request.",
)  # fmt: skip
def diff(before: str, after: str, table: str | None, form: str) -> None:
    """Say what is different between two releases, or a release and `now`: shape, rows, values, metrics."""
    import json

    from orchestration.build import prepare_manifest
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.diff import as_markdown, as_text, diff, unique_keys

    keys = unique_keys(json.loads(prepare_manifest().read_bytes()))
    with connect(load_settings(), read_only=True) as connection:
        found = diff(
            connection, before, after, keys, table=table,
            say=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    click.echo((as_markdown if form == "markdown" else as_text)(before, after, found))


@main.command()
@click.argument("name")
@click.option("--down", is_flag=True, help="What changes if this changes, not what it comes from.")
@click.option(
    "--format", "form", type=click.Choice(["text", "openlineage", "svg"]), default="text",
    help="A tree, OpenLineage events (one per line), or a picture for the browser.",
)  # fmt: skip
def lineage(name: str, down: bool, form: str) -> None:
    """Say where a table or column comes from: NAME is schema.table[.column] or <system>.<table>[.<column>].

    A trained model and a prediction are tables too.
    """
    from orchestration.lineage.graph import read_graph
    from orchestration.lineage.shown import as_openlineage, as_svg, as_tree

    graph = read_graph(load_settings())
    start = graph.find(name)
    reached = graph.down(start) if down else graph.up(start)
    if form == "openlineage":
        for event in as_openlineage(graph, reached):
            click.echo(event)
    elif form == "svg":
        click.echo(as_svg(graph, reached), nl=False)
    else:
        _console().print(as_tree(graph, reached))


@main.command()
def models() -> None:
    """List the registered models: which is in force, which waits for its trial, what was decided last."""
    from orchestration.layers import USE_CASES
    from orchestration.registry import decisions, store
    from orchestration.warehouse.connect import connect

    settings = load_settings()
    with connect(settings, read_only=True) as connection:
        for use_case in USE_CASES:
            known = store.versions(settings, use_case)
            now = store.champions(settings, use_case) if known else {}
            next_up = store.challengers(settings, use_case) if known else {}
            last = {one.kind: one for one in decisions.read(connection, use_case)}
            for kind in sorted({one.kind for one in known.values()} | set(last)):
                count = sum(one.kind == kind for one in known.values())
                click.secho(f"{use_case} {kind}".rstrip(), bold=True)
                click.echo(
                    f"  in force  {now[kind].version if kind in now else 'none'}, of {count} known"
                )
                if kind in next_up:
                    click.echo(f"  waits     {next_up[kind].version}")
                if kind in last:
                    told = last[kind]
                    click.echo(f"  last      {told.action} {told.model_version}: {told.reason}")
                click.echo()
    click.echo(
        "  make promote model=<name> reason=...       another one in force at once; or make demote use_case=<name>\n"
        '  make sql q="from trained_models.fraud_detection__decisions"    every decision and its figures'
    )


@main.command()
@click.argument("model_version")
@click.option("--reason", required=True, help="Why; it is kept with the decision.")
def promote(model_version: str, reason: str) -> None:
    """Put a registered model in force, whatever its trial said: for scoring runs and the streams, at once."""
    import getpass

    from orchestration.build import tell_of_decision
    from orchestration.registry.decisions import promote

    settings = load_settings()
    done = promote(settings, model_version, reason, getpass.getuser())
    tell_of_decision(settings, model_version.partition("-")[0])
    click.echo(f"{done.champion_after} is in force, before it {done.champion_before or 'none'} was")
    click.echo("  make build    brings the tables that depend on it up to date")


@main.command()
@click.argument("use_case")
@click.option("--kind", default="", help="Of which kind of machine, where there are several.")
@click.option("--reason", required=True, help="Why; it is kept with the decision.")
def demote(use_case: str, kind: str, reason: str) -> None:
    """Put the model back in force that was so before the present one."""
    import getpass

    from orchestration.build import tell_of_decision
    from orchestration.registry.decisions import demote

    settings = load_settings()
    done = demote(settings, use_case, kind, reason, getpass.getuser())
    tell_of_decision(settings, use_case)
    click.echo(f"{done.champion_after} is in force again, instead of {done.champion_before}")
    click.echo("  make build    brings the tables that depend on it up to date")


@main.command()
@click.argument("table")
@click.argument("key")
def trace(table: str, key: str) -> None:
    """From a prediction to its sources: its model, the training set at its release, the rows in raw.

    TABLE is one of `predictions` or its name alone; KEY is the prediction's, as in transaction_id=17 or
    household_id=5,as_of_at=2017-05-01.
    """
    from orchestration.lineage.graph import read_graph
    from orchestration.registry.trace import trace
    from orchestration.warehouse.connect import connect

    settings = load_settings()
    name = table if "." in table else f"predictions.{table}"
    with connect(settings, read_only=True) as connection:
        graph = read_graph(settings)
        reached = graph.up(graph.find(name))
        above = {one for one, _ in reached.values | reached.rows}
        for line in trace(connection, settings, name, key, above):
            click.echo(line)


@main.command()
def alerts() -> None:
    """List what is wrong now: since when, what it means, what to do."""
    from orchestration.alerting.sinks import as_text
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.frames import read_frame, table_exists

    with connect(load_settings(), read_only=True) as connection:
        found = []
        if table_exists(connection, "monitoring", "alerts"):
            found = read_frame(
                connection,
                "from monitoring.alerts where closed_at is null"
                " order by list_position(['critical', 'warning', 'info'], severity), opened_at, alert_key",
            ).to_dicts()
    for one in found:
        click.echo(f"{as_text([one])}\nSince: {one['opened_at']:%Y-%m-%d %H:%M} UTC\n")
    click.echo(f"open alerts: {len(found)}" if found else "no open alerts: all is well")


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


def _is_demo_plant(settings: Settings) -> bool:
    """Whether both the plant's database and its stream are the demo's."""
    demo = load_settings(plant_db_url="", plant_stream_url="")
    return (settings.plant_db_url, settings.plant_stream_url) == (
        demo.plant_db_url,
        demo.plant_stream_url,
    )


def _demo_settings() -> Settings:
    """The settings, with secrets of the demo in `.env` where there are none: of its API, of pseudonyms."""
    settings = load_settings()
    if not _is_demo_database(settings):
        raise MendableError(
            "make demo",
            expected="the demo's own source systems",
            arrived="WATERSHED_RETAIL_DB_URL points at another database",
            mend="make build (builds from the sources you have set), or unset it to run the demo",
        )
    return _with_secret("privacy_key", _with_secret("campaign_api_token", settings))


def _with_secret(name: str, settings: Settings) -> Settings:
    """The settings, with a random secret of that name in `.env` if there is none anywhere."""
    if getattr(settings, name).get_secret_value():
        return settings
    env_file = PROJECT_ROOT / ".env"
    env_file.touch(mode=0o600)
    with env_file.open("a") as file:
        file.write(f"{variable(name)}={secrets.token_urlsafe(24)}\n")
    return load_settings()


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


def _compare(
    release: str,
    found: list[tuple[str, str, str]],
    erased: list[tuple[str, datetime, int]],
    *,
    is_rebuilt: bool = False,
) -> None:
    """Print table, hash as released and hash now of each, and end with 1 if one is another.

    Args:
        release: which.
        found: table, hash as released (as erasures have left it) and hash now.
        erased: table, when and how many rows of a person were erased from it.
        is_rebuilt: whether the rows were computed again.
    """
    for table, at, rows in erased:
        click.echo(f"  {table}: {rows:,} rows of a person were erased at {at:%Y-%m-%d %H:%M}")
    for table, told, now in found:
        same = "the same" if told == now else f"NOT the same: {now}"
        click.secho(f"{table}@{release}  {told}  {same}", fg=None if told == now else "red")
    if any(told != now for _, told, now in found):
        if erased and is_rebuilt:
            click.secho(
                "rows of others that were computed with what was erased, such as the payments at a terminal,"
                " stay as they were released; without it they come out otherwise",
                fg="red",
            )
        elif not is_rebuilt:
            click.secho(f"which rows: make rebuild release={release}", fg="red")
        sys.exit(1)


def _move(to: str | int) -> None:
    from orchestration.warehouse.connect import connect
    from orchestration.warehouse.releases import move

    settings = load_settings()
    with connect(settings) as connection:
        now = move(connection, settings, to)
    click.echo(f"{now.name} of {now.released_at:%Y-%m-%d %H:%M} is in force; see: make releases")


def _build(console: Console, settings: Settings, use_case: str | None = None) -> Built:
    from orchestration.build import build

    return build(settings, lambda title: console.print(f"[bold]{title}[/]"), use_case)


def _finish(console: Console, settings: Settings, built: Built) -> None:
    from orchestration.summary import print_summary

    print_summary(console, settings, built)
    if not built.succeeded:
        sys.exit(1)
