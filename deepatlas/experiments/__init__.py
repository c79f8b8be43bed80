"""Experiments: several runs that differ in a known way, and tables that compare them."""
