"""Displacement fields of ITK, in millimetres: inversion and composition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import options
from . import _check
from ._inversion import identity, solve
from ._kernels import resample

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class DisplacementField(NamedTuple):
    """A displacement field as ITK has it: the transform p -> p + vector(p) of points in mm, LPS.

    Attributes:
        vectors: [Z, Y, X, 3], float64 or float32: the components x, y, z in mm, LPS, of the vector at each voxel, as
            ``SimpleITK.GetArrayFromImage`` returns them.
        spacing: (x, y, z) in mm.
        origin: (x, y, z) in mm, LPS: the centre of the first voxel.
        direction: nine numbers, row by row: the columns are the directions of the axes x, y, z of the grid.
    """

    vectors: np.ndarray
    spacing: Sequence[float]
    origin: Sequence[float] = (0.0, 0.0, 0.0)
    direction: Sequence[float] = _IDENTITY


Field = TypeVar("Field")


class InvertedDisplacement(NamedTuple):
    """What :func:`invert_displacement` returns.

    Attributes:
        field: the inverse, of the kind that was passed: a SimpleITK image or a :class:`DisplacementField`.
        residual: [Z, Y, X] in mm: how far the given field carries the point of the inverse past its aim.
        valid: [Z, Y, X] bool, where that point lies in the given field and the residual is below one of its voxels.
    """

    field: Any
    residual: np.ndarray
    valid: np.ndarray


def invert_displacement(
    field: Any, onto: Any = None, *, iterations: int = 50, tolerance: float = 1e-3, step: str = "moving"
) -> InvertedDisplacement:
    """The inverse of a displacement field of ITK: e with ``(p + e(p)) + d(p + e(p)) = p``.

    Args:
        field: d, a vector image of SimpleITK (three dimensions, three components, float64 or float32) or a
            :class:`DisplacementField`; at least two voxels along each axis. Nothing in it is changed.
        onto: a SimpleITK image or a :class:`DisplacementField` whose grid the inverse has, and of which nothing else is
            read. None takes the grid of ``field``.
        iterations, step: as in :func:`implicit_warp`; ``"newton"`` is for strong deformations.
        tolerance: in voxels of ``field``; a voxel stops when its update is shorter.

    Returns:
        :class:`InvertedDisplacement`. Where the inverse leads out of the grid of ``field``, the field is continued
        linearly and ``valid`` is false.

    Raises:
        ValueError: what is neither of the two kinds of field, a wrong shape, dtype or geometry, or a wrong option.
        MemoryError: there is not enough memory for the result.
    """
    op = "invert_displacement"
    given, grid = _read(op, "field", field)
    target = grid if onto is None else _grid_of(op, "onto", onto)
    dtype = given.dtype
    inward = grid.to_normalised(given)
    # In normalised coordinates of the given grid: where its voxels are carried, and where the voxels of the result are.
    moving = inward + identity(grid.size, dtype)[None]
    fixed = target.places(grid, dtype)
    warp = solve(op, moving, fixed, None, iterations, tolerance, step)
    if onto is None:
        shift = warp.displacement
        u = shift + fixed
    else:
        u = warp.displacement + identity(target.size, dtype)[None]
        shift = u - fixed
    vectors = grid.to_vectors(shift)
    residual = np.sqrt(np.square(vectors + _sampled(given, u)).sum(0))
    return InvertedDisplacement(_like(field, vectors, target), residual, warp.valid[0, 0])


def compose_displacements(first: Field, *then: Any) -> Field:
    """The displacement field of transforms one after another: ``first``, then the others in their order.

    For two fields a and b the vector at a point p is ``a(p) + b(p + a(p))``. ITK's ``CompositeTransform`` applies what
    was added last first, so ``compose_displacements(a, b)`` is ``CompositeTransform([b, a])``. More than half a voxel
    beyond the grid of a field its vectors are 0, as in ITK's ``DisplacementFieldTransform``.

    Args:
        first, then: vector images of SimpleITK (three dimensions, three components) or :class:`DisplacementField`, each
            on a grid of its own with at least two voxels along each axis, of one dtype, float64 or float32.

    Returns:
        A field of the kind of ``first``, on its grid and in its dtype.

    Raises:
        ValueError: what is neither of the two kinds of field, or a wrong shape, dtype or geometry.
        MemoryError: there is not enough memory for the result.
    """
    op = "compose_displacements"
    total, grid = _read(op, "first", first)
    for number, other in enumerate(then):
        argument = "then" if len(then) == 1 else f"then[{number}]"
        vectors, own = _read(op, argument, other)
        if vectors.dtype != total.dtype:
            _check.fail(op, argument, f"the dtype of first, {total.dtype}", vectors.dtype)
        u = grid.places(own, total.dtype) + own.to_normalised(total)
        total += _sampled(vectors, u)
    return _like(first, total, grid)


# ---- grids ------------------------------------------------------------------------------------------


class _Grid(NamedTuple):
    """``size`` is (Z, Y, X). ``matrix`` [3, 3] and ``origin`` [3] lead from indices x, y, z to mm, LPS."""

    size: tuple[int, int, int]
    spacing: np.ndarray
    origin: np.ndarray
    direction: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        return self.direction * self.spacing

    @property
    def half(self) -> np.ndarray:
        """Voxels per unit of the normalised coordinates, for x, y, z."""
        return (np.array(self.size[::-1]) - 1) / 2

    def to_normalised(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [3, Z, Y, X] in mm as differences of normalised coordinates of this grid, [1, 3, Z, Y, X]."""
        return _times(np.linalg.inv(self.matrix) / self.half[:, None], vectors)[None]

    def to_vectors(self, shift: np.ndarray) -> np.ndarray:
        """The reverse of :meth:`to_normalised`."""
        return _times(self.matrix * self.half, shift[0])

    def places(self, other: _Grid, dtype: np.dtype) -> np.ndarray:
        """The voxels of this grid in normalised coordinates of another grid, [1, 3, Z, Y, X]."""
        if self is other:
            return identity(self.size, dtype)[None]
        back = np.linalg.inv(other.matrix)
        matrix = back @ self.matrix / other.half[:, None]
        offset = back @ (self.origin - other.origin) / other.half - 1
        z, y, x = np.ogrid[tuple(slice(n) for n in self.size)]
        rows = [m[0] * x + m[1] * y + m[2] * z + o for m, o in zip(matrix, offset, strict=True)]
        return np.stack(rows).astype(dtype)[None]


