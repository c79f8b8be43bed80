"""The phases of a training run, each in its own file; :mod:`deepatlas.train.recipe` puts them in order."""
