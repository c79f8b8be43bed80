"""Inversion and composition of ITK's displacement fields, against SimpleITK, on oblique anisotropic grids."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from array_kernels import why_no_arrays

from deepatlas_ops import array

pytestmark = pytest.mark.skipif(why_no_arrays() is not None, reason=str(why_no_arrays()))

TURN = np.linalg.qr(np.array([[0.9, 0.3, -0.1], [-0.2, 0.95, 0.25], [0.15, -0.2, 1.0]]))[0]


def grid(size=(21, 17, 12), spacing=(2.0, 2.5, 4.0), origin=(-31.0, 12.0, 900.0), direction=TURN):
    """An image without vectors: a grid, with size and all else in the order x, y, z."""
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    return image


def points(image):
    """The centres of the voxels in mm, [Z, Y, X, 3]."""
    z, y, x = np.indices(image.GetSize()[::-1])
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return np.stack([x, y, z], -1) @ matrix.T + image.GetOrigin()


def smooth_field(image, amplitude=3.0, dtype=np.float64, phase=0.0):
    """A field of waves on the grid of an image, in mm, with slopes below 1."""
    p = points(image) - points(image).mean((0, 1, 2))
    vectors = amplitude * np.sin(p[..., ::-1] / 14 + [0.3 + phase, 1.0, -0.7]) + [1.0, -0.5, 2.0]
    field = sitk.GetImageFromArray(vectors.astype(dtype), isVector=True)
    field.CopyInformation(image)
    return field


def transform(field):
    # The transform takes the image away.
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def values(field):
    return sitk.GetArrayFromImage(field)


def as_arrays(field):
    return array.DisplacementField(values(field), field.GetSpacing(), field.GetOrigin(), field.GetDirection())


def same_grid(one, other):
    assert one.GetSize() == other.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(one, part)(), getattr(other, part)(), rtol=1e-12)


@pytest.mark.parametrize("step", ["moving", "newton"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", ["own", "other"])
def test_the_given_transform_undoes_the_inverse(dtype, step, target):
    field = smooth_field(grid(), dtype=dtype)
    onto = grid((9, 8, 7), (3.0, 3.5, 5.0), (-25.0, 20.0, 905.0)) if target == "other" else None
    found = array.invert_displacement(field, onto, step=step)
    same_grid(found.field, field if onto is None else onto)
    assert values(found.field).dtype == dtype
    there, back = transform(field), transform(found.field)
    image = field if onto is None else onto
    errors = [
        np.linalg.norm(np.subtract(there.TransformPoint(back.TransformPoint(p)), p))
        for p in points(image)[found.valid].tolist()
    ]
    assert found.valid.mean() > 0.5
    # The tolerance is a thousandth of a voxel, which is at most 4 mm long.
    assert max(errors) < 5e-3
    np.testing.assert_allclose(found.residual[found.valid], errors, atol=2e-4)


# The filters of ITK treat the border as they see fit, so compare inside.
INNER = (slice(3, -3),) * 3


def test_the_inverse_is_that_of_the_iterative_filter_of_itk():
    field = smooth_field(grid((18, 17, 16), (2.0, 2.5, 3.0)), 2.0)
    found = values(array.invert_displacement(field, tolerance=1e-5).field)
    iterative = sitk.InvertDisplacementFieldImageFilter()
    iterative.SetMaximumNumberOfIterations(200)
    iterative.SetMeanErrorToleranceThreshold(1e-6)
    iterative.SetMaxErrorToleranceThreshold(1e-5)
    iterative.EnforceBoundaryConditionOff()
    np.testing.assert_allclose(values(iterative.Execute(field))[INNER], found[INNER], atol=2e-3)


def test_the_inverse_is_that_of_the_spline_filter_of_itk():
    # This filter ignores the directions of a grid, and is exact at its few landmarks alone.
    field = smooth_field(grid((12, 11, 10), (2.0, 2.5, 3.0), direction=np.eye(3)), 2.0)
    found = values(array.invert_displacement(field).field)
    splines = sitk.InverseDisplacementField(
        field, field.GetSize(), field.GetOrigin(), field.GetSpacing(), subsamplingFactor=3
    )
    np.testing.assert_allclose(values(splines)[INNER], found[INNER], atol=0.1)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-4), (np.float64, 1e-9)])
def test_composition_is_that_of_composite_transform(dtype, tolerance):
    first = smooth_field(grid(), 4.0, dtype)
    # A smaller grid, turned otherwise: the first field leads out of it here and there.
    second = smooth_field(grid((15, 16, 14), (2.5, 2.0, 3.0), (-25, 18, 905), TURN.T), 3.0, dtype, phase=0.5)
    found = array.compose_displacements(first, second)
    same_grid(found, first)
    composite = sitk.CompositeTransform([transform(second), transform(first)])
    want = sitk.TransformToDisplacementField(
        composite,
        sitk.sitkVectorFloat64,
        first.GetSize(),
        first.GetOrigin(),
        first.GetSpacing(),
        first.GetDirection(),
    )
    outside = np.isclose(values(want), values(first), atol=1e-6).all(-1)
    assert 0.05 < outside.mean() < 0.95, "the case has voxels inside and outside of the second grid"
    error = np.abs(values(found) - values(want)).max(-1)
    assert values(found).dtype == dtype
    # With float32, a point on the very border may be on either side.
    assert (error > tolerance).sum() <= (2 if dtype == np.float32 else 0)


def test_three_fields_compose_in_their_order():
    a, b, c = (smooth_field(grid(), 2.0, phase=phase) for phase in (0.0, 1.0, 2.0))
    found = values(array.compose_displacements(a, b, c))
    composite = sitk.CompositeTransform([transform(c), transform(b), transform(a)])
    centre = (6, 8, 10)
    p = points(a)[centre]
    np.testing.assert_allclose(p + found[centre], composite.TransformPoint(p.tolist()), atol=1e-9)
    np.testing.assert_array_equal(values(array.compose_displacements(a)), values(a))


def test_arrays_give_what_images_give():
    field, other = smooth_field(grid()), smooth_field(grid(), 2.0, phase=1.0)
    inverse, arrays = array.invert_displacement(field), array.invert_displacement(as_arrays(field))
    assert isinstance(arrays.field, array.DisplacementField)
    np.testing.assert_array_equal(arrays.field.vectors, values(inverse.field))
    np.testing.assert_array_equal(arrays.valid, inverse.valid)
    same_grid(inverse.field, field)
    np.testing.assert_allclose(arrays.field.direction, field.GetDirection())
    composed = array.compose_displacements(as_arrays(field), other)
    np.testing.assert_array_equal(composed.vectors, values(array.compose_displacements(field, other)))
    onto = array.DisplacementField(np.empty((3, 4, 5, 3)), (4, 4, 4), field.GetOrigin(), TURN)
    assert array.invert_displacement(field, onto).field.GetSize() == (5, 4, 3)


def test_a_composition_with_the_inverse_is_the_identity():
    field = smooth_field(grid(), 2.0)
    inverse = array.invert_displacement(field, tolerance=1e-6)
    rest = values(array.compose_displacements(inverse.field, field))
    assert np.abs(rest[inverse.valid]).max() < 1e-4


def test_nothing_given_is_changed_and_any_order_of_bytes_is_read():
    vectors = values(smooth_field(grid()))
    kept = vectors.copy()
    vectors.flags.writeable = False
    plain = array.DisplacementField(vectors, (2, 2.5, 4))
    want = array.invert_displacement(plain).field.vectors
    for other in (vectors.astype(">f8"), np.asfortranarray(vectors)):
        found = array.invert_displacement(plain._replace(vectors=other)).field.vectors
        np.testing.assert_array_equal(found, want)
    array.compose_displacements(plain, plain)
    np.testing.assert_array_equal(vectors, kept)


def test_nan_vectors_are_not_valid():
    vectors = values(smooth_field(grid()))
    vectors[:3] = np.nan
    found = array.invert_displacement(array.DisplacementField(vectors, (2, 2.5, 4)))
    assert not found.valid[:2].any()
    assert np.isnan(array.compose_displacements(found.field, found.field).vectors).any()


GOOD = array.DisplacementField(np.zeros((3, 4, 5, 3)), (1, 1, 1))
WRONG = [
    (GOOD.vectors, "a SimpleITK image or a DisplacementField, got ndarray"),
    (GOOD._replace(vectors=GOOD.vectors[0]), r"vectors \[Z, Y, X, 3\], got \[4, 5, 3\]"),
    (GOOD._replace(vectors=GOOD.vectors[..., :2]), r"vectors \[Z, Y, X, 3\], got \[3, 4, 5, 2\]"),
    (GOOD._replace(vectors=GOOD.vectors[:1]), "at least two voxels on each axis, got"),
    (GOOD._replace(vectors=GOOD.vectors.astype(int)), "float64 or float32, got int64"),
    (GOOD._replace(vectors=np.ma.masked_array(GOOD.vectors)), "a mask of its own"),
    (GOOD._replace(vectors=GOOD.vectors.tolist()), "an array of vectors .*, got list"),
    (GOOD._replace(spacing=(1, 1)), "3 finite numbers, got"),
    (GOOD._replace(spacing=(1, 0, 1)), "three numbers above 0, got"),
    (GOOD._replace(origin=(1, np.nan, 1)), "3 finite numbers, got"),
    (GOOD._replace(direction="abc"), "9 finite numbers, got 'abc'"),
    (GOOD._replace(direction=np.ones((3, 3))), "axes that span space, got"),
    (
        sitk.Image(3, 4, 5, sitk.sitkFloat32),
        "three dimensions and three components, got 3 dimensions, 1 comp",
    ),
    (
        sitk.Image([3, 4], sitk.sitkVectorFloat32, 3),
        "three dimensions and three components, got 2 dimensions",
    ),
    (sitk.Image([3, 4, 5], sitk.sitkVectorInt16, 3), "float64 or float32, got int16"),
    (None, "a SimpleITK image or a DisplacementField, got NoneType"),
]


@pytest.mark.parametrize("field, message", WRONG, ids=[m[:30] for _, m in WRONG])
def test_a_wrong_field_is_named_in_one_line(field, message):
    for call, argument in (
        (lambda: array.invert_displacement(field), "invert_displacement: field"),
        (lambda: array.compose_displacements(field, GOOD), "compose_displacements: first"),
        (lambda: array.compose_displacements(GOOD, field), "compose_displacements: then"),
    ):
        with pytest.raises(ValueError, match=rf"^{argument}[.\w]*: expected .*{message}") as error:
            call()
        assert "\n" not in str(error.value)


def test_other_wrong_arguments_are_named():
    narrow = GOOD._replace(vectors=GOOD.vectors.astype("f"))
    with pytest.raises(
        ValueError, match=r"^compose_displacements: then\[1\]: expected the dtype of first, float64"
    ):
        array.compose_displacements(GOOD, GOOD, narrow)
    with pytest.raises(ValueError, match="^invert_displacement: onto: expected a SimpleITK image or"):
        array.invert_displacement(GOOD, (3, 4, 5))
    with pytest.raises(ValueError, match="^invert_displacement: iterations: expected"):
        array.invert_displacement(GOOD, iterations=0)
