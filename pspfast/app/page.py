"""The page: what is on it, and what happens when something is dropped, switched or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from accelerate import PartialState

from pspfast.app import fragments
from pspfast.app.demo_training import DemoTraining
from pspfast.app.options import AppConfig
from pspfast.app.segmented import Model, Segmented
from pspfast.data import read_image
from pspfast.demo.demo import unseen_scenes

_SCENES = 6
_WATCH_SECONDS = 0.5  # between two looks at the training


class Page:
    """The page of one model, for all who open it.

    Args:
        options: of the command.
        folder: for files of the images.

    Raises:
        ValueError, FileNotFoundError: the checkpoint is wrong.
    """

    def __init__(self, options: AppConfig, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = PartialState().device
        self.training = DemoTraining(options.demo, options.epochs)
        self.scenes = unseen_scenes()
        self.model: Model | None = None
        if options.checkpoint is not None or self.training.model.is_file():
            self.load()

    def load(self) -> None:
        checkpoint = self.options.checkpoint or str(self.training.model)
        self.model = Model(checkpoint, self.options.crop_size, self.device, self.folder)

    def blocks(self) -> gr.Blocks:
        """The components and their events."""
        with gr.Blocks(title="pspfast", analytics_enabled=False, fill_width=True) as blocks:
            found = gr.State(None)
            gr.Markdown("# pspfast\nWhat a PSPNet sees in an image.")
            with gr.Group(visible=self.model is None) as without_model:
                gr.Markdown(
                    "There is no model yet. A small one learns drawn scenes in a few minutes, "
                    "here, without a GPU.",
                    padding=True,
                )
                train = gr.Button("Train the demo's model", variant="primary")
                state = gr.HTML(padding=True)
            with gr.Column(visible=self.model is not None) as with_model, gr.Row():
                with gr.Column(scale=1, min_width=300):
                    file = gr.File(label="Your image", height=140, elem_id="upload")
                    gr.Markdown("Or take a drawn scene:")
                    gallery = gr.Gallery(
                        [self.scenes.render(i)[0] for i in range(_SCENES)],
                        label="Drawn scenes",
                        show_label=False,
                        columns=3,
                        height="auto",
                        format="png",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_id="scenes",
                    )
                    message = gr.HTML(fragments.note("Drop an image, or take a scene."))
                with gr.Column(scale=2, min_width=300, visible=False) as result:
                    picture = gr.Image(
                        label="Overlay",
                        type="filepath",
                        format="png",
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id="overlay",
                    )
                    legend = gr.HTML()
                    alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", buttons=[])
                    shown = gr.CheckboxGroup(
                        label="Classes over the image", interactive=True, elem_id="classes"
                    )
                    with gr.Row():
                        save_labels = gr.DownloadButton("Download labels", elem_id="labels-file")
                        save_overlay = gr.DownloadButton("Download overlay", elem_id="overlay-file")
                    shares = gr.HTML()

            drawn = [picture, save_overlay]
            # The drop zone is emptied, for the next image.
            outputs = [file, found, message, shown, legend, shares, save_labels, result, *drawn]
            file.upload(self._take_file, [file, alpha], outputs, show_progress="minimal")
            gallery.select(self._take_scene, [alpha], outputs, show_progress="minimal")
            for changed in (alpha.change, shown.input):
                changed(
                    self._redraw,
                    [found, shown, alpha],
                    drawn,
                    trigger_mode="always_last",
                    show_progress="hidden",
                )
            train.click(
                self._train,
                outputs=[train, state, without_model, with_model],
                show_progress="hidden",
                concurrency_limit=None,
            )
        return blocks

    def _take_file(self, path: str, alpha: float) -> list[Any]:
        name = Path(path).name
        try:
            return self._segment(name, read_image(path), alpha)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            return _failed(str(error).replace(path, name))

    def _take_scene(self, alpha: float, event: gr.SelectData) -> list[Any]:
        index = int(event.index)
        return self._segment(f"scene-{index}.png", self.scenes.load(index)[0], alpha)

    def _segment(self, name: str, image: torch.Tensor, alpha: float) -> list[Any]:
        assert self.model is not None
        found, class_list = self.model.segment(name, image), self.model.class_list
        present = found.present()
        overlay = self.model.draw(found, present, alpha)
        choices = [(class_list.names[i], i) for i in present]
        return [
            None,
            found,
            fragments.note(found.text),
            gr.update(choices=choices, value=present),
            fragments.legend(found, class_list),
            fragments.shares(found, class_list),
            f"{found.stem}_labels.png",
            gr.update(visible=True),
            str(overlay),
            str(overlay),
        ]

    def _redraw(self, found: Segmented | None, shown: list[int], alpha: float) -> list[Any]:
        if found is None or self.model is None:
            return [gr.skip(), gr.skip()]
        overlay = str(self.model.draw(found, shown, alpha))
        return [overlay, overlay]

    def _train(self) -> Iterator[list[Any]]:
        self.training.start()
        while self.training.is_running:
            bar = fragments.progress(self.training.progress())
            yield [gr.update(visible=False), bar, gr.skip(), gr.skip()]
            self.training.wait(_WATCH_SECONDS)
        if not self.training.problem and self.training.model.is_file():
            self.load()
            yield [gr.skip(), "", gr.update(visible=False), gr.update(visible=True)]
        else:
            said = fragments.problem(self.training.problem or "the training was stopped")
            yield [gr.update(visible=True), said, gr.skip(), gr.skip()]


def _failed(text: str) -> list[Any]:
    """What was there goes, so that nobody takes it for the new image's."""
    kept, drawn = [gr.skip()] * 4, [gr.skip()] * 2
    return [None, None, fragments.problem(text), *kept, gr.update(visible=False), *drawn]
