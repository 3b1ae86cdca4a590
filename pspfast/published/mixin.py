"""What PSPNet has of published weights: where they come from, and how they are shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pspfast.published.preprocessing import IMAGENET, Preprocessing

if TYPE_CHECKING:
    from typing_extensions import Self


class Pretrained(nn.Module):
    """A network that published weights load into.

    Attributes:
        preprocessing: what images go through before, as the weights expect it.
        class_names: of the K classes where they are known, else None.
        palette: their RGB colours, likewise.
        origin: of weights that ``from_pretrained`` loaded, the files, and what each option follows
            from, a line each.
        options: of the constructor, but the criterion.
    """

    preprocessing: Preprocessing = IMAGENET
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    origin: str | None = None
    options: dict[str, Any]
    _is_frozen: bool = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Sequence[str | Path],
        *,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """A network with published weights, in evaluation mode.

        The files of semseg, mmsegmentation, CSAIL and this project are recognised by their keys,
        and torchvision's and timm's classifiers as backbones. Nothing that a file holds is
        executed.

        Args:
            source: a file; two, CSAIL's encoder and decoder; a folder that ``save_pretrained``
                wrote; or the name of a repository on the Hub, "owner/name".
            revision: branch, tag or commit of the repository.
            options: of the constructor. Those that the weights do not tell, ``align_corners`` and
                ``dilation``, must be given where neither the file nor its family settles them. With
                other ``classes`` the classifiers start anew, of which a warning tells.

        Returns:
            The network, with ``preprocessing``, ``class_names``, ``palette`` and ``origin``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a file is damaged, of another network, or does not fit the options; or an
                option must be given.
            ModuleNotFoundError: the Hub is meant and huggingface_hub is not installed.
        """
        from pspfast.published.loading import find, load

        return load(cls, find(source, revision), options)

    def save_pretrained(
        self, folder: str | Path, *, scores: dict[str, float] | None = None
    ) -> None:
        """Writes ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

        Args:
            folder: is made if there is none.
            scores: by name, for the card.

        Raises:
            ValueError: layers were replaced by others than classifiers, so that no constructor
                makes this network; nothing is written.
            OSError: a file cannot be written; names it.
        """
        from pspfast.published.hub import save_pretrained

        save_pretrained(self, Path(folder), scores)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        scores: dict[str, float] | None = None,
        message: str = "Upload PSPNet",
    ) -> str:
        """Uploads what ``save_pretrained`` writes to a repository, which is made if there is none.

        Args:
            name: "owner/name".
            private: whether a new repository is.
            scores: by name, for the card.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
        """
        from pspfast.published.hub import push_to_hub

        return push_to_hub(self, name, private, scores, message)

    def __prepare_scriptable__(self) -> Any:
        """What ``torch.jit.script`` calls first."""
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script: TorchScript is not supported; use "
            "pspfast.export, or torch.export"
        )

    def freeze_backbone(self) -> Self:
        """Leaves ``layer0`` to ``layer4`` as they are from now on: they get no gradient, and their
        BatchNorm normalises with its running statistics, in training, too."""
        self._is_frozen = True
        for stage in self._stages():
            stage.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; of a frozen backbone always the latter."""
        super().train(mode)
        for stage in self._stages() if self._is_frozen else ():
            stage.eval()
        return self

    def _stages(self) -> list[nn.Module]:
        return [getattr(self, f"layer{i}") for i in range(5)]
