"""The real `transformers serve` with nano over the loopback: the same words as nano itself, and honest limits."""

import json
import socket

import pytest
from conftest import NANO
from PIL import Image

from restoration import degrade_for_demo
from train_iqa.nano.degradations import DamageRecord, Step
from train_iqa.nano.rationale import answer1
from zoomiqa_reward import ZoomIQA
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.model.generate import Sampling, generate
from zoomiqa_reward.model.inputs import make_row
from zoomiqa_reward.model.text_server import NotOffered, ServerError
from zoomiqa_reward.model.text_server import local_server as serving
from zoomiqa_reward.model.text_server.local_server import serve
from zoomiqa_reward.model.turns import round2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*cannot continue an answer:UserWarning"),  # transformers serve cannot
]


@pytest.fixture(scope="module")
def served():
    if not (NANO / "model.safetensors").exists():
        pytest.skip("the nano checkpoint is not in this checkout")
    with serve("nano") as running:
        yield running


@pytest.fixture(scope="module")
def images(photograph):
    """Three images of 224 x 196 px in 8 bits: nothing has to be resized or rounded on either way."""
    part = load_image(Image.open(photograph).crop((16, 40, 240, 236)))
    noisy = degrade_for_demo(part, scale=1, blur_px=0.3, noise=0.08, quality=95)
    blurred = degrade_for_demo(part, scale=1, blur_px=3.0, noise=0.0, quality=95)
    return [load_image(to_pil(image)) for image in (part, noisy, blurred)]


@pytest.fixture(scope="module")
def local():
    return ZoomIQA.from_pretrained("nano", device="cpu")


def test_the_words_over_the_server_are_nanos_own(served, local, images):
    own = local.assess(images, strict=True)
    with ZoomIQA.from_server(served.base_url, served.model, concurrency=2) as iqa:
        ratings = iqa.rate(images, mode="reason")
    remote = [answers[0] for answers in ratings.answers]
    same = [(a, b) for a, b in zip(own, remote, strict=True) if texts_of(a) == texts_of(b)]
    assert len(same) >= len(images) - 1, (own, remote)
    assert [b.rating for _, b in same] == pytest.approx([a.rating for a, _ in same], nan_ok=True)
    assert any(b.valid for _, b in same)
    assert ratings.std_kind == "none"  # this server tells no log-probabilities
    assert ratings.std.isnan().all()


def texts_of(assessment):
    return [turn.text for turn in assessment.turns]


def test_round_two_over_the_server_is_the_same_prompt(served, local, images):
    """The quoted answer, the image and the crop; the quoted answer wants to look closer, as nano itself may not."""
    damage = DamageRecord(steps=(Step(kind="motion_blur", severity=0.6),), box=(0.25, 0.2, 0.9, 0.8))
    first = answer1(damage, 2.9, "2.90", ("0.25", "0.20", "0.90", "0.80"))
    prompted = round2(local.protocol, images[2], images[2][:, 28:140, 56:196], first)
    sampling = Sampling(max_new_tokens=30)
    (own,) = generate(local.checkpoint, [make_row(local.checkpoint, prompted)], sampling)
    with ZoomIQA.from_server(served.base_url, served.model) as iqa:
        remote = iqa._complete(prompted, sampling)
    assert own.text.startswith("<think>\nCrop Inspection Summary: ")
    assert (remote.failure, remote.is_truncated) == (None, True)
    assert remote.text.strip() == own.text.strip()


def test_it_cannot_continue_an_answer_and_that_is_said(served, images):
    with (
        ZoomIQA.from_server(served.base_url, served.model, factor_px=28) as iqa,
        pytest.raises(NotOffered, match=r"continue_final_message.*mode='reason'"),
    ):
        iqa.rate(images[:1], mode="direct")


@pytest.mark.filterwarnings("ignore:.*takes no top_k:UserWarning")  # transformers serve knows no top_k
def test_it_samples_only_where_the_generation_config_says_so(served, images):
    options = {"temperature": 1.5, "rounds": 1, "max_new_tokens": 30}
    with ZoomIQA.from_server(served.base_url, served.model) as greedy:
        plain = greedy.assess(images[0], **options | {"temperature": 0.0})[0].turns[0].text
        assert greedy.assess(images[0], **options, seed=1)[0].turns[0].text == plain
    extra = {"generation_config": json.dumps({"do_sample": True})}
    with ZoomIQA.from_server(served.base_url, served.model, extra=extra, concurrency=1) as iqa:
        texts = [iqa.assess(images[0], **options, seed=seed)[0].turns[0].text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len({*texts, plain}) > 1


def test_another_models_name_is_no_rating(served, images):
    with ZoomIQA.from_server(served.base_url, "other", protocol="nano", max_retries=0) as iqa:
        (found,) = iqa.assess(images[0])
    assert (found.valid, "pinned to" in found.error) == (False, True)


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(nano, monkeypatch):
    monkeypatch.setattr(serving, "START", "raise SystemExit('no serving extra here')")
    with pytest.raises(ServerError, match=r"did not start.*no serving extra here"), serve(nano):
        pass
    with pytest.raises(ValueError, match=r"nothing\.here"), serve("nothing.here"):
        pass


def test_a_server_is_gone_after_its_block_also_after_an_error(nano, monkeypatch):
    """With a plain web server in its place: starting the real one takes ten seconds."""
    web = (
        "import sys, http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), H).serve_forever()\n"
    )
    monkeypatch.setattr(serving, "START", web)

    def fail_inside():
        with serve(nano) as running:
            ports.append(int(running.base_url.split(":")[2].partition("/")[0]))
            assert is_open(ports[0])
            raise KeyError

    ports: list[int] = []
    with pytest.raises(KeyError):
        fail_inside()
    assert not is_open(ports[0])


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
