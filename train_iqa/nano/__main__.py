"""`python -m train_iqa.nano`: train the embedded quality model; `docs/nano.md` is the guide."""

import sys

from train_iqa.nano.train import main

if __name__ == "__main__":
    sys.exit(main())
