"""The page of ``deepatlas view``: a server on this machine alone, and what its page shows of exams."""
