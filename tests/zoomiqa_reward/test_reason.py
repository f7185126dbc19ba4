"""The two rounds: a scripted writer drives every way an answer can fail; the tiny models run the real one."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from scripted_writer import FINAL, GREEDY, NO_NUMBER, SECOND, ZOOM, Writer, ask
from tiny import ARCHS, make_image, tiny_iqa

from zoomiqa_reward.model.decode import write_answers
from zoomiqa_reward.model.generate import Sampling, end_tokens, generate, suppressed_tokens, write_ids
from zoomiqa_reward.model.inputs import collate, make_row
from zoomiqa_reward.model.reason import assess_images
from zoomiqa_reward.model.turns import round1


@pytest.fixture(params=ARCHS)
def iqa(request):
    return tiny_iqa(request.param)


def test_final_in_round_one_needs_no_second_round():
    writer = Writer([FINAL])
    (found,) = ask(writer, [make_image()])
    assert (found.rating, found.valid, found.error, found.warning) == (3.25, True, None, None)
    assert math.isnan(found.std)
    (turn,) = found.turns
    assert turn.sections == {"Image Quality Summary": "soft.", "Issues to Avoid": "noise."}
    assert (turn.bbox, turn.crop_box, turn.tool, turn.text) == (None, None, "final", FINAL)
    assert turn.prompt == "How good is this image? Answer with {}."


def test_an_answers_start_ends_the_prompt_and_begins_the_text():
    begun = ("<think>Image Quality Summary:", "<think>Crop Inspection Summary:")
    checkpoint = tiny_iqa().checkpoint
    checkpoint = replace(checkpoint, protocol=replace(checkpoint.protocol, answer_starts=begun))
    writer = Writer([ZOOM.removeprefix(begun[0])], [SECOND.removeprefix(begun[1])])
    [[found]] = assess_images(checkpoint, [make_image()], sampling=GREEDY, write=writer)
    assert [turn.text for turn in found.turns] == [ZOOM, SECOND]
    assert found.rating == 4.0
    [[first], [second]] = writer.prompts
    assert first.endswith("assistant\n" + begun[0])
    assert second.endswith("assistant\n" + begun[1])
    assert ZOOM in second  # round 1 is quoted with its start


def test_a_told_box_is_wider_by_the_margin_and_the_crop_is_that_of_the_words():
    checkpoint = tiny_iqa().checkpoint
    wide = replace(checkpoint, protocol=replace(checkpoint.protocol, box_margin=0.125))
    told = []
    for each in (checkpoint, wide):
        [[found]] = assess_images(each, [make_image()], sampling=GREEDY, write=Writer([ZOOM], [SECOND]))
        told.append(found)
    assert told[0].turns[0].bbox == (0.1, 0.1, 0.6, 0.7)
    assert told[1].turns[0].bbox == pytest.approx((0.0, 0.0, 0.725, 0.825))
    assert told[1].turns[1].crop_box == told[0].turns[1].crop_box
    assert told[1].turns[1].bbox is None  # a box of zeros names no region, however wide the margin


def test_of_several_answers_the_first_counts_and_the_others_are_told():
    corrected = FINAL + FINAL.replace("3.25", "4.5")
    (found,) = ask(Writer([corrected]), [make_image()])
    assert (found.rating, found.valid) == (3.25, True)
    assert found.warning == "round 1: several answers with the ratings 3.25, 4.5; the first counts"
    (same,) = ask(Writer([FINAL + FINAL]), [make_image()])
    assert same.warning is None


def test_only_those_that_want_a_closer_look_go_to_round_two_and_keep_their_place():
    writer = Writer([FINAL, ZOOM, FINAL, ZOOM], [SECOND, SECOND.replace("4", "1.5")])
    images = [make_image(i, 70 + 10 * i, 90) for i in range(4)]
    found = ask(writer, images)
    assert [one.rating for one in found] == [3.25, 4.0, 3.25, 1.5]
    assert [len(one.turns) for one in found] == [1, 2, 1, 2]
    second = found[1].turns[1]
    assert second.crop_box == (9, 8, 54, 56)
    assert found[1].turns[0].bbox == (0.1, 0.1, 0.6, 0.7)
    assert second.sections == {"Crop Inspection Summary": "fine."}


def test_round_two_quotes_the_whole_of_round_one_and_shows_two_images():
    writer = Writer([ZOOM], [SECOND])
    ask(writer, [make_image()], question="Is it sharp?")
    prompt = writer.prompts[1][0]
    assert ZOOM in prompt
    assert "{question} Look again.Original image: " in prompt  # verbatim: nothing is filled in
    assert prompt.count("Is it sharp?") == 1  # in the history; round 1's own prompt is not repeated
    assert "Is it sharp? Answer with {}." in writer.prompts[0][0]
    assert [len(rows[0].image_grid_thw) for rows in writer.rows] == [1, 2]


def test_one_round_is_final_even_where_a_zoom_is_wanted():
    (found,) = ask(Writer([ZOOM]), [make_image()], rounds=1)
    assert (found.rating, found.valid, len(found.turns)) == (2.5, True, 1)


def test_round_two_unreadable_is_no_rating_with_round_one_kept():
    (found,) = ask(Writer([ZOOM], ["I cannot say."]), [make_image()])
    assert not found.valid
    assert math.isnan(found.rating)
    assert found.error.startswith("round 2: missing <answer>")
    assert [turn.rating for turn in found.turns] == pytest.approx([2.5, math.nan], nan_ok=True)


def test_a_round_one_that_cannot_be_routed_but_rates_is_final_with_a_warning():
    (found,) = ask(Writer(['<answer>{"rating": 3.5}</answer>']), [make_image()])
    assert (found.rating, found.valid, found.error) == (3.5, True, None)
    assert "cannot be routed" in found.warning
    assert "bbox_2d" in found.warning


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_an_answer_that_spells_a_control_token_is_not_quoted_and_fails_no_other_image(token):
    spelled = ZOOM.replace("soft", token)
    found, other = ask(Writer([spelled, ZOOM], [SECOND]), [make_image(), make_image(1)])
    assert (found.rating, found.valid, len(found.turns)) == (2.5, True, 1)
    assert f"cannot be routed, its rating is final: the answer spells {token}" in found.warning
    assert (other.rating, other.warning) == (4.0, None)


@pytest.mark.parametrize(("claim", "rating", "is_true"), [
    ("rises", "2.5", False), ("rises", "2", False), ("rises", "3", True), ("falls", "3", False), ("falls", "2", True),
    ("stays", "2.5", True),
])  # fmt: skip
def test_a_claim_about_the_rating_that_the_ratings_deny_is_told(claim, rating, is_true):
    second = SECOND.replace("fine", f"as seen, so the rating {claim}").replace('"rating": 4', f'"rating": {rating}')
    (found,) = ask(Writer([ZOOM], [second]), [make_image()])
    told = f"round 2 says that the rating {claim}, but it was 2.5 and is {rating}"
    assert (found.valid, found.warning) == (True, None if is_true else told)


@pytest.mark.parametrize("text", ["", "soft", NO_NUMBER])
def test_nothing_readable_is_no_rating(text):
    (found,) = ask(Writer([text]), [make_image()])
    assert (found.valid, len(found.turns)) == (False, 1)
    assert math.isnan(found.rating)
    assert found.error.startswith("round 1: ")


def test_round_one_without_rating_may_still_look_closer():
    (found,) = ask(Writer([ZOOM.replace("2.5", '"?"')], [SECOND]), [make_image()])
    assert (found.rating, found.valid) == (4.0, True)


@pytest.mark.parametrize("written", ["7.5", "-3", "72", "0", "0.999", "5.0001", "1e300"])
def test_a_rating_off_the_scale_is_no_rating_and_the_turn_keeps_it(written):
    (found,) = ask(Writer([FINAL.replace("3.25", written)]), [make_image()])
    assert not found.valid
    assert math.isnan(found.rating)
    assert "off the scale" in found.error
    assert found.turns[0].rating == float(written)


@pytest.mark.parametrize(("written", "rating"), [("1", 1.0), ("5", 5.0), ("5.0", 5.0), ("'3.5'", 3.5)])
def test_the_ends_of_the_scale_and_quoted_numbers_are_ratings(written, rating):
    (found,) = ask(Writer([FINAL.replace("3.25", written)]), [make_image()])
    assert (found.valid, found.rating) == (True, rating)


def test_a_truncated_answer_is_noted():
    (found,) = ask(Writer([FINAL], truncated=True), [make_image()])
    assert (found.valid, found.warning) == (True, "round 1: Answer truncated")
    (found,) = ask(Writer(["<think>and on"], truncated=True), [make_image()])
    assert found.error.endswith("round 1: Answer truncated")


def test_windows_and_samples_come_back_in_order():
    texts = [FINAL.replace("3.25", f"{1 + i / 4}") for i in range(5)]
    found = ask(Writer(texts[:2], texts[2:4], texts[4:]), [make_image(i) for i in range(5)], batch_size=2)
    assert [one.rating for one in found] == [1.0, 1.25, 1.5, 1.75, 2.0]
    writer = Writer(texts[:2], [texts[2]], texts[:2], [texts[4]])
    found = assess_images(
        tiny_iqa().checkpoint, [make_image(), make_image(1)], sampling=GREEDY, num_samples=3, batch_size=2, write=writer
    )
    assert [[one.rating for one in samples] for samples in found] == [[1.0, 1.25, 1.5], [1.0, 1.25, 2.0]]


@pytest.mark.parametrize("strict", [True, False])
def test_a_row_is_seeded_by_seed_image_sample_and_round_alone(strict):
    sampling, images = Sampling(temperature=1.0, seed=7), [make_image(), make_image(1), make_image()]

    def seeds(chosen, seed=7, **options):
        writer = Writer(*[[ZOOM] * 2, [SECOND] * 2] * len(chosen))
        found = assess_images(tiny_iqa().checkpoint, chosen, sampling=replace(sampling, seed=seed), num_samples=2,
                              write=writer, strict=strict, batch_size=2, **options)  # fmt: skip
        assert len(found) == len(chosen)
        return writer.seeds

    first, again, other, *rest = seeds(images)
    assert again == tuple(one + 1 for one in first)
    assert rest[-2:] == [first, again]  # the same image in another place
    assert len({*first, *other}) == 4
    assert seeds(images[1:2])[0] == other
    assert not set(seeds(images, seed=8)[0]) & set(first)


def test_greedy_rows_have_no_seed_and_a_tuple_must_fit():
    writer = Writer([FINAL])
    ask(writer, [make_image()], GREEDY)
    assert writer.seeds == [None]
    with pytest.raises(ValueError, match="seed: one number"):
        ask(Writer(), [make_image()], Sampling(temperature=1.0, seed=(1,)))
    with pytest.raises(ValueError, match="1 for 2 rows"):
        Sampling(temperature=1.0, seed=(1,)).row_seeds(2)


def test_rate_over_samples_means_those_that_could_be_read(monkeypatch):
    iqa = tiny_iqa()
    bad = "no"
    script = Writer([FINAL, FINAL.replace("3.25", "4.25"), bad, FINAL, bad, bad])
    monkeypatch.setattr(assess_images, "__kwdefaults__", assess_images.__kwdefaults__ | {"write": script})
    ratings = iqa.rate([make_image(), make_image(1)], mode="reason", num_samples=3, temperature=1.0)
    assert ratings.valid.tolist() == [True, False]
    assert ratings.mean.tolist() == pytest.approx([3.75, math.nan], nan_ok=True)
    assert ratings.std.tolist() == pytest.approx([math.sqrt(0.5), math.nan], nan_ok=True)
    assert ratings.std_kind == "samples"


def test_a_greedy_rating_has_no_spread(monkeypatch):
    kwdefaults = assess_images.__kwdefaults__ | {"write": Writer([FINAL])}
    monkeypatch.setattr(assess_images, "__kwdefaults__", kwdefaults)
    ratings = tiny_iqa().rate(make_image(), mode="reason")
    assert (ratings.mean.tolist(), ratings.valid.tolist()) == ([3.25], [True])
    assert ratings.std.isnan().all()


def test_impossible_sampling_is_refused():
    with pytest.raises(ValueError, match="copies of one answer"):
        tiny_iqa().rate(make_image(), mode="reason", num_samples=2, temperature=0.0)
    with pytest.raises(ValueError, match="rounds=3"):
        tiny_iqa().assess(make_image(), rounds=3)
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=-1.0)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0.0)


@torch.no_grad()
def test_batched_generation_equals_plain_greedy_steps(iqa):
    """Left padding, caches and 3-D positions: each step recomputed from scratch with a plain forward."""
    checkpoint = iqa.checkpoint
    rows = [make_row(checkpoint, round1(checkpoint.protocol, make_image(i, 64 + 30 * i, 90))) for i in range(3)]
    answers = generate(checkpoint, rows, GREEDY)
    banned = suppressed_tokens(checkpoint)
    for row, answer in zip(rows, answers, strict=True):
        new: list[int] = []
        while len(new) < GREEDY.max_new_tokens:
            logits = checkpoint.model(**collate(checkpoint, [row], append=new)).logits[0, -1]
            logits[banned] = -math.inf
            if int(logits.argmax()) in end_tokens(checkpoint):
                break
            new.append(int(logits.argmax()))
        assert checkpoint.tokenizer.decode(new, skip_special_tokens=True) == answer.text
        assert answer.is_truncated == (len(new) == GREEDY.max_new_tokens)


def test_vision_tokens_are_never_written(iqa, monkeypatch):
    checkpoint = iqa.checkpoint
    banned = suppressed_tokens(checkpoint)
    assert {checkpoint.image_token_id, checkpoint.tokenizer.convert_tokens_to_ids("<|vision_end|>")} <= set(banned)
    seen = []
    monkeypatch.setattr("zoomiqa_reward.model.generate.write_answers",
                        lambda *a, **k: seen.append(write_answers(*a, **k)) or seen[-1])  # fmt: skip
    row = make_row(checkpoint, round1(checkpoint.protocol, make_image()))
    weight = checkpoint.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[banned] = weight.abs().amax() * 50  # the model would now like nothing better
    try:
        generate(checkpoint, [row], Sampling(temperature=5.0, top_k=0, top_p=1.0, max_new_tokens=30, seed=0))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    [new] = seen[0]
    assert new
    assert not set(new) & set(banned)


def test_sampling_is_repeatable_with_a_seed_and_leaves_the_global_state_alone(iqa):
    row = make_row(iqa.checkpoint, round1(iqa.protocol, make_image()))
    hot = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12}
    before = torch.get_rng_state()
    texts = [generate(iqa.checkpoint, [row], Sampling(seed=seed, **hot))[0].text for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1] != texts[2]


def test_the_checkpoints_own_generation_config_decides_nothing(iqa):
    row = make_row(iqa.checkpoint, round1(iqa.protocol, make_image()))
    model, kept = iqa.checkpoint.model, iqa.checkpoint.model.generation_config
    plain = generate(iqa.checkpoint, [row], GREEDY)
    model.generation_config = copy.deepcopy(kept)
    model.generation_config.update(
        do_sample=True, repetition_penalty=5.0, no_repeat_ngram_size=1, max_time=0.0,
        sequence_bias=[[[iqa.checkpoint.tokenizer.convert_tokens_to_ids("a")], 100.0]],
    )  # fmt: skip
    try:
        assert generate(iqa.checkpoint, [row], GREEDY) == plain
        ids = write_ids(iqa.checkpoint, collate(iqa.checkpoint, [row]), GREEDY, [])[0, len(row.input_ids) :]
    finally:
        model.generation_config = kept
    assert iqa.checkpoint.tokenizer.decode(ids, skip_special_tokens=True) == plain[0].text


def test_the_real_tiny_model_runs_both_modes_and_never_raises_on_nonsense(iqa):
    images = [make_image(i, 70 + 20 * i, 90) for i in range(3)]
    found = iqa.assess(images, max_new_tokens=6)
    assert [one.valid for one in found] == [False] * 3  # it writes digits, no answer
    assert all(one.error and one.turns[0].text for one in found)
    strict = iqa.assess(images, max_new_tokens=6, strict=True)
    assert [one.turns[0].text for one in strict] == [iqa.assess(i, max_new_tokens=6)[0].turns[0].text for i in images]
    ratings = iqa.rate(images, mode="reason", strict=True, max_new_tokens=6)
    assert not ratings.valid.any()
    assert ratings.mean.isnan().all()


@pytest.mark.parametrize("named", ["[9, 8, 54, 56]", "[0.6, 0.7, 0.1, 0.1]", "[54, 56, 9, 8]", "[-30, 8, 54, 900]"])
def test_a_turns_box_is_fractions_with_corners_in_order_whatever_the_answer_holds(named):
    answer = ZOOM.replace("[0.1, 0.1, 0.6, 0.7]", named)
    assert answer != ZOOM
    (assessment,) = ask(Writer([answer], [SECOND]), [make_image(0, 80, 90)])
    expected = {
        "[0.6, 0.7, 0.1, 0.1]": (0.1, 0.1, 0.6, 0.7), "[-30, 8, 54, 900]": (0.0, 0.1, 0.6, 1.0),
    }.get(named, (0.1, 0.1, 0.6, 0.7))  # fmt: skip
    assert assessment.turns[0].bbox == pytest.approx(expected)
    left, top, right, bottom = assessment.turns[1].crop_box
    assert 0 <= left < right <= 90
    assert 0 <= top < bottom <= 80
