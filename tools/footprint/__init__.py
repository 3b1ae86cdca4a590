"""What networks cost a GPU, counted without one: ``python -m tools.footprint``."""
