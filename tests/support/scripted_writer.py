"""Answers from a script in place of a model's, and how images are assessed with them."""

from tiny import tiny_iqa

from zoomiqa_reward.model.generate import Completion, Sampling
from zoomiqa_reward.model.reason import assess_images

GREEDY = Sampling(max_new_tokens=8)
THINK = "<think>Image Quality Summary: soft. Issues to Avoid: noise.</think>"
ZOOM = THINK + '<answer>{"bbox_2d": [0.1, 0.1, 0.6, 0.7], "rating": 2.5, "tool": "crop"}</answer>'
FINAL = THINK + '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": 3.25, "tool": "final"}</answer>'
SECOND = '<think>Crop Inspection Summary: fine.</think><answer>{"bbox_2d": [0], "rating": 4, "tool": "final"}</answer>'
NO_NUMBER = '<answer>{"bbox_2d": [0], "rating": "?", "tool": "final"}</answer>'


class Writer:
    """Answers from a script, one list of texts for each call, and keeps what it was asked."""

    def __init__(self, *calls, truncated=False):
        self.calls = list(calls)
        self.truncated = truncated
        self.prompts = []
        self.rows = []
        self.seeds = []
        self.temperatures = []

    def __call__(self, checkpoint, rows, sampling):
        texts = self.calls.pop(0)
        assert len(texts) == len(rows)
        self.prompts.append([checkpoint.tokenizer.decode(row.input_ids.tolist()) for row in rows])
        self.rows.append(rows)
        self.seeds.append(sampling.seed)
        self.temperatures.append(sampling.temperature)
        return [Completion(text=text, is_truncated=self.truncated) for text in texts]


def ask(writer, images, sampling=GREEDY, **options):
    found = assess_images(tiny_iqa().checkpoint, images, sampling=sampling, write=writer, **options)
    assert writer.calls == []
    return [samples[0] for samples in found]
