"""What networks and functions return: its form, its range, and how many."""

import pytest
import torch
from tiny import make_image
from tiny_pipelines import controlnet
from torch import nn

from restoration.restorer.image_io import RestorationError
from restoration.restorer.restorer import Restorer
from zoomiqa_reward.images import to_pil


class TwoOutputs(nn.Module):
    """A network in [-1, 1] that returns its image in another form than a tensor."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, image):
        return self.form(image * 2 - 1)


@pytest.mark.parametrize("form", [lambda one: (one, one[:, :1]), lambda one: [one], lambda one: one])
def test_the_declared_range_reaches_every_form_of_output(form):
    bright = 0.5 + 0.5 * make_image(0, 12, 14)  # within [0, 1] when it is taken for that
    [restored] = Restorer.from_pretrained(TwoOutputs(form), value_range="signed").restore(bright, [0])
    torch.testing.assert_close(restored.image, bright)
    with pytest.raises(RestorationError, match="value_range='signed' for"):
        next(Restorer.from_pretrained(TwoOutputs(form)).restore(bright, [0]))


def test_the_declared_range_reaches_arrays_of_functions():
    image = make_image(0, 12, 14)
    for value_range, make in (("signed", lambda x: 2 * x - 1), ("bytes", lambda x: 255 * x)):
        for form in (lambda x: x.permute(1, 2, 0).numpy(), lambda x: [x.permute(1, 2, 0).double().numpy()]):

            def fn(image, make=make, form=form):
                return form(make(image))

            [restored] = Restorer.from_pretrained(fn, value_range=value_range).restore(image, [0])
            torch.testing.assert_close(restored.image, image)


def test_several_images_where_one_is_asked_for_are_refused():
    image = make_image(0, 12, 14)
    for several in (lambda image: [image, 1 - image], lambda image: torch.stack([image, 1 - image])):
        with pytest.raises(RestorationError, match="returned 2 images for one candidate"):
            next(Restorer.from_pretrained(several).restore(image, [0]))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
def test_a_mask_is_enlarged_and_padded_as_its_image(monkeypatch):
    from diffusers import StableDiffusionInpaintPipeline

    parts = {key: value for key, value in controlnet().components.items() if key not in ("controlnet", "image_encoder")}
    parts["unet"].register_to_config(sample_size=64)
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    seen, preprocess = [], pipeline.mask_processor.preprocess
    monkeypatch.setattr(
        pipeline.mask_processor, "preprocess", lambda mask, **more: (seen.append(mask), preprocess(mask, **more))[1]
    )
    image, mask = make_image(0, 16, 20), torch.zeros(3, 16, 20)
    mask[:, :, 10:] = 1
    restorer = Restorer.from_pretrained(pipeline, scale=2, steps=2, strength=1.0, mask_image=to_pil(mask))
    assert next(restorer.restore(image, [0])).image.shape == (3, 32, 40)
    assert seen[0].shape == (1, 1, 32, 48)
    assert seen[0][0, 0, 0].tolist() == [0.0] * 20 + [1.0] * 28
    with pytest.raises(RestorationError, match="mask_image has 20 x 16 px, the image 24 x 16: give one of that size"):
        next(restorer.restore(make_image(0, 16, 24), [0]))
    with pytest.raises(ValueError, match="a mask_image is that of the whole image"):
        Restorer.from_pretrained(pipeline, scale=2, mask_image=to_pil(mask), tile_px=64)
