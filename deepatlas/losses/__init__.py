"""The self-supervised objective: the two registration tasks of section 2.3 and their losses (section 5.1)."""

from deepatlas.losses.labels import ExamMasks, LabelTask
from deepatlas.losses.registration import LossTerms, RegistrationLoss, on_loss_grid
from deepatlas.losses.similarity import FeatureSimilarity

__all__ = ["ExamMasks", "FeatureSimilarity", "LabelTask", "LossTerms", "RegistrationLoss", "on_loss_grid"]
