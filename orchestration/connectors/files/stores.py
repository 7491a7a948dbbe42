"""Where files are: a local folder, or a prefix in an S3-compatible store."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from stat import S_ISLNK
from typing import TYPE_CHECKING

from orchestration.connectors.files import File, LaterError
from orchestration.errors import MendableError, SourceUnavailableError

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestration.connectors.lake_files import LakeFiles

DOWNLOADS = 8
TIMEOUT_SECONDS = 10
_AHEAD_BYTES = 256 * 2**20
_REFUSALS = (
    "ACCESS_DENIED",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_ACCESS_KEY_ID",
    "EXPIRED_TOKEN",
    "UNRECOGNIZED_CLIENT",
)


class Folder:
    """A local folder."""

    def __init__(self, source: LakeFiles) -> None:
        self._root = Path(source.location).expanduser().resolve()
        if "://" in source.location or not source.location or not self._root.is_dir():
            raise MendableError(
                f"{source.system}.{source.table}: setting {source.location_setting}",
                expected="a folder that exists, or s3://bucket/prefix",
                arrived="nothing"
                if not source.location
                else "a URL of another kind"
                if "://" in source.location
                else f"{self._root}, which is no folder",
                mend=f"create the folder, or change {source.location_setting} in .env",
            )

    def files(self) -> Iterator[File]:
        """Its regular files; a folder that may not be listed stands for those in it."""
        folders = [str(self._root)]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if _is_hidden(entry.name):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            yield self._file(entry.path, entry.stat(follow_symlinks=False))
            except PermissionError:
                seen = self._file(folder, os.lstat(folder))
                yield seen._replace(path=seen.path + "/")
            except FileNotFoundError:
                continue  # gone since its own folder was listed, and its files with it

    def _file(self, address: str, stat: os.stat_result) -> File:
        relative = os.path.relpath(address, self._root).replace(os.sep, "/")
        path = os.fsencode(relative).decode("utf-8", "backslashreplace")
        return File(path, stat.st_size, stat.st_ctime_ns // 1000, address)

    def ready(self, files: list[File]) -> Iterator[tuple[File, Callable[[], pa.NativeFile]]]:
        """The files, each with what opens it."""
        for file in files:
            yield file, partial(_open, file)

    def require_unchanged(self, file: File) -> None:
        """Fail when a file is not as it was listed."""
        try:
            stat = os.lstat(file.address)
        except FileNotFoundError:
            raise LaterError("vanished while it was read") from None
        if self._file(file.address, stat)[1:] != file[1:] or S_ISLNK(stat.st_mode):
            raise LaterError("changed while it was read")


def _open(file: File) -> pa.NativeFile:
    import pyarrow as pa

    if file.path.endswith("/"):
        raise PermissionError
    return pa.OSFile(os.fsencode(file.address))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


class Bucket:
    """A prefix of a bucket of an S3-compatible store."""

    def __init__(self, source: LakeFiles) -> None:
        self._source = source
        parts = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]+)(?:/(.*))?", source.location, re.DOTALL)
        if parts is None:
            raise self._error("a location of another form", "s3://bucket/prefix")
        self._bucket = parts.group(1)
        self._root = f"{self._bucket}/{parts.group(2) or ''}".rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        with _old_checksums(endpoint):
            from pyarrow.fs import S3FileSystem

            self._store = S3FileSystem(
                endpoint_override=endpoint,
                connect_timeout=TIMEOUT_SECONDS,
                request_timeout=TIMEOUT_SECONDS,
            )

    def files(self) -> Iterator[File]:
        """Its objects."""
        from pyarrow.fs import FileSelector

        try:
            listed = self._store.get_file_info(FileSelector(self._root, recursive=True))
        except FileNotFoundError:
            return  # a prefix is there once an object has it
        except OSError as error:
            raise self._named(error) from None
        for info in listed:
            path = info.path[len(self._root) + 1 :]
            if info.is_file and not any(map(_is_hidden, path.split("/"))):
                yield File(path, info.size, info.mtime_ns // 1000, info.path)

    def ready(self, files: list[File]) -> Iterator[tuple[File, Callable[[], pa.NativeFile]]]:
        """The files, each with what opens it; the next ones are downloaded meanwhile."""
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            ahead: deque[tuple[File, Future[pa.NativeFile]]] = deque()
            size = 0
            try:
                for file in files:
                    ahead.append((file, pool.submit(self._download, file)))
                    size += file.size
                    while len(ahead) > DOWNLOADS or size > _AHEAD_BYTES:
                        first, download = ahead.popleft()
                        size -= first.size
                        yield first, download.result
                for first, download in ahead:
                    yield first, download.result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _download(self, file: File) -> pa.NativeFile:
        """A copy of an object in a temporary file without a name, as it was at one moment."""
        import pyarrow as pa

        copy = tempfile.TemporaryFile()  # noqa: SIM115, closed with the stream
        try:
            with self._store.open_input_stream(file.address, compression=None) as stream:
                while block := stream.read(2**20):
                    copy.write(block)
        except FileNotFoundError:
            raise
        except OSError as error:
            if "ACCESS_DENIED" in str(error) or "INVALID_OBJECT_STATE" in str(error):
                raise PermissionError from None
            raise self._named(error) from None
        if copy.tell() != file.size:
            raise OSError(0, "it changed after it was listed")
        copy.seek(0)
        return pa.PythonFile(copy, mode="r")

    def require_unchanged(self, file: File) -> None:
        """An object is read as it was at one moment, whatever becomes of it meanwhile."""

    def _named(self, error: OSError) -> MendableError:
        """An error of the store in words; its own text can hold a key."""
        text = str(error)
        if "NO_SUCH_BUCKET" in text:
            return self._error(f"no bucket {self._bucket}", "a bucket that exists")
        if any(word in text for word in _REFUSALS):
            return self._error(
                "credentials that are refused, or none", "credentials that may read it"
            )
        if "PermanentRedirect" in text or "status 301" in text:
            return self._error("a bucket of another region", "AWS_REGION to name its region")
        return SourceUnavailableError(
            f"{self._source.system}.{self._source.table} (bucket {self._bucket})",
            expected="a store that answers",
            arrived="no connection, or it broke off"
            if "NETWORK" in text or "timeout" in text.lower()
            else "an error of the store",
            mend=f"see whether {self._source.location_setting} and AWS_ENDPOINT_URL are right, then run again",
        )

    def _error(self, arrived: str, expected: str) -> MendableError:
        return MendableError(
            f"{self._source.system}.{self._source.table}: setting {self._source.location_setting}",
            expected=expected,
            arrived=arrived,
            mend=f"change {self._source.location_setting}, or the credentials in the environment"
            " or in ~/.aws (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL)",
        )


@contextmanager
def _old_checksums(endpoint: str | None) -> Iterator[None]:
    """Let a client that is made meanwhile do without checksums that few stores beside AWS's can give."""
    name = "AWS_RESPONSE_CHECKSUM_VALIDATION"
    if not endpoint or name in os.environ:
        yield
        return
    os.environ[name] = "when_required"
    try:
        yield
    finally:
        del os.environ[name]
