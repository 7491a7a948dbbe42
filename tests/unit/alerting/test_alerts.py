"""Alerts: opened once, told once to each sink, told again when worse or after a week, closed when well."""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestration.alerting.alerts import CONDITIONS, FROM_HISTORY, conditions, watch
from orchestration.alerting.sinks import sinks_of
from orchestration.settings import PROJECT_ROOT, load_settings
from orchestration.warehouse.connect import connect

NOW = datetime(2026, 11, 24, 12)
HOUR, WEEK = timedelta(hours=1), timedelta(days=7)


def wrong(key="drift/a", severity="warning"):
    return {
        "alert_key": key, "use_case": "fraud_detection", "kind": "drift", "severity": severity,
        "what_happened": f"{key} drifted", "what_it_means": "scores are off", "what_to_do": "look",
    }  # fmt: skip


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def webhook():
    """A Slack-like webhook: the texts it got, and the status it answers with."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if server.status == 200:
                server.texts.append(body["text"])
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.texts, server.status = [], 200
    with serving(server):
        yield server


@pytest.fixture
def mail():
    """A mail server: the messages it got."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    text = b""
                    while (line := self.rfile.readline()) != b".\r\n":
                        text += line
                    server.messages.append(text.decode())
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.messages = True, []
    with serving(server):
        yield server


@pytest.fixture
def told(settings, webhook, mail):
    """Watch with all three sinks; returns those that are down."""
    settings.data_dir.mkdir(parents=True)
    url = f"http://127.0.0.1:{webhook.server_address[1]}/hook"
    post = f"smtp://127.0.0.1:{mail.server_address[1]}/?from=a@example.com&to=b@example.com"
    full = load_settings(alert_webhook_url=url, alert_email_url=post)
    with connect(full) as connection:

        def tell(found, now=NOW, **keep):
            return watch(connection, full, found, sinks_of(full), now, **keep)

        tell.rows = lambda: connection.execute(
            "select alert_key, severity, times_seen, told_to, opened_at, closed_at from monitoring.alerts"
            " order by opened_at, alert_key"
        ).fetchall()
        tell.logged = lambda: (
            (settings.data_dir / "alerts.log").read_text().splitlines()
            if (settings.data_dir / "alerts.log").exists()
            else []
        )
        tell.connection = connection
        yield tell


def test_nothing_is_sent_when_all_is_well(told, webhook, mail):
    assert told([]) == []
    assert (told.rows(), told.logged(), webhook.texts, mail.messages) == ([], [], [], [])


def test_an_alert_is_told_once_to_the_sinks_of_its_severity_and_closed_when_well(
    told, webhook, mail
):
    told([wrong()])
    told([wrong()], NOW + HOUR)
    assert (len(told.logged()), len(webhook.texts), mail.messages) == (1, 1, [])
    assert "WARNING" in webhook.texts[0]
    assert "What to do: look" in webhook.texts[0]
    told([], NOW + 2 * HOUR)
    assert told.rows() == [("drift/a", "warning", 2, "log webhook", NOW, NOW + 2 * HOUR)]
    told([wrong()], NOW + 3 * HOUR)  # it is back: a new alert, told anew
    assert (len(told.rows()), len(webhook.texts)) == (2, 2)


def test_an_alert_is_told_again_when_it_gets_worse_and_after_a_week(told, webhook, mail):
    told([wrong()])
    told([wrong(severity="critical")], NOW + HOUR)
    assert (len(webhook.texts), len(mail.messages)) == (2, 1)
    assert "Subject: Watershed: 1 alert" in mail.messages[0]
    told([wrong()], NOW + 2 * HOUR)  # better, but not well
    told([wrong()], NOW + WEEK)
    assert (len(webhook.texts), len(mail.messages)) == (2, 1)
    told([wrong()], NOW + HOUR + WEEK)
    told([wrong()], NOW + 2 * HOUR + WEEK)
    assert (len(webhook.texts), len(mail.messages)) == (3, 1)


def test_a_sink_that_is_down_is_told_at_the_next_run_once_and_keeps_nobody_from_being_told(
    told, webhook, mail
):
    webhook.status = 503
    assert told([wrong(severity="critical")]) == ["webhook: status 503"]
    assert (len(told.logged()), webhook.texts, len(mail.messages)) == (1, [], 1)
    webhook.status = 200
    for hours in (1, 2):
        assert told([wrong(severity="critical")], NOW + hours * HOUR) == []
    assert (len(told.logged()), len(webhook.texts), len(mail.messages)) == (1, 1, 1)


def test_a_sink_that_does_not_exist_says_neither_its_url_nor_its_password(settings):
    settings.data_dir.mkdir(parents=True)
    full = load_settings(
        alert_webhook_url="http://127.0.0.1:9/secret-path",
        alert_email_url="smtp://user:secret-word@127.0.0.1:9/?from=a@b&to=c@d",
    )
    with connect(full) as connection:
        down = watch(connection, full, [wrong(severity="critical")], sinks_of(full), NOW)
    assert [one.partition(":")[0] for one in down] == ["webhook", "email"]
    assert "secret" not in str(down)
    assert "secret" not in repr(full)


