"""Networks: the coordinate network, the autoencoder of image features, and the learnable atlas."""

from deepatlas.nn.atlas import Atlas
from deepatlas.nn.autoencoder import Autoencoder
from deepatlas.nn.network import CoordinateNetwork, parameter_count

__all__ = ["Atlas", "Autoencoder", "CoordinateNetwork", "parameter_count"]
