"""A backbone of your own: FMCNet cuts its blocks into stems and tails.

    python examples/new_backbone.py

Blocks 0 to 2 are the stems, the others the tails. Every layer has its own name, which is its key in the
state dict. The last block ends with a ReLU, because generated features are not negative.
"""

from __future__ import annotations

import torch
from torch import nn

import fmcnet


class Plain(fmcnet.Backbone):
    """Five 3x3 convolutions with batch normalisation and ReLU; each but the last halves the image."""

    depth = 5

    def __init__(self, width: int = 64, last_stride: int = 1) -> None:
        self.width, self.strides = width, (2, 2, 2, 2, last_stride)

    def channels(self, index: int) -> int:
        return self.width * 2**index

    def block(self, index: int) -> dict[str, nn.Module]:
        inputs = 3 if index == 0 else self.channels(index - 1)
        outputs = self.channels(index)
        return {
            f"conv{index}": nn.Conv2d(inputs, outputs, 3, self.strides[index], 1, bias=False),
            f"bn{index}": nn.BatchNorm2d(outputs),
            f"relu{index}": nn.ReLU(inplace=True),
        }


def main() -> None:
    fmcnet.register_backbone("plain", Plain)
    config = fmcnet.load_config("tiny", ["model.arch=plain", "model.width=8"])
    model = fmcnet.build_model(config.model, classes=10).eval()
    visible, infrared = torch.rand(2, 3, 64, 32), torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        output = model(visible, infrared)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights")
    print("descriptor of a visible image:", tuple(output.visible.embedding[0].shape))
    # `fmcnet.train(config, data, out)` trains it as any other configuration.


if __name__ == "__main__":
    main()