def test_a_password_is_not_sent_to_a_mail_server_without_tls(settings, mail):
    settings.data_dir.mkdir(parents=True)
    url = (
        f"smtp://user:word@127.0.0.1:{mail.server_address[1]}/?from=a@example.com&to=b@example.com"
    )
    full = load_settings(alert_email_url=url)
    with connect(full) as connection:
        down = watch(connection, full, [wrong(severity="critical")], sinks_of(full), NOW)
    assert down == ["email: no TLS, so the password was not sent"]
    assert mail.messages == []


def test_a_webhook_reads_no_mention_out_of_an_alert(told, webhook):
    told([wrong(key="<!channel> & more")])
    assert "&lt;!channel&gt; &amp; more drifted" in webhook.texts[0]


def test_failed_checks_stay_open_for_who_knows_nothing_of_checks(told):
    found = conditions(told.connection, ["raw/a: is_right"])
    assert [one["alert_key"] for one in found] == ["check_failed/raw/a"]
    told(found)
    told([], NOW + HOUR, keep_kinds=FROM_HISTORY)
    assert told.rows()[0][-1] is None
    told([], NOW + 2 * HOUR)
    assert told.rows()[0][-1] == NOW + 2 * HOUR


def test_what_has_one_cause_is_one_alert_that_lists_all_it_broke_and_is_told_once(told, webhook):
    checks = ["raw/a: is_right", "raw/a: is_fresh", "raw/b: is_right"]
    steps = {"raw__a": "start the database", "raw__b": "start the database", "raw__c": "", "d": ""}
    found = conditions(told.connection, checks, steps)
    assert [(one["alert_key"], one["what_happened"]) for one in found] == [
        ("check_failed/raw/a", "2 checks (is_right, is_fresh) of raw/a failed"),
        ("check_failed/raw/b", "the check is_right of raw/b failed"),
        ("step_failed/start the database", "2 steps (raw__a, raw__b) failed"),
        ("step_failed/raw__c", "the step raw__c failed"),
        ("step_failed/d", "the step d failed"),
    ]
    assert found[2]["what_to_do"] == "start the database"
    assert "make ui" in found[3]["what_to_do"]
    told(found)
    told(conditions(told.connection, checks, {**steps, "raw__e": "start the database"}), NOW + HOUR)
    assert len(webhook.texts) == 1


def test_drift_volume_and_missed_targets_become_alerts_that_say_what_to_do(told):
    told([])
    told.connection.execute("""
        create table monitoring.mon_fraud_detection__drift as
            select timestamp '2024-01-01' + to_days(cast(week as int)) as as_of_at, '' as subject,
                feature, statistic, 1.0 as reference_value, 2.0 as current_value,
                week = 7 and feature <> 'amount' as is_drifted
            from (values (0), (7)) as w (week), (values ('amount'), ('score'), ('calibration')) as f (feature),
                (values ('mean'), ('spread')) as s (statistic);
        create table monitoring.mon_landing__anomalies as
            select 'raw.a__b' as table_name, 10 as rows_count, date '2024-01-01' as tested_date,
                100.0 as expected_rows_count, true as is_anomalous, 216.0 as silence_hours,
                72.0 as longest_silence_hours, true as is_stale;
        create table monitoring.mon_metrics__current as
            select 'fraud_detection' as use_case, metric, value, 1.0 as target, 'at_most' as direction,
                value <= 1.0 as is_met, 'risk' as owner, 'because' as reason,
                date '2024-02-01' as review_on, metric = 'saved' as is_review_due
            from (values ('parity_mismatches', 2.0), ('saved', 0.0), ('lost', 3.0), ('new', null)) as m (metric, value)
    """)
    found = {one["alert_key"]: one for one in conditions(told.connection)}
    assert {key: (one["kind"], one["severity"]) for key, one in found.items()} == {
        "drift/fraud_detection//score": ("drift", "warning"),
        "drift/fraud_detection//calibration": ("decay", "warning"),
        "volume/raw.a__b": ("volume", "warning"),
        "freshness/raw.a__b": ("freshness", "warning"),
        "parity/fraud_detection/parity_mismatches": ("parity", "critical"),
        "missed_target/fraud_detection/lost": ("missed_target", "warning"),
        "review_due/fraud_detection/saved": ("review_due", "info"),
    }
    assert found["drift/fraud_detection//score"]["what_happened"] == (
        "score has drifted: mean 1 -> 2, spread 1 -> 2"
    )
    assert found["freshness/raw.a__b"]["what_happened"] == (
        "raw.a__b has had no new row for 216 hours; the longest before was 72"
    )
    assert found["volume/raw.a__b"]["what_to_do"].endswith("make reload table=a.b")


def test_every_table_of_drift_is_watched_and_every_table_watched_is_a_model():
    models = {file.stem for file in (PROJECT_ROOT / "dbt_project/models/monitoring").glob("*.sql")}
    assert {name for name in models if name.endswith("__drift")} < set(CONDITIONS) <= models
