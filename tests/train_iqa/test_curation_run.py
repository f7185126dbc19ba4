"""Whole runs against a real HTTP server that follows a script: rows, rejections, back-off, kills, costs."""

import collections
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("openai", reason="comes with the extra [train]")

from benchmarks.planted.cases import make_cases
from benchmarks.planted.endpoint import ScriptedServer, completion, request_images, request_text
from benchmarks.planted.reliance import guess, sample_continuation
from benchmarks.planted.teacher import scripted_dataset
from train_iqa.curation.config import CurateConfig
from train_iqa.curation.endpoint import Asker, Calls, Endpoint, FatalEndpointError, answer_entropy
from train_iqa.curation.loop import curate
from train_iqa.curation.reliance import RelianceConfig
from train_iqa.data import DatasetSource
from train_iqa.rows.conversations import read_conversations
from zoomiqa_reward.check import bundled_photographs
from zoomiqa_reward.protocol import read_route
from zoomiqa_reward.runs.json_lines import read_lines

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cases():
    photographs = []
    for path in bundled_photographs()[:3]:
        with Image.open(path) as photograph:
            photographs.append(np.asarray(photograph.convert("RGB").crop((60, 60, 220, 220)), dtype=np.float32) / 255)
    return make_cases(photographs, 14, seed=5)


@pytest.fixture(scope="module")
def scripted(cases, tmp_path_factory):
    """The table of 14 images, and their teacher."""
    return scripted_dataset(tmp_path_factory.mktemp("scripted"), cases)


def configured(scripted, out, url, **changes):
    endpoint = Endpoint(model="scripted", base_url=url, price_in=2.0, price_out=8.0, timeout_s=20)
    fields = {"sources": (DatasetSource(family="csv", root=scripted[0]),), "teacher": endpoint, "out": out}
    return CurateConfig(**(fields | changes))


def test_a_run_keeps_what_sft_reads(scripted, cases, tmp_path):
    with ScriptedServer(scripted[1]) as server:
        report = curate(configured(scripted, tmp_path, server.url))
        asked = len(server.bodies)
    assert report["judge"] == "rules"
    assert report["kept"] + report["rejected"] == 14
    assert report["failed"] == report["open"] == 0
    talks = read_conversations(tmp_path / "conversations.jsonl")
    assert len(talks) == report["kept"] == report["rows"]["round1"] > 9
    zooming = [talk for talk in talks if read_route(talk.rounds[0]).zoom]
    assert [len(talk.rounds) for talk in zooming].count(2) == report["rows"]["round2"] > 2
    assert sorted(file.suffix for file in (tmp_path / "images").iterdir()) == [".png"] * len(talks)
    rejected = report["rejections"]
    assert rejected["consistency"]["answers"] + report["dropped_sentences"]["sentences"] > 0
    assert report["cost"]["teacher"]["calls"] == asked == len(read_lines(tmp_path / "calls.jsonl"))
    cost = report["cost"]["teacher"]
    assert cost["money"] == pytest.approx((2 * cost["tokens_in"] + 8 * cost["tokens_out"]) / 1e6)
    assert json.loads((tmp_path / "report.json").read_text())["kept"] == report["kept"]
    # what the rules judge contradicted is in no row
    plants = {case.plant for case in cases if case.plant}
    gone = {one["sentence"] for row in read_lines(tmp_path / "outcomes.jsonl") for one in row["dropped"]}
    text = "\n".join("\n".join(talk.rounds) for talk in talks)
    assert gone & plants
    assert not any(plant in text for plant in plants if plant in gone)


