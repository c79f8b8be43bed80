from __future__ import annotations

import csv
import errno
import hashlib
import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepatlas.errors import DataError
from deepatlas.intake.privacy import identity
from deepatlas.intake.privacy.identity import Identity, private_folder, readable_id
from deepatlas.intake.privacy.redact import public_text


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def no_link(number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    return link


def test_ids_are_hmac_of_the_key_under_a_salt_for_the_owner_alone(tmp_path):
    identity = Identity.open(tmp_path / "dst")
    salt = bytes.fromhex((tmp_path / "dst.private" / "salt").read_text())
    expected = hmac.new(salt, b"exam\0" + b"1.2.3", hashlib.sha256).hexdigest()[:16]
    assert identity.exam_id("1.2.3") == expected
    assert Identity.open(tmp_path / "dst").exam_id("1.2.3") == expected
    assert Identity.open(tmp_path / "other").exam_id("1.2.3") != expected
    assert mode(tmp_path / "dst.private") == 0o700 and mode(tmp_path / "dst.private" / "salt") == 0o600
    assert len(salt) == 32 and not (tmp_path / "dst").exists()


def test_a_private_folder_that_was_open_to_others_is_closed(tmp_path):
    (tmp_path / "dst.private").mkdir(mode=0o777)
    Identity.open(tmp_path / "dst")
    assert mode(tmp_path / "dst.private") == 0o700


def test_processes_that_start_together_share_one_salt(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: Identity.open(tmp_path / "dst").exam_id("k"), range(64)))
    assert len(ids) == 1 and os.listdir(tmp_path / "dst.private") == ["salt"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS])
def test_a_disk_without_hard_links_has_one_salt_too(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", no_link(number))
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: Identity.open(tmp_path / "dst").exam_id("k"), range(64)))
    assert len(ids) == 1 and os.listdir(tmp_path / "dst.private") == ["salt"]
    assert mode(tmp_path / "dst.private" / "salt") == 0o600


def test_a_salt_that_comes_between_look_and_claim_stays(tmp_path, monkeypatch):
    """The slower of two processes gets its claim when the faster one has already written the salt."""
    path, temporary, opened = tmp_path / "salt", tmp_path / "new", os.open
    temporary.write_text("second")

    def late(*args, **more):
        path.write_text("first")
        return opened(*args, **more)

    monkeypatch.setattr(os, "open", late)
    identity._rename_once(temporary, path)
    assert path.read_text() == "first" and sorted(os.listdir(tmp_path)) == ["new", "salt"]


def test_a_claim_that_nobody_holds_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_CLAIM_SECONDS", 0.05)
    monkeypatch.setattr(os, "link", no_link(errno.EPERM))
    (tmp_path / "dst.private").mkdir(mode=0o700)
    (tmp_path / "dst.private" / ".salt.claim").touch()
    with pytest.raises(DataError, match=r"\.salt\.claim: left by a run that was killed; delete it") as error:
        Identity.open(tmp_path / "dst")
    assert "\n" not in str(error.value) and os.listdir(tmp_path / "dst.private") == [".salt.claim"]


def test_a_private_folder_that_cannot_be_closed_says_so(tmp_path, monkeypatch):
    """On FAT, the umask of the mount takes the place of permissions."""

    def chmod(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", chmod)
    # It is made with mode 0700, as with umask=077.
    Identity.open(tmp_path / "a")
    (tmp_path / "b.private").mkdir(mode=0o750)
    with pytest.raises(DataError, match="cannot be closed to other users .*umask=077"):
        Identity.open(tmp_path / "b")
    assert not os.listdir(tmp_path / "b.private")


def test_a_lost_or_damaged_salt_is_one_line(tmp_path):
    with pytest.raises(DataError, match="salt is gone"):
        Identity.open(tmp_path / "dst", create=False)
    Identity.open(tmp_path / "dst")
    (tmp_path / "dst.private" / "salt").write_text("abc")
    with pytest.raises(DataError, match="damaged"):
        Identity.open(tmp_path / "dst")
    (tmp_path / "dst.private" / "salt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="damaged"):
        Identity.open(tmp_path / "dst")


def test_private_tables_are_the_owners(tmp_path):
    identity = Identity.open(tmp_path / "dst")
    old = os.umask(0)
    try:
        path = identity.write_csv("key.csv", ("id", "name"), [("1", "Döe, \udcff")])
    finally:
        os.umask(old)
    assert mode(path) == 0o600
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as handle:
        assert list(csv.reader(handle)) == [["id", "name"], ["1", "Döe, \udcff"]]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a/Doe/ct.nii.gz", ".nii.gz"),
        ("x.DCM", ".dcm"),
        ("ct.JaneDoe", ""),
        ("a.zip!b/c.dcm", ".dcm"),
        ("noext", ""),
    ],
)
def test_an_alias_keeps_common_endings_alone(tmp_path, name, ending):
    alias = Identity.open(tmp_path / "d").alias(name)
    assert alias.startswith("file-") and alias[5:21].isalnum() and alias[21:] == ending


@pytest.mark.parametrize(
    ("text", "secrets", "expected"),
    [
        ("/data/Doe/ct.nii.gz: the file is empty; copy or export it again", {"/data/Doe/ct.nii.gz"},
         "the file is empty; copy or export it again"),
        ("slice of DOE^JANE at -3.5 mm", {"Doe^Jane"}, "slice of … at -3.5 mm"),
        ("cannot open 'Jane Doe.nrrd' (space: Jane)", (), "cannot open …"),
        ("cosine (cosine 0.0123), 3 of 107 slices", (), "cosine (cosine 0.0123), 3 of 107 slices"),
        ("1.2.840.113619.2.55 has 107 slices", (), "… has 107 slices"),
        ("born 19500102, seen 2020-03-04", (), "born …, seen …"),
        ("jane lives", {"Doe, Jane"}, "… lives"),
        ("C:\\Users\\Doe\\x.nii: damaged", (), "damaged"),
        ("missing slices near -120 mm", {"ct", "ct.nii.gz"}, "missing slices near -120 mm"),
    ],
)  # fmt: skip
def test_messages_lose_what_names_somebody_and_keep_the_rest(text, secrets, expected):
    assert public_text(text, secrets) == expected


@given(st.text(min_size=3).filter(lambda s: any(c.isalpha() for c in s)), st.text(), st.text())
def test_a_secret_never_stands_in_a_public_text(secret, before, after):
    secret = " ".join(secret.split())
    if len(secret) < 3 or secret.lower() in "cannot be used … ct seg dicom data image":
        return
    text = public_text(f"{before} {secret} {after}", {secret})
    left = " ".join(f"{before} {after}".split()).lower()
    assert (
        secret.lower() not in text.lower().replace("cannot be used", "")
        or secret.lower() in left
        or "…" in secret
    )


def test_readable_ids_are_file_names():
    assert readable_id("train/pt 1") == "train_pt_1" and readable_id("../..") == ""
    assert len(readable_id("x" * 500)) == 80


def test_the_private_folder_lies_beside(tmp_path):
    assert private_folder(tmp_path / "a" / "..") == tmp_path.with_name(tmp_path.name + ".private")
