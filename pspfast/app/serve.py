"""Serves the page until it is stopped."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

# Before Gradio is imported, which reads them then.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

from pspfast.app.fragments import STYLE
from pspfast.app.options import AppConfig
from pspfast.app.page import Page


def serve(options: AppConfig) -> None:
    """Serves the page at ``options.host`` until Ctrl-C or SIGTERM.

    Raises:
        ValueError, FileNotFoundError: the checkpoint is wrong.
        OSError: the port is taken.
        KeyboardInterrupt: it was stopped; training, where it runs, has written a checkpoint.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="pspfast-app-") as folder:
            images = Path(folder) / "images"
            images.mkdir()
            # Gradio copies what it shows into a folder of its own, under a name by the contents.
            # What is there already keeps its name, and a browser would show an old overlay.
            os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
            _serve(options, images)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _serve(options: AppConfig, images: Path) -> None:
    page = Page(options, images)
    blocks = page.blocks()
    try:
        _, url, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            allowed_paths=[str(images)],
            css=STYLE,
            # Fonts of the system: the page asks no other machine for anything.
            theme=gr.themes.Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
        )
        print(f"the page is at {url}; Ctrl-C ends it", flush=True)
        threading.Event().wait()
    finally:
        page.training.stop()
        blocks.close(verbose=False)