def test_continuations_with_and_without_the_image_differ_in_nothing_else(scripted, tmp_path):
    """Neither is told the score, and each answer has as many of one kind as of the other."""
    with ScriptedServer(scripted[1]) as server:
        curate(configured(scripted, tmp_path, server.url, limit=4))
    counts = collections.Counter()
    for body in server.bodies:
        text, images = request_text(body).strip(), request_images(body)
        is_continuation = "The analysis begins:" in text
        assert ("People rated it" in text) != is_continuation
        if is_continuation:
            counts[text, len(images)] += 1
        else:
            assert images
    texts = {text for text, _ in counts}
    assert texts
    assert {images for _, images in counts} == {0, 1}
    assert all(counts[text, 0] == counts[text, 1] for text in texts)
    calls = [row["call"] for row in read_lines(tmp_path / "calls.jsonl") if "/seen" in row["call"]]
    assert len(set(calls)) == len(calls) == sum(counts[text, 1] for text in texts)
    base = configured(scripted, tmp_path, "http://localhost:1", attempts=1)
    with pytest.raises(ValueError, match="at temperature 0 they are all the same"):
        replace(base, teacher=replace(base.teacher, temperature=0.0))


def test_a_teacher_without_eyes_has_nothing_kept(scripted, tmp_path):
    """It writes what the score demands and then goes on from its text, image or not."""

    def blind(body):
        begins, beginning = request_text(body).partition("The analysis begins:")[1:]
        if not begins:
            return scripted[1](body)
        return sample_continuation(*guess(beginning), np.random.default_rng(body["seed"])).render()

    with ScriptedServer(blind) as server:
        report = curate(configured(scripted, tmp_path, server.url, consistency=None, attempts=1))
    assert report["rejections"]["reliance"]["answers"] >= 13
    assert set(report["rejections"]["reliance"]["reasons"]) == {"the same without the image"}


def test_a_run_that_is_done_asks_nothing(scripted, tmp_path):
    with ScriptedServer(scripted[1]) as server:
        config = configured(scripted, tmp_path, server.url, limit=5)
        first = curate(config)
        before, asked = (tmp_path / "conversations.jsonl").read_bytes(), len(server.bodies)
        again = curate(config)
        assert len(server.bodies) == asked
        assert (tmp_path / "conversations.jsonl").read_bytes() == before
        assert {**again, "seconds": 0} == {**first, "seconds": 0}
        more = curate(replace(config, limit=7))
        assert more["images"] == 7
        assert len(read_lines(tmp_path / "outcomes.jsonl")) == 7


def test_the_clients_back_off_survives_refusals(scripted, tmp_path):
    with ScriptedServer(scripted[1], statuses=lambda number: (429, 200, 500)[number % 3]) as server:
        report = curate(configured(scripted, tmp_path, server.url, limit=3, concurrency=2))
    assert report["failed"] == 0
    assert len(server.bodies) > report["cost"]["teacher"]["calls"]


def test_a_failed_image_is_no_rejection_and_is_tried_again(scripted, tmp_path):
    with ScriptedServer(scripted[1], statuses=lambda number: 400 if number < 2 else 200) as server:
        config = configured(scripted, tmp_path, server.url, limit=4, concurrency=1)
        report = curate(config)
        assert (report["failed"], report["open"]) == (2, 2)
        assert "scripted refusal 400" in report["failures"][0]["error"]
        assert curate(config)["open"] == 0


def test_a_reply_that_is_no_chat_completion_fails_its_image_alone(scripted, tmp_path, monkeypatch):
    """Else it ended the run, and what stands in the journal would end every later one."""
    from benchmarks.planted import endpoint as module

    nonsense = [
        lambda good: [],
        lambda good: good | {"choices": [None]},
        lambda good: good | {"choices": [good["choices"][0] | {"message": {"content": [{"text": "soft"}]}}]},
        lambda good: good | {"choices": [good["choices"][0] | {"message": None}]},
    ]

    def spoilt(body, text):
        made = completion(body, text) | {"usage": {"prompt_tokens": "7", "completion_tokens": 3}}
        return nonsense.pop()(made) if nonsense else made

    monkeypatch.setattr(module, "completion", spoilt)
    with ScriptedServer(scripted[1]) as server:
        config = configured(scripted, tmp_path, server.url, limit=6, concurrency=1, reliance=None)
        report = curate(config)
        assert (report["failed"], report["open"]) == (4, 4)
        assert all("no chat completion" in failure["error"] for failure in report["failures"])
        again = curate(config)
    assert (again["failed"], again["open"], again["kept"] + again["rejected"]) == (0, 0, 6)
    cost = again["cost"]["teacher"]
    assert cost["calls"] == cost["calls_without_token_counts"] > 0
    assert cost["money"] is None


