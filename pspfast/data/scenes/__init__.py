"""Drawn scenes, a data set for the demo and for tests."""
