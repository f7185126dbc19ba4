"""`zoomiqa web` as people meet it: the command with `nano`, a real Chromium that clicks through all tabs, ten users.

Needs the extra `web`; the tests with a browser also need playwright and Debian's chromium. `ZOOMIQA_WEB_IMAGES=DIR`
keeps what the browser showed: the images of docs/web.md.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("web")]
pytest.importorskip("gradio", reason="the extra `web` is not installed: pip install -e '.[web]'", exc_type=ImportError)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_S = 15.0
"""The first rating comes within so many seconds of the start, on two idle cores."""
USERS = 10


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """(address, moment of the start, folder for temporary files, process) of the running command."""
    folder = tmp_path_factory.mktemp("temporary")
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    began = time.monotonic()
    command = [sys.executable, "-m", "zoomiqa_reward.cli.main", "web", "--device", "cpu"]
    with (
        open(folder / "stderr", "w") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, env=environment, text=True, cwd=folder
        ) as server,
    ):
        threading.Timer(180, lambda: server.poll() is None and not urls and server.kill()).start()
        urls = [json.loads(server.stdout.readline() or '{"url": null}')["url"]]
        assert urls[0], (folder / "stderr").read_text()
        yield urls[0], began, folder, server.pid
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert list(folder.glob("zoomiqa-web-*")) == [], "uploads are left on disk"
    assert "could not answer" not in (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def url(started):
    return started[0]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip with the reason."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser, url):
    """A page that has loaded; at the end: nothing came from elsewhere, and no script failed."""
    page, asked, failed = browser.new_page(viewport={"width": 1180, "height": 720}), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.set_default_timeout(240_000)
    page.goto(url)
    page.get_by_role("tab", name="Rate").wait_for()
    yield page
    page.close()
    assert {address for address in asked if not address.startswith((url, "data:", "blob:"))} == set()
    assert failed == []


class Tab:
    """One tab of the page: what a person does in it."""

    def __init__(self, page, name):
        self.page = page
        page.get_by_role("tab", name=name, exact=True).click()
        self.panel = page.locator("[role=tabpanel]:visible")

    def pick(self, sample):
        self.panel.get_by_text(sample, exact=True).click()
        self.panel.locator(".file-preview").wait_for()

    def press(self, button):
        self.panel.get_by_role("button", name=button, exact=True).click()

    def wait(self, text):
        self.panel.get_by_text(text).wait_for()

    def keep(self, name):
        if folder := os.environ.get("ZOOMIQA_WEB_IMAGES"):
            self.page.wait_for_timeout(1500)
            self.page.screenshot(path=Path(folder) / f"web_{name}.png", full_page=True)


def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


def sample(folder, name):
    [file] = folder.glob(f"zoomiqa-web-*/{name}.png")
    return file


@pytest.fixture(scope="module")
def first_rating(started):
    """Seconds from the start to the first rating, seconds of processor time, and the machine's load per core."""
    from gradio_client import handle_file

    url, began, folder, process = started
    job = client(url).submit(handle_file(sample(folder, "cat_as_it_is")), api_name="/rate")
    while not job.outputs():
        time.sleep(0.05)
    seconds = time.monotonic() - began
    used = [int(value) for value in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]]
    return seconds, sum(used) / os.sysconf("SC_CLK_TCK"), os.getloadavg()[0] / os.cpu_count()


def test_the_first_rating_comes_soon_after_the_start(first_rating):
    seconds, used, load = first_rating
    print(f"first rating {seconds:.1f} s after the start, {used:.1f} s of processor time, load {load:.1f} per core")
    assert seconds < START_S * max(1.0, load)


