"""Structures in DICOM objects, RTSTRUCT and DICOM-SEG: what their headers tell, and their masks on the grid of a CT."""
