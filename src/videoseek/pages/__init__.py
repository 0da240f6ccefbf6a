"""Pages: the results of a run, or one sample, as a single HTML file for sharing."""
