"""Where a picture of a corpus lies: a small reference that is sent to a worker process and read there.

`name` is the picture's path inside its corpus, normalised (a/../b.jpg is b.jpg); it decides on which side of a
held-out split the picture falls, wherever the corpus is stored and whether its folder is packed or not.
"""

import functools
import os
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LOCAL_HEADER = 30  # of a zip member, bytes, before its name and extra field (APPNOTE 4.3.7)


class Damaged(Exception):
    """The picture's bytes cannot be had back from its archive."""


class Image(Protocol):
    """A reference to a picture."""

    @property
    def name(self) -> str: ...

    def size(self) -> int:
        """Return the picture's length in bytes, before it is read; 0 if that is unknown."""

    def read(self) -> bytes:
        """Return the picture's bytes.

        Raises OSError or ValueError if it is not there, Damaged if its archive is broken.
        """


@dataclass(frozen=True)
class InFolder:
    """A file in a folder of pictures."""

    root: str
    path: str  # below `root`

    @property
    def name(self) -> str:
        return normalised(self.path)

    def size(self) -> int:
        return _regular(os.stat(os.path.join(self.root, self.path)))  # noqa: PTH116, PTH118 - Path takes longer than the call

    def read(self) -> bytes:
        handle = os.open(os.path.join(self.root, self.path), os.O_RDONLY | os.O_NONBLOCK)  # noqa: PTH118 - as above
        try:
            size = _regular(os.fstat(handle))
            data = os.read(handle, size)
            while len(data) < size and (more := os.read(handle, size - len(data))):
                data += more
            return data
        finally:
            os.close(handle)

    def __str__(self) -> str:
        return str(Path(self.root) / self.path)


@dataclass(frozen=True)
class InZip:
    """A member of a zip archive, with what the archive's directory says of it."""

    archive: str
    path: str
    offset: int  # of its local header, bytes; -1 if the archive has no such member
    stored: int  # bytes in the archive
    length: int  # bytes when unpacked
    method: int
    crc32: int

    @property
    def name(self) -> str:
        return normalised(self.path)

    def size(self) -> int:
        return self.length

    def read(self) -> bytes:
        if self.offset < 0:
            raise ValueError("no such member")
        header = _bytes_at(self.archive, self.offset, LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(b"PK\3\4"):
            raise Damaged("the archive has no member where its directory says")
        skipped = LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = _unpacked(_bytes_at(self.archive, self.offset + skipped, self.stored), self.method, self.length)
        if len(data) != self.length or zlib.crc32(data) != self.crc32:
            raise Damaged("the bytes in the archive do not have their checksum")
        return data

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}"


@dataclass(frozen=True)
class InTar:
    """A member of an uncompressed tar."""

    archive: str
    path: str
    offset: int  # of its content, bytes
    length: int  # bytes

    @property
    def name(self) -> str:
        return f"{Path(self.archive).name}/{normalised(self.path)}"

    def size(self) -> int:
        return self.length

    def read(self) -> bytes:
        data = _bytes_at(self.archive, self.offset, self.length)
        if len(data) != self.length:
            raise Damaged("the archive ends inside the picture")
        return data

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}"


class Zip:
    """The directory of a zip archive, held once, by the process that reads the corpus."""

    def __init__(self, path: str) -> None:
        """Read the directory.

        Raises zipfile.BadZipFile or OSError if the file is no zip archive.
        """
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self._members: Mapping[str, tuple[int, ...]] = {
                found.filename: (
                    found.header_offset,
                    found.compress_size,
                    found.file_size,
                    found.compress_type | (found.flag_bits & 1) << 16,  # an encrypted member has no known method
                    found.CRC,
                )
                for found in archive.infolist()
            }

    def image(self, path: str) -> InZip:
        """Return a reference to a member: `path`, or `path` in a folder named like the archive."""
        name = normalised(path)
        for candidate in (name, f"{Path(self.path).stem}/{name}"):
            if candidate in self._members:
                return InZip(self.path, path, *self._members[candidate])
        return InZip(self.path, path, -1, 0, 0, 0, 0)


def _regular(status: os.stat_result) -> int:
    """Return a file's length; raise ValueError if it is none: reading a pipe would never end."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("Is a directory" if stat.S_ISDIR(status.st_mode) else "Is no regular file")
    return status.st_size


def images_at(root: str) -> Callable[[str], Image]:
    """Return the function that makes references to the pictures of a folder or a zip archive."""
    return Zip(root).image if Path(root).is_file() else functools.partial(InFolder, root)


def normalised(path: str) -> str:
    """Return a relative path in its shortest spelling; `..` does not lead out of the folder's name space."""
    return posixpath.normpath("/" + path.replace("\\", "/"))[1:].lstrip("/")


def _unpacked(stored: bytes, method: int, length: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return stored
    if method != zipfile.ZIP_DEFLATED:
        raise Damaged(f"packed or encrypted in a way ({method}) that is not read here")
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, length + 1)  # no more than is declared
    except zlib.error as problem:
        raise Damaged(str(problem)) from None


def _bytes_at(path: str, offset: int, length: int) -> bytes:
    with Path(path).open("rb") as handle:
        return os.pread(handle.fileno(), length, offset)
