"""A quality model behind a text server: what is asked, what is read, and every way a request can fail."""

import math
import re
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from scripted_server import FINAL, SECOND, ZOOM, always, eight_bits, parts, reply, sent_images, server, token
from tiny import make_image, tiny_iqa, tiny_protocol

from zoomiqa_reward import ZoomIQAReward, rank
from zoomiqa_reward.images import ImageError
from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.text_server import RemoteZoomIQA, ServerRefused
from zoomiqa_reward.model.text_server.client import parallel_map
from zoomiqa_reward.protocol import level_words
from zoomiqa_reward.protocol.crops import zoom
from zoomiqa_reward.protocol.spec import ProtocolError


def test_both_rounds_send_the_protocols_words_and_lossless_images():
    image = eight_bits(make_image())
    with server(lambda body, count: reply([ZOOM, SECOND][count - 1])) as (iqa, script):
        (found,) = iqa.assess(image, question="Is it sharp?")
    first, second = script.bodies
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("served", 0, 8)
    assert parts(first, "text") == ["Is it sharp? Answer with {}."]
    assert torch.equal(sent_images(first)[0], image)
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert [m["content"] for m in second["messages"][:2]] == ["Is it sharp?", ZOOM]
    assert parts(second, "text") == ["{question} Look again.", "Original image: ", "Cropped Image: "]
    crop, box = zoom(image, [0.1, 0.1, 0.6, 0.7], tiny_protocol().crop)
    assert torch.equal(sent_images(second)[0], image)
    assert torch.equal(sent_images(second)[1], eight_bits(crop))
    assert (found.rating, found.turns[1].crop_box) == (4.0, box)


@pytest.mark.parametrize("texts", [
    [FINAL], [ZOOM, SECOND], [ZOOM, "I cannot say."], ["soft"], ['<answer>{"rating": 3.5}</answer>'],
])  # fmt: skip
def test_what_is_read_is_what_a_local_model_would_have_been_read_as(texts):
    script = iter(texts)

    def write(checkpoint, rows, sampling):
        return [Completion(text=next(script), is_truncated=False)]

    ((local,),) = assess_images(tiny_iqa().checkpoint, [make_image()], sampling=Sampling(), write=write)
    with server(lambda body, count: reply(texts[count - 1])) as (iqa, _):
        (remote,) = iqa.assess(make_image())
    assert repr(remote) == repr(local)  # NaN differs from itself, its text does not


def test_a_server_is_asked_again_as_often_as_the_protocol_says():
    with server(lambda body, count: reply([ZOOM, "I cannot say.", SECOND][count - 1])) as (iqa, script):
        (found,) = replace(iqa, protocol=replace(iqa.protocol, retries=1)).assess(make_image())
    assert found.rating == 4.0
    assert [body["temperature"] for body in script.bodies] == [0, 0, 1.0]
    assert script.bodies[2]["messages"] == script.bodies[1]["messages"]
    assert script.bodies[2]["seed"] > 0


def test_a_given_factor_resizes_to_the_protocols_budget_before_sending():
    with server(always(FINAL), factor_px=28) as (iqa, script):
        iqa.assess([make_image(0, 300, 200), eight_bits(make_image(1, 84, 112))])
    sizes = sorted(tuple(sent_images(body)[0].shape[1:]) for body in script.bodies)
    assert sizes == [(84, 112), (168, 112)]  # 20000 px at most, and multiples of 28
    with server(always(FINAL)) as (iqa, script):
        iqa.assess(make_image(0, 300, 200))
    assert sent_images(script.bodies[0])[0].shape == (3, 300, 200)


def test_samples_have_seeds_of_their_own_and_the_same_ones_again():
    with server(lambda body, _: reply(FINAL.replace("3.25", f"3.{body['seed']}"))) as (iqa, script):
        ratings = iqa.rate([make_image(), make_image(1)], mode="reason", num_samples=3, temperature=0.7, seed=10)
    assert sorted(body["seed"] for body in script.bodies) == [10, 10, 12, 12, 14, 14]
    assert {(body["temperature"], body["top_p"]) for body in script.bodies} == {(0.7, 0.95)}
    assert ratings.mean.tolist() == pytest.approx([3.12, 3.12])
    assert ratings.std.tolist() == pytest.approx([0.02, 0.02])
    assert ratings.std_kind == "samples"


def test_samples_come_from_the_protocols_likeliest_tokens():
    with server(always(FINAL)) as (iqa, script):
        iqa.assess(make_image(), temperature=0.9)
        iqa.assess(make_image())
    assert [body.get("top_k") for body in script.bodies] == [tiny_protocol().decoding.top_k, None]


