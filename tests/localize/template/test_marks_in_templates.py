"""Points, lines and boxes in templates: made from exams, averaged, edited, kept in files, and found again in mm."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, exam, grid_of, world
from affine_user import AffineUser
from monai.data import MetaTensor

from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.io.codec import write_volume
from deepatlas.io.export.markups import write_markups
from deepatlas.localize.template import examples
from deepatlas.localize.template.edit import (
    Around,
    box_around,
    distinct_ids,
    export,
    merge_templates,
    renamed,
)
from deepatlas.localize.template.examples import Example
from deepatlas.localize.template.file import Template
from deepatlas.model.fit import Fit, UnknownExamWarning
from deepatlas.model.known import known_exam
from deepatlas.space.box import Box
from deepatlas.space.labels import Labels
from deepatlas.space.markup import Markups, Point, Polyline
from deepatlas.space.volume import Volume

LINEAR = np.array([[0.9, 0.15, 0.0], [-0.15, 1.05, 0.1], [0.0, -0.1, 1.1]])
SHIFT = np.array([4.0, -3.0, 6.0])
TURN, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
TURN = TURN * np.linalg.det(TURN)
MARKS = Markups(
    (Point("carina", (5.0, -4.0, 12.0)), Point("hilum", (-15.0, 8.0, -20.0))),
    (
        Polyline("spine", [(0, -20, -30), (2, -18, 0), (1, -21, 28)]),
        Polyline("ring", [(9, 0, 0), (0, 9, 0), (0, 0, 9)], True),
    ),
    (Box("chest", (4.0, 3.0, 2.0), TURN @ np.diag((20.0, 14.0, 17.0))),),
)


def to_anatomy(place):
    return place @ LINEAR.T + SHIFT


def to_exam(place):
    return (np.asarray(place) - SHIFT) @ np.linalg.inv(LINEAR).T


def in_exam(marks: Markups) -> Markups:
    """What lies at the same anatomy in an exam that ``to_anatomy`` maps."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(LINEAR)
    matrix[:3, 3] = -matrix[:3, :3] @ SHIFT
    return Markups(
        tuple(Point(p.name, to_exam(p.position)) for p in marks.points),
        tuple(Polyline(x.name, to_exam(x.points), x.closed) for x in marks.lines),
        tuple(b.moved(matrix) for b in marks.boxes),
    )


@pytest.fixture(scope="module")
def model():
    return AffineUser(maps={"b": to_anatomy})


@pytest.fixture(scope="module")
def a():
    return exam(GRIDS["oblique"], "a")


@pytest.fixture(scope="module")
def template(model, a):
    return model.template(Example(*a, MARKS), LABELS, size=48, boxes=["organs=liver,spleen+5"])


@pytest.mark.parametrize("grid", ["flipped", "sagittal"])
def test_all_kinds_are_found_at_their_true_places(model, template, grid):
    target = exam(GRIDS[grid], "b", to_anatomy)[0]
    found = model.locate(template, target=target)
    want = in_exam(MARKS)
    assert found.found == found.count == 6 and found.exam == "b"
    np.testing.assert_allclose(found.points.points, [p.position for p in want.points], atol=0.05)
    for line, true in zip(found.lines, want.lines, strict=True):
        np.testing.assert_allclose(line.points, true.points, atol=0.05)
        assert line.inside.all() and line.closed == true.closed and not line.reason
    box = found.boxes[0]
    np.testing.assert_allclose(box.box_mm.corners(), want.boxes[0].corners(), atol=0.1)
    assert box.coverage == pytest.approx(1) and box.residual_mm < 0.05 and box.shear_degrees > 1
    # What is written for other programs is what was found.
    back = found.markups()
    assert [p.name for p in back.points] == ["carina", "hilum"] and len(back.lines) == len(back.boxes) == 2


def test_propagation_straight_from_one_exam_is_the_same(model, a):
    target, truth = exam(GRIDS["anisotropic"], "b", to_anatomy)
    (straight,) = model.propagate(Example(*a, MARKS), target, labels=LABELS)
    assert straight.ids == LABELS and straight.found == 5
    assert straight.labels.grid == target.grid
    for identity in LABELS.values():
        mine, true = straight.labels.mask(identity), truth.array == identity
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.93
    np.testing.assert_allclose(straight.points.points, to_exam([p.position for p in MARKS.points]), atol=0.05)


