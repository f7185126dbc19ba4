"""Each public data set is read from a miniature copy in its true layout; expected labels are worked out by hand."""

import math
from pathlib import Path

import dataset_copies
import pytest
from dataset_copies import workbook, write_images

from train_iqa.data import FAMILIES, DatasetProblems, load_dataset
from train_iqa.data.tables import SheetError, read_sheet

# Family -> image -> (label on 1..5, spread on that scale, reference, official part). y = 1 + 4 (x - low)/(high - low).
_KONIQ = 4 / (4.31 - 1.09615384615385)
EXPECTED = {
    "koniq": {
        # (3 x 25 + 4 x 73 + 5 x 7) / 105 = 402/105; variance (9 x 25 + 16 x 73 + 25 x 7)/105 - (402/105)^2.
        "1024x768/10004473376.jpg": (
            1 + (402 / 105 - 1.09615384615385) * _KONIQ, math.sqrt(1568 / 105 - (402 / 105) ** 2) * _KONIQ,
            None, "training",
        ),
        "1024x768/10007357496.jpg": (1 + (3 - 1.09615384615385) * _KONIQ, _KONIQ, None, "test"),  # half 2, half 4
        "1024x768/10009096245.jpg": (1 + (3 - 1.09615384615385) * _KONIQ, 0.0, None, "validation"),
    },
    "spaq": {  # 49 is the middle of 2..96
        "TestImage/00001.jpg": (3.0, math.nan, None, None), "TestImage/00002.jpg": (5.0, math.nan, None, None),
    },
    "kadid": {  # 0.393 of 3.93 is a tenth of the range, 0.4 of 4; 2.965 is the middle of 1..4.93
        "images/I01_01_01.png": (5.0, 0.4, "I01.png", None),
        "images/I01_01_02.png": (1.0, 0.5 * 4 / 3.93, "I01.png", None),
        "images/I81_25_05.png": (3.0, 0.8, "I81.png", None),
    },
    "pipal": {  # 1376.3496 is the middle of 916.7136..1835.9856
        "Distortion_1/A0001_00_00.bmp": (3.0, math.nan, "A0001", None),
        "Distortion_2/Distortion_2/A0060_03_12.bmp": (1.0, math.nan, "A0060", None),
    },
    "livew": {  # the raters' teaching image t1 is left out; 22.25298816568 is a quarter of 89.0119526627
        "Images/3.bmp": (5.0, 1.0, None, None), "Images/10.JPG": (1.0, 0.0, None, None),
    },
    "agiqa": {  # 2.244370392 is the middle of 0..4.488740784, 0.561092598 an eighth of it
        "images/AttnGAN_normal_000.jpg": (1.0, 0.5, "statue of a man, small", None),
        "images/sd1.5_normal_000.jpg": (3.0, 0.3 * 4 / 4.488740784, "statue of a man, small", None),
    },
    "csiq": {  # difference scores: 5 - 4 dmos
        "dst_imgs/awgn/1600.AWGN.1.png": (4.0, 4 * 0.061989, "1600", None),
        "dst_imgs/jpeg2000/boston.jpeg2000.5.png": (1.0, 0.5, "boston", None),
    },
    "tid2013": {  # names in the table and on the disk differ in case; 3.728355 is the middle
        "distorted_images/I01_01_1.bmp": (5.0, 0.13013 * 4 / 6.97187, "I01", None),
        "distorted_images/i01_01_2.bmp": (1.0, 0.1 * 4 / 6.97187, "I01", None),
        "distorted_images/I25_24_5.BMP": (3.0, 0.2 * 4 / 6.97187, "I25", None),
    },
}  # fmt: skip


def problems_of(family: str, root: Path, **options: object) -> list[str]:
    with pytest.raises(DatasetProblems) as caught:
        load_dataset(family, root, **options)
    return [f"{problem.kind}: {problem.what}" for problem in caught.value.problems]


