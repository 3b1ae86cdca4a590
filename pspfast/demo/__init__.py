"""``pspfast demo``. Needs the ``train`` extra."""