def test_a_box_around_structures_has_its_margin_in_millimetres(template):
    box = next(b for b in template.marks.boxes if b.name == "organs")
    # The liver reaches from 0 to 44 mm along x, the spleen from -39 to -17; the margin is 5 mm.
    np.testing.assert_allclose((box.centre - box.axes.sum(axis=1)) * SCALE, (-44, -29, -32), atol=3.5)
    np.testing.assert_allclose((box.centre + box.axes.sum(axis=1)) * SCALE, (49, 26, 27), atol=3.5)
    wider = box_around(template, Around.parse("w = liver + 10%"))
    plain = box_around(template, Around.parse("w=liver"))
    np.testing.assert_allclose(wider.edges, plain.edges * 1.2)
    for bad in ("liver", "=liver", "x=", "x=liver,", "x=liver+mm"):
        with pytest.raises(DataError, match="expected NAME|no structure"):
            box_around(template, Around.parse(bad))


def test_the_mean_of_several_exams_ignores_one_that_errs(model, a):
    names = [f"e{i}" for i in range(6)]
    drawn = []
    generator = np.random.default_rng(1)
    chest = MARKS.boxes[0]
    for i, name in enumerate(names):
        off = np.array([25.0, 0, 0]) if i == 2 else generator.normal(scale=0.4, size=3)
        # Every other anatomist begins the line at the other end, and names the axes of the box in another order.
        axes = chest.axes[:, [1, 2, 0]] * (1, -1, -1) if i % 2 else chest.axes
        marks = Markups(
            (Point("carina", MARKS.points[0].position + off),),
            (Polyline("spine", MARKS.lines[0].points[:: -1 if i % 2 else 1] + off),),
            (Box("chest", chest.centre + off, axes),),
        )
        drawn.append(Example(Volume(a[0].array, a[0].grid, name), marks=marks))
    made = model.template(drawn)
    assert made.masks.shape[0] == 0 and made.meta["marks"]["points"]["carina"]["exams"] == names
    assert made.meta["marks"]["points"]["carina"]["spread_mm"] < 1.5
    np.testing.assert_allclose(made.marks.points[0].position * SCALE, MARKS.points[0].position, atol=0.5)
    np.testing.assert_allclose(made.marks.lines[0].points * SCALE, MARKS.lines[0].points, atol=0.5)
    np.testing.assert_allclose(made.marks.boxes[0].corners() * SCALE, MARKS.boxes[0].corners(), atol=0.6)
    with pytest.raises(DeepAtlasError, match="holds no mask to segment"):
        model.segment(a[0], made)


def test_a_file_keeps_everything_and_old_files_stay_readable(template, tmp_path):
    template.save(tmp_path / "t.h5")
    back = Template.load(tmp_path / "t.h5")
    assert back.meta == template.meta and back.names == template.names
    for mine, true in zip(back.marks.boxes, template.marks.boxes, strict=True):
        np.testing.assert_array_equal(mine.matrix, true.matrix)
    np.testing.assert_array_equal(back.marks.points[1].position, template.marks.points[1].position)
    assert [(x.name, x.closed) for x in back.marks.lines] == [("spine", False), ("ring", True)]
    assert "6 " not in repr(back) and "2 points, 2 lines, 2 boxes" in repr(back)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["version"] == 3
        offset = file["marks"].id.get_chunk_info(0).byte_offset
    damaged = bytearray((tmp_path / "t.h5").read_bytes())
    damaged[offset + 40] ^= 1
    (tmp_path / "t.h5").write_bytes(damaged)
    with pytest.raises(DataError, match=r"t\.h5: .*damaged"):
        Template.load(tmp_path / "t.h5")
    # Masks alone are written as earlier versions read them.
    Template(template.masks, template.names, template.ids, template.meta).save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5") as file:
        assert file.attrs["version"] == 1 and "marks" not in file
    assert not len(Template.load(tmp_path / "old.h5").marks)
    only = template.select(["carina", "chest"])
    only.save(tmp_path / "only.h5")
    back = Template.load(tmp_path / "only.h5")
    assert back.masks.shape == (0, 48, 48, 48) and len(back.marks) == 2


