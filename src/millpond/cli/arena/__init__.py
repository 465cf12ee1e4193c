"""`millpond arena`: jobs in Arena's words, flags and tables."""
