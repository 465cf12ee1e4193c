"""Front doors of other systems: packages that answer to their imports with ours."""
