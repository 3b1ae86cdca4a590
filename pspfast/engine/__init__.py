"""Training, evaluation and prediction. Needs the ``train`` extra."""
