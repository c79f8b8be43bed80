"""The phases of a training run, one file each."""
