"""The self-supervised objective of sections 2.3 and 5.1, and the supervised one of sections 3.3.3 and 3.3.4."""

from deepatlas.losses.labels import ExamMasks, LabelTask
from deepatlas.losses.registration import LossTerms, RegistrationLoss, on_loss_grid
from deepatlas.losses.segmentation import SegmentationTerms, segmentation_loss
from deepatlas.losses.similarity import FeatureSimilarity

__all__ = [
    "ExamMasks",
    "FeatureSimilarity",
    "LabelTask",
    "LossTerms",
    "RegistrationLoss",
    "SegmentationTerms",
    "on_loss_grid",
    "segmentation_loss",
]
