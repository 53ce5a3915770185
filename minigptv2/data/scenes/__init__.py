"""The drawn world: scenes from a seed, and questions about them."""
