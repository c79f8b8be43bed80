"""The metrics of two masks, one file each."""