def test_templates_are_joined_and_renamed(template):
    left = renamed(template.select(["liver", "carina"]), {"liver": "hepar 2"})
    right = Template(template.masks[:2, ::2, ::2, ::2], ("heart", "kidney"), (5, 7), template.meta)
    both = merge_templates([left, right])
    # The id of the first is kept, and the second one gets the next that is free.
    assert both.labels == {"hepar 2": 5, "heart": 1, "kidney": 7} and both.masks.shape[1:] == (48, 48, 48)
    assert [p.name for p in both.marks.points] == ["carina"]
    np.testing.assert_allclose(both.masks[1].mean(), right.masks[0].mean(), atol=5e-3)
    assert set(both.meta["structures"]) >= {"hepar 2"}
    with pytest.raises(DataError, match="b.h5: has a structure 'liver', and so has a.h5"):
        merge_templates([template, template.select(["liver"])], ["a.h5", "b.h5"])
    with pytest.raises(DataError, match="has a point 'carina'"):
        merge_templates([template, template.select(["carina"])])
    other = Template(template.masks, ("x", "y", "z"), (1, 2, 3), {**template.meta, "model": "zz"})
    with pytest.raises(DataError, match="made for model zz"):
        merge_templates([template, other])
    other = Template(template.masks, ("x", "y", "z"), (1, 2, 3), {**template.meta, "refine": 9})
    with pytest.raises(DataError, match="made with --refine 9"):
        merge_templates([template, other])
    with pytest.raises(DataError, match="distinct"):
        renamed(template, {"liver": "spleen"})
    with pytest.raises(DataError, match="no structure 'nose'"):
        renamed(template, {"nose": "n"})


def test_an_id_that_one_structure_alone_has_stays_when_others_clash():
    assert distinct_ids([1, 1, 2, 7, 2]) == [1, 3, 2, 7, 4]
    masks = np.ones((2, 4, 4, 4), np.float32)
    parts = Template(masks[:1], ("a",), (1,)), Template(masks, ("b", "c"), (1, 2))
    assert merge_templates(parts).labels == {"a": 1, "b": 3, "c": 2}
    with pytest.raises(DataError, match="more than 65535 structures"):
        distinct_ids([*range(1, 65536), 1])


def test_a_calibration_and_the_spreads_of_marks_survive_a_join_only_where_they_hold():
    masks = np.ones((1, 4, 4, 4), np.float32)
    trust, spread = {"structures": {"a": {}}}, {"points": {"p": {"spread_mm": 1.0}}}
    one = Template(masks, ("a",), (1,), {"trust": trust, "marks": spread, "unlabelled": ["e1"]})
    other = Template(
        masks, ("b",), (2,), {"marks": {"points": {"q": {"spread_mm": 2.0}}}, "unlabelled": ["e2"]}
    )
    made = merge_templates([one, other]).meta
    assert (
        made["trust"] == trust
        and set(made["marks"]["points"]) == {"p", "q"}
        and made["unlabelled"] == ["e1", "e2"]
    )
    assert merge_templates([other, one]).meta["trust"] == trust
    # The scales of one are not those of the other.
    second = Template(masks, ("b",), (2,), {"trust": {"structures": {"b": {}}}})
    assert "trust" not in merge_templates([one, second]).meta and one.meta["trust"] == trust
    assert set(renamed(one, {"a": "x"}).meta["marks"]["points"]) == {"p"}


def test_structures_of_several_exams_keep_the_ids_that_nobody_else_has(model, a):
    ct, seg = a
    drawn = np.asarray(seg.array)
    first = Labels((drawn == LABELS["liver"]).astype(np.uint8), seg.grid, "one")
    second = Labels(
        np.where(drawn == LABELS["heart"], 1, 2 * (drawn == LABELS["spleen"])).astype(np.uint8),
        seg.grid,
        "two",
    )
    read = [
        SimpleNamespace(known=known_exam(model, ct), seg=of, labels=labels)
        for of, labels in ((first, {"liver": 1}), (second, {"heart": 1, "spleen": 2}))
    ]
    items, table = examples._labelled(read)
    assert table == {"liver": 1, "heart": 3, "spleen": 2}
    assert [item.labels.ids() for item in items] == [{1}, {2, 3}]
    assert (items[1].labels.mask(3) == second.mask(1)).all()


def test_images_of_the_atlas_are_those_that_nibabel_sees(template, tmp_path):
    files = export(template.select(["heart", "chest"]), tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in files] == ["masks/heart.nii.gz", "boxes/chest.nii.gz"]
    mask, box = (nibabel.load(path) for path in files)
    row = template.names.index("heart")
    np.testing.assert_array_equal(mask.get_fdata(dtype=np.float32), template.masks[row].T)
    # A voxel lies at its coordinates times 100.
    index = np.array([10, 20, 30])
    place = box.affine[:3, :3] @ index + box.affine[:3, 3]
    np.testing.assert_allclose(place, (2 * index / 47 - 1) * 100, atol=1e-4)
    held = np.stack(np.nonzero(box.get_fdata()), axis=1) @ box.affine[:3, :3].T + box.affine[:3, 3]
    chest = template.marks.boxes[0]
    assert chest.contains(held / 100).all()
    assert len(held) * (200 / 47) ** 3 == pytest.approx(abs(np.linalg.det(chest.axes)) * 8e6, rel=0.05)


