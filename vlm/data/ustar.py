"""Tar members as webdataset's own writer makes them, without the seconds that Python's tarfile takes.

Format: POSIX.1-1988 ustar. Mode, owner and time are fixed, so that equal contents give equal bytes.
"""

import functools
import tarfile

from vlm.data.index import BLOCK

NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)  # fields of a header
RECORD = 20 * BLOCK  # a tar ends at a multiple of it
SPACES = 8 * ord(" ")  # what the checksum field counts as while the sum is taken


def member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a file's header, its content, and what fills its last block; `name` is ASCII, at most 99 letters."""
    header, total = _blank()
    path, size = name.encode("ascii"), b"%011o\0" % len(data)
    if len(path) >= NAME.stop or len(data) >= 8**11:
        raise ValueError(f"{name} of {len(data)} bytes does not fit into a ustar header")
    checksum = b"%06o\0 " % (total + sum(path) + sum(size))
    fields = (path.ljust(NAME.stop, b"\0"), header[NAME.stop : SIZE.start], size, header[SIZE.stop : CHECKSUM.start],
              checksum, header[CHECKSUM.stop :])  # fmt: skip
    return b"".join(fields), data, bytes(-len(data) % BLOCK)


def closing(size: int) -> bytes:
    """Return what ends a tar whose members take `size` bytes: two blocks of zeros or more."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


@functools.cache
def _blank() -> tuple[bytes, int]:
    """Return the header of a member without name and size, and the sum of its bytes."""
    info = tarfile.TarInfo("")
    info.mode, info.uname, info.gname = 0o644, "vlm", "vlm"
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[SIZE] = bytes(12)
    header[CHECKSUM] = b" " * 8
    return bytes(header), sum(header)
