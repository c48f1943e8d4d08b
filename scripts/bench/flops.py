"""FLOPs and bytes of every kernel of an upscale, counted on the meta device without computing anything."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ram.tagger import Tagger
from scripts.dry_run import to_meta
from seesr.bundle import Components
from seesr.color_fix import match_color
from seesr.denoise import embed_control_image, run_controlnet_unet
from seesr.memory import TilePlan
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from seesr.sizes import Size

from diffusers.models.attention_processor import AttnProcessor2_0

STAGES = ("tag", "text", "encode", "ControlNet", "UNet", "blend", "decode", "color")
"""The counted stages of an upscale. "blend" is what joins tiles and steps."""

aten: Any = torch.ops.aten


class FlopCounter(TorchDispatchMode):
    """Within the block: counts the FLOPs of every kernel and the bytes that it reads and writes.

    FLOPs follow torch's own formulas; a multiply-add is two. Attention is one fused kernel: torch's counter misses it
    on a CPU, and it moves no attention matrix. The bytes of a kernel are its arguments and results, once each. What
    caches save is not seen, nor what a kernel reads twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[tuple[int, int]] = Counter()
        """(FLOPs, bytes) of a kernel -> how often it ran."""

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.kernels.items())

    @property
    def bytes(self) -> int:
        return sum(moved * count for (_, moved), count in self.kernels.items())

    def roofline(self, flops: float, bandwidth: float) -> float:
        """Seconds if each kernel takes as long as its arithmetic or its traffic, at these rates per second."""
        return sum(max(f / flops, b / bandwidth) * count for (f, b), count in self.kernels.items())

    def add(self, other: "FlopCounter", times: int = 1) -> None:
        for kernel, count in other.kernels.items():
            self.kernels[kernel] += count * times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.scaled_dot_product_attention.default:
            query, key, value = args[:3]
            meta = query.device.type == "meta"
            result = query.new_empty(*query.shape[:-1], value.shape[-1]) if meta else func(*args, **kwargs)
            self._count(sdpa_flop_count(query.shape, key.shape, value.shape), (query, key, value), result)
            return result
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self._count(formula(*args, **kwargs, out_val=result), (args, kwargs), result)
        elif not _is_free(func):
            self._count(0, (args, kwargs), result)
        return result

    def _count(self, flops: int, arguments: Any, result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((arguments, result)) if isinstance(leaf, Tensor)]
        moved = sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)
        if flops or moved:
            self.kernels[flops, moved] += 1


def _is_free(func: Any) -> bool:
    """Views, and memory that nobody has written yet."""
    return func.is_view or "empty" in func._opname or func is aten.detach.default


def without_values(seesr: SeeSR) -> SeeSR:
    """The same model on the meta device."""
    if seesr.device == "meta":
        return seesr
    components = seesr.components
    networks: dict[str, Any] = {
        name: to_meta(model)
        for name in ("unet", "controlnet", "vae", "tiny_vae", "text_encoder")
        if (model := getattr(components, name)) is not None
    }
    for network in networks.values():
        if hasattr(network, "set_attn_processor"):  # xformers computes on a GPU only
            network.set_attn_processor(AttnProcessor2_0())
    tagger = Tagger(to_meta(components.tagger.model), components.tagger.tags, components.tagger.thresholds)
    return type(seesr)(replace(components, tagger=tagger, **networks), seesr.profile, "meta")


