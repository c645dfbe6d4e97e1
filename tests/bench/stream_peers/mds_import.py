"""MosaicML streaming, imported without torchvision: it wants it for data sets that are not used here."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _stand_in(name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    sys.modules[name] = module


# No torchvision of the package index fits a torch without CUDA.
_stand_in("torchvision", transforms=None)
_stand_in("torchvision.datasets", VisionDataset=object)
_stand_in("torchvision.transforms")
_stand_in("torchvision.transforms.functional", to_tensor=None)

import streaming  # noqa: E402

__all__ = ["streaming"]
