"""Where a run lives: a local directory or a bucket prefix, behind one small interface on `pyarrow.fs`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import InputError


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
        """Join parts below the root."""
        return "/".join([self.root, *parts])

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
        return sorted(i.base_name for i in self.filesystem.get_file_info(selector) if i.type == kind)

    def exists(self, *parts: str) -> bool:
        """Whether a file or folder exists."""
        return bool(self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound)

    def read(self, *parts: str) -> bytes:
        """Read a whole file."""
        with self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def write(self, data: bytes | pa.Buffer, *parts: str) -> None:
        """Write a file that appears whole or not at all: temporary name and rename, or one PUT on an object store."""
        target = self.path(*parts)
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
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

    def check_writable(self) -> None:
        """Create the location if need be and prove that it can be written.

        Raises:
            InputError: when it cannot, with the reason.
        """
        try:
            if self.is_local:
                os.makedirs(self.root, exist_ok=True)
            self.write(b"", "_probe")
            self.filesystem.delete_file(self.path("_probe"))
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise InputError(f"run: cannot write to {self.uri!r} ({reason}); choose another --run") from None
