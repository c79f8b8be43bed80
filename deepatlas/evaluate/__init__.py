"""Scores of segmentation: metrics, statistics, tables, pictures and a report.

This package imports nothing by itself, because the pictures need matplotlib and the metrics do not.
"""
