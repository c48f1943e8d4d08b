"""SeeSR on SD-Turbo: upscale photographs 1 to 8 times in 1 to 4 steps. `import seesr` alone loads no torch."""

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seesr.images import open_image, save_image
    from seesr.pipeline import SeeSR
    from seesr.settings import Settings

__version__ = "0.5.0"
__all__ = ["SeeSR", "Settings", "__version__", "open_image", "save_image"]

_MODULES = {"SeeSR": "pipeline", "Settings": "settings", "open_image": "images", "save_image": "images"}

# Threads that spin while they wait slow down other processes on the same cores. OpenMP reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# diffusers decorates functions with torch.autocast("cuda") on import, which warns on a machine without CUDA.
warnings.filterwarnings("ignore", "CUDA is not available", UserWarning, module="diffusers")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'seesr' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"seesr.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
