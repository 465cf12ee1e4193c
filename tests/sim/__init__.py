"""The scheduler with a toy model behind it, and simulations that drive the two."""
