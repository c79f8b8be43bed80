"""The self-supervised objective of sections 2.3 and 5.1."""

from deepatlas.losses.registration import LossTerms, RegistrationLoss
from deepatlas.losses.similarity import FeatureSimilarity, prewitt

__all__ = ["FeatureSimilarity", "LossTerms", "RegistrationLoss", "prewitt"]
