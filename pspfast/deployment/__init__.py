"""Networks for other runtimes: ONNX and ``torch.export`` programs of standard operators."""
