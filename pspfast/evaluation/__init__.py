"""``pspfast eval``. Needs the ``train`` extra."""
