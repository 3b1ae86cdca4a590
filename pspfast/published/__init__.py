"""Weights of other PSPNets, and those of this project: read, recognised, converted, shared."""
