"""What is in a patch of a photograph: 32x32 grey pixels in, five raw scores out."""

import torch
from torch import nn


class PatchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = []
        for entering, leaving, stride in ((1, 12, 1), (12, 24, 2), (24, 24, 1), (24, 48, 2)):
            layers += [nn.Conv2d(entering, leaving, 3, stride, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(4 * 48, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))  # (n, 1, 32, 32) -> (n, 5)