def test_half_a_character_of_the_teacher_is_written_and_read(scripted, tmp_path):
    with ScriptedServer(lambda body: scripted[1](body).replace("Rationale: ", "Rationale: Half\ud83d ")) as server:
        report = curate(configured(scripted, tmp_path, server.url, limit=2, reliance=None))
    assert report["failed"] == 0
    talks = read_conversations(tmp_path / "conversations.jsonl")
    assert len(talks) == 2
    assert all("Rationale: Half? " in text for talk in talks for text in talk.rounds)


@pytest.mark.parametrize("options", [{"temperature": math.nan}, {"price_in": math.nan}, {"price_out": -1.0}])
def test_numbers_of_an_endpoint_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="must be at least 0"):
        Endpoint(model="any", **options)


def test_as_many_images_are_in_work_as_asked_for(scripted, tmp_path):
    for concurrency in (1, 3):
        with ScriptedServer(scripted[1], delay_s=0.05) as server:
            curate(configured(scripted, tmp_path / str(concurrency), server.url, limit=6, concurrency=concurrency))
        assert server.busiest == concurrency
    rows = [(tmp_path / name / "conversations.jsonl").read_bytes() for name in ("1", "3")]
    assert rows[0] == rows[1]


def test_what_cannot_succeed_stops_the_run(scripted, tmp_path):
    with ScriptedServer(scripted[1], statuses=lambda _: 401) as server:
        with pytest.raises(FatalEndpointError, match="scripted refusal 401"):
            curate(configured(scripted, tmp_path / "key", server.url))
        assert len(server.bodies) <= 8
    with ScriptedServer(scripted[1], statuses=lambda _: 400) as server:
        with pytest.raises(FatalEndpointError, match="3 images failed in a row"):
            curate(configured(scripted, tmp_path / "row", server.url, max_failures=3, concurrency=1))
        assert len(server.bodies) == 3


def test_form_and_rating_are_rejected_with_their_reasons(scripted, tmp_path):
    def careless(body):
        text = scripted[1](body)
        if not request_images(body):
            return text
        return (
            text.replace("Issues to Avoid", "Issues") if body["seed"] % 2 else text.replace('"rating": ', '"rating": 9')
        )

    with ScriptedServer(careless) as server:
        report = curate(configured(scripted, tmp_path, server.url, limit=6))
    assert report["kept"] == 0
    assert not (tmp_path / "conversations.jsonl").exists()
    assert report["rejections"]["form"]["answers"] == 18  # three attempts an image
    reasons = report["rejections"]["form"]["reasons"]
    assert set(reasons) == {"section missing", "rating off the scale"}
    assert len(reasons["section missing"]["examples"]) == 3
    with ScriptedServer(lambda body: scripted[1](body).replace('"rating": 3', '"rating": 1')) as server:
        report = curate(configured(scripted, tmp_path / "far", server.url))
    assert report["rejections"]["rating"]["answers"] > 0


def test_an_unreadable_continuation_is_never_a_pass(scripted, tmp_path):
    def mute(body):
        return scripted[1](body) if request_images(body) else "I cannot see the photograph."

    with ScriptedServer(mute) as server:
        report = curate(configured(scripted, tmp_path, server.url, limit=4))
        off = curate(configured(scripted, tmp_path / "off", server.url, limit=4, reliance=None))
    assert report["kept"] == 0
    assert set(report["rejections"]["reliance"]["reasons"]) == {"no readable continuation"}
    assert off["kept"] > 0
    assert off["filters"]["reliance"] == "off"


