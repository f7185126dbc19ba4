"""GR-IQA curation: a teacher's rationales, kept where they rely on the image and agree with what is measured on it.

`docs/curation.md` is the guide; the command is `python -m train_iqa.curate`. Source: the framework figure of Zoom-IQA,
arXiv 2601.02918; prompts, thresholds, judges and journal are ours.
"""
