"""Hashes of files and locks on files."""

import hashlib

import pytest

from minigptv2.files import fcntl, hash_file, lock_for_reading


def test_hash_file_is_the_hash_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 20_000  # more than one chunk
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a", hashlib.sha256()) == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(fcntl is None, reason="this system has no file locks")
def test_a_read_only_file_is_locked_by_one_at_a_time(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o444)
    with lock_for_reading(tmp_path / "a") as first, lock_for_reading(tmp_path / "a") as second:
        assert first and not second
    with lock_for_reading(tmp_path / "a", wait=True) as third:
        assert third