def test_every_tab_does_what_it_says(visit):
    tab = Tab(visit, "Rate")
    tab.pick("cat as it is")
    tab.press("Rate")
    tab.panel.locator(".zq-rating").wait_for()
    assert tab.panel.locator(".zq-svg rect").count() == 40
    tab.panel.locator(".zq-words").wait_for()
    assert "Round 1: the whole image" in tab.panel.inner_text()
    if "Round 2" in tab.panel.inner_text():
        tab.panel.get_by_text("That region").wait_for()
    tab.keep("rate")

    tab = Tab(visit, "Compare")
    tab.pick("four versions of one photograph")
    tab.press("Rate and rank")
    tab.wait("4 of 4 rated")
    shown = tab.panel.locator(".slider-wrap img, img").last
    before = shown.get_attribute("src")
    tab.keep("compare")
    right = tab.panel.get_by_label("Right")
    other = "cat_blurred.png" if right.input_value() == "cat_noisy.png" else "cat_noisy.png"  # not the one shown
    right.click()
    visit.get_by_role("option", name=other).click()
    visit.wait_for_function("([image, old]) => image.src !== old", arg=[shown.element_handle(), before])

    tab = Tab(visit, "Best of N")
    tab.pick("small coffee")
    tab.panel.get_by_label("number input for Candidates (N)").fill("3")
    tab.press("Restore")
    tab.wait("1 of 3 rated")
    assert tab.panel.locator(".grid-wrap img").count() == 1
    tab.wait("3 of 3 rated")
    visit.wait_for_function("document.querySelectorAll('[role=tabpanel] .grid-wrap img').length === 3")
    tab.keep("best_of_n")

    tab = Tab(visit, "Quality map")
    tab.pick("cat as it is")
    tab.press("Map")
    tab.wait("Resolution:")
    tab.keep("map")