def test_a_model_judges_over_http(scripted, cases, tmp_path):
    plants = {case.plant for case in cases if case.plant}

    def judge(body):
        text = request_text(body)
        assert "Measured on the whole photograph: noise" in text
        lines = [line for line in text.split("Sentences:")[1].splitlines() if line[:1].isdigit()]
        rows = [
            {"number": k, "verdict": "contradiction" if any(p in line for p in plants) else "match", "why": "seen"}
            for k, line in enumerate(lines, 1)
        ]
        return json.dumps({"sentences": rows if body["seed"] % 2 else rows[1:]})  # every second reply is unusable

    with ScriptedServer(scripted[1]) as teacher, ScriptedServer(judge) as judging:
        asked = Endpoint(model="judge-7b", base_url=judging.url, temperature=0.0)
        report = curate(configured(scripted, tmp_path, teacher.url, judge=asked))
    assert report["judge"] == "model judge-7b"
    assert report["cost"]["judge"]["calls"] == len(judging.bodies) > report["kept"]
    assert report["cost"]["judge"]["money"] is None  # no prices were given
    text = (tmp_path / "conversations.jsonl").read_text()
    assert report["kept"] > 5
    assert not any(plant in text for plant in plants)


def test_a_judge_that_cannot_be_read_keeps_nothing(scripted, tmp_path):
    with ScriptedServer(scripted[1]) as teacher, ScriptedServer(lambda _: "fine") as judging:
        asked = Endpoint(model="judge", base_url=judging.url, temperature=0.0)
        report = curate(configured(scripted, tmp_path, teacher.url, judge=asked, limit=2, attempts=1))
    assert report["kept"] == 0
    assert set(report["rejections"]["consistency"]["reasons"]) == {"not judged"}


