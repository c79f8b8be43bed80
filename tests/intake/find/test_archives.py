from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from deepatlas.errors import DataError
from deepatlas.intake.find.archives import extract
from deepatlas.intake.find.extraction import Limits, archive_suffix
from deepatlas.io.dicom.found import Found, Refusal

NOISE = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
TARS = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"]
# The scratch disk of a test machine may be nearly full.
SMALL = Limits(reserve=0)


def unpacked(path, tmp_path, limits=SMALL) -> tuple[dict[str, bytes], dict[str, str]]:
    """Unpack, check what holds for every archive, and return {name: content} and {name: reason of the refusal}."""
    refused: list[Refusal] = []
    folder = tmp_path / "scratch" / "a1"
    before = {p for p in tmp_path.rglob("*")}
    found = extract(Found(path, path.name), folder, refused, limits)
    assert [f.name for f in found] == sorted(f.name for f in found)
    for refusal in refused:
        assert "\n" not in refusal.reason and refusal.reason and str(tmp_path) not in refusal.reason
        assert ";" in refusal.reason, "no cure"
    new = {p for p in tmp_path.rglob("*")} - before
    assert all(p.is_relative_to(tmp_path / "scratch") and not p.is_symlink() for p in new)
    if any(r.name == path.name for r in refused):
        assert not found and not folder.exists(), "something of a refused archive stayed"
    names = {f.name.removeprefix(f"{path.name}!"): f.path.read_bytes() for f in found}
    return names, {r.name.removeprefix(f"{path.name}!"): r.reason for r in refused}


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:" + {"tgz": "gz", "tar": ""}.get(s := path.suffix[1:], s)) as file:
        for member, data in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            if data is not None:
                member.size = len(data)
            file.addfile(member, io.BytesIO(data or b""))
    return path


def make(path, members):
    return make_zip(path, members) if path.suffix == ".zip" else make_tar(path, members)


@pytest.mark.parametrize("suffix", [".zip", *TARS])
def test_members_come_out_whole(tmp_path, suffix):
    members = [("b/ct.nii.gz", NOISE), ("a.dcm", b""), ("./b/c/d.dcm", NOISE[::-1] * 300)]
    found, refused = unpacked(make(tmp_path / f"study{suffix}", members), tmp_path)
    assert refused == {}
    assert [re.sub(r"^\./", "", name) for name in found] and len(found) == 3
    assert sorted(map(len, found.values())) == [0, 5000, 1_500_000]
    assert found["b/ct.nii.gz"] == NOISE
    assert (tmp_path / "scratch" / "a1" / "b" / "c" / "d.dcm").read_bytes() == NOISE[::-1] * 300


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_method_of_zip(tmp_path, method):
    found, refused = unpacked(make_zip(tmp_path / "a.zip", [("x", NOISE * 9)], method), tmp_path)
    assert found == {"x": NOISE * 9} and not refused


def test_what_counts_as_an_archive():
    assert archive_suffix("a/CT.ZIP") == ".zip" and archive_suffix("x.tar.gz") == ".tar.gz"
    assert (
        archive_suffix("ct.nii.gz") == "" and archive_suffix("zip") == "" and archive_suffix("a.7z") == ".7z"
    )


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name",
    ["../x.dcm", "/etc/x.dcm", "a/../../x.dcm", "..\\x.dcm", "C:\\x.dcm", "c:x.dcm", "\\\\host\\x", "a/.."],
)
def test_no_way_out(tmp_path, suffix, name):
    found, refused = unpacked(make(tmp_path / f"a{suffix}", [("ok.dcm", b"1"), (name, b"2")]), tmp_path)
    assert found == {"ok.dcm": b"1"}
    assert len(refused) == 1 and "leads out of the archive" in next(iter(refused.values()))