def _times(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A matrix [3, 3] times vectors [3, Z, Y, X], in their dtype."""
    return (matrix.astype(vectors.dtype) @ vectors.reshape(3, -1)).reshape(vectors.shape)


def _sampled(vectors: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The vectors [3, Z, Y, X] at normalised coordinates u [1, 3, z, y, x], as ITK interpolates: [3, z, y, x].

    Up to half a voxel beyond the outermost voxels the nearest value counts, and further out the vector is 0.
    """
    found = resample(vectors[None], u)[0]
    for place, size in zip(u[0], vectors.shape[:0:-1], strict=True):
        found[:, np.abs(place) > size / (size - 1)] = 0
    return found


# ---- the two kinds of field -------------------------------------------------------------------------


def _is_image(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "SimpleITK" and hasattr(value, "GetSpacing")


def _read(op: str, argument: str, value: Any) -> tuple[np.ndarray, _Grid]:
    """The vectors [3, Z, Y, X], a copy as the kernels read them, and the grid of a field of one of the two kinds."""
    if _is_image(value):
        import SimpleITK

        if value.GetDimension() != 3 or value.GetNumberOfComponentsPerPixel() != 3:
            got = f"{value.GetDimension()} dimensions, {value.GetNumberOfComponentsPerPixel()} components"
            _check.fail(op, argument, "an image of three dimensions and three components", got)
        vectors = SimpleITK.GetArrayViewFromImage(value)
    elif isinstance(value, DisplacementField):
        vectors = value.vectors
    else:
        _check.fail(op, argument, "a SimpleITK image or a DisplacementField", type(value).__name__)
    form = "vectors [Z, Y, X, 3]"
    array = _check.floats(op, argument, vectors, f"an array of {form}")
    if array.ndim != 4 or array.shape[3] != 3:
        _check.fail(op, argument, form, options.shape(array.shape))
    if min(array.shape[:3]) < 2:
        _check.fail(op, argument, f"{form} with at least two voxels on each axis", options.shape(array.shape))
    grid = _grid_of(op, argument, value)
    with _check.room(op, array.shape, array.dtype):
        native = array.dtype.newbyteorder("=")
        return np.array(np.moveaxis(array, -1, 0), native, order="C", copy=True), grid


def _grid_of(op: str, argument: str, value: Any) -> _Grid:
    if _is_image(value):
        if value.GetDimension() != 3:
            _check.fail(op, argument, "an image of three dimensions", f"{value.GetDimension()}")
        sizes = value.GetSize()[::-1]
        geometry = (value.GetSpacing(), value.GetOrigin(), value.GetDirection())
    elif isinstance(value, DisplacementField):
        sizes = np.shape(value.vectors)[:3]
        geometry = (value.spacing, value.origin, value.direction)
    else:
        _check.fail(op, argument, "a SimpleITK image or a DisplacementField", type(value).__name__)
    if len(sizes) != 3 or min(sizes) < 1 or max(sizes) > _check.LONGEST_AXIS:
        _check.fail(op, argument, f"three axes of 1 to {_check.LONGEST_AXIS} voxels", options.shape(sizes))
    spacing, origin, direction = (
        _numbers(op, f"{argument}.{name}", numbers, count)
        for name, numbers, count in zip(("spacing", "origin", "direction"), geometry, (3, 3, 9), strict=True)
    )
    if (spacing <= 0).any():
        _check.fail(op, f"{argument}.spacing", "three numbers above 0", options.shown(geometry[0]))
    if abs(np.linalg.det(direction.reshape(3, 3))) < 1e-6:
        _check.fail(op, f"{argument}.direction", "axes that span space", options.shown(geometry[2]))
    return _Grid(tuple(int(n) for n in sizes), spacing, origin, direction.reshape(3, 3))  # type: ignore[arg-type]


def _numbers(op: str, argument: str, value: Any, count: int) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.size != count or not np.isfinite(numbers).all():
        _check.fail(op, argument, f"{count} finite numbers", options.shown(value))
    return numbers.ravel()


def _like(field: Any, vectors: np.ndarray, grid: _Grid) -> Any:
    """Vectors [3, Z, Y, X] on a grid, as a field of the kind of ``field``."""
    vectors = np.ascontiguousarray(np.moveaxis(vectors, 0, -1))
    spacing, origin, direction = (
        tuple(part.ravel().tolist()) for part in (grid.spacing, grid.origin, grid.direction)
    )
    if not _is_image(field):
        return DisplacementField(vectors, spacing, origin, direction)
    import SimpleITK

    image = SimpleITK.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image
