"""Answers as parts, what sentences claim, and what the two filters do with that."""

import asyncio
import base64
import io
import math
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import make_image, tiny_protocol

from benchmarks.planted.endpoint import ScriptedServer
from train_iqa.curation.claims import Claim, read_claims
from train_iqa.curation.endpoint import Asker, Calls, Endpoint
from train_iqa.curation.hints import Hints, ImageHints
from train_iqa.curation.judges import (
    ConsistencyConfig,
    JudgeError,
    JudgeVerdict,
    RulesJudge,
    check_consistency,
    read_verdicts,
)
from train_iqa.curation.prompts import ask_protocol, ask_protocol2, begun, image_url, without_images
from train_iqa.curation.reliance import Continuation, RelianceConfig, compare
from train_iqa.curation.written import FormError, box_difference, read_written, split_sentences
from zoomiqa_reward.images import load_image, to_pil
from zoomiqa_reward.model.text_server.client import CONTINUE_FIELDS
from zoomiqa_reward.protocol.spec import ROUND1_SECTIONS, ROUND2_SECTIONS

THINK = (
    "**Image Quality Summary:** The sky is noisy. Overall it is poor.\n- Directions for Improvement: Clean sky.\n"
    "3. Issues to Avoid: Grain in the sky. Blur, e.g. at 0.5 px, below.\nDecision & Rationale: I look."
)
ANSWER = '<answer>{"bbox_2d": [0.6, 0.1, 0.2, 0.504], "rating": 2.5, "tool": "crop"}</answer>'
TEXT = f"<think>\n{THINK}\n</think>\n{ANSWER}"


def test_an_answer_is_read_and_written_in_one_form():
    written = read_written(TEXT, ROUND1_SECTIONS)
    assert written.bbox == (0.2, 0.1, 0.6, 0.5)
    assert (written.rating, written.tool) == (2.5, "crop")
    assert dict(written.sections)["Image Quality Summary"] == ("The sky is noisy.", "Overall it is poor.")
    assert dict(written.sections)["Issues to Avoid"] == ("Grain in the sky.", "Blur, e.g. at 0.5 px, below.")
    text = written.render()
    assert text.endswith('<answer>{"bbox_2d": [0.20, 0.10, 0.60, 0.50], "rating": 2.50, "tool": "crop"}</answer>')
    assert read_written(text, ROUND1_SECTIONS) == written
    assert written.partial().endswith("below.")
    assert "Decision" not in written.partial()


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("<answer>", "<reply>", "no readable answer"),
    ("Issues to Avoid:", "Issues:", "section missing: Issues to Avoid"),
    ("2.5", "7", "rating off the scale"),
    ('"crop"', '"final"', "box and tool disagree"),
    ("[0.6, 0.1, 0.2, 0.504]", "[0, 0, 0, 0]", "box and tool disagree"),
    ("0.504", "504", "box off the scale"),
    ("0.6, 0.1, 0.2", "0.6, 0.1, 0.6", "box without area"),
    ("Grain", "<|im_end|> Grain", "no readable answer: the answer spells <|im_end|>"),  # SFT refuses it
])  # fmt: skip
def test_what_has_not_the_form_is_refused_with_its_reason(old, new, reason):
    with pytest.raises(FormError) as found:
        read_written(TEXT.replace(old, new), ROUND1_SECTIONS)
    assert str(found.value).startswith(reason)


@pytest.mark.parametrize("section", ["", "-", "...", "\u2013\n*"])
def test_a_section_without_a_word_is_missing(section):
    text = re.sub(r"Issues to Avoid:.*?(?=Decision)", f"Issues to Avoid: {section}\n", TEXT, flags=re.DOTALL)
    with pytest.raises(FormError, match="section missing: Issues to Avoid"):
        read_written(text, ROUND1_SECTIONS)


def test_the_last_round_asks_for_nothing_more():
    text = TEXT.replace("Image Quality Summary", "Crop Inspection Summary")
    text = text.replace("Decision & Rationale", "Final Decision & Rationale")
    with pytest.raises(FormError, match="last round"):
        read_written(text, ROUND2_SECTIONS, is_last=True)


