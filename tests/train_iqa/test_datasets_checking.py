"""Lists and tables, what is wrong with them in one list, and which images belong to which part."""

import json
import math
import random
from pathlib import Path

import pytest
from dataset_copies import image_file, write_images, write_kadid, write_koniq
from tiny import make_image

from train_iqa.data import (
    DatasetProblems,
    DatasetSource,
    IqaDataset,
    LabelledImage,
    Scale,
    find_shared,
    load_dataset,
    load_datasets,
    select,
    split_by_reference,
)
from zoomiqa_reward.images import save_png


def table(root: Path, *lines: str, header: str = "image,mos") -> Path:
    file = root / "table.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return file


def test_all_problems_of_all_sets_come_in_one_list(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    image_file(outside)
    write_images(root, "a.png", "b.png")
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    (root / "cut.png").write_bytes((root / "b.png").read_bytes()[:60])
    (root / "text.png").write_text("no image")
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "b.png")
    lines = [
        "a.png,3", "b.png,4", "copy.png,3", "cut.png,3", "text.png,3", "link.png,3", "inner.png,2", "no.png,3",
        "a.png,3",
        "../outside.png,3", f"{outside},3", r"..\outside.png,3", r"C:\x.png,3", "sub/../a.png,3",
        "b.png,9", "a.png,nan", "a.png,",
    ]  # fmt: skip
    sources = [
        DatasetSource(family="csv", root=table(root, *lines)),
        DatasetSource(family="spaq", root=tmp_path / "nothing"),
    ]
    with pytest.raises(DatasetProblems) as caught:
        load_datasets(sources)
    found = sorted((problem.kind, problem.dataset) for problem in caught.value.problems)
    assert found == sorted(
        [("corrupt", "table")] * 2
        + [("duplicate", "table")] * 4  # copy.png, inner.png (a link to b.png), a.png and b.png once more
        + [("escape", "table")] * 6
        + [("label", "table")] * 3
        + [("missing", "table"), ("layout", "spaq")]
    )
    message = str(caught.value)
    assert message.startswith("17 problems (1 layout, 3 label, 6 escape, 1 missing, 2 corrupt, 4 duplicate)")
    assert len(message.splitlines()) == 18
    assert f"{root / 'copy.png'}: is a copy of {root / 'a.png'}" in message


