"""Generated scenes from a seed, and questions about them."""
