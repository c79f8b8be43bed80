"""Files whose names are not plain ASCII or not UTF-8, under any locale; numbers under a locale with a decimal comma."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from deepatlas.errors import DataError
from deepatlas.files import atomic_path
from deepatlas.io.codec import WRITABLE, read_image, write_volume
from deepatlas.io.itk import decimal_point, itk_reads, itk_writes
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

HERE = Path(__file__).parents[1]
NAMES = {"latin-1": b"M\xfcller", "utf-8": "Müller".encode(), "chinese": "体".encode()}
ENVIRONMENTS = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "utf-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "1"},
    "utf-8": {"LC_ALL": "C.UTF-8"},
}
GRID = Grid.from_spacing((20, 21, 22), (1.5, 1.25, 2.75), origin=(0.5, -10.25, 3))
VOLUME = Volume(np.arange(20 * 21 * 22, dtype=np.int16).reshape(20, 21, 22), GRID)
COMMA = """comment_char %
escape_char /
LC_NUMERIC
decimal_point ","
thousands_sep "."
grouping 3;3
END LC_NUMERIC
"""


def check_volume(path: Path) -> None:
    """A written volume comes back unchanged, and nothing else is left in its folder."""
    before = set(os.listdir(path.parent))
    write_volume(path, VOLUME)
    back, _ = read_image(path)
    assert np.array_equal(back.array, VOLUME.array) and back.grid.matches(VOLUME.grid), path
    assert set(os.listdir(path.parent)) == before | {path.name}


def check_detached(folder: Path, name: str) -> None:
    """A header that names a file of voxels with the same odd name, beside it, below it and above it."""
    image = sitk.GetImageFromArray(VOLUME.array)
    (folder / name / "sub").mkdir(parents=True)
    for suffix in (".mhd", ".nhdr"):
        sitk.WriteImage(image, str(folder / f"x{suffix}"))
        header = (folder / f"x{suffix}").read_bytes()
        for place in ("", "sub/", "../"):
            voxels = f"{place}{name}.raw"
            (folder / name / f"{name}{suffix}").write_bytes(header.replace(b"x.raw", os.fsencode(voxels)))
            shutil.copy(folder / "x.raw", folder / name / voxels)
            back, _ = read_image(folder / name / f"{name}{suffix}")
            assert np.array_equal(back.array, VOLUME.array), voxels
            (folder / name / voxels).unlink()


def check_names(folder: Path) -> None:
    """All names, in this process."""
    for raw in NAMES.values():
        name = os.fsdecode(raw)
        check_detached(folder, name)
        for suffix in WRITABLE:
            check_volume(folder / name / f"{name}{suffix}")


def check_commas(folder: Path) -> None:
    """All formats under a locale with a decimal comma, which stays as it is."""
    import locale

    locale.setlocale(locale.LC_ALL, "comma")
    assert locale.localeconv()["decimal_point"] == ","
    before = locale.setlocale(locale.LC_ALL)
    for suffix in WRITABLE:
        check_volume(folder / f"a{suffix}")
    assert b"1.5,0,0)" in (folder / "a.nrrd").read_bytes()
    with decimal_point():
        with decimal_point():
            assert locale.localeconv()["decimal_point"] == "."
        assert locale.localeconv()["decimal_point"] == "."
        # As GDCM does.
        locale.setlocale(locale.LC_ALL, "C")
    assert locale.setlocale(locale.LC_ALL) == before


def in_a_process(call: str, folder: Path, environment: dict[str, str]) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.path.insert(0, {str(HERE)!r})\n"
    )
    script += f"from pathlib import Path; import test_names_and_locales as t; t.{call}(Path({str(folder)!r}))"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", errors="replace",
        env={**inherited, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(1)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_any_name_is_read_and_written_under_any_locale(tmp_path, environment):
    try:
        (tmp_path / os.fsdecode(NAMES["latin-1"])).mkdir()
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    (tmp_path / "work").mkdir()
    in_a_process("check_names", tmp_path / "work", ENVIRONMENTS[environment])


@pytest.mark.slow(1)
def test_numbers_are_right_under_a_locale_with_a_decimal_comma(tmp_path):
    if not shutil.which("localedef"):
        pytest.skip("no localedef makes a locale here")
    (tmp_path / "comma.src").write_text(COMMA)
    # It warns that the other categories are missing.
    subprocess.run(
        ["localedef", "-c", "-f", "UTF-8", "-i", tmp_path / "comma.src", tmp_path / "comma"],
        capture_output=True, check=False,
    )  # fmt: skip
    if not (tmp_path / "comma" / "LC_NUMERIC").is_file():
        pytest.skip("localedef makes no locale here")
    (tmp_path / "work").mkdir()
    in_a_process("check_commas", tmp_path / "work", {"LOCPATH": str(tmp_path), "LC_ALL": "C.UTF-8"})


def test_copies_take_the_place_of_links_where_there_are_none(tmp_path, monkeypatch):
    def symlink(*_, **__):
        raise OSError("no links")

    monkeypatch.setattr(os, "symlink", symlink)
    folder = tmp_path / os.fsdecode(NAMES["latin-1"])
    folder.mkdir()
    with itk_writes(folder / "new.txt") as name:
        assert name.isascii()
        Path(name).write_text("a")
    with itk_reads(folder / "new.txt", ".txt") as name:
        assert name.isascii() and name.endswith(".txt") and Path(name).read_text() == "a"


def test_without_any_plain_folder_the_cure_is_named(tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(NAMES["latin-1"])
    odd.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(odd))
    with itk_reads(odd / "x", ".nii") as name:
        assert name.isascii()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match="set TMPDIR"), itk_reads(odd / "x", ".nii"):
        pass


@pytest.mark.parametrize("name", ["x" * 243 + ".nii.gz", "é" * 120 + ".nii.gz", "x" * 250, "ü" * 60 + ".h5"])
def test_a_temporary_name_is_short_and_plain(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        assert len(temporary.name) < 40 and temporary.name.isascii()
        assert temporary.name.endswith(name[name.rfind("x") + 1 :] if "x" in name else name.lstrip("éü"))
        temporary.write_text("a")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_names_of_250_bytes_are_written_and_read(tmp_path, suffix):
    check_volume(tmp_path / ("x" * (250 - len(suffix)) + suffix))
