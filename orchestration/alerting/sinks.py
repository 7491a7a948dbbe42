"""Where alerts are told: a log of JSON lines, a Slack-compatible webhook, e-mail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from orchestration.settings import Settings

SEVERITIES = ("info", "warning", "critical")
TIMEOUT_SECONDS = 10


class SinkDownError(Exception):
    """A sink did not take a message; it says neither its URL nor its password."""


@dataclass(frozen=True)
class Sink:
    """One way to tell: its name, the least severity it is told of, and what sends alerts or raises `SinkDownError`."""

    name: str
    severity: str
    send: Callable[[Sequence[dict[str, Any]]], None]

    def wants(self, severity: str) -> bool:
        """Whether it is to be told of alerts of this severity."""
        return SEVERITIES.index(severity) >= SEVERITIES.index(self.severity)


def sinks_of(settings: Settings) -> list[Sink]:
    """The log, and those others that the settings name."""
    found = [Sink("log", "info", lambda alerts: _log(settings, alerts))]
    if url := settings.alert_webhook_url.get_secret_value():
        found.append(
            Sink("webhook", settings.alert_webhook_severity, lambda alerts: _post(url, alerts))
        )
    if address := settings.alert_email_url.get_secret_value():
        found.append(
            Sink("email", settings.alert_email_severity, lambda alerts: _mail(address, alerts))
        )
    return found


def as_text(alerts: Sequence[dict[str, Any]]) -> str:
    """The alerts as a person reads them."""
    return "\n\n".join(
        f"{one['severity'].upper()} {one['use_case']}: {one['what_happened']}\n"
        f"What it means: {one['what_it_means']}\nWhat to do: {one['what_to_do']}"
        for one in alerts
    )


def _log(settings: Settings, alerts: Sequence[dict[str, Any]]) -> None:
    try:
        with (settings.data_dir / "alerts.log").open("a") as file:
            file.writelines(json.dumps(one, default=str) + "\n" for one in alerts)
    except OSError as error:
        raise SinkDownError(type(error).__name__) from None


def _post(url: str, alerts: Sequence[dict[str, Any]]) -> None:
    from html import escape

    import requests

    text = escape(as_text(alerts), quote=False)  # Slack reads <...> as a mention or a link
    try:
        answer = requests.post(
            url, json={"text": text}, timeout=TIMEOUT_SECONDS, allow_redirects=False
        )
    except requests.RequestException as error:
        raise SinkDownError(type(error).__name__) from None
    if answer.status_code >= 300:
        raise SinkDownError(f"status {answer.status_code}")


def _mail(url: str, alerts: Sequence[dict[str, Any]]) -> None:
    """`smtp(s)://user:password@host:port/?from=a@b&to=c@d`; smtp turns to TLS where the server offers it.

    A password is sent by TLS only, to a server whose certificate is valid.
    """
    import smtplib
    import ssl
    from email.message import EmailMessage

    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        message = EmailMessage()
        message["From"], message["To"] = query["from"][0], ", ".join(query["to"])
        message["Subject"] = f"Watershed: {len(alerts)} alert{'s' * (len(alerts) > 1)}"
        message.set_content(as_text(alerts))
        host, port, secure = parts.hostname or "", parts.port or 0, ssl.create_default_context()
        is_secure = parts.scheme == "smtps"
        with (
            smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_SECONDS, context=secure)
            if is_secure
            else smtplib.SMTP(host, port, timeout=TIMEOUT_SECONDS)
        ) as server:
            server.ehlo()
            if not is_secure and server.has_extn("starttls"):
                server.starttls(context=secure)
                is_secure = True
            if parts.username and not is_secure:
                raise SinkDownError("no TLS, so the password was not sent")
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            server.send_message(message)
    except (OSError, smtplib.SMTPException, ValueError, KeyError) as error:
        raise SinkDownError(type(error).__name__) from None
