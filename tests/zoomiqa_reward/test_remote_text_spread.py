"""The rating's distribution over a text server: from an answer's tokens, and `direct` where an answer is continued."""

import math

import pytest
import torch
from scripted_server import FINAL, THINK, always, eight_bits, reply, sent_images, server, token
from tiny import make_image, tiny_protocol

from zoomiqa_reward.model.text_server import NotOffered
from zoomiqa_reward.model.views import plan_views

LN = {share: math.log(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}


def entries(before, *number, after=', "tool": "final"}</answer>'):
    return [token(before), *number, token(after)]


BEFORE = THINK + '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": '
NUMBER = (
    token("3", LN[0.8], alternatives={"2": LN[0.1], "x": LN[0.1]}),
    token("."),
    token("2", LN[0.6], alternatives={"4": LN[0.4]}),
    token("5", LN[0.5], alternatives={"7": LN[0.3], "}": LN[0.2]}),
)


def test_the_spread_of_the_ratings_tokens_by_hand():
    """3.25: .8 x .6 x .5, 3.27: x .3, 3.2 (ended early): x .2, 3.4?: .8 x .4 uniform, 2.??: .1 uniform; x: no mass."""
    with server(always(FINAL, logprobs=entries(BEFORE, *NUMBER))) as (iqa, script):
        (found,) = iqa.assess(make_image())
        ratings = iqa.rate(make_image(), mode="reason")
    assert (script.bodies[0]["logprobs"], script.bodies[0]["top_logprobs"]) == (True, 20)
    uniform = lambda low, count: [(low + k / 100, 1 / count) for k in range(count)]  # noqa: E731
    leaves = [(3.25, 0.24), (3.27, 0.144), (3.2, 0.096)]
    leaves += [(value, 0.32 * share) for value, share in uniform(3.4, 10)]
    leaves += [(value, 0.1 * share) for value, share in uniform(2.0, 100)]
    mass = sum(share for _, share in leaves)
    mean = sum(value * share for value, share in leaves) / mass
    std = math.sqrt(sum(share * (value - mean) ** 2 for value, share in leaves) / mass)
    assert (found.spread.mass, found.spread.mean) == pytest.approx((0.9, mean))
    assert (found.rating, found.std) == (3.25, pytest.approx(std))
    assert (ratings.mean.tolist(), ratings.std_kind) == ([3.25], "token")  # the rating is the one in the text
    assert ratings.std.tolist() == pytest.approx([std])


@pytest.mark.parametrize("cut", [("3.25",), ("3", ".25"), ("3.", "2", "5")])
def test_tokens_of_any_length_and_with_a_lead_are_found(cut):
    first, *rest = cut
    lead = BEFORE[-2:]
    numbers = [token(lead + first, LN[0.7], alternatives={lead + "4.00": LN[0.3], "9": LN[0.1]}), *map(token, rest)]
    with server(always(FINAL, logprobs=entries(BEFORE[:-2], *numbers))) as (iqa, _):
        spread = iqa.assess(make_image())[0].spread
    assert spread.mass == pytest.approx(1.0)
    assert spread.mean == pytest.approx(0.7 * 3.25 + 0.3 * 4.0)


@pytest.mark.parametrize(("text", "number"), [
    ("3.25", [token("token_id:17")]), ("3.25", [token("3"), token(".2"), token("token_id:5")]),
    ("3.25", [token("1"), token(".50")]),
])  # fmt: skip
def test_a_rating_that_cannot_be_traced_in_the_tokens_has_no_spread(text, number):
    with server(always(FINAL.replace("3.25", text), logprobs=entries(BEFORE, *number))) as (iqa, _):
        (found,) = iqa.assess(make_image())
    assert found.valid
    assert (found.spread, math.isnan(found.std)) == (None, True)


def test_little_mass_gives_the_mass_and_no_std():
    number = [token("3.25", LN[0.4], alternatives={"no": LN[0.6]})]
    with server(always(FINAL, logprobs=entries(BEFORE, *number))) as (iqa, _):
        (found,) = iqa.assess(make_image())
    assert (found.valid, found.spread.mass, math.isnan(found.std)) == (True, pytest.approx(0.4), True)


def test_without_logprobs_there_is_no_distribution_and_it_says_so():
    with server(always(FINAL)) as (iqa, _):
        ratings = iqa.rate([make_image()] * 2, mode="reason")
    assert (ratings.mean.tolist(), ratings.std_kind, ratings.errors) == ([3.25, 3.25], "none", (None, None))
    assert ratings.std.isnan().all()


def test_a_server_that_refuses_logprobs_is_asked_without_them_from_then_on():
    def answer(body, count):
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported by this model"}}
        return reply(FINAL)

    with server(answer, concurrency=1) as (iqa, script):
        ratings = iqa.rate([make_image()] * 3, mode="reason")
    assert (ratings.valid.all(), ratings.std_kind) == (True, "none")
    assert ["logprobs" in body for body in script.bodies] == [True, False, False, False]


def test_a_reasoning_parsers_parts_are_joined_again():
    reasoning, answer = FINAL.removeprefix("<think>").split("</think>")
    for field in ("reasoning_content", "reasoning"):
        with server(always(answer, **{field: reasoning})) as (iqa, _):
            (found,) = iqa.assess(make_image())
        assert found.turns[0].text == f"<think>\n{reasoning}\n</think>\n{answer}"
        assert (found.rating, found.turns[0].sections["Issues to Avoid"]) == (3.25, "noise.")
    with server(always(None, finish="length", reasoning_content="and on")) as (iqa, _):
        (found,) = iqa.assess(make_image())
    assert found.turns[0].text == "<think>\nand on"
    assert found.error.endswith("round 1: Answer truncated")


SHARES = {"3.25": 0.4, "3.31": 0.2, "2.80": 0.15, "4.00": 0.1, "3.27": 0.05, "no": 0.1}
PREFIX = tiny_protocol().direct_prefix


def continues(shares, cut=1):
    """A server like vLLM with this distribution of the next text, tokens of `cut` characters, greedy."""

    def answer(body, count):
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        assert body["messages"][-1]["role"] == "assistant"
        start = body["messages"][-1]["content"]
        assert start.startswith(PREFIX)
        text, content = start.removeprefix(PREFIX), []
        while len(content) < body["max_tokens"]:
            options = {}
            for ending, share in shares.items():
                if ending.startswith(text) and ending != text:
                    piece = ending[len(text) :][:cut]
                    options[piece] = options.get(piece, 0.0) + share
            if not options:
                break
            total = sum(options.values())
            logprobs = {piece: math.log(share / total) for piece, share in options.items()}
            best = max(logprobs, key=logprobs.get)
            content.append(token(best, logprobs[best], alternatives=logprobs))
            text += best
        return reply(text.removeprefix(start.removeprefix(PREFIX)), logprobs=content)

    return answer


def exact(shares):
    leaves = [(float(text), share) for text, share in shares.items() if text[0].isdigit()]
    mass = sum(share for _, share in leaves)
    mean = sum(value * share for value, share in leaves) / mass
    return mean, math.sqrt(sum(share * (value - mean) ** 2 for value, share in leaves) / mass)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_direct_finds_the_whole_distribution_whatever_the_tokens(cut):
    with server(continues(SHARES, cut), factor_px=28, tolerance=1e-6) as (iqa, _):
        ratings = iqa.rate(eight_bits(make_image(0, 56, 84)), mode="direct")
    mean, std = exact(SHARES)
    assert ratings.mean.tolist() == pytest.approx([mean])
    assert ratings.std.tolist() == pytest.approx([std])
    assert (ratings.std_kind, ratings.valid.tolist(), ratings.errors) == ("token", [True], (None,))


def test_a_tolerance_saves_requests_and_keeps_its_word():
    image, asked = eight_bits(make_image(0, 56, 84)), []
    for tolerance in (0.5, 0.05, 0.01):
        with server(continues(SHARES), factor_px=28, tolerance=tolerance) as (iqa, script):
            found = iqa.rate(image)
        asked.append(len(script.bodies))
        assert tolerance < found.tolerance < tolerance / 0.89  # the bound is before normalisation
        assert float(found.mean) == pytest.approx(exact(SHARES)[0], abs=found.tolerance)
    assert asked == sorted(asked)
    assert asked[0] == 1
    assert asked[0] < asked[2] <= 5


def test_direct_reads_the_views_of_the_local_direct_and_mixes_them():
    image, protocol = eight_bits(make_image(0, 140, 112)), tiny_protocol()
    plan = plan_views(140, 112, protocol.views, factor=28, min_pixels=3136, max_pixels=20000)
    by_size = {(140, 112): "4.00"}

    def answer(body, count):
        return continues({by_size.get(tuple(sent_images(body)[0].shape[1:]), "2.00"): 1.0})(body, count)

    with server(answer, factor_px=28) as (iqa, script):
        mean = float(iqa.rate(image).mean)
    assert len(script.bodies) == len(plan) > 1
    whole = sum(view.weight for view in plan if view.scale is None)
    assert mean == pytest.approx(4 * whole + 2 * (1 - whole))
    assert any(torch.equal(sent_images(body)[0], image) for body in script.bodies)


def test_ratings_that_hold_too_little_are_no_measurement():
    with server(continues({"3.25": 0.3, "no": 0.7}), factor_px=28) as (iqa, _):
        ratings = iqa.rate(eight_bits(make_image(0, 56, 84)))
    assert ratings.valid.tolist() == [False]
    assert "0.30 of the probability" in ratings.errors[0]


def test_a_server_that_ignores_the_start_of_the_answer_gives_no_rating():
    with server(always("<think>", logprobs=[token("<think>")]), factor_px=28) as (iqa, _):
        ratings = iqa.rate(make_image(0, 56, 84))
    assert (ratings.valid.tolist(), "ignored the start" in ratings.errors[0]) == ([False], True)


@pytest.mark.parametrize("answer", [
    (422, {"detail": "Unexpected fields in the request: {'continue_final_message'}"}),
    (400, {"error": {"message": "logprobs are not enabled"}}),
    reply("3.25"),
])  # fmt: skip
def test_direct_over_a_server_that_cannot_is_an_error_with_the_way_out(answer):
    with (
        server(lambda body, _: answer, factor_px=28) as (iqa, _),
        pytest.raises(NotOffered, match=r"continues an assistant's message.*mode='reason'"),
    ):
        iqa.rate(make_image())


def test_a_failed_view_fails_its_image_alone():
    bad = eight_bits(make_image(7, 56, 84))

    def answer(body, count):
        return (500, {}) if torch.equal(sent_images(body)[0], bad) else continues(SHARES)(body, count)

    with server(answer, factor_px=28, max_retries=0) as (iqa, _):
        ratings = iqa.rate([eight_bits(make_image(0, 56, 84)), bad])
    assert ratings.valid.tolist() == [True, False]
    assert "status 500" in ratings.errors[1]
