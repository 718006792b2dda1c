"""From results to the report: evidence, checks, the PDF, and what is handed in."""
