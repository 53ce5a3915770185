"""Model classes for other people's evaluation kits. Nothing here is imported by the rest of the package."""
