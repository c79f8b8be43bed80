"""Pictures of exams and results, and the style of HTML pages."""