def test_sentences():
    assert split_sentences("One: 2.5 px. Two!\n- three\n2) Four (so it is). Five") == (
        "One: 2.5 px.", "Two!", "three", "Four (so it is).", "Five",
    )  # fmt: skip


@pytest.mark.parametrize(("sentence", "claims"), [
    ("Strong grain covers the wall.", {("noisy", True)}),
    ("There is no noise, blur or blocking.", {("noisy", False), ("blurred", False), ("blocky", False)}),
    ("The photo is not sharp, and noise is absent.", {("blurred", True), ("noisy", False)}),
    ("No noise is visible, but blur covers the sky.", {("noisy", False), ("blurred", True)}),
    ("Noise-free and crisp.", {("noisy", False), ("blurred", False)}),
    ("Compression artefacts are not visible.", {("blocky", False)}),
    ("Noise is well controlled.", {("noisy", False)}),
    ("Not only noise but blur harms it.", {("noisy", True), ("blurred", True)}),
    ("The contrast is too low.", {("flat", True), ("harsh", False)}),
    ("It lacks contrast.", {("flat", True)}),
    ("Over-saturated colours.", {("garish", True)}),
    ("The scene is well exposed.", {("dark", False), ("bright", False)}),
    ("Under-exposed shadows.", {("dark", True)}),
    ("The subject stands in the middle.", set()),
])  # fmt: skip
def test_claims(sentence, claims):
    assert {(claim.state, claim.is_present) for claim in read_claims(sentence)} == claims


def test_wishes_claim_only_the_damage_that_they_name():
    assert read_claims("Crisp detail and vivid colours without noise.", is_wish=True) == []
    assert read_claims("Remove the noise from the sky.", is_wish=True) == [Claim("noisy", True, False)]


def test_a_claim_is_about_the_box_where_the_box_lies():
    box = (0.0, 0.0, 0.3, 0.3)
    for text, in_box in (("upper left", True), ("top left", True), ("lower right", False), ("crop", True)):
        assert read_claims(f"Noise shows in the {text}.", box=box) == [Claim("noisy", True, in_box)]
    assert read_claims("Noise shows in the upper left.") == [Claim("noisy", True, False)]
    assert read_claims("Noise.", is_about_crop=True, box=box) == [Claim("noisy", True, True)]


def verdicts(*wrong: int) -> list[JudgeVerdict]:
    count = len(read_written(TEXT, ROUND1_SECTIONS).sentences)
    return [
        JudgeVerdict(verdict="contradiction" if place in wrong else "match", why="planted" if place in wrong else "")
        for place in range(count)
    ]


def test_a_contradicted_sentence_is_dropped_where_the_text_stays_whole():
    written, config = read_written(TEXT, ROUND1_SECTIONS), ConsistencyConfig()
    assert check_consistency(written, verdicts(), config).written == written
    found = check_consistency(written, verdicts(4), config)
    assert found.written is not None
    assert found.dropped == (("Blur, e.g. at 0.5 px, below.", "planted"),)
    assert found.written.render() == written.render().replace(" Blur, e.g. at 0.5 px, below.", "")


@pytest.mark.parametrize(("wrong", "reason"), [
    ((2,), "a section would be empty"), ((5,), "the decision is contradicted"), ((0, 1, 3), "too many"),
])  # fmt: skip
def test_otherwise_the_answer_is_refused(wrong, reason):
    found = check_consistency(read_written(TEXT, ROUND1_SECTIONS), verdicts(*wrong), ConsistencyConfig())
    assert found.written is None
    assert str(found.reason).startswith(reason)
    assert len(found.dropped) == len(wrong)


def test_a_sentence_that_refers_back_holds_its_predecessor():
    written = read_written(TEXT.replace("Overall it is", "This makes it"), ROUND1_SECTIONS)
    found = check_consistency(written, verdicts(0), ConsistencyConfig())
    assert found.reason == "a sentence refers to a contradicted one"
    with pytest.raises(ValueError, match="2 verdicts for 6 sentences"):
        check_consistency(written, verdicts()[:2], ConsistencyConfig())


