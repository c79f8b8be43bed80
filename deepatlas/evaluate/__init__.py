"""Metrics, tables, figures and reports, imported by submodule: figures need matplotlib, metrics do not."""
