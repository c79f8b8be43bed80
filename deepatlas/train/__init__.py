"""Training: autoencoder, coarse pretraining and staged optimisation, as ``python -m deepatlas.train``."""
