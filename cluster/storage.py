"""Where a run lives: a local directory or a bucket prefix, behind one small interface on `pyarrow.fs`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import InputError
from cluster.retrying import BUDGET_S, persist

T = TypeVar("T")

_PROBE_S = 15.0


@dataclass(frozen=True)
class Location:
    """A directory (local) or prefix (object store).

    Args:
        uri: as the person gave it.
        filesystem: the pyarrow file system that serves it.
        root: path within that file system, without a trailing slash.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def resolve(cls, uri: str) -> Location:
        """Resolve a local path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.

        Raises:
            InputError: for a scheme that pyarrow cannot serve.
        """
        if "://" not in uri:
            path = os.path.abspath(os.path.expanduser(uri))
            return cls(uri, pafs.LocalFileSystem(), path)
        try:
            filesystem, root = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"run: cannot open {uri!r} ({reason}); give a local path, s3://... or gs://...") from None
        return cls(uri, filesystem, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the location is a directory of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """Join parts below the root.

        Raises:
            InputError: for a part that would lead out of the root: names of tables and files may come from anywhere.
        """
        for part in parts:
            steps = part.split("/")
            if part.startswith("/") or ".." in steps or any(sign in part for sign in ("\\", "\0")):
                raise InputError(f"run: {part!r} is no name within a run; give one without /, .. and backslashes")
        return "/".join([self.root, *parts])

    def trying(self, operation: Callable[[], T], what: str, budget: float = BUDGET_S) -> T:
        """Do something to the location: once on a disk; on an object store again and again while that can help.

        Raises:
            OSError: when it fails for good, or for longer than `budget` seconds.
        """
        return operation() if self.is_local else persist(operation, f"{what} {self.uri}", budget)

    def log_directory(self) -> Path:
        """Local directory of the write-ahead logs: inside a local run, in the user's cache for an object store."""
        if self.is_local:
            return Path(self.root, "_log")
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        return cache / "shiftlab" / "logs" / sha256(self.uri.encode()).hexdigest()[:16]

    def list_files(self, *parts: str) -> list[str]:
        """File names (not paths) directly below a folder, sorted; empty when the folder does not exist."""
        return self._list(pafs.FileType.File, *parts)

    def list_folders(self, *parts: str) -> list[str]:
        """Folder names (not paths) directly below a folder, sorted; empty when the folder does not exist."""
        return self._list(pafs.FileType.Directory, *parts)

    def _list(self, kind: pafs.FileType, *parts: str) -> list[str]:
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        infos = self.trying(lambda: self.filesystem.get_file_info(selector), "listing")
        return sorted(info.base_name for info in infos if info.type == kind)

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder exists."""
        path = self.path(*parts)
        info = self.trying(lambda: self.filesystem.get_file_info(path), "reading")
        return bool(info.type != pafs.FileType.NotFound)

    def read(self, *parts: str) -> bytes:
        """Read a whole file."""
        path = self.path(*parts)

        def read() -> bytes:
            with self.filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())

        return self.trying(read, "reading")

    def delete(self, *parts: str) -> None:
        """Delete a file; one that does not exist is deleted already."""
        path = self.path(*parts)
        with contextlib.suppress(FileNotFoundError):
            self.trying(lambda: self.filesystem.delete_file(path), "deleting")

    def write(self, data: bytes | pa.Buffer, *parts: str, budget: float = BUDGET_S) -> None:
        """Write a file that appears whole or not at all: temporary name and rename, or one object on an object store.

        Args:
            data: its content.
            *parts: where.
            budget: seconds that an object store may take to be available.
        """
        target = self.path(*parts)
        if not self.is_local:
            self.trying(lambda: self._upload(data, target), "writing", budget)
            return
        folder, name = os.path.split(target)
        os.makedirs(folder, exist_ok=True)
        # Dataset readers skip names that begin with an underscore, so a half-written file is never read.
        handle, temporary = tempfile.mkstemp(prefix="_", suffix=f"-{name}", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise

    def _upload(self, data: bytes | pa.Buffer, target: str) -> None:
        """Write an object; the client compares checksums, so that half of one is an error, and is written again."""
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def check_writable(self) -> None:
        """Create the location if need be and prove that it can be written.

        Raises:
            InputError: when it cannot, with the reason.
        """
        try:
            if self.is_local:
                os.makedirs(self.root, exist_ok=True)
            self.write(b"probe", "_probe", budget=_PROBE_S)
            self.delete("_probe")
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise InputError(f"run: cannot write to {self.uri!r} ({reason}); choose another --run") from None