def test_a_server_that_takes_no_top_k_is_asked_without_it_and_named():
    def strict(body, count):
        refusal = {"error": {"message": "Unrecognized request argument supplied: top_k"}}
        return (400, refusal) if "top_k" in body else reply(FINAL)

    with server(strict) as (iqa, script):
        with pytest.warns(UserWarning, match="takes no top_k: it samples from all tokens, not 50"):
            (found,) = iqa.assess(make_image(), temperature=0.9)
        iqa.assess(make_image(), temperature=0.9)
    assert found.valid
    assert ["top_k" in body for body in script.bodies] == [True, False, False]


START = "<think>Crop Inspection Summary:"


def begun(answer):
    return server(answer, protocol=tiny_protocol(answer_starts=("", START)))


def test_an_answer_that_begins_for_the_model_is_continued_and_read_whole():
    def go_on(body, count):
        return reply(ZOOM if count == 1 else SECOND.removeprefix(START))

    with begun(go_on) as (iqa, script):
        (found,) = iqa.assess(make_image())
    assert [turn.text for turn in found.turns] == [ZOOM, SECOND]
    first, second = script.bodies
    assert first["messages"][-1]["role"] == "user"
    assert "continue_final_message" not in first
    assert second["messages"][-1] == {"role": "assistant", "content": START}
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)


def test_a_server_that_writes_the_start_itself_is_not_given_it_twice():
    with begun(lambda body, count: reply(ZOOM if count == 1 else SECOND)) as (iqa, _):
        (found,) = iqa.assess(make_image())
    assert found.turns[1].text == SECOND


def test_a_server_that_cannot_continue_is_asked_without_the_start_and_named():
    def strict(body, count):
        refusal = {"error": {"message": "Unexpected keys in the request: continue_final_message"}}
        asked = ZOOM if len(body["messages"]) == 1 else SECOND
        return (422, refusal) if "continue_final_message" in body else reply(asked)

    with begun(strict) as (iqa, script):
        with pytest.warns(UserWarning, match="cannot continue an answer that has begun"):
            (found,) = iqa.assess(make_image())
        (again,) = iqa.assess(make_image())
    assert found.turns[1].text == again.turns[1].text == SECOND
    assert ["continue_final_message" in body for body in script.bodies] == [False, True, False, False, False]


def test_a_server_that_does_not_sample_is_named():
    with (
        server(always(FINAL)) as (iqa, _),
        pytest.warns(UserWarning, match="seems to answer greedily.*do_sample"),
    ):
        assert iqa.rate(make_image(), mode="reason", num_samples=2, temperature=1.0).std.tolist() == [0.0]


def test_extra_fields_and_the_key_go_along():
    with server(always(FINAL), extra={"top_k": 50}, api_key="secret-key") as (iqa, script):
        iqa.assess(make_image())
        told = f"{iqa!r} {iqa.fingerprint_parts}"
    assert script.bodies[0]["top_k"] == 50
    assert script.keys == ["Bearer secret-key"]
    assert "secret-key" not in told


def test_what_may_be_retried_is_and_the_answer_counts():
    with server(lambda body, count: (429, {}) if count < 3 else reply(FINAL)) as (iqa, script):
        assert iqa.rate(make_image(), mode="reason").mean.tolist() == [3.25]
    assert len(script.bodies) == 3


@pytest.mark.parametrize(("answer", "tries", "said"), [
    ((500, {"error": "out of memory"}), 3, r"status 500: .*out of memory"),
    ((429, {}), 3, "status 429"),
    ((413, {"error": "too large"}), 1, "status 413.*too large"),
    ((200, b"<html>"), 1, "the reply is not JSON: '<html>'"),
    ((200, []), 1, "no choices"),
    ((200, {"choices": []}), 1, "no choices"),
    ((200, {"choices": [{"message": "hello"}]}), 1, "no choices"),
    ((200, {"choices": [{"message": {"content": None, "refusal": "never"}}]}), 1, "no text: 'never'"),
    ((200, {"choices": [{"message": {"content": 7}}]}), 1, "something else where its text belongs"),
    (reply(FINAL, logprobs=[{"token": "3"}]), 1, "log-probabilities that cannot be read"),
    (reply(FINAL, logprobs=[token("3", math.nan)]), 1, "log-probabilities that cannot be read"),
])  # fmt: skip
def test_a_failed_request_is_no_rating_with_its_reason_and_the_others_stand(answer, tries, said):
    bad = eight_bits(make_image(7))
    with server(lambda body, _: answer if torch.equal(sent_images(body)[0], bad) else reply(FINAL)) as (iqa, script):
        ratings = iqa.rate([make_image(), bad, make_image(1)], mode="reason")
    assert ratings.valid.tolist() == [True, False, True]
    assert ratings.mean.tolist() == pytest.approx([3.25, math.nan, 3.25], nan_ok=True)
    assert [error is None for error in ratings.errors] == [True, False, True]
    assert re.search(said, ratings.errors[1])
    assert ratings.errors[1].startswith(f"round 1: {iqa.server.address}, model 'served'")
    assert ratings.answers[1][0].turns == ()
    assert len(script.bodies) == tries + 2


