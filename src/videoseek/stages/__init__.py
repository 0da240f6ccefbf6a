"""One visible training loop per stage."""