@pytest.mark.parametrize("family", EXPECTED)
def test_a_copy_in_its_true_layout(family: str, tmp_path: Path) -> None:
    getattr(dataset_copies, f"write_{family}")(tmp_path)
    dataset = load_dataset(family, tmp_path, workers=1)
    found = {image.id: image for image in dataset.images}
    assert set(found) == set(EXPECTED[family])
    for name, (mos, std, reference, split) in EXPECTED[family].items():
        image = found[name]
        assert image.mos == pytest.approx(mos, abs=1e-9)
        assert image.std == pytest.approx(std, abs=1e-9, nan_ok=True)
        assert (image.reference, image.split) == (reference, split)
        assert image.path.is_file()
        assert image.dataset == family
    assert dataset.has_official_split == (family == "koniq")


def test_every_known_set_has_a_copy_here() -> None:
    assert set(EXPECTED) == {name for name, family in FAMILIES.items() if not family.is_list}


@pytest.mark.parametrize("family", EXPECTED)
def test_an_empty_folder_is_a_layout_problem(family: str, tmp_path: Path) -> None:
    found = problems_of(family, tmp_path)
    assert found
    assert all(problem.startswith("layout") for problem in found)


def test_koniq_the_mos_column_is_not_the_label_and_the_small_copy_is_refused(tmp_path: Path) -> None:
    dataset_copies.write_koniq(tmp_path)
    assert load_dataset("koniq", tmp_path).images[0].label == pytest.approx(402 / 105)  # not 77.38
    (tmp_path / "1024x768").rename(tmp_path / "512x384")
    assert any("512x384" in problem for problem in problems_of("koniq", tmp_path))


def test_koniq_faults_of_single_lines(tmp_path: Path) -> None:
    dataset_copies.write_koniq(tmp_path)
    with open(tmp_path / "koniq10k_distributions_sets.csv", "a") as file:
        file.write("a.jpg,0,0,0,0,0,0,1,1,test\nb.jpg,1,x,0,0,0,1,1,1,test\nc.jpg,1,0,0,0,0,1,1,1,exam\nd.jpg,1\n")
    found = " | ".join(problems_of("koniq", tmp_path))
    for expected in ("none, or negative", "c2 is 'x'", "set 'exam'", "fewer fields"):
        assert expected in found


def test_tid2013_without_deviations_and_with_a_wrong_number_of_them(tmp_path: Path) -> None:
    dataset_copies.write_tid2013(tmp_path)
    (tmp_path / "mos_std.txt").write_text("0.1\n")
    assert any("1 deviations for 3 images" in problem for problem in problems_of("tid2013", tmp_path))
    (tmp_path / "mos_std.txt").unlink()
    assert all(math.isnan(image.std) for image in load_dataset("tid2013", tmp_path).images)


def test_pipal_one_name_in_two_folders(tmp_path: Path) -> None:
    dataset_copies.write_pipal(tmp_path)
    write_images(tmp_path, "Distortion_3/A0001_00_00.bmp")
    assert any("same name" in problem for problem in problems_of("pipal", tmp_path))


def test_livew_tables_of_different_length(tmp_path: Path) -> None:
    dataset_copies.write_livew(tmp_path)
    dataset_copies.savemat(tmp_path / "Data/AllMOS_release.mat", {"AllMOS_release": [[1.0, 2.0]]})
    assert any("3 names, 2 scores" in problem for problem in problems_of("livew", tmp_path))


def test_csiq_an_unknown_distortion(tmp_path: Path) -> None:
    dataset_copies.write_csiq(tmp_path)
    rows = [["image", "dst_type", "dst_lev", "dmos_std", "dmos"], ["a", "fog", 1, 0.1, 0.1], [None, "blur", 1, 0, 0]]
    workbook(tmp_path / "csiq.DMOS.xlsx", {"all_by_image": rows})
    found = " | ".join(problems_of("csiq", tmp_path))
    assert "distortion 'fog'" in found
    assert "names no image" in found


def test_sheets_are_found_by_name_and_keep_the_places_of_cells(tmp_path: Path) -> None:
    file = tmp_path / "a.xlsx"
    workbook(file, {"one": [["a"]], "two": [[None, "<b>", 2.5], [], [3]]})
    assert read_sheet(file) == [["a"]]
    assert read_sheet(file, "two") == [[None, "<b>", 2.5], [], [3.0]]
    with pytest.raises(SheetError, match="no sheet three; it has one, two"):
        read_sheet(file, "three")
    file.write_bytes(b"PK no workbook")
    with pytest.raises(SheetError, match="no readable"):
        read_sheet(file)
