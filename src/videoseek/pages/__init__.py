"""What a run left in its output folder, as one HTML file that can be shown to others."""