def test_a_failed_second_round_keeps_the_first():
    with server(lambda body, count: reply(ZOOM) if count == 1 else (400, {"error": "too long"})) as (iqa, _):
        (found,) = iqa.assess(make_image())
    assert (found.valid, [turn.rating for turn in found.turns]) == (False, [2.5])
    assert found.error.startswith("round 2: ")
    assert found.error.endswith('status 400: {"error": "too long"}')


@pytest.mark.integration
def test_a_server_that_takes_too_long_is_given_up():
    hold = threading.Event()

    def answer(body, count):
        hold.wait(5)
        return reply(FINAL)

    with server(answer, timeout_s=0.3, max_retries=1) as (iqa, script):
        (found,) = iqa.assess(make_image())
        hold.set()
    assert "no answer within 2 tries of 0.3 s" in found.error
    assert len(script.bodies) == 2  # counted when the server's threads have ended


def test_nobody_there():
    with server(always(FINAL), max_retries=0) as (iqa, _):
        pass
    with iqa:
        (found,) = iqa.assess(make_image())
    assert (found.valid, "cannot be reached" in found.error) == (False, True)


@pytest.mark.parametrize(("status", "said"), [(401, "api_key"), (403, "api_key"), (404, "model name and address")])
def test_what_would_fail_for_every_image_is_raised(status, said):
    with (
        server(lambda body, _: (status, {"error": "no"}), api_key="secret-key") as (iqa, script),
        pytest.raises(ServerRefused, match=f"status {status}, check {said}") as caught,
    ):
        iqa.assess([make_image()] * 50)
    assert "secret-key" not in str(caught.value)
    assert len(script.bodies) < 20


def test_images_are_asked_about_at_once_and_come_back_in_order():
    together = threading.Barrier(3)

    def answer(body, count):
        if count <= 3:
            together.wait(20)  # breaks, and so fails, unless three are there at once
        time.sleep(0.05 if count % 3 == 1 else 0.0)
        return reply(FINAL.replace("3.25", f"{1 + sent_images(body)[0].shape[2] / 100:.2f}"))

    with server(answer, concurrency=3) as (iqa, script):
        ratings = iqa.rate([make_image(0, 56, 60 + i) for i in range(9)], mode="reason")
    assert ratings.mean.tolist() == pytest.approx([1.6 + i / 100 for i in range(9)])
    assert script.most == 3


def test_items_are_drawn_as_needed_and_the_first_exception_stops():
    drawn, begun = [], []

    def items():
        for i in range(1000):
            drawn.append(i)
            yield i

    def ask(i):
        begun.append(i)
        if i == 5:
            raise KeyError(i)
        return i

    with pytest.raises(KeyError, match="5"):
        parallel_map(ask, items(), 2)
    assert len(drawn) < 20
    assert parallel_map(lambda i: -i, range(7), 3) == [-i for i in range(7)]


def test_an_image_that_cannot_be_read_is_raised_by_name(tmp_path):
    with server(always(FINAL)) as (iqa, _), pytest.raises(ImageError, match=r"image 1: .*nothing\.png"):
        iqa.assess([make_image(), tmp_path / "nothing.png"])


def test_an_image_token_in_the_text_is_no_request():
    with server(always(FINAL)) as (iqa, script):
        (found,) = iqa.assess(make_image(), question="Is <|image_pad|> sharp?")
    assert "image token <|image_pad|>" in found.error
    assert script.bodies == []