def test_a_folder_belongs_to_one_run_and_one_process(scripted, tmp_path):
    with ScriptedServer(scripted[1]) as server:
        config = configured(scripted, tmp_path, server.url, limit=2)
        curate(config)
        with pytest.raises(ValueError, match=r"holds another run \(attempts was"):
            curate(replace(config, attempts=2))
        curate(replace(config, concurrency=1, teacher=replace(config.teacher, price_in=1.0, max_retries=0)))
        holder = subprocess.Popen(
            [sys.executable, "-c", "import fcntl, sys; h = open(sys.argv[1]); fcntl.flock(h, fcntl.LOCK_EX); print(1, "
             "flush=True); sys.stdin.read()", tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with holder:
            holder.stdout.readline()
            with pytest.raises(ValueError, match="another process works in it"):
                curate(config)
            holder.stdin.close()


FORKING = """
import os, sys
from train_iqa.curate import main
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr
        os._exit(main(sys.argv[1:]))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A process that has imported everything once, and runs the command in a fresh child for each line that it reads."""


def test_kill_9_three_times_loses_and_doubles_nothing(scripted, tmp_path):
    with ScriptedServer(scripted[1]) as server:  # what comes out when nobody interferes
        curate(configured(scripted, tmp_path / "whole", server.url, concurrency=3))
    draw, kills = random.Random(20), 3
    with ScriptedServer(scripted[1], delay_s=0.15) as server:
        arguments = [
            "--data", f"csv={scripted[0]}", "--teacher", "scripted", "--teacher-url", server.url, "--concurrency", "3",
            "--out", str(tmp_path / "killed"),
        ]  # fmt: skip
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", FORKING, *arguments], cwd=ROOT, **pipes) as parent:
            for number in range(kills + 1):
                before = len(server.bodies)
                print(file=parent.stdin, flush=True)
                child = int(parent.stdout.readline())
                if number < kills:
                    until = time.monotonic() + 60
                    while len(server.bodies) <= before and time.monotonic() < until:  # it has begun to ask
                        time.sleep(0.02)
                    time.sleep(draw.uniform(0.1, 0.8))
                    os.kill(child, signal.SIGKILL)
                status = int(parent.stdout.readline())
                assert os.WIFSIGNALED(status) == (number < kills), "a run ended before it was killed"
            parent.stdin.close()
            error = parent.stderr.read()
    assert os.waitstatus_to_exitcode(status) == 0, error
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (killed / "conversations.jsonl").read_bytes() == (whole / "conversations.jsonl").read_bytes()
    lines = read_lines(killed / "outcomes.jsonl")
    assert len({row["id"] for row in lines}) == len(lines) == 14
    calls = [row["call"] for row in read_lines(killed / "calls.jsonl")]
    assert sorted(calls) == sorted(row["call"] for row in read_lines(whole / "calls.jsonl"))
    assert len(set(calls)) == len(calls)
    assert len(server.bodies) <= len(calls) + kills * 3 * 2  # only what was under way at a kill was asked twice
    assert sorted(f.name for f in (killed / "images").iterdir()) == sorted(f.name for f in (whole / "images").iterdir())


def test_entropy_of_the_answer_is_a_lower_bound_from_the_likeliest_tokens(tmp_path):
    def token(text, *chances):
        top = [type("T", (), {"logprob": math.log(chance)}) for chance in chances]
        return type("Token", (), {"token": text, "top_logprobs": top})

    tokens = [token("soft", 0.5, 0.5), token("<answer>", 1.0), token("3", 0.5, 0.5), token(".", 0.75)]
    found = answer_entropy(type("L", (), {"content": tokens}))
    assert found == pytest.approx((math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2)
    assert answer_entropy(None) is None


def test_log_probabilities_are_asked_for_and_used(scripted, tmp_path, monkeypatch):
    def with_logprobs(body, text):
        made = completion(body, text)
        chance = 0.999 if request_images(body) else 0.4
        tokens = [
            {"token": part, "logprob": math.log(chance), "bytes": None,
             "top_logprobs": [{"token": part, "logprob": math.log(chance), "bytes": None}]}
            for part in ("<answer>", "{", "}")
        ]  # fmt: skip
        made["choices"][0]["logprobs"] = {"content": tokens}
        return made

    from benchmarks.planted import endpoint as module

    monkeypatch.setattr(module, "completion", with_logprobs)
    with ScriptedServer(scripted[1]) as server:
        base = configured(scripted, tmp_path, server.url, limit=6, consistency=None)
        # thresholds that no box or rating reaches: only the entropy is left
        strict = RelianceConfig(box=1.0, rating=4.0)
        report = curate(replace(base, reliance=strict, teacher=replace(base.teacher, top_logprobs=5)))
    assert all(body["logprobs"] and body["top_logprobs"] == 5 for body in server.bodies)
    assert report["kept"] == 6


def test_a_key_is_sent_and_written_nowhere(scripted, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "a-secret-word\n")
    with ScriptedServer(scripted[1]) as server:
        base = configured(scripted, tmp_path, server.url, limit=1)
        asker = Asker(replace(base.teacher, key_variable="TEACHER_KEY"), "teacher", Calls(tmp_path / "none.jsonl"))
        assert asker._client.api_key == "a-secret-word"
        monkeypatch.setenv("WRONG_KEY", "a-sécret-word")
        with pytest.raises(FatalEndpointError, match=r"teacher: WRONG_KEY: .*ASCII in one line"):
            Asker(replace(asker.endpoint, key_variable="WRONG_KEY"), "teacher", asker.calls)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which no server of this machine is asked through
        assert curate(replace(base, teacher=replace(base.teacher, key_variable="TEACHER_KEY")))["kept"] == 1
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"a-secret-word" not in file.read_bytes()
