"""How each published family names its weights, and what its weights do not tell."""