def test_it_ranks_and_rewards():
    def answer(body, count):
        return reply(FINAL.replace("3.25", f"{1 + 3 * float(sent_images(body)[0].mean()):.2f}"))

    images = [make_image() * share for share in (0.5, 1.0, 0.75)]
    with server(answer) as (iqa, _):
        assert rank(iqa, images, mode="reason").order == (1, 2, 0)
        reward = ZoomIQAReward(iqa, mode="reason")
        scores = reward(images)
    assert scores.value.argmax() == 1
    assert (reward.name, scores.valid.all()) == ("zoomiqa-served-reason", True)


def test_the_fingerprint_names_server_model_protocol_and_ways_of_asking():
    def of(url="http://a/v1", model="m", **options):
        return RemoteZoomIQA.from_server(url, model, **{"protocol": tiny_protocol()} | options).fingerprint

    changed = [
        of("http://b/v1"), of(model="n"), of(protocol=tiny_protocol(name="other")), of(revision="2"),
        of(factor_px=28), of(top_logprobs=5), of(extra={"top_k": 1}), of(tolerance=0.1),
    ]  # fmt: skip
    assert len({of(), *changed}) == 1 + len(changed)
    assert of() == of(api_key="k") == of("http://me:secret@a/v1/")


def test_a_key_is_read_as_its_file_holds_it_and_shown_in_no_rating():
    with server(always(FINAL), api_key="a-secret-word\n") as (iqa, script):
        assert iqa.rate(make_image(), mode="reason").valid.all()
    assert script.keys == ["Bearer a-secret-word"]
    with pytest.raises(ValueError, match="ASCII in one line"):
        RemoteZoomIQA.from_server("http://a/v1", "m", api_key="a-sécret-word", protocol=tiny_protocol())


def test_a_server_of_this_machine_is_asked_without_the_proxy_of_the_environment(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with server(always(FINAL), max_retries=0) as (iqa, _):
        assert iqa.rate(make_image(), mode="reason").errors == (None,)


def test_the_protocol_is_given_or_found_never_guessed(tmp_path, nano):
    tiny_protocol().save(tmp_path)
    assert RemoteZoomIQA.from_server("http://a/v1", str(tmp_path)).protocol.name == "tiny"
    assert RemoteZoomIQA.from_server("http://a/v1", "served", protocol=tmp_path).protocol.name == "tiny"
    assert RemoteZoomIQA.from_server("http://a/v1", "served", protocol="nano").protocol.name == "nano"
    with pytest.raises(ProtocolError, match="'served' is unknown: pass protocol="):
        RemoteZoomIQA.from_server("http://a/v1", "served")


@pytest.mark.parametrize(("options", "said"), [
    ({"base_url": "localhost:8000"}, "base_url"), ({"concurrency": 0}, "concurrency=0"),
    ({"timeout_s": 0}, "timeout_s=0"), ({"max_retries": -1}, "max_retries=-1"), ({"factor_px": 0}, "factor_px=0"),
    ({"tolerance": 0}, "tolerance=0"), ({"top_logprobs": -1}, "top_logprobs=-1"),
])  # fmt: skip
def test_impossible_settings_are_refused(options, said):
    given = {"base_url": "http://a/v1", "model": "m", "protocol": tiny_protocol()} | options
    with pytest.raises(ValueError, match=said):
        RemoteZoomIQA.from_server(**given)


@pytest.mark.parametrize(("call", "said"), [
    ({"mode": "think"}, "mode='think'"), ({"grad": True}, "no gradients"), ({"num_samples": 2}, "mode='reason'"),
    ({"mode": "reason", "num_samples": 2, "temperature": 0.0}, "copies of one answer"),
    ({"mode": "reason", "rounds": 3}, "rounds=3"), ({"mode": "direct"}, "factor_px"),
    ({"mode": "reason", "num_samples": 0}, "num_samples=0"),
])  # fmt: skip
def test_impossible_wishes_are_refused_before_anything_is_sent(call, said):
    iqa = RemoteZoomIQA.from_server("http://a/v1", "m", protocol=tiny_protocol())
    with pytest.raises(ValueError, match=said):
        iqa.rate(make_image(), **call)


def test_level_words_are_refused_for_numbers_and_for_words():
    iqa = RemoteZoomIQA.from_server("http://a/v1", "m", protocol=level_words(), factor_px=28)
    for call in (iqa.rate, iqa.assess):
        with pytest.raises(ValueError, match="level words are read from a model in this process only"):
            call(make_image())


def test_without_the_client_the_extra_is_named_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    iqa = RemoteZoomIQA.from_server("http://a/v1", "m", protocol=tiny_protocol())
    assert iqa.fingerprint
    with pytest.raises(ImportError, match=r"zoomiqa-reward\[serve\]"):
        iqa.assess(make_image())
