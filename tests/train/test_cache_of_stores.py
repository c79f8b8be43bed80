"""The stores that training keeps: for their owner alone, listed, and cleared unless they are in use."""

from __future__ import annotations

import json
import os
import stat
from contextlib import ExitStack

import pytest
from small_exams import write_cohort

from deepatlas.cli import main as cli
from deepatlas.exams import build_store
from deepatlas.presets import preset
from deepatlas.train.cache import cache_folder, entries, store_path, used
from deepatlas.train.data import open_store
from deepatlas.train.log import RunLog
from deepatlas.train.request import Request


@pytest.fixture
def loose():
    """A umask that closes nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))

    def make(name, uses=None):
        root = tmp_path / name
        if not root.exists():
            write_cohort(root, 2)
        (tmp_path / f"{name}.run").mkdir(exist_ok=True)
        log = RunLog(tmp_path / f"{name}.run")
        request = Request(out="x", data=str(root))
        open_store(root, preset("tiny"), request, log, progress=False, uses=uses).close()
        log.close()
        return root

    return make


def place(root):
    """Where the store of a data directory is."""
    return store_path([root], preset("tiny").data.crop)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def run(capsys, *argv):
    capsys.readouterr()
    code = cli.main(["cache", *map(str, argv)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_nobody_else_may_read_what_is_kept_whatever_the_umask(made, tmp_path, loose, monkeypatch):
    seen = {}
    assemble = build_store.assemble

    def look(*args):
        seen.update({p: mode(p) for p in cache_folder().rglob("*")})
        return assemble(*args)

    monkeypatch.setattr(build_store, "assemble", look)
    made("a")
    assert mode(cache_folder()) == 0o700
    # While it is made: parts, their folder, and the new store.
    assert len(seen) >= 5 and set(seen.values()) == {0o600, 0o700}
    assert all(m == (0o700 if p.name.endswith(".parts") else 0o600) for p, m in seen.items())
    assert {mode(p) for p in cache_folder().iterdir()} == {0o600}


def test_a_cache_of_an_earlier_version_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o755)
    store_path([tmp_path], None)
    assert mode(cache_folder()) == 0o700


def test_a_line_says_once_where_exams_are_kept(made, capsys):
    made("a")
    assert capsys.readouterr().err.count(f"prepared exams are kept in {cache_folder()}") == 1
    made("a")
    assert "are kept in" not in capsys.readouterr().err


def test_entries_are_listed_with_size_age_and_data(made, capsys):
    assert run(capsys)[:2] == (0, f"{cache_folder()}: 0 entries kept, 0.0 MB\n")
    a, b = made("a"), made("b")
    os.utime(place(b), (0, 0))
    code, out, _ = run(capsys, "--json")
    listed = json.loads(out)["entries"]
    assert code == 0 and [e["data"] for e in listed] == [str(a), str(b)]
    assert [e["bytes"] for e in listed] == [os.path.getsize(e["path"]) for e in listed]
    assert listed[0]["days"] < 1 < 10000 < listed[1]["days"]
    out = run(capsys)[1]
    assert f"of {a}" in out and "days old" in out and "2 entries kept" in out


@pytest.mark.slow(1)
def test_all_or_the_named_ones_are_removed_and_nothing_else(made, tmp_path, capsys):
    a, b, c = made("a"), made("b"), made("c")
    mine = cache_folder() / "notes-0123456789abcdef.h5"
    mine.write_text("not a store")
    (cache_folder() / ".x.parts").mkdir()
    (cache_folder() / ".x.parts" / "thesis.tex").write_text("x")
    link = cache_folder() / "link-0123456789abcdef.h5"
    link.symlink_to(place(c))
    code, out, _ = run(capsys, "--clear", place(a).name, b, "--json")
    assert code == 0 and {e["data"] for e in json.loads(out)["removed"]} == {str(a), str(b)}
    assert [e.data for e in entries()] == [str(c)] and a.exists() and b.exists()
    code, out, err = run(capsys, "--clear", "nothing")
    assert code == 1 and "nothing: not in the cache" in err and len(entries()) == 1
    code, out, err = run(capsys, a)
    assert code == 1 and "without --clear" in err
    assert run(capsys, "--clear")[0] == 0 and entries() == []
    assert mine.read_text() == "not a store" and link.is_symlink()
    assert (cache_folder() / ".x.parts" / "thesis.tex").exists() and (c / "e1" / "ct.nii.gz").exists()
    # What was cleared is made again.
    made("a")
    assert [e.data for e in entries()] == [str(a)]


def test_what_a_run_uses_or_makes_is_not_removed(made, capsys):
    with ExitStack() as uses:
        a = made("a", uses)
        b = made("b")
        code, out, err = run(capsys, "--clear", "--json")
        assert code == 1 and "a run uses this store" in err
        assert [e["data"] for e in json.loads(out)["removed"]] == [str(b)]
        assert list(json.loads(out)["kept"]) == [str(place(a))]
    with build_store.building(place(a)):
        code, _, err = run(capsys, "--clear")
        assert code == 1 and "another process prepares exams in this folder" in err and len(entries()) == 1
    assert run(capsys, "--clear")[0] == 0 and entries() == []


def test_a_run_waits_for_nobody_but_who_clears(made, tmp_path):
    made("a")
    path = place(tmp_path / "a")
    with used(path) as one, used(path) as two:
        assert one and two


def test_what_a_killed_build_left_is_listed_and_cleared(made, tmp_path, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(build_store, "assemble", die)
        made("a")
    (entry,) = entries()
    assert entry.kind == "unfinished" and entry.data == str(tmp_path / "a") and entry.bytes > 1000
    assert "unfinished, of" in run(capsys)[1]
    assert run(capsys, "--clear")[0] == 0
    assert [p.name for p in cache_folder().iterdir()] == [p.name for p in cache_folder().glob(".*.lock")]
