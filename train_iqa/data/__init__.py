"""Labelled image sets: eight public ones in their own layouts, JSON lists and tables, all on one scale 1..5."""

from train_iqa.data.checking import find_shared, load_dataset, load_datasets, require_readable
from train_iqa.data.record import DatasetProblems, IqaDataset, LabelledImage, Problem, Scale
from train_iqa.data.registry import FAMILIES, DatasetSource
from train_iqa.data.splits import select, split_by_reference

__all__ = [
    "FAMILIES",
    "DatasetProblems",
    "DatasetSource",
    "IqaDataset",
    "LabelledImage",
    "Problem",
    "Scale",
    "find_shared",
    "load_dataset",
    "load_datasets",
    "require_readable",
    "select",
    "split_by_reference",
]
