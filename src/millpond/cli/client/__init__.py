"""`millpond client`: a request in any of the protocols, from the command line."""
