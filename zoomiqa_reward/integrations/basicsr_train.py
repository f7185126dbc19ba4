"""BasicSR's own training with Zoom-IQA's losses and metric: `python -m zoomiqa_reward.integrations.basicsr_train`.

The options are those of BasicSR's `train.py`: `-opt train.yml`, `--launcher`, `--auto_resume`, `--force_yml`. It writes
to `experiments/` in the working folder unless the YAML file names `path: experiments_root`.
"""

import os
import sys
import warnings

from zoomiqa_reward.runs.program import run_program

KEPT = "the last saved state lies in the folder of the experiment; --auto_resume goes on from there"


def main() -> int:
    """Train as the YAML file says and return the exit code."""
    return run_program("basicsr_train", _train, kept=KEPT)


def _train() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BasicSR's imports use what numpy and torchvision have renamed
        from basicsr.train import train_pipeline

        import zoomiqa_reward.integrations.basicsr  # noqa: F401  # registers
    train_pipeline(os.getcwd())
    return 0


if __name__ == "__main__":
    sys.exit(main())
