"""Upstream's tiling has its geometry, and leaves the model that it was made from unchanged."""

import torch

from scripts.bench import upstream_tiling
from scripts.bench.upstream_tiling import UpstreamTiling
from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import Settings


def test_latent_tiles_and_vae_boxes_are_upstream_s() -> None:
    grid = upstream_tiling.PLAN.grid((512, 1024))
    assert (grid.tile, grid.tops, grid.lefts) == ((320, 320), (0, 192), (0, 316, 632, 704))
    assert upstream_tiling.PLAN.grid((100, 320)).offsets == [(0, 0)]
    assert upstream_tiling.box_spans(512, 224, 11) == [
        ((0, 214), (0, 203)),
        ((192, 406), (203, 395)),
        ((384, 512), (395, 512)),
    ]
    read = [box for box, _ in upstream_tiling.box_spans(4096, 1024, 32)]
    assert read == [(0, 1088), (1024, 2112), (2048, 3136), (3072, 4096)]


def test_boxes_cover_the_result() -> None:
    image = torch.arange(2 * 90 * 70.0).reshape(1, 2, 90, 70)

    def double(box: torch.Tensor) -> torch.Tensor:
        return box.repeat_interleave(2, 2).repeat_interleave(2, 3)

    assert upstream_tiling.run_boxes(double, image, 2, 2, 24, 4).equal(double(image))
    halved = upstream_tiling.run_boxes(lambda box: box[:, :, ::2, ::2], image, 2, 1 / 2, 24, 4)
    assert halved.equal(image[:, :, ::2, ::2])


def test_it_shares_the_weights_and_gives_the_same_image_where_one_tile_is_enough(tiny: SeeSR) -> None:
    """The control image is embedded by the ControlNet at every call, and upsampling comes before its convolution."""
    upstream = UpstreamTiling(tiny.components, tiny.profile)
    assert next(upstream.components.vae.parameters()) is next(tiny.components.vae.parameters())
    image, settings = images.to_image(torch.rand(1, 3, 24, 32)), Settings(num_inference_steps=2, seed=1, cfg_scale=2.0)
    embedded: list[int] = []
    hook = upstream.components.controlnet.controlnet_cond_embedding.conv_in.register_forward_pre_hook(
        lambda _, args: embedded.append(len(args[0]))
    )
    theirs = images.to_tensor(upstream.upscale(image, settings).image)
    hook.remove()
    assert embedded == [2, 2]  # at each step, for both prompts
    torch.testing.assert_close(theirs, images.to_tensor(tiny.upscale(image, settings).image), atol=1.01 / 255, rtol=0)
