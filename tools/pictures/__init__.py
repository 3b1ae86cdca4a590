"""The pictures of docs/how-it-works.md, drawn from what the operators compute."""
