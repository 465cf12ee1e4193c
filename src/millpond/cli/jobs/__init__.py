"""`millpond jobs`: jobs in our own words."""
