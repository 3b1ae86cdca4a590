"""``pspfast app``. Needs the ``app`` extra."""
