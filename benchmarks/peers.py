"""Other libraries that solve the same problems, by name, as functions of our tensors; those not installed are left out.

All but MONAI take arrays or images of their own, made before the clock starts, and only go forward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

# Their memory is not PyTorch's, so the peak of a row says nothing about them.
OUTSIDE_PYTORCH = ("volresample", "scipy", "SimpleITK", "numpy", "array", "ANTsPy")


def _module(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def resample(volume: Tensor, coords: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Linear sampling with border padding, one batch element, float32, on the CPU."""
    found = {}
    sizes = torch.tensor(volume.shape[:1:-1], dtype=coords.dtype)[:, None, None, None]
    if volresample := _module("volresample"):
        volresample.set_num_threads(torch.get_num_threads())
        # Its -1 and +1 are the outer faces of the volume.
        grid = (coords * (sizes - 1) / sizes).movedim(1, -1).contiguous().numpy()
        array = volume.numpy()
        found["volresample"] = lambda: torch.from_numpy(
            volresample.grid_sample(array, grid, mode="linear", padding_mode="border")
        )
    if (ndimage := _module("scipy.ndimage")) and volume.shape[1] == 1:
        index = ((coords[0] + 1) * (sizes - 1) / 2).flip(0).numpy()
        image = volume[0, 0].numpy()
        found["scipy"] = lambda: torch.from_numpy(
            ndimage.map_coordinates(image, index, order=1, mode="nearest")
        )[None, None]
    return found


def resize(volume: Tensor, size: tuple[int, int, int]) -> dict[str, Callable[[], Tensor]]:
    """Corner-aligned linear resizing, up or down, without smoothing."""
    found = {}
    if volresample := _module("volresample"):
        volresample.set_num_threads(torch.get_num_threads())
        array = volume.numpy()
        found["volresample"] = lambda: torch.from_numpy(
            volresample.resample(array, size, mode="linear", align_corners=True)
        )
    return found


def inverses(displacement: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The displacement that undoes ``displacement [1, 3, D, H, W]``, both in normalised units."""
    found = {}
    half = (torch.tensor(displacement.shape[:1:-1]) - 1)[:, None, None, None] / 2  # voxels of a unit, x, y, z
    if layer := _module("deformation_inversion_layer"):
        voxels = (displacement * half).flip(1)
        found["inversion layer"] = lambda: layer.fixed_point_invert_deformation(voxels).flip(1) / half
    if sitk := _module("SimpleITK"):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        vectors = (displacement * half)[0].movedim(0, -1).double().contiguous().numpy()
        image = sitk.GetImageFromArray(vectors, isVector=True)

        def back(result) -> Tensor:
            array = torch.from_numpy(sitk.GetArrayFromImage(result)).float()
            return array.movedim(-1, 0)[None] / half

        found["SimpleITK"] = lambda: back(
            sitk.InvertDisplacementField(
                image, maximumNumberOfIterations=20, maxErrorToleranceThreshold=1e-3,
                meanErrorToleranceThreshold=1e-4, enforceBoundaryCondition=False,
            )
        )  # fmt: skip
    return found


def determinant(field: Tensor, identity: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The Jacobian determinant of a map ``[1, 3, D, H, W]``, ``[1, 1, D, H, W]``; borders differ from ours."""
    found = {}
    if sitk := _module("SimpleITK"):
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        half = (torch.tensor(field.shape[:1:-1]) - 1)[:, None, None, None] / 2
        vectors = ((field - identity) * half)[0].movedim(0, -1).double().contiguous().numpy()
        image = sitk.GetImageFromArray(vectors, isVector=True)

        def run() -> Tensor:
            result = sitk.DisplacementFieldJacobianDeterminant(image)
            return torch.from_numpy(sitk.GetArrayFromImage(result))[None, None].float()

        found["SimpleITK"] = run
    return found


def warp(volume: Tensor, displacement: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Functions of ``(volume, displacement)`` with gradients; MONAI's displacement is in voxels, z, y, x."""
    found = {}
    if blocks := _module("monai.networks.blocks"):
        block = blocks.Warp(mode="bilinear", padding_mode="border")
        half = (torch.tensor(volume.shape[:1:-1]) - 1)[:, None, None, None].to(displacement) / 2
        found["monai"] = lambda v, d: block(v, (d * half).flip(1))
    return found