def test_another_file_takes_the_results_of_the_one_before_away(visit, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    tab = Tab(visit, "Compare")
    tab.pick("four versions of one photograph")
    tab.press("Rate and rank")
    tab.wait("4 of 4 rated")
    assert tab.panel.get_by_label("Left").input_value()
    tab.panel.get_by_role("button", name="Clear").first.click()
    tab.panel.locator("input[type=file]").first.set_input_files([tmp_path / "notes.txt"])
    tab.panel.locator(".file-preview").wait_for()
    visit.wait_for_function("!document.querySelector('[role=tabpanel]:not([hidden]) .zq-bar')")
    assert tab.panel.get_by_label("Left").input_value() == tab.panel.get_by_label("Right").input_value() == ""
    assert "cat_noisy.png" not in tab.panel.inner_text()
    tab.panel.get_by_label("Left").click()
    assert visit.get_by_role("option").count() == 0

    tab = Tab(visit, "Rate")
    tab.pick("cat as it is")
    tab.press("Rate")
    tab.panel.locator(".zq-words").wait_for()
    tab.pick("cat blurred")
    tab.panel.locator(".zq-rating").wait_for(state="detached")
    tab.press("Rate")
    tab.panel.locator(".zq-words").wait_for()
    tab.panel.get_by_role("button", name="Clear").first.click()
    tab.panel.locator(".zq-rating").wait_for(state="detached")
    tab.panel.locator("input[type=file]").first.set_input_files(tmp_path / "notes.txt")
    visit.locator(".toast-body").filter(has_text="notes.txt: not an image").wait_for()
    assert tab.panel.locator(".zq-rating").count() == 0


def test_stop_ends_the_drawing(visit):
    tab = Tab(visit, "Best of N")
    tab.pick("small coffee")
    tab.panel.get_by_label("number input for Candidates (N)").fill("16")
    tab.press("Restore")
    tab.wait("1 of 16 rated")
    tab.press("Stop")
    visit.wait_for_timeout(1000)
    reached = tab.panel.inner_text().split(" of 16 rated")[0][-2:]
    visit.wait_for_timeout(15_000)
    assert tab.panel.inner_text().split(" of 16 rated")[0][-2:] == reached


@pytest.fixture
def uploads(tmp_path):
    """Files that are refused -> what the reader is told."""
    (tmp_path / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("x.png", "y")
    Image.new("RGB", (10_000, 10_000)).save(tmp_path / "poster.png")
    (tmp_path / "fat.png").write_bytes(os.urandom(65 << 20))
    return {
        "notes.txt": "notes.txt: not an image that this page reads; upload a PNG, JPEG, WebP or TIFF file",
        "many.zip": "many.zip: not an image that this page reads",
        "poster.png": "poster.png: 100 million pixels (10000 x 10000); this page takes at most 9 million",
        "fat.png": "exceed the maximum allowed size of 64.0 Mb",
    }


def test_what_cannot_be_rated_is_refused_in_words(visit, uploads, tmp_path):
    for name, told in uploads.items():
        visit.locator("input[type=file]").first.set_input_files(tmp_path / name)
        visit.locator(".toast-body").filter(has_text=told).wait_for()
        message = visit.locator(".toast-body").inner_text()
        assert "Traceback" not in message
        assert str(tmp_path) not in message
        visit.reload()
        visit.get_by_role("tab", name="Rate").wait_for()


def status(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_the_host_is_reachable(started):
    url, _, folder, _ = started
    private = folder / "private.txt"  # in the folder that the command was started in
    private.write_text("secret")
    [uploads] = folder.glob("zoomiqa-web-*")  # samples, and the uploads in a folder
    assert uploads.stat().st_mode & 0o077 == 0
    for path in ("/etc/passwd", "../../../../etc/passwd", private, private.name, uploads, f"{uploads}/", "/", "."):
        assert status(f"{url}file={path}") in (403, 404), path
        assert status(f"{url}gradio_api/file={path}") == 403, path
    for path in (f"gradio_api/file={url}config", f"gradio_api//file={url}config", f"gradio_api/proxy={url}config"):
        assert status(url + path) == 403, path
    assert status(url, Host="elsewhere.example") == 400
    assert status(url) == 200


def call(url, name, *data):
    """Return the end of a request as it goes over the wire: the last event and its data."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/{name}/{event}", timeout=240) as answer:
        *_, event, data = (line for line in answer.read().decode().splitlines() if line)
    return event.removeprefix("event: "), data.removeprefix("data: ")


def test_a_request_cannot_name_a_file_of_the_host(started):
    url, _, folder, _ = started

    def given(file):
        return {"path": str(file), "meta": {"_type": "gradio.FileData"}}

    secret = folder / "secret.png"
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).save(secret)
    requests = {
        "rate": lambda file: (file,),
        "quality_map": lambda file: (file,),
        "compare": lambda file: ([file] * 2,),
        "best_of_n": lambda file: (file, 1, 0, "shrink it"),
        "side_by_side": lambda file: ([file], "0-0", "0-0"),
    }
    for name, data in requests.items():
        assert call(url, name, *data(given(secret)))[0] == "error", name
        assert call(url, name, *data(given(f"{url}config")))[0] == "error", name
    offered = given(next(folder.glob("zoomiqa-web-*/uploads/*/cat_noisy.png")))  # what the page itself offers
    event, answer = call(url, "rate", offered)
    assert (event, "of 5" in answer) == ("complete", True)
    assert call(url, "side_by_side", [offered], str(secret), str(secret))[0] == "error"


def test_ten_users_at_once_all_get_their_answer(started, first_rating):
    from gradio_client import handle_file

    url, _, folder, _ = started
    names = ["cat_as_it_is", "cat_blurred", "cat_noisy", "cat_jpeg_10"]
    ready = threading.Barrier(USERS)

    def one(user):
        mine = client(url)
        ready.wait(120)
        return names[user % 4], mine.predict(handle_file(sample(folder, names[user % 4])), api_name="/rate")

    began = time.monotonic()
    with ThreadPoolExecutor(USERS) as users:
        answers = list(users.map(one, range(USERS)))
    print(f"{USERS} users: {time.monotonic() - began:.1f} s, load {os.getloadavg()[0]:.1f}")
    ratings = {name: {answer[0].split("</b>")[0] for key, answer in answers if key == name} for name in names}
    assert all(len(found) == 1 for found in ratings.values()), ratings
    assert len(set.union(*ratings.values())) == 4
    assert all("Round 1" in answer[1] for _, answer in answers)


def test_errors_are_messages(started):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    url, _, folder, _ = started
    with pytest.raises(AppError, match="1 to 16 candidates") as caught:
        client(url).predict(handle_file(sample(folder, "small_face")), 8, -1, "shrink it", api_name="/best_of_n")
    assert "Traceback" not in str(caught.value)
