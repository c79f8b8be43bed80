"""Exams on disk: what a path is, how an exam is read, which exams a data directory holds, and how a store is built of them."""
