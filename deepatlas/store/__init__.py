"""What training reads: one HDF5 file with the exams of a cohort."""
