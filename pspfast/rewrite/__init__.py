"""``torch.compile(model, backend="pspfast")``: graphs of other libraries' models on this project's
operators."""
