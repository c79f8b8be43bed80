"""DICOM series: headers, the choice of a series, geometry, pixels."""
