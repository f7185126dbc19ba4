"""Precision is the process's choice for a restorer, so it belongs to the restorer's identity."""

import threading

import pytest
import torch
from ambient import AMBIENT
from brightness_runs import LQ, brightness, shifted
from tiny_pipelines import convolutions, sd3_controlnet

from restoration.restorer.restorer import Restorer
from restoration.selection.best_of_n import best_of_n
from zoomiqa_reward.model.numerics import canonical_numerics, precision_settings
from zoomiqa_reward.runs.settings import AnotherRun

ROUNDS = ("matmul_medium", "matmul_bfloat16", "conv_bfloat16", "all_tf32", "no_mkldnn")
"""Choices that `callers_precision` leaves alone."""


@pytest.mark.parametrize("name", ROUNDS)
def test_a_precision_that_the_process_chose_changes_the_fingerprint(name):
    restorer = Restorer.from_pretrained(convolutions(), scale=2)
    plain, parts = restorer.fingerprint, restorer.identity["precision"]
    with AMBIENT[name]():
        assert restorer.fingerprint != plain
        assert restorer.identity["precision"] != parts
    assert restorer.fingerprint == plain


@pytest.mark.parametrize("name", ["autocast_bfloat16", "default_float64", "default_bfloat16"])
def test_what_a_restorer_shuts_out_does_not(name):
    restorer = Restorer.from_pretrained(convolutions(), scale=2)
    plain = restorer.fingerprint
    with AMBIENT[name]():
        assert restorer.fingerprint == plain


def test_on_a_cpu_the_settings_of_cuda_do_not_matter():
    with AMBIENT["all_tf32"]():
        names = precision_settings(cuda=False)
        assert names
        assert not [name for name in names if "cuda" in name or "cudnn" in name]
        assert precision_settings(cuda=True)["torch.backends.cudnn.allow_tf32"] is True


def test_layers_that_loading_keeps_in_float32_stay_so(tmp_path):
    """T5's outputs overflow in half precision; transformers keeps them, and a cast of the whole pipeline would not."""
    sd3_controlnet().save_pretrained(tmp_path)
    restorer = Restorer.from_pretrained(tmp_path, scale=2, device="cpu", dtype=torch.float16)
    weights = restorer.engine.pipeline.text_encoder_3.named_parameters()
    kept = {name for name, weight in weights if weight.dtype == torch.float32}
    assert kept
    assert all(".wo." in name for name in kept)
    assert restorer.engine.pipeline.transformer.dtype == torch.float16


def test_it_is_the_process_s_choice_also_while_something_is_measured():
    restorer = Restorer.from_pretrained(convolutions(), scale=2)
    with AMBIENT["matmul_medium"]():
        chosen = restorer.fingerprint
        with canonical_numerics():
            assert torch.get_float32_matmul_precision() == "highest"
            assert restorer.fingerprint == chosen
        found, measuring, done = [], threading.Event(), threading.Event()

        def measure():
            with canonical_numerics():
                measuring.set()
                done.wait(30)

        thread = threading.Thread(target=measure)
        thread.start()
        assert measuring.wait(30)
        found.append(restorer.fingerprint)
        done.set()
        thread.join()
        assert found == [chosen]
        assert restorer.fingerprint == chosen
    assert restorer.fingerprint != chosen


def test_a_folder_of_another_precision_names_it(tmp_path):
    restorer = Restorer.from_pretrained(shifted, scale=2)
    options = {"n": 2, "out": tmp_path / "run", "progress": False}
    best_of_n(restorer, LQ, brightness(), **options)
    with AMBIENT["matmul_medium"](), pytest.raises(AnotherRun, match=r"precision\.torch\.set_float32_matmul_precision"):
        best_of_n(restorer, LQ, brightness(), **options)
    best_of_n(restorer, LQ, brightness(), **options)
