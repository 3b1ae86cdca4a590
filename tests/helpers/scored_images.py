"""Ten images, scored by one process or several."""

import os

import torch
from accelerate import PartialState

from pspfast.evaluation.image_scores import ImageScorer, ImageScores


def score_images(rank: int, processes: int) -> ImageScores:
    """Of image i, i of ten pixels are right; each process has every so many-th."""
    # The group of the processes is there; accelerate still asks for its address.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} if processes > 1 else {}
    PartialState(cpu=True)
    own = range(rank, 10, processes)
    scorer = ImageScorer(own, 2, 255)
    for right in own:
        predicted = (torch.arange(10) >= right).long().view(1, 1, 10)
        scorer(predicted, torch.zeros(1, 1, 10, dtype=torch.long))
    return scorer.gather()
