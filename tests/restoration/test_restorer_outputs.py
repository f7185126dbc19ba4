"""What networks and functions return: its form, its range, and how many."""

import pytest
import torch
from tiny import make_image
from torch import nn

from restoration.restorer.image_io import RestorationError
from restoration.restorer.restorer import Restorer


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