def test_links_and_devices(tmp_path):
    link = zipfile.ZipInfo("link.dcm")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    found, refused = unpacked(make_zip(tmp_path / "a.zip", [(link, "/etc/passwd"), ("b", b"1")]), tmp_path)
    assert found == {"b": b"1"} and "a link" in refused["link.dcm"]

    members = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        member = tarfile.TarInfo(f"m{kind.decode()}")
        member.type, member.linkname = kind, "/etc/passwd"
        members.append((member, None))
    (tmp_path / "scratch" / "a1" / "b").unlink()
    found, refused = unpacked(make_tar(tmp_path / "a.tar", [*members, ("b", b"1")]), tmp_path)
    assert found == {"b": b"1"} and len(refused) == 4 and all("a link" in r for r in refused.values())


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_junk_nested_archives_and_odd_names(tmp_path, suffix):
    members = [
        ("__MACOSX/ct.nii", b"1"),
        ("a/.DS_Store", b"1"),
        ("Thumbs.db", b"1"),
        ("inner.zip", b"1"),
        ("inner.tar.gz", b"1"),
        ("a\nb.dcm", b"2"),
        ("Müller.dcm", b"3"),
        ("x" * 255 + "/" + "y" * 300 + ".dcm", b"4"),
    ]
    found, refused = unpacked(make(tmp_path / f"a{suffix}", members), tmp_path)
    assert found == {"a\\nb.dcm": b"2", "Müller.dcm": b"3"}
    assert "inside an archive" in refused["inner.zip"] and "inside an archive" in refused["inner.tar.gz"]
    assert len(refused) == 3 and any("too long" in r for r in refused.values())


