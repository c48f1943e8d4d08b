"""How much work an upscale is: floating-point operations and bytes of every kernel, counted without running one."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from reference_way import ReferenceWay, through_vae
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ram.tagger import Tagger
from seesr import vae_tiling
from seesr.color_fix import match_color
from seesr.memory import Plan, skeleton
from seesr.pipeline import SeeSR, working_size
from seesr.settings import Settings
from seesr.weights import Parts

aten: Any = torch.ops.aten


class Work(TorchDispatchMode):
    """Counts, within the block, the FLOPs of every kernel and the bytes that it reads and writes.

    On the meta device nothing is computed. FLOPs are torch's own formulas (a multiply-add is two); attention is one
    fused kernel, which torch's counter misses on a CPU and which moves no attention matrix. A kernel's bytes are its
    arguments and results, once each: what caches save is not seen, nor what a kernel reads twice.
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

    def seconds(self, flops: float, bandwidth: float) -> float:
        """The roofline: each kernel takes as long as its arithmetic or its memory at these rates, per second."""
        return sum(max(f / flops, b / bandwidth) * count for (f, b), count in self.kernels.items())

    def add(self, other: "Work", times: int = 1) -> "Work":
        for kernel, count in other.kernels.items():
            self.kernels[kernel] += count * times
        return self

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

    def _count(self, flops: int, given: Any, result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((given, result)) if isinstance(leaf, Tensor)]
        moved = sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors)
        if flops or moved:
            self.kernels[flops, moved] += 1


def _is_free(func: Any) -> bool:
    """Views, and memory that nobody has written yet."""
    return func.is_view or "empty" in func._opname or func is aten.detach.default


STAGES = ("tag", "text", "encode", "ControlNet", "UNet", "blend", "decode", "color")


def of_upscale(seesr: SeeSR, size: tuple[int, int], settings: Settings, plan: Plan) -> dict[str, Work]:
    """What each stage does to a picture of `size` (height, width), by running a `dry` one.

    "blend" is what joins tiles and steps. A stage that only moves pixels has bytes and no FLOPs.
    """
    padded = padded_size(seesr, size, settings.scale_factor)
    latent = (padded[0] // seesr.factor, padded[1] // seesr.factor)
    parts, work = seesr.parts, {stage: Work() for stage in STAGES}
    vae: Any = parts.vae
    with torch.inference_mode(), torch.device("meta"):
        with work["tag"]:
            tokens = parts.tagger.model.tokens(parts.tagger.preprocess(torch.empty(1, 3, *size)))
            parts.tagger.model.logits(tokens)
        with work["text"]:
            text = parts.text_encoder(torch.empty(1, seesr.prompts.length, dtype=torch.int64)).last_hidden_state
        if settings.cfg_scale > 1:
            work["text"].add(work["text"])
        with work["encode"]:
            sides = (side * seesr.factor for side in plan.encoded(latent))
            _through_vae(seesr, "encode", torch.empty(1, 3, *sides, dtype=vae.dtype), plan)
        _denoise(seesr, latent, settings, plan, text, tokens, work)
        with work["decode"]:
            _through_vae(seesr, "decode", torch.empty(1, vae.config["latent_channels"], *latent, dtype=vae.dtype), plan)
        picture = torch.empty(1, 3, *padded)
        with work["color"]:
            match_color(picture, picture, settings.color_fix, plan.strip)
    return work


def dry(seesr: SeeSR) -> SeeSR:
    """The same without its values: nothing that it does is computed."""
    if seesr.device == "meta":
        return seesr
    parts = seesr.parts
    networks: dict[str, Any] = {
        name: skeleton(getattr(parts, name)) for name in ("unet", "controlnet", "vae", "text_encoder")
    }
    tagger = Tagger(skeleton(parts.tagger.model), parts.tagger.tags, parts.tagger.thresholds)
    return type(seesr)(replace(parts, tagger=tagger, **networks), seesr.profile, "meta")


def padded_size(seesr: SeeSR, size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of an input -> what is worked at."""
    return seesr._padded_size(working_size(size, scale, seesr.parts.process_size, seesr.profile.output_pixels)[1])


def _through_vae(seesr: SeeSR, way: str, part: Tensor, plan: Plan) -> None:
    if isinstance(seesr, ReferenceWay):
        through_vae(seesr.parts.vae, way, part)
        return
    apply, tiles = {"encode": (vae_tiling.encode, plan.encode), "decode": (vae_tiling.decode, plan.decode)}[way]
    apply(seesr.parts.vae, part, tiles.tile, tiles.together)


def _denoise(
    seesr: SeeSR,
    latent: tuple[int, int],
    settings: Settings,
    plan: Plan,
    text: Tensor,
    tokens: Tensor,
    work: dict[str, Work],
) -> None:
    """Batches of equal shape do equal work: one of each is counted."""
    parts, grid, steps = seesr.parts, plan.grid(latent), settings.num_inference_steps
    controlnet: Any = parts.controlnet
    channels = parts.unet.config["in_channels"]
    embed = controlnet.controlnet_cond_embedding
    picture = torch.empty(1, 3, *(side * seesr.factor for side in grid.tile), dtype=seesr.dtype)
    once = Work()
    with once:
        embedded = embed(picture)
    works = len(grid) * settings.particles
    work["ControlNet"].add(once, len(grid) * (settings.network_calls if isinstance(seesr, ReferenceWay) else 1))
    full, rest = divmod(works, plan.tile_batch)
    for count, times in ((plan.tile_batch, full), (rest, 1 if rest else 0)):
        batch = count * settings.branches
        if times == 0:
            continue
        parted = {"ControlNet": Work(), "UNet": Work()}
        with watch(
            parts, {name: (w.__enter__, lambda w=w: w.__exit__(None, None, None)) for name, w in parted.items()}
        ):
            seesr.predict_noise(
                torch.empty(batch, channels, *grid.tile),
                999,
                embedded.expand(batch, -1, -1, -1),
                text,
                tokens,
            )
        for name, part in parted.items():
            work[name].add(part, times * steps)
    step = Work()
    with step:
        outputs = torch.empty(settings.particles, channels, *grid.tile)
        output = grid.blend(outputs for _ in grid.offsets)
        x0 = seesr.schedule.predict_x0(output, output, 999)
        seesr.schedule.step(output, x0, 999, 499, output)
    work["blend"].add(step, steps)


@contextmanager
def watch(parts: Parts, around: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]]) -> Iterator[None]:
    """Within the block, call the first of a pair before "ControlNet" or "UNet" runs and the second after it.

    Embedding the picture is ControlNet's.
    """
    controlnet: Any = parts.controlnet
    models: dict[str, Any] = {"ControlNet": (controlnet, controlnet.controlnet_cond_embedding), "UNet": (parts.unet,)}
    hooks: list[Any] = []
    inside: Counter[str] = Counter()

    def enter(name: str) -> None:
        inside[name] += 1
        if inside[name] == 1:  # the embedding runs by itself, or within its ControlNet
            around[name][0]()

    def leave(name: str) -> None:
        inside[name] -= 1
        if inside[name] == 0:
            around[name][1]()

    for name in around:
        for model in models[name]:
            hooks.append(model.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(model.register_forward_hook(lambda *_, name=name: leave(name), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