def test_the_rules_judge_finds_the_false_sentence():
    clean = Hints(brightness=0.45, contrast=0.2, colourfulness=30.0, blocking=0.05, blur=0.25, noise=0.003)
    noisy = replace(clean, noise=0.08)
    judge, written = RulesJudge(), read_written(TEXT, ROUND1_SECTIONS)
    assert judge.name == "rules"
    found = judge.verdicts(written, ImageHints(whole=noisy, box=noisy))
    assert [one.verdict for one in found] == ["match", "unclear", "unclear", "match", "contradiction", "unclear"]
    assert "blurred" in found[4].why
    found = judge.verdicts(written, ImageHints(whole=clean, box=replace(clean, noise=0.08, blur=0.6)))
    assert "contradiction" not in {one.verdict for one in found}


ANSWER = replace(read_written(TEXT, ROUND1_SECTIONS), rating=2.5)


def gone_on(count=7, entropy=math.nan, step=0.01, **changes):
    """Continuations like the answer but for `changes`, whose ratings lie `step` apart around the middle."""
    one = replace(ANSWER, **changes)
    return [Continuation(written=replace(one, rating=one.rating + step * (k - count // 2)), entropy=entropy)
            for k in range(count)]  # fmt: skip


@pytest.mark.parametrize(("changes", "relied"), [
    ({}, False),
    ({"rating": 2.59}, False),
    ({"rating": 2.6}, True),
    ({"bbox": (0.2, 0.1, 0.6, 0.46)}, False),
    ({"bbox": (0.5, 0.5, 1.0, 1.0)}, True),
    ({"bbox": None}, True),
])  # fmt: skip
def test_an_answer_that_stays_the_same_did_not_rely_on_the_image(changes, relied):
    found = compare(ANSWER, gone_on(), gone_on(**changes), RelianceConfig())
    assert found.relied is relied
    assert math.isnan(found.entropy)


def test_a_difference_within_the_spread_of_either_kind_is_chance():
    found = compare(ANSWER, gone_on(step=0.3), gone_on(step=0.3, rating=2.7), RelianceConfig())
    assert found.rating == pytest.approx(0.2)
    assert found.chance > 0.5
    assert not found.relied
    boxes = [(0.1 * k, 0.1 * k, 0.1 * k + 0.2, 0.1 * k + 0.2) for k in range(7)]  # all over the frame, in both kinds
    kind = [Continuation(written=replace(ANSWER, bbox=box)) for box in boxes]
    found = compare(ANSWER, kind, kind[::-1], RelianceConfig())
    assert -0.2 < found.box < 0
    assert found.chance == 1


def test_chance_is_the_share_of_ways_that_differ_as_much():
    """Of the six ways to part two and two, two part the pairs as they are."""
    found = compare(ANSWER, gone_on(2), gone_on(2, rating=4.0), RelianceConfig(samples=2, significance=0.34))
    assert found.chance == pytest.approx(2 / 6)
    assert found.relied


def test_an_answer_that_is_not_what_the_eyes_say_did_not_rely_on_them():
    """The teacher sees a rating of 4 and guesses 2.5 from the text, as the answer has it."""
    found = compare(ANSWER, gone_on(rating=4.0), gone_on(), RelianceConfig())
    assert found.chance < 0.01
    assert not found.is_own
    assert not found.relied
    assert "not that of the continuations with the image" in found.describe()


def test_entropy_counts_only_where_it_is_known():
    config = RelianceConfig()
    assert compare(ANSWER, gone_on(entropy=0.1), gone_on(entropy=0.4), config).relied
    assert not compare(ANSWER, gone_on(entropy=0.1), gone_on(entropy=0.2), config).relied
    assert not compare(ANSWER, gone_on(entropy=0.1), gone_on(), config).relied
    with pytest.raises(ValueError, match="rating=0"):
        RelianceConfig(rating=0)
    with pytest.raises(ValueError, match="set reliance to None"):
        RelianceConfig(rounds=())
    with pytest.raises(ValueError, match="3 samples a side show no significance below"):
        RelianceConfig(samples=3)
    with pytest.raises(ValueError, match="samples=7 of each are needed"):
        compare(ANSWER, gone_on(6), gone_on(6), config)


def test_box_difference():
    assert box_difference(None, None) == 0.0
    assert box_difference((0.0, 0.0, 0.5, 0.5), None) == 1.0
    assert box_difference((0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)) == pytest.approx(2 / 3)


REPLY = '{"sentences": [{"number": 1, "verdict": "match", "why": ""}, {"number": 2, "verdict": "Unclear"}]}'


def test_a_model_judges_reply_is_read_strictly():
    assert [one.verdict for one in read_verdicts(f"Sure:\n```json\n{REPLY}\n```", 2)] == ["match", "unclear"]
    for text, message in (
        ("no idea", "no JSON object"), (REPLY.replace('"number": 2', '"number": 1'), "judged twice"),
        (REPLY.replace("match", "fine"), "none of match"), ("{]}", "not readable"), ("{}", "no list"),
        (REPLY.replace("2", '"2"'), "without number"),
    ):  # fmt: skip
        with pytest.raises(JudgeError, match=message):
            read_verdicts(text, 2)
    with pytest.raises(JudgeError, match=r"1\.\.3 were asked for"):
        read_verdicts(REPLY, 3)


def test_a_zoom_iqa_teacher_is_asked_as_it_was_trained_and_never_told_the_score():
    protocol, image = tiny_protocol(), make_image(height=40, width=60)
    asked = ask_protocol(protocol, image, 10_000)
    assert [item["type"] for item in asked[0]["content"]] == ["text", "image_url"]
    assert asked[0]["content"][0]["text"] == protocol.round1.render(protocol.questions[0])
    second = ask_protocol2(protocol, image, image, "<answer>{}</answer>", 10_000)
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    written = read_written(TEXT, ROUND1_SECTIONS)
    seeing = begun(asked, written)
    assert seeing[:-1] == asked
    assert seeing[-1] == {"role": "assistant", "content": f"<think>\n{written.partial()}\n"}
    blind = without_images(seeing)
    assert blind[0]["content"] == asked[0]["content"][:1]
    assert blind[1] == seeing[1]
    images = [
        item for message in without_images(second) if isinstance(message["content"], list)
        for item in message["content"] if item["type"] != "text"
    ]  # fmt: skip
    assert images == []


@pytest.mark.parametrize("refused", [(), CONTINUE_FIELDS])
def test_an_answer_begins_as_the_protocol_says_where_the_server_can_continue(tmp_path, refused, capsys):
    pytest.importorskip("openai", reason="comes with the extra [train]")

    async def ask(server, times):
        asker = Asker(Endpoint(model="m", base_url=server.url), "teacher", Calls(tmp_path / "calls.jsonl"))
        message = {"role": "user", "content": "Q"}
        texts = [(await asker.ask(str(k), [message], seed=0, start="<think> The photo")).text for k in range(times)]
        await asker.close()
        return texts

    with ScriptedServer(lambda body: " is soft." if body["messages"][-1]["role"] == "assistant" else "Whole.",
                        refused=refused) as server:  # fmt: skip
        texts = asyncio.run(ask(server, 2))
        assert ("cannot continue" in capsys.readouterr().err) is bool(refused)
        assert texts == (["Whole."] * 2 if refused else ["<think> The photo is soft."] * 2)
        assert len(server.bodies) == (3 if refused else 2)  # a server that refused once is not asked for it again
        if not refused:
            assert server.bodies[0]["messages"][-1] == {"role": "assistant", "content": "<think> The photo"}
            assert [server.bodies[0][field] for field in CONTINUE_FIELDS] == [True, False]


def test_images_are_sent_without_loss_and_reduced_only_beyond_the_limit():
    image = load_image(to_pil(make_image(height=40, width=60)))  # of 8 bits, as files are

    def sent(max_pixels):
        head, data = image_url(image, max_pixels).split(",")
        assert head == "data:image/png;base64"
        return load_image(Image.open(io.BytesIO(base64.b64decode(data))))

    assert torch.equal(sent(2400), image)
    assert sent(600).shape == (3, 20, 30)