def count_upscale(seesr: SeeSR, size: Size, settings: Settings, plan: TilePlan) -> dict[str, FlopCounter]:
    """The work of each of STAGES for an input of `size`. `seesr` is on the meta device."""
    padded = seesr.sizes(size, settings.scale_factor)[2]
    factor, components = seesr.vae_scale_factor, seesr.components
    latent = (padded[0] // factor, padded[1] // factor)
    tagger, vae = components.tagger, seesr.codec.vae_of(plan.encode)
    counts = {stage: FlopCounter() for stage in STAGES}
    with torch.inference_mode(), torch.device("meta"):
        with counts["tag"]:
            tokens = tagger.model.tokens(tagger.preprocess(torch.empty(1, 3, *size)))
            tagger.model.logits(tokens)
        with counts["text"]:
            ids = torch.empty(1, seesr.prompts.length, dtype=torch.int64)
            text = components.text_encoder(ids).last_hidden_state
        if settings.cfg_scale > 1:
            counts["text"].add(counts["text"])
        image = torch.empty(1, 3, *(side * factor for side in plan.encode_size(latent)), dtype=vae.dtype)
        with counts["encode"]:
            seesr.codec.run_vae("encode", image, plan.encode)
        counts |= _count_denoise(seesr, latent, settings, plan, text, tokens)
        with counts["decode"]:
            channels: int = vae.config["latent_channels"]
            seesr.codec.run_vae("decode", torch.empty(1, channels, *latent, dtype=vae.dtype), plan.decode)
        image = torch.empty(1, 3, *padded)
        with counts["color"]:
            match_color(image, image, settings.color_fix, plan.strip)
    return counts


def _count_denoise(
    seesr: SeeSR, latent: Size, settings: Settings, plan: TilePlan, text: Tensor, tokens: Tensor
) -> dict[str, FlopCounter]:
    """Batches of equal shape do equal work: one of each is counted."""
    unet, controlnet = seesr.components.unet, seesr.components.controlnet
    grid, steps, channels = plan.grid(latent), settings.num_inference_steps, unet.config["in_channels"]
    counts = {"ControlNet": FlopCounter(), "UNet": FlopCounter(), "blend": FlopCounter()}
    embedding, step = FlopCounter(), FlopCounter()
    with embedding:
        image = torch.empty(1, 3, *(side * seesr.vae_scale_factor for side in grid.tile), dtype=seesr.dtype)
        embedded = embed_control_image(controlnet, image)
    counts["ControlNet"].add(embedding, len(grid))
    full, rest = divmod(len(grid) * settings.particles, plan.tile_batch)
    for size, times in ((plan.tile_batch, full), (rest, int(rest > 0))):
        if times == 0:
            continue
        batch = size * settings.branches
        parts = {"ControlNet": FlopCounter(), "UNet": FlopCounter()}
        noisy, control = torch.empty(batch, channels, *grid.tile), embedded.expand(batch, -1, -1, -1)
        with watch_networks(seesr.components, parts):
            run_controlnet_unet(controlnet, unet, noisy, 999, control, text, tokens)
        for name, part in parts.items():
            counts[name].add(part, times * steps)
    with step:
        outputs = torch.empty(settings.particles, channels, *grid.tile)
        output = grid.blend(outputs for _ in grid.offsets)
        x0 = seesr.schedule.predict_x0(output, output, 999)
        seesr.schedule.step(output, x0, 999, 499, output)
    counts["blend"].add(step, steps)
    return counts


@contextmanager
def watch_networks(components: Components, watches: Mapping[str, AbstractContextManager[Any]]) -> Iterator[None]:
    """Within the block: the "ControlNet" and the "UNet" each run inside the context manager of that name.

    The embedding of the control image belongs to the ControlNet.
    """
    controlnet, unet = components.controlnet, components.unet
    embedding = controlnet.controlnet_cond_embedding
    spans = [
        ("ControlNet", controlnet, controlnet),
        ("ControlNet", embedding.conv_in, embedding.conv_out),
        ("UNet", unet, unet),
    ]
    depth: Counter[str] = Counter()

    def enter(name: str) -> None:
        depth[name] += 1
        if depth[name] == 1:  # the embedding runs by itself or within the ControlNet
            watches[name].__enter__()

    def leave(name: str) -> None:
        depth[name] -= 1
        if depth[name] == 0:
            watches[name].__exit__(None, None, None)

    hooks: list[Any] = []
    for name, first, last in spans:
        hooks.append(first.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        hooks.append(last.register_forward_hook(lambda *_, name=name: leave(name), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
