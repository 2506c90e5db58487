import io
import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as some

from vlm.data.ustar import closing, member


def by_webdataset(key: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with webdataset.TarWriter(out, user="vlm", group="vlm", mode=0o644, mtime=0, encoder=False) as tar:
        tar.write({"__key__": key, **files})
    return out.getvalue()


@given(some.dictionaries(some.sampled_from(["jpg", "1.png", "2.webp", "json"]), some.binary(max_size=3000), min_size=1))
def test_the_bytes_are_those_of_webdatasets_writer(files):
    """Seen to fail with a checksum one too high, and with a tar that ends after two blocks."""
    ours = b"".join(part for name in sorted(files) for part in member(f"000001000007.{name}", files[name]))
    assert ours + closing(len(ours)) == by_webdataset("000001000007", files)


def test_an_empty_tar_is_one_too():
    with tarfile.open(fileobj=io.BytesIO(closing(0))) as tar:
        assert tar.getnames() == []
    assert len(closing(0)) == 10240


def test_a_name_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        member("x" * 120, b"")
