"""Conditioner networks: forward and hand-written backward."""

from .conv import ImageNetwork
from .convnet import ConvNet
from .made import MADE
from .mlp import MLP
from .resnet import GatedResNet, ResNet

__all__ = ["MADE", "MLP", "ConvNet", "GatedResNet", "ImageNetwork", "ResNet"]
