"""Structures of an exam, from label images, RTSTRUCT and DICOM-SEG, on the grid of its CT."""
