"""Model repositories: folders of models with their configurations, and the life of what was loaded from them."""
