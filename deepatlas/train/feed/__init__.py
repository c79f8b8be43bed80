"""Batches of augmented exams, which are held on the device or read before they are needed."""
