"""``pspfast predict``. Needs the ``train`` extra."""