def test_accepted_problems_leave_images_out_and_say_so(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    file = table(tmp_path, "a.png,1", "copy.png,2", "b.png,3", "no.png,4")
    dataset = load_dataset("csv", file, accept=["missing", "duplicate"])
    assert [(image.id, image.mos) for image in dataset.images] == [("a.png", 1.0), ("b.png", 3.0)]
    assert [(problem.kind, problem.dataset) for problem in dataset.left_out] == [
        ("missing", "table"), ("duplicate", "table"),
    ]  # fmt: skip
    with pytest.raises(DatasetProblems, match="1 missing"):
        load_dataset("csv", file, accept=["duplicate"])
    with pytest.raises(ValueError, match="accept"):
        load_dataset("csv", file, accept=["escape"])


def test_checks_of_paths_do_not_open_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    file = table(tmp_path, "text.png,2")
    [image] = load_dataset("csv", file, checks="paths").images
    assert image.sha256 is None
    with pytest.raises(DatasetProblems, match="not an image"):
        load_dataset("csv", file)
    with pytest.raises(DatasetProblems, match="listed twice"):
        load_dataset("csv", table(tmp_path, "text.png,2", "text.png,2"), checks="paths")


def test_a_comma_within_a_field_shifts_no_label(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    with pytest.raises(DatasetProblems, match=r"table\.csv:2: more fields than columns; .* decimal point"):
        load_dataset("csv", table(tmp_path, "a.png,3,75", "b.png,2"))
    with pytest.raises(DatasetProblems, match="more fields than columns"):
        load_dataset("csv", table(tmp_path, "a.png,3,75,s1", header="image,mos,reference"))
    with pytest.raises(DatasetProblems, match="two columns are named mos"):
        load_dataset("csv", table(tmp_path, "a.png,3,4", header="image,mos,mos"))
    assert len(load_dataset("csv", table(tmp_path, "a.png,3,,", "b.png,2"))) == 2  # what a spreadsheet leaves
    with pytest.raises(DatasetProblems, match="mos is '4_0', not a finite number"):
        load_dataset("csv", table(tmp_path, "a.png,4_0"))


def test_a_list_that_is_damaged_or_names_what_no_disk_holds_is_a_problem(tmp_path: Path) -> None:
    open_quote = ['"a.png,3', *["b.png,2"] * 20_000]  # longer than csv takes for a field
    (tmp_path / "digits.json").write_text(f'[{{"image": "a.png", "gt_score": {"1" * 5000}}}]')
    (tmp_path / "half.json").write_text('[{"image": "a\\ud800.png", "gt_score": 3}]')
    sources = [DatasetSource(family="csv", root=table(tmp_path, *open_quote))]
    sources += [DatasetSource(family="json", root=tmp_path / f"{name}.json") for name in ("digits", "half")]
    with pytest.raises(DatasetProblems) as caught:
        load_datasets(sources, checks="paths")
    assert [problem.kind for problem in caught.value.problems] == ["layout", "layout", "missing"]
    assert "is a quote left open?" in str(caught.value)


def test_a_split_names_every_image_and_tears_no_reference_apart(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    header = "image,mos,reference,split"
    with pytest.raises(DatasetProblems, match=r"1 of 3 images, b\.png first, name no split"):
        load_dataset("csv", table(tmp_path, "a.png,3,x,test", "b.png,3,y,", "c.png,3,z,training", header=header))
    with pytest.raises(DatasetProblems, match="reference x: its images are in test and training"):
        load_dataset("csv", table(tmp_path, "a.png,3,x,test", "b.png,3,y,test", "c.png,3,x,training", header=header))
    entries = [
        {"image": "a.png", "gt_score": 3, "reference": "x "},
        {"image": "b.png", "gt_score": 3, "reference": "x"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert {image.reference for image in load_dataset("json", tmp_path / "list.json").images} == {"x"}


def test_a_table_with_all_its_columns(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    header = "image,mos,std,scene,split,boxes"
    lines = ["a.png,0,5,s1,test,0 0 0.5 0.5; 0.5 0.5 1 1", "b.png,100,, s1 ,test,none", "c.png,50,10,,training,"]
    file = table(tmp_path, *lines, header=header)
    first, second, third = load_dataset("csv", file, name="mine", scale=Scale(worst=0, best=100)).images
    assert (first.mos, first.std, first.reference, first.split) == (1.0, 0.2, "s1", "test")
    assert first.boxes == ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    assert (second.mos, second.boxes, second.split, second.reference) == (5.0, (), "test", "s1")
    assert math.isnan(second.std)
    assert (third.mos, third.boxes, third.reference) == (3.0, None, None)
    with pytest.raises(DatasetProblems) as caught:
        load_dataset("csv", table(tmp_path, "a.png,3,-1,,exam,", "b.png,3,,,,0 0 2 1", header=header))
    message = str(caught.value)
    assert "standard deviation -1.0 is negative" in message
    assert "box [0.0, 0.0, 2.0, 1.0]: must be" in message
    with pytest.raises(DatasetProblems, match="split 'exam'"):
        load_dataset("csv", table(tmp_path, "a.png,3,,,exam,", header=header))
    with pytest.raises(DatasetProblems, match="no column mos; it has image, score"):
        load_dataset("csv", table(tmp_path, header="image,score"))


def test_the_official_evaluators_and_deqas_lists(tmp_path: Path) -> None:
    write_images(tmp_path, "KONIQ/images/a.jpg", "KONIQ/images/b.jpg")
    metas = tmp_path / "metas"
    metas.mkdir()

    def load(entries: object, **options: object) -> IqaDataset:
        (metas / "test_koniq_2k.json").write_text(json.dumps(entries))
        return load_dataset("json", metas / "test_koniq_2k.json", image_root=tmp_path, **options)

    deqa = {
        "id": "1",
        "image": "KONIQ/images/a.jpg",
        "gt_score": 3.9,
        "gt_score_norm": 4.5,
        "std": 0.5,
        "std_norm": 0.62,
    }
    dataset = load([deqa | {"level_probs": [0.1], "conversations": []}])
    [image] = dataset.images
    assert (dataset.name, image.mos, image.std) == ("test_koniq_2k", 4.5, 0.62)
    older = [{"img_path": "KONIQ/images/a.jpg", "gt_score": 2.0}, {"image": ["KONIQ/images/b.jpg"], "gt_score": 4}]
    assert [image.mos for image in load(older).images] == [2.0, 4.0]
    boxed = [{"image": "KONIQ/images/a.jpg", "gt_score": 75, "std": 25, "boxes": [[0, 0, 0.5, 1]]}]
    [image] = load(boxed, scale=Scale(worst=0, best=100)).images
    assert (image.mos, image.std, image.boxes) == (4.0, 1.0, ((0.0, 0.0, 0.5, 1.0),))
    for entries, message in (
        (boxed, "another column, or pass the scale"),
        ({"files": []}, "holds a dict"),
        ([], "names no images"),
        (["a.jpg"], "entry 0: is a str"),
        ([{"image": "KONIQ/images/a.jpg", "gt_score": True}], "gt_score is True"),
        ([{"gt_score": 3}], "image is None"),
        ([deqa, {"image": "KONIQ/images/b.jpg", "gt_score": 3}], "gt_score_norm is None"),
    ):
        with pytest.raises(DatasetProblems, match=message):
            load(entries)


def test_sources_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown data set 'coco'"):
        DatasetSource(family="coco", root=Path())
    with pytest.raises(ValueError, match="belong to lists"):
        DatasetSource(family="koniq", root=Path(), scale=Scale(worst=0, best=1))
    with pytest.raises(ValueError, match="two data sets of one name"):
        load_datasets(
            [DatasetSource(family="csv", root=Path("a/x.csv")), DatasetSource(family="csv", root=Path("b/x.csv"))]
        )
    with pytest.raises(ValueError, match="two different"):
        Scale(worst=1, best=1)


def images_of(*references: str | None) -> list[LabelledImage]:
    return [
        LabelledImage(dataset="d", id=f"{k}.png", path=Path(), mos=3, std=0, label=3, reference=reference)
        for k, reference in enumerate(references)
    ]


def test_no_reference_is_in_two_parts() -> None:
    images = images_of(*(f"I{k % 20:02d}" for k in range(200)))
    parts = split_by_reference(images, seed=1)
    references = {name: {image.reference for image in part} for name, part in parts.items()}
    assert [len(found) for found in references.values()] == [12, 4, 4]
    assert sum(map(len, references.values())) == len(set.union(*references.values())) == 20
    assert sum(map(len, parts.values())) == 200
    shuffled = random.Random(0).sample(images, len(images))
    again = split_by_reference(shuffled, seed=1)
    assert {name: {i.id for i in part} for name, part in again.items()} == {
        name: {i.id for i in part} for name, part in parts.items()
    }
    assert split_by_reference(images, seed=2) != parts


def test_an_image_that_is_left_out_changes_no_part(tmp_path: Path) -> None:
    """Else an evaluation that leaves one out would test on images that a training has seen."""
    lines = ["image,mos"]
    for k in range(30):
        save_png(make_image(k, 12, 16), tmp_path / f"{k}.png")
        lines.append(f"{k}.png,3")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "4.png").write_bytes(b"torn")
    trained, tested = (
        load_dataset("csv", tmp_path / "all.csv", checks=checks, accept=accept)
        for checks, accept in (("paths", ()), ("full", ("corrupt",)))
    )
    assert len(tested) == len(trained) - 1
    for part in ("training", "validation", "test"):
        both = [{image.id for image in select(dataset, part, seed=3)} for dataset in (trained, tested)]
        assert both[1] == both[0] - {"4.png"}


def test_images_without_reference_are_their_own() -> None:
    parts = split_by_reference(images_of(*[None] * 10), shares={"a": 0.5, "b": 0.5})
    assert [len(part) for part in parts.values()] == [5, 5]
    with pytest.raises(ValueError, match="1 references are too few"):
        split_by_reference(images_of("x", "x"))
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_reference(images_of("x", "y"), shares={"a": 0.5, "b": 0.6})


def test_parts_are_official_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    write_koniq(tmp_path / "k")
    koniq = load_dataset("koniq", tmp_path / "k")
    assert [image.id[-15:] for image in select(koniq)] == ["10007357496.jpg"]
    assert [image.split for image in select(koniq, "validation")] == ["validation"]
    assert len(select(koniq, "all")) == 3
    write_kadid(tmp_path)
    kadid = load_dataset("kadid", tmp_path)
    assert len(select(kadid)) == 3
    with pytest.raises(ValueError, match="too few"):
        select(kadid, "test")
    with pytest.raises(ValueError, match="must be one of standard, all"):
        select(kadid, "exam")


def test_shared_files_are_found_by_content(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "renamed.png").write_bytes((tmp_path / "b.png").read_bytes())
    first = load_dataset("csv", table(tmp_path, "a.png,1", "b.png,2"), name="training")
    second = load_dataset("csv", table(tmp_path, "c.png,1", "renamed.png,2"), name="test")
    [problem] = find_shared(first, second)
    assert (Path(problem.where).name, problem.dataset) == ("renamed.png", "test")
    assert find_shared(first, load_dataset("csv", table(tmp_path, "c.png,1"))) == []
    assert first.digest != second.digest
    assert first.digest == load_dataset("csv", table(tmp_path, "b.png,2", "a.png,1")).digest
    unhashed = load_dataset("csv", table(tmp_path, "a.png,1"), checks="paths")
    with pytest.raises(ValueError, match="checks='full'"):
        find_shared(first, unhashed)
