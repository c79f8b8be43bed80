"""Exams on disk: what a path holds, how an exam is read, what a data directory holds, and how a store is built."""
