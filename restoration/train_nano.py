"""`python -m restoration.train_nano`: train the embedded restorer; `docs/nano.md` is the guide."""

import sys

from restoration.nano.train import main

if __name__ == "__main__":
    sys.exit(main())
