"""The curation against `transformers serve` with the embedded model as the teacher: a real model over real HTTP.

nano is a weak teacher, and that is no part of this test: rows, refusals and the journal are. What the filters are worth
is measured with a scripted teacher, in `test_curation_filters.py`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import NANO
from PIL import Image

pytest.importorskip("openai", reason="comes with the extra [train]")
pytest.importorskip("fastapi", reason="transformers serve needs transformers[serving]")
pytest.importorskip("uvicorn", reason="transformers serve needs transformers[serving]")

from benchmarks.planted.cases import make_cases
from benchmarks.planted.teacher import scripted_dataset
from train_iqa.curation.config import CurateConfig
from train_iqa.curation.endpoint import Endpoint
from train_iqa.curation.loop import curate
from train_iqa.data import DatasetSource
from train_iqa.rows.conversations import read_conversations
from zoomiqa_reward.check import bundled_photographs
from zoomiqa_reward.model.text_server.local_server import serve
from zoomiqa_reward.runs.json_lines import read_lines

pytestmark = pytest.mark.integration


@pytest.fixture
def served(nano):
    """A server that holds the embedded model."""
    with serve(nano) as running:
        yield running


def test_nano_as_the_teacher_over_transformers_serve(served, tmp_path):
    with Image.open(bundled_photographs()[0]) as photograph:
        clean = np.asarray(photograph.convert("RGB").crop((96, 0, 256, 160)), dtype=np.float32) / 255
    table, _ = scripted_dataset(tmp_path / "data", make_cases([clean], 3, seed=2))
    teacher = Endpoint(model=served.model, base_url=served.base_url, max_tokens=256, timeout_s=120)
    config = CurateConfig(
        sources=(DatasetSource(family="csv", root=table),),
        teacher=teacher,
        out=tmp_path / "all",
        protocol=NANO,
        attempts=1,
        rating_tolerance=4.0,
        concurrency=2,
    )
    plain = replace(config, out=tmp_path / "plain", consistency=None, reliance=None)
    report = curate(plain)
    assert report["failed"] == 0
    assert report["kept"] + report["rejected"] == 3
    assert report["kept"] >= 1
    talks = read_conversations(tmp_path / "plain" / "conversations.jsonl")
    assert len(talks) == report["kept"]
    assert all("Issues to Avoid" in talk.rounds[0] for talk in talks)
    calls = read_lines(tmp_path / "plain" / "calls.jsonl")
    assert all(call["tokens_in"] > 50 and call["tokens_out"] > 10 for call in calls)
    curate(plain)
    assert read_lines(tmp_path / "plain" / "calls.jsonl") == calls  # nothing was asked again

    filtered = curate(config)
    refused = sum(group["answers"] for group in filtered["rejections"].values())
    assert filtered["failed"] == 0
    assert filtered["kept"] + filtered["rejected"] == 3
    assert refused >= filtered["rejected"]
    assert json.loads((tmp_path / "all" / "report.json").read_text())["judge"] == "rules"
    blind = filtered["cost"]["teacher"]["of_these_continuations"]["calls"]
    assert blind > 0 or filtered["rejections"]["consistency"]["answers"] > 0
