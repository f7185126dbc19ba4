"""Work shared by processes: each block once, whoever is killed, and the table of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

from zoomiqa_reward.cli import score_shared as score_shared_module
from zoomiqa_reward.cli.score_shared import Job, measure_shared, score_on_cluster, score_shared, shared_work
from zoomiqa_reward.cli.score_table import ScoreTable, fingerprint_of
from zoomiqa_reward.model.ratings import Ratings
from zoomiqa_reward.runs import shared_work as shared_work_module
from zoomiqa_reward.runs.digest import file_digest
from zoomiqa_reward.runs.settings import AnotherRun
from zoomiqa_reward.runs.shared_work import LEAST_BLOCK, SharedWork, block_size
from zoomiqa_reward.runs.tables import read_table

COUNT = 20 * LEAST_BLOCK - 7
WORKER = """
import json, sys, time
from pathlib import Path
from zoomiqa_reward.runs.shared_work import SharedWork
folder, count, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
work = SharedWork(folder, {"of": "test"}, count)
for block, items in work.blocks(int(sys.argv[4])):
    time.sleep(pause)
    work.put(block, "".join(json.dumps({"item": item}) + "\\n" for item in items))
    print(block, flush=True)
def use():
    folder.with_name("all.json").write_text(json.dumps([row["item"] for row in work.rows()]))
