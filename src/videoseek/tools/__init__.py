"""Tools: one file each, and the table of a run's tools by name."""
