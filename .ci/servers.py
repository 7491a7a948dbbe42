#!/usr/bin/env python3
"""The real servers of tests/services: start them, run a command with their URLs, stop and remove them.

    .ci/servers.py make services                 what `make services` does
    .ci/servers.py --only kafka bash             a shell with TEST_KAFKA_URL in its environment
    .ci/servers.py --install                     only install what the servers need

Each server listens on a free loopback port, with a random password, and keeps its data in a temporary
folder. All are gone when the command ends, however it ends. A server whose variable is set already is
left alone. Needs no package beyond Python's own, so that a bare machine can run it.
"""

from __future__ import annotations

import argparse
import base64
import functools
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
ROOT = Path(__file__).resolve().parent.parent
MLFLOW = ROOT / ".venv-mlflow" / "bin" / "mlflow"
"""In an environment of its own, as `make mlflow` has it: the whole of MLflow does not go with our packages."""
SECONDS_TO_START = 120
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PACKAGES = {
    "initdb": "postgresql",
    "mariadbd": "mariadb-server-core",  # mariadb-server would start a service
    "my_print_defaults": "mariadb-client-core",  # which setting up a data folder takes
    "java": "default-jre-headless",
    "mvn": "maven",
    "chromium": "chromium",
}
"""Program to the Debian package that it comes in."""
BROWSER = "chromium"
"""What opens the page for the business in tests/services; it is installed, the test starts it."""
Started = tuple[str, str]
"""What a server is (name and version), and its URL."""


class CannotStartError(Exception):
    """A server that does not start; the message says why."""


class Site:
    """Where one server lives: its folder, and the processes that were started for it."""

    def __init__(self, folder: Path, user: str | None = None) -> None:
        folder.mkdir()
        self.folder, self.user = folder, user if os.getuid() == 0 else None
        self._processes: list[tuple[subprocess.Popen[bytes], signal.Signals]] = []
        self._stopping = False
        self._lock = threading.Lock()
        if self.user:
            shutil.chown(folder, self.user)

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder / "log"

    def call(self, *command: str | Path) -> None:
        """Run a command to its end."""
        process = self._start(command, signal.SIGKILL)
        if process.wait(SECONDS_TO_START):
            raise CannotStartError(self._last_words(f"{command[0]} failed"))

    def serve(
        self, *command: str | Path, ready: str, stop: signal.Signals = signal.SIGKILL
    ) -> None:
        """Start a server and return once it has logged `ready`; `stop` is what ends it at once."""
        process = self._start(command, stop)
        deadline = time.monotonic() + SECONDS_TO_START
        while ready not in self.log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CannotStartError(self._last_words(f"{command[0]} did not get ready"))
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process; from now on none is started."""
        with self._lock:
            self._stopping = True
        for process, how in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(how)
            process.wait()

    def _start(
        self, command: Sequence[str | Path], stop: signal.Signals
    ) -> subprocess.Popen[bytes]:
        with self._lock, self.log.open("ab") as log:
            if self._stopping:
                raise CannotStartError("stopped while starting")
            # A session of its own: Ctrl-C is for the command, the servers go after it.
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                start_new_session=True,
            )
            self._processes.append((process, stop))
            return process

    def _last_words(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return "\n  ".join([f"{what}; its last words:", *lines])


def postgresql(site: Site, port: int, password: str) -> Started:
    """A cluster with the superuser `watershed`; as root it runs as the user `postgres`."""
    program = _program("postgres")
    given = site.folder / "password"
    given.write_text(password)
    if site.user:
        shutil.chown(given, site.user)
    site.call(
        program.with_name("initdb"), "--pgdata=data", "--username=watershed", f"--pwfile={given}",
        "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
    )  # fmt: skip
    site.serve(
        program, "-D", "data", "-p", str(port), "-c", "listen_addresses=127.0.0.1",
        "-c", "unix_socket_directories=", "-c", "fsync=off",
        ready="database system is ready to accept connections", stop=signal.SIGQUIT,
    )  # fmt: skip
    return (
        f"PostgreSQL {_version(program)}",
        f"postgresql://watershed:{password}@127.0.0.1:{port}/postgres",
    )


def mariadb(site: Site, port: int, password: str) -> Started:
    """A server with the user `watershed`, who may create databases."""
    program = _program("mariadbd")
    user = f"--user={pwd.getpwuid(os.getuid()).pw_name}"
    data = f"--datadir={site.folder}/data"
    site.call(_program("mariadb-install-db"), "--no-defaults", "--skip-test-db", user, data)
    first = site.folder / "first.sql"
    first.write_text(
        "create database watershed;"
        f"\ncreate user watershed@'127.0.0.1' identified by '{password}';"
        "\ngrant all on *.* to watershed@'127.0.0.1';\n"
    )
    site.serve(
        program, "--no-defaults", user, data, f"--port={port}", "--bind-address=127.0.0.1",
        f"--socket={site.folder}/socket", f"--pid-file={site.folder}/pid", f"--init-file={first}",
        "--skip-name-resolve", "--character-set-server=utf8mb4", "--innodb-flush-log-at-trx-commit=0",
        ready="ready for connections",
    )  # fmt: skip
    return (
        f"MariaDB {_version(program)}",
        f"mysql://watershed:{password}@127.0.0.1:{port}/watershed",
    )


def kafka(site: Site, port: int, password: str) -> Started:
    """A broker without logins."""
    _broker(site, f"PLAINTEXT://127.0.0.1:{port}")
    return f"Kafka {_pinned('kafka_2.13')}", f"kafka://127.0.0.1:{port}"


def kafka_tls(site: Site, port: int, password: str) -> Started:
    """A broker that wants a login, over TLS, with a certificate that it signs itself."""
    store = ["-alias", "broker", "-keystore", "broker.p12", "-storepass", password]
    site.call(
        "keytool", "-genkeypair", *store, "-storetype", "PKCS12", "-keyalg", "RSA",
        "-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1",
    )  # fmt: skip
    site.call("keytool", "-exportcert", "-rfc", *store, "-file", "broker.pem")
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    _broker(
        site,
        f"SASL_SSL://127.0.0.1:{port}",
        f"""
