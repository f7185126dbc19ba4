"""A restorer is another one if anything differs that its images follow from."""

import copy
from functools import partial

import pytest
import torch
from diffusers import DPMSolverSinglestepScheduler
from PIL import Image
from tiny import make_image
from tiny_pipelines import controlnet, flux_kontext, ldm, sd_x4
from torch import nn

from restoration import Restorer
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward import MetricReward
from zoomiqa_reward.runs.settings import AnotherRun


class Scaled(nn.Module):
    """A network with an option that is no weight."""

    def __init__(self):
        super().__init__()
        self.gain, self.layer = 1.0, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image):
        return (self.layer(image) * self.gain).sigmoid()


def _print_of(source, **options):
    return Restorer.from_pretrained(source, **options).fingerprint


def _double(module, inputs, output):
    return 2 * output


def _changed(network, change):
    other = copy.deepcopy(network)
    change(other)
    return other


def test_networks_of_equal_weights_differ_by_class_option_and_hook():
    network = Scaled()
    others = [
        _changed(network, lambda module: setattr(module, "gain", 0.5)),
        _changed(network, lambda module: setattr(module.layer, "padding_mode", "reflect")),
        _changed(network, lambda module: module.layer.register_forward_hook(_double)),
        _changed(network, lambda module: setattr(module, "forward", lambda image: image)),
    ]
    assert len({_print_of(module) for module in (network, copy.deepcopy(network), *others)}) == 5
    enlargements = [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Upsample(None, 3)]
    assert len({_print_of(module) for module in enlargements}) == 3
    assert _print_of(nn.Sequential(network, nn.ReLU())) != _print_of(nn.Sequential(network, nn.Tanh()))
    assert _print_of(network.train()) == _print_of(network.eval())  # it runs in eval mode


def test_an_option_that_cannot_be_read_counts_by_its_class():
    network = Scaled()
    network.generator = torch.Generator()
    assert _print_of(network) == _print_of(network) != _print_of(Scaled())


def test_best_of_n_does_not_continue_with_another_network_without_weights(tmp_path):
    reward = MetricReward(lambda image: image.std(), "spread", higher_is_better=True, score_range=(0, 1))
    draw = partial(best_of_n, image_lq=make_image(0, 16, 18), reward=reward, n=1, out=tmp_path, progress=False)
    draw(nn.Upsample(scale_factor=2))
    with pytest.raises(AnotherRun, match="another run"):
        draw(nn.Upsample(scale_factor=2, mode="bicubic"))


def _switch_on_tiles(pipeline):
    pipeline.vae.enable_tiling()


def _slice_attention(pipeline):
    pipeline.enable_attention_slicing(1)


def _hook(pipeline):
    pipeline.unet.conv_out.register_forward_hook(_double)


def _replace_forward(pipeline):
    pipeline.unet.conv_out.forward = lambda x: x[:, :4]


def _free(pipeline):
    pipeline.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def _darken_schedule(pipeline):
    pipeline.scheduler.alphas_cumprod.mul_(0.9)


@pytest.mark.parametrize(
    "change", [_switch_on_tiles, _slice_attention, _hook, _replace_forward, _free, _darken_schedule]
)
def test_a_pipeline_differs_by_what_was_switched_on(change):
    pipeline = sd_x4()
    before = _print_of(pipeline)
    assert before == _print_of(pipeline)
    change(pipeline)
    after = _print_of(pipeline)
    assert after != before
    assert after == _print_of(pipeline)


def test_freeu_that_is_switched_off_is_the_pipeline_as_it_was():
    pipeline = sd_x4()
    before = _print_of(pipeline)
    _free(pipeline)
    pipeline.unet.disable_freeu()
    assert _print_of(pipeline) == before


def test_a_shifted_flow_is_another_pipeline():
    pipeline = flux_kontext()
    before = _print_of(pipeline, scale=2)
    pipeline.scheduler.set_shift(3.0)
    assert _print_of(pipeline, scale=2) != before


def test_a_pipeline_class_of_ones_own_counts_with_its_code():
    kind = type(ldm())
    classes = [type("Mine", (kind,), {"strength": strength, "__module__": __name__}) for strength in (1, 2)]
    prints = []
    for own in classes:
        pipeline = ldm()
        pipeline.__class__ = own
        prints.append(_print_of(pipeline))
    assert prints[0] != prints[1]


def test_arguments_of_the_call_count_by_their_content():
    def embeds(value):
        tensor = torch.zeros(1, 40, 32)
        tensor[0, 20, 16] = value  # in the middle, which a tensor's text leaves out
        return {"scale": 2, "prompt_embeds": tensor}

    pipeline = controlnet()
    assert _print_of(pipeline, **embeds(0)) == _print_of(pipeline, **embeds(0)) != _print_of(pipeline, **embeds(1))
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("black", "black", "white")]
    prints = [_print_of(pipeline, scale=2, ip_adapter_image=picture) for picture in pictures]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own code
def test_a_scheduler_that_changes_its_configuration_leaves_the_restorer_as_it_was():
    """DPMSolverSinglestep sets `lower_order_final` for a number of steps that its order does not divide."""
    pipeline = ldm()
    pipeline.scheduler = DPMSolverSinglestepScheduler(lower_order_final=False)
    restorer = Restorer.from_pretrained(pipeline, num_inference_steps=3)
    before, config = restorer.fingerprint, dict(pipeline.scheduler.config)
    [first], [second] = (restorer.restore(make_image(0, 16, 16), seeds=[1]) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert restorer.fingerprint == before
    assert dict(pipeline.scheduler.config) == config