def test_another_model_is_refused(model, template, a):
    wrong = Template(
        template.masks, template.names, template.ids, {**template.meta, "model": "zz"}, template.marks
    )
    with pytest.raises(DeepAtlasError, match="made for the model zz, but this model is affine-model"):
        model.locate(wrong, target=a[0])


def test_what_lies_outside_is_one_line(model, a):
    far = Markups((Point("tip", (500.0, 0, 0)),))
    with pytest.raises(DataError, match=r"a: point 'tip' lies outside the exam, at \[500.0, 0.0, 0.0\] mm"):
        model.template(Example(a[0], marks=far))
    with pytest.raises(DataError, match="a: box chest: 0 % of it lie inside the exam"):
        model.template(Example(a[0], marks=Markups(boxes=(Box("chest", (0, 900, 0), np.eye(3)),))))
    with pytest.raises(DeepAtlasError, match="two points are called 'p'"):
        model.template(Example(a[0], marks=Markups((Point("p", (0, 0, 0)), Point("p", (1, 0, 0))))))
    with pytest.raises(DataError, match="nothing was drawn"):
        model.template(Example(a[0]))
    with pytest.raises(DataError, match="no voxel of it is labelled"):
        model.template(Example(a[0], Labels(np.zeros(a[0].grid.shape, np.uint8), a[0].grid)))
    other = grid_of((4.0, 4.0, 4.0))
    with pytest.raises(DataError, match="do not match the"):
        model.template(Example(a[0], Volume(np.ones(other.shape, np.uint8), other)))
    air = Markups((Point("air", (-66.0, -54.0, -68.0)),))
    with pytest.warns(UserWarning, match="a: point 'air' lies outside the body"):
        model.template(Example(exam(GRIDS["plain"], "a")[0], marks=air))


@pytest.mark.slow(1)
def test_files_of_masks_bring_their_names(model, a, tmp_path):
    """A table beside the masks, one in the folder above, the names of segments and of files, and no name at all."""
    ct, seg = a
    write_volume(tmp_path / "e" / "seg.nii.gz", seg)
    made = model.template(Example(ct, tmp_path / "e" / "seg.nii.gz"), size=16)
    assert made.labels == {f"structure_{i}": i for i in sorted(LABELS.values())}
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    assert model.template(Example(ct, tmp_path / "e" / "seg.nii.gz"), size=16).labels == LABELS
    for name, identity in LABELS.items():
        whole = np.asarray(seg.array == identity).astype(np.uint8)
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", Volume(whole, seg.grid))
    assert model.template(Example(ct, tmp_path / "masks"), size=16).labels == {
        "heart": 1,
        "liver": 2,
        "spleen": 3,
    }
    # Two exams whose tables differ: a structure keeps the id of the first.
    other = Labels(np.where(seg.array == 5, 9, 0).astype(np.uint8), seg.grid, "other")
    write_volume(tmp_path / "f" / "x" / "seg.nii.gz", other)
    (tmp_path / "f" / "labels.json").write_text(json.dumps({"liver": 9}))
    examples = [Example(ct, tmp_path / "e" / "seg.nii.gz"), Example(ct, tmp_path / "f" / "x" / "seg.nii.gz")]
    both = model.template(examples, size=16)
    assert both.labels == LABELS and both.meta["structures"]["liver"]["misfit"] < 0.2


def test_an_example_that_is_given_twice_counts_once(model, a, tmp_path):
    ct, seg = a
    for name in ("one", "two"):
        write_volume(tmp_path / name / "ct.nii.gz", ct)
        write_volume(tmp_path / name / "seg.nii.gz", seg)
    write_volume(tmp_path / "one" / "other.nii.gz", seg)
    exam_, masks = tmp_path / "one" / "ct.nii.gz", tmp_path / "one" / "seg.nii.gz"
    marks = Markups((Point("tip", np.array([1.0, 2.0, 3.0])),), (), ())
    again = Markups((Point("tip", np.array([1.0, 2.0, 3.0])),), (), ())
    twice = [
        Example(exam_, masks, marks),
        Example(str(exam_), tmp_path / "two" / ".." / "one" / "seg.nii.gz", again),
    ]
    with pytest.warns(DataWarning, match="ct.nii.gz: is given twice with the same masks, points and boxes"):
        made = model.template(twice, LABELS, size=16)
    assert len(made.meta["exams"]) == 1
    np.testing.assert_array_equal(made.masks, model.template(twice[0], LABELS, size=16).masks)
    # Another drawing of one exam is another example, and so are a volume in memory and its like.
    for other in (Example(exam_, tmp_path / "one" / "other.nii.gz", marks), Example(ct, seg, marks)):
        assert len(model.template([twice[0], other], LABELS, size=16).meta["exams"]) == 2


