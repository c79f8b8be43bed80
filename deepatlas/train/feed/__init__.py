"""Batches of exams: held on the device or read ahead of use, and augmented."""
