"""The index of a cohort: what every exam shows, in one SQLite file, and questions to it."""
