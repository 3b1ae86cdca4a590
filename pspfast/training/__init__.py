"""``pspfast train``. Needs the ``train`` extra."""