def test_undecodable_names_of_a_tar(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("XX.dcm", b"2")])
    data = path.read_bytes().replace(b"XX.dcm", b"\xfcX.dcm")
    header = bytearray(data[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + data[512:])
    found, refused = unpacked(path, tmp_path)
    assert found == {"\\udcfcX.dcm": b"2"} and not refused


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_of_one_name(tmp_path, suffix):
    members = [("a", b"1"), ("a", b"2"), ("b", b"3"), ("c", b"4"), ("./c", b"5"), ("b/d", b"6")]
    found, refused = unpacked(make(tmp_path / f"a{suffix}", members), tmp_path)
    assert found == {"b": b"3"}
    assert set(refused) in ({"a", "./c", "b/d"}, {"a", "c", "b/d"})
    assert all("have this name" in reason for reason in refused.values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_listed_twice_but_equal_is_kept(tmp_path):
    found, refused = unpacked(make_zip(tmp_path / "a.zip", [("a", b"1"), ("a", b"1")]), tmp_path)
    assert found == {"a": b"1"} and not refused


def test_encrypted_and_unknown_methods(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", NOISE), ("b", NOISE), ("c", b"")])
    data = bytearray(path.read_bytes())
    entries = [m.start() for m in re.finditer(b"PK\1\2", data)]
    locals_ = [m.start() for m in re.finditer(b"PK\3\4", data)]
    data[entries[0] + 8] |= 1
    data[locals_[0] + 6] |= 1
    data[entries[1] + 10] = data[locals_[1] + 8] = 9  # deflate64
    path.write_bytes(bytes(data))
    found, refused = unpacked(path, tmp_path)
    assert found == {"c": b""}
    assert "password" in refused["a"] and "method that is not read (9)" in refused["b"]


def test_other_archives(tmp_path):
    path = tmp_path / "a.rar"
    path.write_bytes(NOISE)
    assert "kind that is not read (.rar)" in unpacked(path, tmp_path)[1]["a.rar"]


# -- damage -----------------------------------------------------------------------------------------


def test_checksum_of_a_member(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", NOISE), ("b", NOISE)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(bytes(data))
    found, refused = unpacked(path, tmp_path)
    assert found == {"b": NOISE} and "damaged in the archive (Bad CRC-32" in refused["a"]


@pytest.mark.parametrize("suffix", [".zip", *TARS])
def test_truncated_archives(tmp_path, suffix):
    path = make(tmp_path / f"a{suffix}", [("a", NOISE), ("b", NOISE[::-1]), ("c", NOISE)])
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    cuts = {0, 1, 100, 512, 1024, 6144, 6656, used // 2, used - 1} | (
        {len(whole) - 1} if suffix != ".tar" else set()
    )
    for cut in sorted(c for c in cuts if c < len(whole)):
        path.write_bytes(whole[:cut])
        found, refused = unpacked(path, tmp_path)
        assert not found and "truncated" in refused[path.name], cut


@pytest.mark.parametrize("suffix", [".zip", *TARS])
def test_flipped_bytes_change_no_member(tmp_path, suffix):
    """Whatever byte is flipped, a member that is unpacked is the original one, unless no checksum protects it.

    Plain tar has no checksum of its members; names are guarded by the header's checksum alone.
    """
    members = {"a/1": NOISE[:700], "a/2": NOISE[700:1500], "b": NOISE[1500:1600]}
    path = make(tmp_path / f"a{suffix}", list(members.items()))
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(whole.rstrip(b"\0")))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        found, refused = unpacked(path, tmp_path)
        assert set(found) <= set(members) and (len(found) == 3 or refused)
        if suffix != ".tar":
            assert all(content == members[name] for name, content in found.items())
        for name in found:
            (tmp_path / "scratch" / "a1" / name).unlink()


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    """tarfile itself stops there without an error."""
    path = make_tar(tmp_path / "a.tar", [("a", NOISE), ("b", NOISE)])
    data = bytearray(path.read_bytes())
    for damage in (b"\xff" * 20, bytes(512)):
        data[5632 : 5632 + len(damage)] = damage
        path.write_bytes(bytes(data))
        with tarfile.open(path) as tar:
            assert tar.getnames() == ["a"]
        found, refused = unpacked(path, tmp_path)
        assert not found and "header is damaged" in refused["a.tar"]


# -- bombs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz", ".tar.bz2"])
def test_too_much_for_its_size(tmp_path, suffix):
    path = make(tmp_path / f"a{suffix}", [(f"m{i}", bytes(3 << 20)) for i in range(10)])
    assert len(unpacked(path, tmp_path)[0]) == 10  # small in the absolute: honest label images are like this
    for i in range(10):
        (tmp_path / "scratch" / "a1" / f"m{i}").unlink()
    limits = Limits(ratio=20, floor=8 << 20, reserve=0)
    found, refused = unpacked(path, tmp_path, limits)
    assert not found and "archive bomb" in refused[path.name]


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_too_much_for_the_disk(tmp_path, suffix):
    path = make(tmp_path / f"a{suffix}", [("m", bytes(3 << 20))])
    found, refused = unpacked(path, tmp_path, Limits(reserve=1 << 60))
    assert not found and "free space" in refused[path.name]


def test_overlapping_members(tmp_path):
    """A bomb without nesting: directory entries that share one compressed kernel."""
    path = make_zip(tmp_path / "a.zip", [(f"m{i}", bytes(100_000)) for i in range(4)])
    data = bytearray(path.read_bytes())
    entries = [m.start() for m in re.finditer(b"PK\1\2", data)]
    for at in entries[1:]:
        data[at + 42 : at + 46] = data[entries[0] + 42 : entries[0] + 46]
    path.write_bytes(bytes(data))
    found, refused = unpacked(path, tmp_path)
    assert not found and "overlap" in refused["a.zip"]


@pytest.mark.parametrize("declared", [10, 4000])
def test_headers_that_lie_about_the_size(tmp_path, declared):
    path = make_zip(tmp_path / "a.zip", [("a", bytes(3000)), ("b", NOISE)])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = declared.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    found, refused = unpacked(path, tmp_path)
    assert found == {"b": NOISE} and "damaged in the archive" in refused["a"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_too_many_members(tmp_path, suffix):
    path = make(tmp_path / f"a{suffix}", [(f"{i}", b"") for i in range(30)])
    found, refused = unpacked(path, tmp_path, Limits(members=20, reserve=0))
    assert not found and "more than 20 members" in refused[path.name]


def test_a_tar_header_that_fills_the_memory(tmp_path):
    """A name of 60 MB, of which tarfile would keep several copies in memory."""
    path = make_tar(tmp_path / "a.tar.gz", [("x/" * (30 << 20), b"1"), ("b", b"1")])
    found, refused = unpacked(path, tmp_path)
    assert not found and "impossible size" in refused["a.tar.gz"]


def test_a_directory_that_fills_the_memory(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", b"1")])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\5\6")
    data[at + 12 : at + 16] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    assert "members" in unpacked(path, tmp_path)[1]["a.zip"]


# -- the scratch disk -------------------------------------------------------------------------------


FULL = """
import resource, signal, sys
from pathlib import Path
from deepatlas.intake.find.archives import extract
from deepatlas.io.dicom.found import Found
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for name in ("a.zip", "a.tar.gz"):
    refused = []
    assert extract(Found(Path(name), name), Path("scratch"), refused) == []
    print(*[r.reason for r in refused])
"""


def test_a_scratch_disk_that_takes_no_more(tmp_path):
    """A limit on the file size takes the place of a full disk."""
    for suffix in (".zip", ".tar.gz"):
        make(tmp_path / f"a{suffix}", [("a", NOISE), ("b", NOISE * 20)])
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("scratch disk is full" in line for line in lines)
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "a.zip"]


def test_a_scratch_folder_that_cannot_be(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", NOISE)])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file, not a folder"):
        extract(Found(path, "a.zip"), tmp_path / "file" / "a", [], SMALL)


def test_an_archive_that_vanished(tmp_path):
    for suffix in (".zip", ".tar"):
        found, refused = unpacked(tmp_path / f"gone{suffix}", tmp_path)
        assert not found and "No such file" in refused[f"gone{suffix}"]
