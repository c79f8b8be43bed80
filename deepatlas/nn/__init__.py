"""Networks: of coordinates, of masks and of image features; and the learnable atlas with its labels."""

from deepatlas.nn.atlas import Atlas
from deepatlas.nn.autoencoder import Autoencoder
from deepatlas.nn.label_atlas import LabelAtlas
from deepatlas.nn.network import CoordinateNetwork, parameter_count
from deepatlas.nn.segmentation import SegmentationNetwork, StructureFacts

__all__ = [
    "Atlas",
    "Autoencoder",
    "CoordinateNetwork",
    "LabelAtlas",
    "SegmentationNetwork",
    "StructureFacts",
    "parameter_count",
]
