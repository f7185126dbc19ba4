"""A pipeline of somebody's own, x2, and the one file that makes it tunable: nothing in the package knows the class."""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from tiny_pipelines import _seeded

from restoration.tuning.denoisers.base import Condition, capture_outputs
from restoration.tuning.sampler.transitions import Schedule
from zoomiqa_reward.images.filters import resize_bicubic


class OwnPipeline(DiffusionPipeline):
    """Diffuses pixels beside an image that is as large as the result."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, image, num_inference_steps=10, generator=None, output_type="pt"):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(image.shape, generator=generator)
        for step in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(torch.cat([x, image], dim=1), step).sample, step, x).prev_sample
        return ((x / 2 + 0.5).clamp(0, 1),)


@_seeded
def own_pipeline():
    unet = UNet2DModel(
        in_channels=6, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=True)
    return OwnPipeline(unet, scheduler)


class OwnDenoiser:
    """See `restoration.tuning.denoisers.base.Denoiser`."""

    module_name, lora_targets, scale, patch_px = "unet", ("conv1", "conv2"), 2, 2

    def __init__(self, pipeline):
        self.pipeline, self.module = pipeline, pipeline.unet
        self.schedule = Schedule(pipeline.scheduler)
        self.restorer_options = {"scale": self.scale}

    def encode(self, lq, prompts, generators):
        size = [self.scale * side for side in lq.shape[-2:]]
        return Condition(lq=lq, given={"grown": resize_bicubic(lq.float(), *size)})

    def path(self, num_steps):
        return self.schedule.path(num_steps)

    def noise_shape(self, condition):
        return tuple(condition.given["grown"].shape[1:])

    def begin(self, noise, condition, path):
        return noise

    def predict(self, x_t, time, condition):
        return self.module(torch.cat([x_t, condition.given["grown"]], dim=1), time).sample

    def decode(self, x0, condition):
        return (x0 / 2 + 0.5).clamp(0, 1)

    def encode_target(self, images, condition):
        return images * 2 - 1

    def features(self, images, condition):
        x0 = self.encode_target(images, condition)
        return capture_outputs(self.module.down_blocks, lambda: self.predict(x0, torch.tensor(0), condition))
