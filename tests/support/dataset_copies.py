"""Miniature copies of the public data sets: true folders, names, columns and file formats, images of a few pixels.

Each `write_NAME(root)` returns nothing; what the labels say stands in `tests/train_iqa/test_datasets_layouts.py`.
"""

from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image
from scipy.io import savemat


def image_file(path: Path, seed: int = 0) -> None:
    """Write a 12 x 10 image; another seed is another image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)


def write_images(root: Path, *names: str) -> None:
    for name in names:
        image_file(root / name, sum(map(ord, name)) * 1000 + len(name))


def workbook(path: Path, sheets: dict[str, list[list[object]]]) -> None:
    """Write an .xlsx with these rows by sheet; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def write_koniq(root: Path) -> None:
    write_images(root, "1024x768/10004473376.jpg", "1024x768/10007357496.jpg", "1024x768/10009096245.jpg")
    root.joinpath("koniq10k_distributions_sets.csv").write_text(
        "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"
        "10004473376.jpg,0,0,25,73,7,105,77.38,0.527,training\n"
        "10007357496.jpg,0,50,0,50,0,100,48.09,1.0,test\n"
        "10009096245.jpg,0.0,0.0,1.0,0.0,0.0,1,55.2,0.0,validation\n"
    )


def write_spaq(root: Path) -> None:
    write_images(root, "TestImage/00001.jpg", "TestImage/00002.jpg")
    header = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    rows = [header, ["00001.jpg", 49.0, 50, 51, 52, 53, 54], ["00002.jpg", 96, 1, 2, 3, 4, 5], [None, None, 7]]
    workbook(root / "Annotations/MOS and Image attribute scores.xlsx", {"Sheet1": rows})


def write_kadid(root: Path) -> None:
    write_images(root, "images/I01_01_01.png", "images/I01_01_02.png", "images/I81_25_05.png")
    root.joinpath("dmos.csv").write_text(
        "dist_img,ref_img,dmos,var\r\nI01_01_01.png,I01.png,4.93,0.393\r\nI01_01_02.png,I01.png,1,0.5\r\n"
        "I81_25_05.png,I81.png,2.965,0.786\r\n"
    )


def write_pipal(root: Path) -> None:
    write_images(root, "Distortion_1/A0001_00_00.bmp", "Distortion_2/Distortion_2/A0060_03_12.bmp")
    (root / "Train_Label").mkdir()
    (root / "Train_Label/A0001.txt").write_text("A0001_00_00.bmp,1376.3496\n")
    (root / "Train_Label/A0060.txt").write_text("A0060_03_12.bmp,916.7136\n\n")


def write_livew(root: Path) -> None:
    write_images(root, "Images/trainingImages/t1.bmp", "Images/3.bmp", "Images/10.JPG")
    (root / "Data").mkdir()
    names = np.array([["t1.bmp"], ["3.bmp"], ["10.JPG"]], dtype=object)
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": names})
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": np.array([[63.9, 92.4319526627219, 3.42]])})
    savemat(root / "Data/AllStdDev_release.mat", {"AllStdDev_release": np.array([[18.9, 22.25298816568, 0.0]])})


def write_agiqa(root: Path) -> None:
    write_images(root, "images/AttnGAN_normal_000.jpg", "images/sd1.5_normal_000.jpg")
    root.joinpath("data.csv").write_text(
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
        'AttnGAN_normal_000.jpg,"statue of a man, small",0,0,0,0,0.561092598,0.8,0.3\n'
        'sd1.5_normal_000.jpg,"statue of a man, small",0,0,0,2.244370392,0.3,3.9,0.2\n'
    )


def write_csiq(root: Path) -> None:
    write_images(root, "dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/jpeg2000/boston.jpeg2000.5.png", "src_imgs/1600.png")
    header = [None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    rows = [
        ["CSIQ image database"], [], [None, None, None, "by image"], header,
        [None, None, None, 1600, 1, "noise", 1, 0.061989, 0.25],
        [None, None, None, "boston", 3, "jpeg 2000", 5, 0.125, 1],
        [],
    ]  # fmt: skip
    workbook(root / "csiq.DMOS.xlsx", {"all_by_distortion": [["image"], ["other"]], "all_by_image": rows})


def write_tid2013(root: Path) -> None:
    write_images(
        root, "distorted_images/I01_01_1.bmp", "distorted_images/i01_01_2.bmp", "distorted_images/I25_24_5.BMP"
    )
    root.joinpath("mos_with_names.txt").write_text(
        "7.21429 I01_01_1.bmp\n0.24242 I01_01_2.bmp\n3.728355 i25_24_5.bmp\n"
    )
    root.joinpath("mos_std.txt").write_text("0.13013\n0.1\n0.2\n")
