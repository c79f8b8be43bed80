"""Exams on disk, their geometry, and what training reads."""

from deepatlas.data.cohort import Cohort, ExamFiles, find_exams
from deepatlas.data.grid import Grid
from deepatlas.data.io import read_volume, write_volume
from deepatlas.data.store import Store
from deepatlas.data.volume import Volume

__all__ = ["Cohort", "ExamFiles", "Grid", "Store", "Volume", "find_exams", "read_volume", "write_volume"]
