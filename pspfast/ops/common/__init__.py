"""What several ops use: checks of arguments, and the choice of the fastest implementation."""
