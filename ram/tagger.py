"""The tagger: an image in, its tags and image tokens out."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ram.model import Ram

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Tagger:
    """RAM with its list of tags. `thresholds` (T,) holds the probability above which each tag is kept."""

    def __init__(self, model: Ram, tags: Sequence[str], thresholds: Tensor) -> None:
        if not len(tags) == len(thresholds) == model.config.tags:
            counts = f"{len(tags)}, {len(thresholds)} and {model.config.tags}"
            raise RuntimeError(f"tags, thresholds and the model must agree, got {counts}")
        self.model, self.tags, self.thresholds = model, list(tags), thresholds

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[list[str], Tensor]:
        """(1, 3, H, W) in [0, 1] -> the tags above their thresholds, in list order; image tokens (1, 1 + L, D)"""
        tokens = self.model.tokens(self.preprocess(image))
        probability = self.model.logits(tokens).float().sigmoid()[0].cpu()
        return [self.tags[i] for i in (probability > self.thresholds).nonzero().flatten().tolist()], tokens

    def preprocess(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, 3, S, S), ImageNet-normalised, in the model's dtype

        Bilinear in float32, without antialiasing or regard to the aspect: as torchvision 0.15 did in training.
        """
        weight, side = self.model.image_proj.weight, self.model.config.image_size
        resized = F.interpolate(image.float(), (side, side), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (_MEAN, _STD))
        return ((resized - mean) / std).to(weight.device, weight.dtype)
