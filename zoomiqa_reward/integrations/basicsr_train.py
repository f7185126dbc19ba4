"""BasicSR's own training with Zoom-IQA's losses and metric: `python -m zoomiqa_reward.integrations.basicsr_train`.

The options are those of BasicSR's `train.py`: `-opt train.yml`, `--launcher`, `--auto_resume`, `--force_yml`. It writes
to `experiments/` in the working folder unless the YAML file names `path: experiments_root`. The file is checked
first, because BasicSR would read the name of a missing file as options.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from zoomiqa_reward.runs.program import Parser, run_program

NAME = "basicsr_train"
KEPT = "the last saved state, if there is one, is in the folder of the experiment; --auto_resume continues from it"
NEEDED = ("name", "model_type", "num_gpu", "datasets", "path", "train", "logger")
"""What BasicSR reads of every file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the YAML file says and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog=NAME, description=__doc__)
    parser.add_argument("-opt", required=True, type=Path, metavar="FILE", help="BasicSR's YAML file")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    parser.add_argument("--auto_resume", action="store_true", help="continue from the last saved state")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--force_yml", nargs="+", metavar="KEY=VALUE", help="replace values of the file")
    args = parser.parse_args(words)
    return run_program(NAME, lambda: _train(args.opt, words), kept=KEPT)


def _train(file: Path, words: list[str]) -> int:
    _check(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BasicSR's imports use what numpy and torchvision have renamed
        import zoomiqa_reward.integrations.basicsr  # noqa: F401  # registers, or says what is missing

        from basicsr.train import train_pipeline  # isort: skip
    given, sys.argv = sys.argv, [NAME, *words]  # BasicSR takes its options from there only
    try:
        train_pipeline(os.getcwd())
    finally:
        sys.argv = given
    return 0


def _check(file: Path) -> None:
    """Raise ValueError that names what is wrong with the file."""
    import yaml

    if not file.is_file():
        raise ValueError(f"-opt {file}: is not a file; give BasicSR's YAML file")
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"-opt {file}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(options, dict):
        raise ValueError(f"-opt {file}: must hold names with values, as BasicSR's examples do")
    if missing := [key for key in NEEDED if key not in options]:
        raise ValueError(f"-opt {file}: {missing[0]!r} is missing; BasicSR needs {', '.join(NEEDED)}")


if __name__ == "__main__":
    sys.exit(main())
