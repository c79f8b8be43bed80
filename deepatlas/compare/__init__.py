"""Evaluations of several experiments held against each other: paired tests, the paper's tables, and its Fig. 3."""
