"""One self-contained HTML page of a run, of exams, or of a comparison."""