print("finished" if work.finish(use) else "left", flush=True)
"""


def start(folder, start_at=0, pause=0.05):
    command = [sys.executable, "-c", WORKER, str(folder), str(COUNT), str(pause), str(start_at)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.integration
def test_each_block_once_although_two_of_four_processes_are_killed(tmp_path):
    folder = tmp_path / "parts"
    workers = [start(folder, k) for k in range(4)]
    for worker in workers[:2]:
        worker.stdout.readline()  # it has done a block, and is in the middle of another
        worker.send_signal(signal.SIGKILL)
    ends = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert json.loads((tmp_path / "all.json").read_text()) == list(range(COUNT))
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert sorted(end[-1] for end in ends[2:]) == ["finished", "left"]
    done = [block for end in ends[2:] for block in end[:-1]]
    assert len(done) == len(set(done))  # none twice
    assert os.listdir(tmp_path) == ["all.json"]


@pytest.mark.integration
def test_killed_processes_leave_their_blocks_to_a_later_call(tmp_path):
    folder = tmp_path / "parts"
    first = start(folder, pause=0.1)
    made = first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    work = SharedWork(folder, {"of": "test"}, COUNT)
    assert work.is_done(int(made))
    again = []
    for block, items in work.blocks():
        again.append(block)
        work.put(block, "".join(json.dumps({"item": item}) + "\n" for item in items))
    assert int(made) not in again
    assert [row["item"] for row in work.rows()] == list(range(COUNT))
    found = []
    assert work.finish(lambda: found.extend(work.rows()))
    assert len(found) == COUNT
    assert not work.finish(lambda: pytest.fail("finished twice"))
    assert os.listdir(tmp_path) == []


def test_other_work_is_refused(tmp_path):
    SharedWork(tmp_path / "parts", {"fingerprint": "a"}, 9)
    with pytest.raises(AnotherRun, match="count was 9, now 10"):
        SharedWork(tmp_path / "parts", {"fingerprint": "a"}, 10)


def test_a_kill_while_the_folder_is_removed_leaves_no_parts_to_other_work(tmp_path, monkeypatch):
    work = SharedWork(tmp_path / "parts", {"of": "a"}, 2)
    assert len(list(_saving(work))) == 1

    def killed(folder, **options):
        if Path(folder).exists():
            (Path(folder) / "run.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared_work_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            work.finish(lambda: None)
    other = SharedWork(tmp_path / "parts", {"of": "b"}, 2)
    assert [block for block, _ in _saving(other)] == [0]
    assert other.finish(lambda: None)
    assert os.listdir(tmp_path) == []


def test_parts_without_their_settings_are_refused(tmp_path):
    work = SharedWork(tmp_path / "parts", {"of": "a"}, 2)
    assert len(list(_saving(work))) == 1
    (tmp_path / "parts" / "run.json").unlink()
    with pytest.raises(AnotherRun, match=r"holds 00000\.jsonl without run\.json"):
        SharedWork(tmp_path / "parts", {"of": "b"}, 2)


def test_nothing_is_finished_before_all_is_done(tmp_path):
    work = SharedWork(tmp_path / "parts", {}, LEAST_BLOCK + 1)
    work.put(0, "")
    assert not work.finish(lambda: pytest.fail("too early"))
    assert work.folder.exists()
    assert [block for block, _ in _saving(work)] == [1]


def _saving(work):
    for block, items in work.blocks():
        work.put(block, "")
        yield block, items


def test_blocks_are_few_enough_for_a_folder():
    assert [block_size(count) for count in (0, 1, 640_000, 640_001)] == [64, 64, 64, 65]


class Constant:
    """Rates every image alike."""

    name = fingerprint = "constant"

    def rate(self, images, **options):
        self.asked = getattr(self, "asked", 0) + len(images)
        value = torch.full((len(images),), 3.0)
        return Ratings(value=value, std=value * 0, valid=value > 0, std_kind="none")


def test_a_file_that_changed_after_its_part_was_written_is_measured_again(tmp_path):
    files = [str(tmp_path / f"{k}.png") for k in range(LEAST_BLOCK + 2)]
    for k, file in enumerate(files):
        Image.fromarray(data.astronaut()[k : k + 32, :40]).save(file)
    iqa, asked = Constant(), {"mode": "direct", "strict": True, "question": None}
    table = ScoreTable(tmp_path / "t.jsonl", fingerprint_of(iqa, **asked))
    table.open()
    work = shared_work(table, files, {"model": iqa.name, **asked})
    blocks = measure_shared(table, iqa, files, work, start=0, **asked)
    for _ in range(LEAST_BLOCK + 1):
        next(blocks)
    blocks.close()  # killed: the first block is done
    Image.fromarray(data.astronaut()[200:232, :40]).save(files[3])
    with pytest.raises(AnotherRun, match=r"question was None, now 'How\?'.*delete .*t\.jsonl\.parts"):
        shared_work(table, files, {"model": iqa.name, **asked, "question": "How?"})
    score_shared(tmp_path / "t.jsonl", False, iqa, files, **asked)
    rows = read_table(tmp_path / "t.jsonl")
    assert [row["image"] for row in rows] == files
    assert [row["sha256"] for row in rows] == [file_digest(file) for file in files]
    assert iqa.asked == len(files) + 2  # the one that was in work, and the one that changed
    Image.fromarray(data.astronaut()[300:332, :40]).save(files[5])
    score_shared(tmp_path / "t.jsonl", False, iqa, files[2:], **asked)  # over a table that is there
    rows = read_table(tmp_path / "t.jsonl")
    assert [row["image"] for row in rows] == [*files[2:], *files[:2]]  # each once
    assert [row["sha256"] for row in rows] == [file_digest(row["image"]) for row in rows]
    assert iqa.asked == len(files) + 3


ASKED = {"mode": "direct", "strict": True, "question": None}


def save_images(folder, *names):
    folder.mkdir(exist_ok=True)
    for k, name in enumerate(names):
        Image.fromarray(data.astronaut()[k : k + 32, :40]).save(folder / name)
    return [str(folder / name) for name in names]


def test_a_file_that_changed_while_its_own_block_was_worked_on_is_measured_again(tmp_path):
    files = save_images(tmp_path / "in", "a.png", "b.png")

    def change_the_first(record):
        if record.image == files[1]:
            Image.fromarray(data.astronaut()[200:232, :40]).save(files[0])

    iqa = Constant()
    rated, finished = score_shared(tmp_path / "t.csv", False, iqa, files, then=change_the_first, **ASKED)
    assert finished
    assert iqa.asked == 3
    assert [row["sha256"] for row in read_table(tmp_path / "t.csv")] == [file_digest(file) for file in files]
    assert [record.image for record in rated] == files


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_odd_names_and_a_folder_without_images_are_shared_too(tmp_path, monkeypatch, suffix):
    files = save_images(tmp_path / "in", "caf\udce9.png", "a\rb.png", "x\r\ny.png")
    (tmp_path / "empty").mkdir()
    files.append(str(tmp_path / "empty"))  # as `inputs.expand` leaves it
    out = tmp_path / f"t.{suffix}"
    monkeypatch.chdir(tmp_path)  # the worker, which is this process, goes there for good
    monkeypatch.setattr(score_shared_module, "load_model", lambda *_, **__: Constant())
    monkeypatch.setattr("zoomiqa_reward.integrations.ray_data.score_on_ray", lambda job, **_: job()(0))
    job = Job(files=tuple(files), folder=str(tmp_path), out=out, overwrite=False, device=None, loaded={"model": "m"},
              asked=ASKED)  # fmt: skip
    for _ in range(2):
        records = score_on_cluster(job, workers=1)
        assert [record.image for record in records] == files
        assert [record.valid for record in records] == [True, True, True, False]
        assert len(read_table(out)) == 4


def test_one_command_in_two_working_folders_is_other_work_unless_it_names_the_same_files(tmp_path, monkeypatch):
    save_images(tmp_path / "x", "1.png")
    save_images(tmp_path / "y", "1.png")
    asked = {"model": "m", **ASKED}
    monkeypatch.chdir(tmp_path / "x")
    shared_work(ScoreTable(Path("../t.csv"), "f"), ["1.png"], asked)
    monkeypatch.chdir(tmp_path / "y")
    with pytest.raises(AnotherRun, match="files was"):
        shared_work(ScoreTable(Path("../t.csv"), "f"), ["1.png"], asked)
    monkeypatch.chdir(tmp_path)
    shared_work(ScoreTable(Path("t.csv"), "f"), ["x/1.png"], asked)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with `in/` and `one.csv`, the table of one process; one of the files is damaged."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "in").mkdir()
    for k in range(3 * LEAST_BLOCK):
        x, y = random.Random(k).choices(range(400), k=2)
        Image.fromarray(data.astronaut()[y : y + 32, x : x + 32]).save(folder / "in" / f"{k:04}.png")
    (folder / "in" / "torn.png").write_bytes(b"\x89PNG")
    assert score(folder, "--out", "one.csv").wait() == 2
    return folder


def score(folder, *options, **variables):
    command = [sys.executable, "-m", "zoomiqa_reward.cli.main", "score", "in", "--device", "cpu", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.integration
def test_the_table_of_three_processes_is_that_of_one(images):
    shared = [score(images, "--out", "many.csv", "--shared") for _ in range(3)]
    parts = images / "many.csv.parts"
    while not list(parts.glob("*.lock")):
        time.sleep(0.1)
    holder = next(worker for worker in shared if _holds(worker.pid, parts))
    holder.kill()
    holder.wait()
    assert sorted(worker.wait() for worker in shared if worker is not holder)[-1] == 2
    assert (images / "many.csv").read_text() == (images / "one.csv").read_text()
    assert sorted(os.listdir(images)) == ["in", "many.csv", "one.csv"]
    (images / "many.csv").unlink()


def _holds(pid, parts):
    opened = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return any(str(parts) in target for target in opened)


@pytest.mark.integration
def test_launched_processes_share_the_work_and_need_a_table(images):
    variables = {"WORLD_SIZE": "2"}  # what accelerate launch sets
    assert score(images, RANK="0", **variables).wait() == 1
    launched = [score(images, "--out", "launched.csv", RANK=str(rank), **variables) for rank in range(2)]
    assert sorted(worker.wait() for worker in launched)[-1] == 2
    assert (images / "launched.csv").read_text() == (images / "one.csv").read_text()
    (images / "launched.csv").unlink()


@pytest.mark.integration
def test_a_ray_cluster_makes_the_table_of_one_process(images):
    assert score(images, "--out", "ray.csv", "--ray", "2").wait() == 2
    assert (images / "ray.csv").read_text() == (images / "one.csv").read_text()
    (images / "ray.csv").unlink()