def test_the_loop_of_annotation_improves_a_template(model, tmp_path):
    """Propagate, correct, read back: an exam in which the structure lies otherwise moves the template towards it."""
    (ct, seg), (other, truth) = exam(GRIDS["coarse"], "a"), exam(GRIDS["plain"], "c")
    # The anatomist of the second exam draws the liver larger.
    away = (world(truth.grid) - ANATOMY["liver"][1]) / (27.0, 22.0, 24.0)
    truth.array[:] = np.where((away**2).sum(-1) < 1, 5, 0)
    (first,) = model.propagate(Example(ct, seg), other, labels=LABELS)
    path = write_volume(tmp_path / "corrected.nii.gz", truth)
    better = model.template([Example(ct, seg), Example(other, path)], LABELS, size=48)
    again = model.segment(other, better)

    def dice(mask):
        true = truth.array == 5
        return 2 * (mask & true).sum() / (mask.sum() + true.sum())

    assert dice(again.mask(5)) > dice(first.labels.mask(5)) + 0.03


def test_exams_of_one_name_from_two_folders_are_told_apart(tmp_path):
    """What is known of an exam is kept by its name: the one that the model does not know must not hide."""
    model, drawn = AffineUser(), []
    for place, name in enumerate(("one", "two", "three")):
        ct, _ = exam(GRIDS["coarse"], name)
        path = write_volume(tmp_path / name / "p1" / "ct.nii.gz", ct)
        drawn.append(Example(path, marks=Markups((Point(f"point {place}", (0.0, 0.0, 0.0)),))))
    known = model.map_exam

    def map_exam(volume):
        found = known(volume)
        value = 0.2 if str(volume.name).startswith(str(tmp_path / "two")) else 0.9
        return replace(found, fit=Fit(value, 0.5))

    model.map_exam, model.fit_threshold = map_exam, 0.5
    with pytest.warns(UnknownExamWarning, match=r"p1 \(2\): the model does not know"):
        template = model.template(drawn)
    assert template.meta["exams"] == ["p1", "p1 (2)", "p1 (3)"]
    assert {n: about["known"] for n, about in template.meta["fit"].items()} == {
        "p1": True, "p1 (2)": False, "p1 (3)": True
    }  # fmt: skip


@pytest.mark.slow(1)
def test_images_of_other_libraries_are_examples(model, a):
    """The exam as nibabel, SimpleITK and MONAI have it, and the masks as another of them."""
    (ct, seg), point = a, Markups((Point("carina", (5.0, -4.0, 12.0)),))
    xyz = np.ascontiguousarray(ct.array.T), np.ascontiguousarray(seg.array.T)
    nifti = [nibabel.Nifti1Image(array, ct.grid.affine) for array in xyz]
    monai = [
        MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(ct.grid.affine.copy()))
        for array in xyz
    ]
    itk = []
    flip = np.diag([-1.0, -1.0, 1.0])
    for array in (ct.array, seg.array):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(ct.grid.spacing)
        image.SetDirection((flip @ ct.grid.affine[:3, :3] / np.array(ct.grid.spacing)).ravel().tolist())
        image.SetOrigin((flip @ ct.grid.affine[:3, 3]).tolist())
        itk.append(image)
    want = model.template(Example(ct, seg, point), LABELS, size=16)
    for image, masks in ((nifti[0], itk[1]), (itk[0], monai[1]), (monai[0], nifti[1])):
        made = model.template(Example(image, masks, point, name="a"), LABELS, size=16)
        np.testing.assert_allclose(made.masks, want.masks, atol=1e-4)
        found = model.locate(made, target=image)
        np.testing.assert_allclose(found.points.points, [(5.0, -4.0, 12.0)], atol=0.05)
    with pytest.raises(DataError, match="not integers"):
        model.template(Example(ct, Volume(seg.array + 0.5, seg.grid)))


def test_marks_are_read_from_files_of_other_programs(model, a, tmp_path):
    write_markups(tmp_path / "m.mrk.json", Markups(MARKS.points, MARKS.lines, MARKS.boxes))
    made = model.template(Example(a[0], marks=tmp_path / "m.mrk.json"))
    assert [p.name for p in made.marks.points] == ["carina", "hilum"]
    np.testing.assert_allclose(made.marks.boxes[0].corners() * SCALE, MARKS.boxes[0].corners(), atol=0.1)
