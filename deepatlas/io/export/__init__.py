"""Files for other programs: one module a format, which takes arrays, labels and markups, and reads them back."""
