"""`millpond deploy`: servers as replicas behind a port."""
