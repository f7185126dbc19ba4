"""What `python -m train_iqa.evaluate` is made of: one measure, one file."""
