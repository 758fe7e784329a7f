"""ImageNet at inference: from a photograph to a network's input, and from its logits to names."""

from __future__ import annotations

import functools
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def preprocess(image, resize: int = 256, crop: int = 224) -> Tensor:
    """The evaluation transform that torchvision's weights were measured with.

    Args:
        image: ``[h, w, 3]`` RGB, uint8 (an array or a tensor).
        resize: pixels of the shorter side after an antialiased bilinear resize.
        crop: pixels of the central square that is kept.

    Returns:
        ``[1, 3, crop, crop]`` float32, each channel less its mean and divided by its standard deviation.

    Raises:
        ValueError: another shape or dtype.
    """
    x = torch.as_tensor(image)
    if x.dim() != 3 or x.shape[2] != 3 or x.dtype != torch.uint8:
        raise ValueError(f"image must be [h, w, 3] uint8, got {list(x.shape)} {x.dtype}")
    h, w = x.shape[:2]
    size = (resize, resize * w // h) if h <= w else (resize * h // w, resize)
    x = x.permute(2, 0, 1).unsqueeze(0).float()
    x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False).round().clamp(0, 255) / 255
    top, left = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    x = x[..., top : top + crop, left : left + crop]
    return ((x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)).contiguous()


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1000 classes in the order of the logits: each synset's first WordNet name, told apart where two share it."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def top(logits: Tensor, k: int = 5) -> list[tuple[str, float]]:
    """The k likeliest classes of one image (logits ``[1, 1000]``) as (name, probability), likeliest first."""
    probabilities, classes = logits.float().reshape(-1).softmax(0).topk(k)
    return [(class_names()[c], p) for c, p in zip(classes.tolist(), probabilities.tolist(), strict=True)]