inter.broker.listener.name=SASL_SSL
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={login} username="watershed" password="{password}" \\
    user_watershed="{password}";
ssl.keystore.location={site.folder}/broker.p12
ssl.keystore.password={password}
ssl.truststore.location={site.folder}/broker.p12
ssl.truststore.password={password}
""",
    )
    where = f"watershed:{password}@127.0.0.1:{port}?ssl.ca.location={site.folder}/broker.pem"
    return f"Kafka {_pinned('kafka_2.13')} with TLS", f"kafka://{where}"


def _broker(site: Site, listener: str, more: str = "") -> None:
    """One KRaft broker; topics are created on purpose only, transactions need no second replica."""
    controller = _free_port()
    protocol = listener.partition(":")[0]
    (site.folder / "server.properties").write_text(
        f"""
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners={listener},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,{protocol}:{protocol}
log.dirs={site.folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
{more}"""
    )
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    site.call(
        *_java(), "kafka.tools.StorageTool", "format", "--standalone",
        f"--cluster-id={cluster}", "--config=server.properties",
    )  # fmt: skip
    site.serve(
        *_java("kafka.server.KafkaRaftServer"), "-Xmx512m", "kafka.Kafka", "server.properties",
        ready="Kafka Server started",
    )  # fmt: skip


def s3(site: Site, port: int, password: str) -> Started:
    """S3Proxy over a folder; it wants signatures of AWS version 4."""
    (site.folder / "data").mkdir()
    (site.folder / "s3proxy.properties").write_text(
        f"""
s3proxy.endpoint=http://127.0.0.1:{port}
s3proxy.authorization=aws-v4
s3proxy.identity=watershed
s3proxy.credential={password}
jclouds.provider=filesystem-nio2
jclouds.identity=unused
jclouds.credential=unused
jclouds.filesystem.basedir={site.folder}/data
"""
    )
    site.serve(
        *_java("org.gaul.shaded.org.eclipse.jetty"), "-Xmx256m",
        "org.gaul.s3proxy.Main", "--properties", "s3proxy.properties", ready="Started Server@",
    )  # fmt: skip
    return f"S3Proxy {_pinned('s3proxy')}", f"http://watershed:{password}@127.0.0.1:{port}"


def mlflow(site: Site, port: int, password: str) -> Started:
    """A tracking server that keeps runs in SQLite and hands on the artifacts itself; anybody may use it."""
    site.serve(
        "env", "MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false",
        MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{site.folder}/mlflow.db",
        "--artifacts-destination", site.folder / "artifacts",
        ready="Application startup complete", stop=signal.SIGTERM,
    )  # fmt: skip
    return f"MLflow {_version(MLFLOW)}", f"http://127.0.0.1:{port}"


SERVERS: dict[str, tuple[Callable[[Site, int, str], Started], list[str]]] = {
    "postgresql": (postgresql, ["initdb"]),
    "mariadb": (mariadb, ["mariadbd", "my_print_defaults"]),
    "kafka": (kafka, ["java", "mvn"]),
    "kafka_tls": (kafka_tls, ["java", "mvn"]),
    "s3": (s3, ["java", "mvn"]),
    "mlflow": (mlflow, []),
}
"""How to start each, and the programs that this takes."""


def variable(server: str) -> str:
    """The environment variable that holds a server's URL."""
    return f"TEST_{server.upper()}_URL"


def install(names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Install what these servers need, and other programs; jars go into the user's ordinary Maven folder.

    Raises:
        CannotStartError: something is missing and this user cannot install it.
    """
    programs = {*others, *(program for name in names for program in SERVERS[name][1])}
    missing = sorted(PACKAGES[program] for program in programs if not _found(program))
    if missing:
        line = f"apt-get install {' '.join(missing)}"
        if os.getuid() != 0 or not shutil.which("apt-get"):
            raise CannotStartError(f"first {line}; or start other servers only, with --only")
        print(line, flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            _tell_only_failure(["apt-get", "-qq", *words], env=quiet)
    if "mvn" in programs:
        _class_path()
    if "mlflow" in names:
        make = ["make", "--no-print-directory", f"--directory={ROOT}", ".venv-mlflow/.installed"]
        _tell_only_failure(make)


@contextmanager
def started(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Start servers side by side; gives their URLs by variable, and leaves no trace at the end."""
    folder = Path(tempfile.mkdtemp(prefix="watershed-"))
    folder.chmod(0o711)
    sites = {
        name: Site(folder / name, user="postgres" if name == "postgresql" else None)
        for name in names
    }

    def start(name: str) -> str:
        began = time.monotonic()
        what, url = SERVERS[name][0](sites[name], _free_port(), secrets.token_hex(12))
        print(f"{what} ready in {time.monotonic() - began:.1f} s", flush=True)
        return url

    try:
        with ThreadPoolExecutor(max_workers=len(SERVERS)) as pool:
            starting = {variable(name): pool.submit(start, name) for name in names}
            try:
                yield {name: future.result() for name, future in starting.items()}
            finally:
                for number in ENDINGS:  # a second Ctrl-C changes nothing
                    signal.signal(number, signal.SIG_IGN)
                for site in sites.values():
                    site.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the command's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--install", action="store_true", help="only install what they need")
    parser.add_argument(
        "--only", action="append", choices=SERVERS, help="not all of them; can be repeated"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run while they are up")
    given = parser.parse_args(arguments)
    if not given.command and not given.install:
        parser.error("say what to run while the servers are up, such as: make services, or bash")
    names = [name for name in given.only or SERVERS if not os.environ.get(variable(name))]
    for number in ENDINGS[1:]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        install(names, [] if given.only else [BROWSER])
        if given.install:
            return 0
        with started(names) as urls:
            return _run(given.command, {**os.environ, **urls})
    except CannotStartError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it too: let it say its last words
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@functools.cache
def _class_path() -> str:
    """The jars of pom.xml, fetched where Maven does not have them yet."""
    with tempfile.NamedTemporaryFile(mode="r") as listed:
        _tell_only_failure(
            ["mvn", "--quiet", "--batch-mode", f"--file={POM}", "dependency:build-classpath",
             f"-Dmdep.outputFile={listed.name}"]
        )  # fmt: skip
        return Path(listed.name).read_text().strip()


def _tell_only_failure(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise CannotStartError(f"{' '.join(command)} failed:\n{done.stdout}")


def _java(*says_ready: str) -> list[str]:
    """A Java that logs warnings, and everything of the loggers that say when a server is ready."""
    # S3Proxy sends standard error to the logger, so the logger must not write there.
    logger = {"logFile": "System.out", "defaultLogLevel": "warn"}
    logger |= {f"log.{name}": "info" for name in says_ready}
    options = [f"-Dorg.slf4j.simpleLogger.{name}={value}" for name, value in logger.items()]
    return ["java", *options, "-cp", _class_path()]


def _pinned(artifact: str) -> str:
    """The version that pom.xml pins."""
    found = re.search(rf"<artifactId>{artifact}</artifactId>\s*<version>(.+?)<", POM.read_text())
    assert found, artifact
    return found.group(1)


def _found(name: str) -> Path | None:
    """A program, also where Debian keeps those that are not for everyone's PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: int(f.parent.name))
    path = os.pathsep.join([*map(str, reversed(folders)), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    return Path(found).resolve() if found else None


def _program(name: str) -> Path:
    found = _found(name)
    if found is None:
        raise CannotStartError(f"{name} is not installed: .ci/servers.py --install")
    return found


def _version(program: Path) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", told)
    return found.group() if found else "?"


def _free_port() -> int:
    """A port below those that outgoing connections take, one of which could be there first."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise CannotStartError("no free port between 20000 and 32000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
