"""Calibration of trust: labelled exams on which predicted and true Dice are compared."""
