"""Experiments: several runs that are trained alike, compared, and put into one table."""
