"""The reward service without a server: the format of requests and replies, limits and tokens."""

import io
import json
import math
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from in_process_server import TOKEN, one_body, square
from PIL import Image
from safetensors.numpy import save

from zoomiqa_reward.images import ImageError, load_image
from zoomiqa_reward.serving import Limits, RewardSpec, ServeConfig, ServingError
from zoomiqa_reward.serving.wire import (
    SAFETENSORS_TYPE,
    EncodedImage,
    ScoreItem,
    ScoreRow,
    decode_request,
    encode_image,
    encode_request,
    oversize,
)

# -- the format --


@pytest.mark.parametrize("transport", ["auto", "png", "float"])
def test_eight_bit_pixels_travel_bit_for_bit(transport, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sent = encode_image(tmp_path / "a.png", transport)
    assert (sent.shape is None) == (transport != "float")
    [item] = decode_request(encode_request([ScoreItem(image=sent)]), SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), load_image(pixels))
    assert item.image.size() == (53, 37)


def test_floats_travel_bit_for_bit_and_never_as_png():
    image = torch.rand(3, 41, 29)
    [item] = decode_request(encode_request([ScoreItem(image=encode_image(image))]), SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), image)
    with pytest.raises(ImageError, match="do not hold these pixels"):
        encode_image(image, "png")


def test_lq_hr_and_prompts_stay_with_their_image():
    items = [
        ScoreItem(
            image=encode_image(square(k)),
            lq=encode_image(square(10 + k, 28)),
            hr=encode_image(square(20 + k)),
            prompt=f"té {k}",
        )
        for k in range(3)
    ]
    assert decode_request(encode_request(items), SAFETENSORS_TYPE, Limits()) == items


def test_a_client_in_another_language_needs_three_lines():
    values = np.linspace(0, 1, 3 * 4 * 5, dtype="<f4").reshape(3, 4, 5)
    header = json.dumps({"0": {"dtype": "F32", "shape": [3, 4, 5], "data_offsets": [0, values.nbytes]}}).encode()
    body = struct.pack("<Q", len(header)) + header + values.tobytes()
    [item] = decode_request(body, SAFETENSORS_TYPE, Limits())
    assert torch.equal(item.image.load(), torch.from_numpy(values))


@pytest.mark.parametrize("number", [1.0, 3.1415927, 4.9999995, 1.1754944e-38])
def test_numbers_survive_the_reply_bit_for_bit(number):
    value = torch.tensor(number, dtype=torch.float32)
    fields = json.loads(json.dumps(ScoreRow(value=value.item(), std=0.1, valid=True).as_json()))
    assert torch.equal(torch.tensor(ScoreRow.from_json(fields).value, dtype=torch.float32), value)


def test_what_failed_is_nan_on_the_other_side():
    row = ScoreRow.from_json(json.loads(json.dumps(ScoreRow.failed("replica_died", "gone").as_json())))
    assert math.isnan(row.value)
    assert not row.valid
    assert row.error == {"type": "replica_died", "message": "gone", "retryable": True}
    for broken in ({}, None, {"value": None, "std": None, "valid": True, "error": None}, {"value": 3, "valid": False}):
        with pytest.raises(ServingError, match="bad_reply"):
            ScoreRow.from_json(broken)


def tensors(**named):
    return save({name.replace("_", "."): value for name, value in named.items()})


FLOATS = np.zeros((3, 8, 8), dtype=np.float32)
MALFORMED = {
    "nothing": b"",
    "pickle": pickle.dumps([1, 2, 3]),
    "a file of torch.save": b"PK\x03\x04" + bytes(60),
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "a deep header": struct.pack("<Q", 60000) + b"[" * 60000,
    "offsets beyond the end": struct.pack("<Q", 70)
    + b'{"0":{"dtype":"F32","shape":[3,9,9],"data_offsets":[0,972]}}'.ljust(70),
    "no tensor": save({}),
    "half precision": save({"0": FLOATS.astype(np.float16)}),
    "four channels": save({"0": np.zeros((4, 8, 8), dtype=np.float32)}),
    "no height": save({"0": np.zeros((3, 0, 8), dtype=np.float32)}),
    "a batch": save({"0": FLOATS[None]}),
    "a gap": save({"0": FLOATS, "2": FLOATS}),
    "a name": save({"image": FLOATS}),
    "an lq without its image": save({"0": FLOATS, "lq.1": FLOATS}),
    "a prompt without its image": save({"0": FLOATS}, metadata={"prompt.7": "x"}),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_breaks_the_format_is_refused(body):
    with pytest.raises(ServingError) as caught:
        decode_request(body, SAFETENSORS_TYPE, Limits())
    assert caught.value.kind == "malformed"


def test_too_much_is_refused_before_decoding():
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 50_000, 50_000)
    [item] = decode_request(head, "image/png", Limits())
    assert oversize(item, Limits().max_pixels) == "image has 50000x50000 pixels; the server takes 24000000"
    assert oversize(item, 50_000**2) is None
    with pytest.raises(ServingError, match="3 images; at most 2"):
        decode_request(one_body(3), SAFETENSORS_TYPE, Limits(max_images=2))


def test_only_png_is_decoded():
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16)).save(jpeg, format="JPEG")
    with pytest.raises(ImageError, match="JPEG and others would change the pixels"):
        EncodedImage(data=jpeg.getvalue()).load()
    whole = encode_image((square(0) * 255).round() / 255, "png")
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        EncodedImage(data=whole.data[:60]).load()


# -- the settings --


@pytest.mark.parametrize(("field", "value"), [("max_images", 0), ("read_timeout_s", -1), ("max_held_bytes", 5)])
def test_limits_must_make_sense(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_a_server_that_can_be_reached_needs_a_token():
    with pytest.raises(ValueError, match="can be reached from outside"):
        ServeConfig(host="0.0.0.0")
    assert ServeConfig(host="0.0.0.0", tokens=(TOKEN,)).tokens == (TOKEN,)
    assert ServeConfig(host="::1").tokens == ()
    with pytest.raises(ValueError, match="a token of 5 characters") as caught:
        ServeConfig(tokens=("short",))
    assert "short" not in str(caught.value)


def test_model_options_belong_to_the_model():
    with pytest.raises(ValueError, match="mode='reason' belongs to reward='zoomiqa'"):
        RewardSpec(reward="niqe", mode="reason")


@pytest.mark.parametrize(("options", "words"), [
    ({"num_samples": 2}, "num_samples=2 needs mode='reason'"), ({"mode": "sideways"}, "mode='sideways'"),
    ({"question": " "}, "question=' ': must be a text"),
])  # fmt: skip
def test_options_that_no_replica_could_use_are_told_before_one_starts(options, words):
    with pytest.raises(ValueError, match=words):
        RewardSpec(**options)


@pytest.mark.integration
def test_the_client_imports_neither_ray_nor_the_server():
    code = "import sys, zoomiqa_reward.serving.remote; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"ray", "uvicorn", "starlette", "fastapi"} & set(loaded.split())
    assert "torch" in loaded.split()
