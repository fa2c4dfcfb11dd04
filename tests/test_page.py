"""The page of --mode=serve, in a real browser."""

import http.server
import json
import re
import shutil
import signal
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image
from running import start, user_error
from small import (
    make_photo_codec,
    make_prior,
    make_text_tokenizer,
    make_tokenizer,
    make_video_tokenizer,
    write,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
gr = pytest.importorskip("gradio", reason="Gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.slow
from vq_jax.data.video import as_clip, write_clip
from vq_jax.errors import UserError
from vq_jax.page import drawing, parts
from vq_jax.page.models import served

WAIT = 60_000  # milliseconds; programs are compiled


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of small models, one for each tab."""
    folder = tmp_path_factory.mktemp("models")

    def put(name, model, tokenizer=None):
        (folder / name).mkdir()
        if tokenizer:
            with model.config.unlocked():
                model.config.tokenizer = str(folder / tokenizer)
                model.config.phases.prior = 1
        write(model, folder / name)

    tokenizer, text, video = make_tokenizer(), make_text_tokenizer(1), make_video_tokenizer()
    put("photo", make_photo_codec())
    put("images", tokenizer)
    put("images-prior", make_prior(tokenizer), "images")
    put("images-upscale", make_prior(tokenizer, "causal", "upscale", factor=4), "images")
    put("text", text)
    put("text-prior", make_prior(text, "causal"), "text")
    put("text-random", make_prior(text, "random_order"), "text")
    put("video", video)
    put("video-prior", make_prior(video), "video")
    return folder


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    """The address of a server in a process of its own."""
    port, own = free_port(), tmp_path_factory.mktemp("of_the_server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(own))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        server = start("--mode=serve", f"--workdir={models}", f"--port={port}")
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        assert server.poll() is None, server.stdout.read()
        try:
            urllib.request.urlopen(address, timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    else:
        pytest.fail("the server does not answer")
    yield address
    server.send_signal(signal.SIGINT)
    said = server.communicate(timeout=60)[0]
    assert server.returncode == 130, said
    assert not list(own.iterdir()), "temporary files stay"
    # Gradio logs a traceback where it refuses a file of the server.
    assert "Traceback" not in said or "InvalidPathError" in said, said


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url):
    """The page in a new window; nothing may be asked of another server."""
    opened, outside = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    local = (url, "data:", "blob:")
    opened.on("request", lambda r: None if r.url.startswith(local) else outside.append(r.url))
    opened.goto(url)
    opened.set_default_timeout(WAIT)
    opened.get_by_role("tab", name="Compress").wait_for()
    yield opened
    opened.close()
    assert not outside


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("uploads") / "picture.png"
    Image.fromarray(x).resize((64, 48), Image.Resampling.BICUBIC).save(path)
    return path


def upload(page, path, accept="image/*"):
    """Uploads a file into the visible tab."""
    panel(page).locator(f"input[type=file][accept='{accept}']").first.set_input_files(str(path))


def panel(page):
    return page.get_by_role("tabpanel").filter(visible=True)


def press(page, name):
    panel(page).get_by_role("button", name=name, exact=True).click()


def paint(page, canvas):
    """Draws a line through the middle of the editor."""
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=10)
    page.mouse.up()


def choose(page, label, value):
    """Chooses from a menu of the visible tab."""
    panel(page).get_by_label(label, exact=True).click()
    page.get_by_role("option", name=value, exact=True).click()


def test_an_image_is_compressed_and_its_file_opened(page, picture, tmp_path):
    choose(page, "Model", "photo")
    upload(page, picture)
    panel(page).locator("img").first.wait_for()
    press(page, "Compress")
    table = panel(page).locator("table").filter(has_text="vq_jax")
    table.wait_for()
    for name in ("vq_jax", "JPEG", "WebP", "AVIF"):
        assert name in table.inner_text()
    with page.expect_download() as download:
        panel(page).get_by_text("Download the .vqz file").click()
    download.value.save_as(tmp_path / "my.vqz")
    assert (tmp_path / "my.vqz").stat().st_size > 20
    panel(page).get_by_text("Open a .vqz file").click()
    upload(page, tmp_path / "my.vqz", ".vqz")
    page.locator("#decompressed img").wait_for()


def test_a_click_on_the_map_chooses_a_code_and_another_number_changes_the_image(page, picture):
    page.get_by_role("tab", name="Tokens").click()
    choose(page, "Model", "images")
    upload(page, picture)
    panel(page).locator("img").first.wait_for()
    press(page, "Encode")
    panel(page).get_by_text("before entropy coding").wait_for()
    images = panel(page).locator("img")
    before = [images.nth(i).get_attribute("src") for i in range(3)]
    images.nth(1).click()  # its middle
    place = panel(page).get_by_label("Position")
    playwright.expect(place).to_have_value(re.compile("row [56], column [78]"))
    code = panel(page).get_by_label("Code", exact=True)
    code.fill(str((int(code.input_value()) + 9) % 32))
    press(page, "Change this code")
    playwright.expect(images.nth(1)).not_to_have_attribute("src", before[1])
    playwright.expect(images.nth(2)).not_to_have_attribute("src", before[2])


def test_samples_of_a_class(page):
    page.get_by_role("tab", name="Generate").click()
    choose(page, "Class", "Food & Drink")
    panel(page).get_by_label("number input for Number of images").fill("4")
    press(page, "Generate")
    playwright.expect(panel(page).locator("img")).to_have_count(4, timeout=WAIT)


def test_a_drawn_mask_is_inpainted_and_none_is_refused(page, picture):
    page.get_by_role("tab", name="Edit").click()
    press(page, "Edit")
    page.get_by_text("there is no image yet").first.wait_for()
    upload(page, picture)
    canvas = panel(page).locator("canvas").first
    canvas.wait_for()
    time.sleep(2)  # The editor lays the image out.
    press(page, "Edit")
    page.get_by_text("nothing is drawn").first.wait_for()
    paint(page, canvas)
    press(page, "Edit")
    results = page.locator("#results .grid-container img, #results .thumbnail-item img")
    playwright.expect(results.nth(1)).to_be_visible(timeout=WAIT)
    panel(page).get_by_label("upscale").check()
    panel(page).get_by_label("number input for Longest side in pixels").fill("16")
    press(page, "Edit")
    page.get_by_text("upscale, seed 0").first.wait_for()


def test_a_text_is_continued_and_compressed(page):
    page.get_by_role("tab", name="Text").click()
    panel(page).get_by_label("Prompt").fill("In the beginning")
    press(page, "Write")
    playwright.expect(panel(page).get_by_label("Texts", exact=True)).to_have_value(
        re.compile("^In the beginning"), timeout=WAIT
    )
    press(page, "Compress")
    panel(page).get_by_text("which came back unchanged").wait_for()


def test_gaps_of_a_text_are_filled(page):
    page.get_by_role("tab", name="Text").click()
    panel(page).get_by_label("Text, with _ for each byte to draw").fill("In the ____ning")
    press(page, "Fill")
    playwright.expect(panel(page).get_by_label("Filled in four ways")).to_have_value(
        re.compile("^In the .{1,4}ning\n", re.DOTALL), timeout=WAIT
    )
    panel(page).get_by_label("Text, with _ for each byte to draw").fill("no gap")
    press(page, "Fill")
    page.get_by_text("there is no '_' in the text").first.wait_for()


def test_a_painted_part_of_a_clip_is_drawn_anew(page, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    write_clip(as_clip(frames, 8), tmp_path / "x.mkv")
    page.get_by_role("tab", name="Video").click()
    panel(page).locator("input[type=file]").nth(1).set_input_files(str(tmp_path / "x.mkv"))
    canvas = panel(page).locator("canvas").first
    canvas.wait_for()
    time.sleep(3)  # the first frame is shown
    press(page, "Edit")
    page.get_by_text("nothing is drawn: paint over what to replace").first.wait_for()
    paint(page, canvas)
    press(page, "Edit")
    video = page.locator("#edited video")
    video.wait_for()
    before = video.get_attribute("src")
    panel(page).get_by_label("interpolate").check()
    press(page, "Edit")
    playwright.expect(video).not_to_have_attribute("src", before, timeout=WAIT)


def test_a_new_clip(page):
    page.get_by_role("tab", name="Video").click()
    press(page, "Generate")
    video = panel(page).locator("video").first
    video.wait_for()
    assert video.evaluate("v => new Promise(r => setTimeout(() => r(v.videoWidth), 1000))") > 0


def test_a_bad_file_is_refused_in_words(page, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"this is no image")
    upload(page, tmp_path / "bad.png")
    time.sleep(1)
    press(page, "Compress")
    page.get_by_text("cannot read bad.png as an image").first.wait_for()


def test_two_users_of_two_tabs_at_once(browser, url, picture):
    pages = [browser.new_page(), browser.new_page()]
    for one, tab, model in zip(pages, ("Compress", "Tokens"), ("photo", "images"), strict=True):
        one.set_default_timeout(WAIT)
        one.goto(url)
        one.get_by_role("tab", name=tab).click()
        choose(one, "Model", model)
        upload(one, picture)
        panel(one).locator("img").first.wait_for()
    press(pages[0], "Compress")
    press(pages[1], "Encode")
    panel(pages[0]).locator("table").filter(has_text="vq_jax").wait_for()
    panel(pages[1]).get_by_text("before entropy coding").wait_for()
    for one in pages:
        one.close()


def post(url, name, data):
    """Calls a function of the page as a script would, and returns what it answers."""
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"data": data}).encode()
    call = f"{url}/gradio_api/call/{name}"
    with urllib.request.urlopen(urllib.request.Request(call, body, headers), timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as answer:
        return answer.read().decode()


def test_files_are_not_fetched_from_addresses_or_from_the_server(url):
    asked = []

    class Recorder(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in (f"http://127.0.0.1:{server.server_port}/x.png", "/etc/passwd"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            assert "event: error" in post(url, "compress", [file, "photo", 20])
        server.shutdown()
    assert not asked


def test_a_phone_shows_the_page_without_scrolling_sideways(browser, url):
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(url)
    for title in ("Compress", "Tokens"):  # the others are in a menu
        phone.get_by_role("tab", name=title).click()
        assert phone.evaluate("document.documentElement.scrollWidth") <= 391
    phone.close()


def test_mistakes_are_one_line(tmp_path, models):
    assert "no trained model" in user_error("--mode=serve", f"--workdir={tmp_path}")
    assert "port is 0" in user_error("--mode=serve", f"--workdir={models}", "--port=0")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert "cannot be used" in user_error(
            "--mode=serve", f"--workdir={models}", f"--port={port}"
        )


def test_an_example_is_loaded_by_a_click(page):
    page.get_by_role("tab", name="Tokens").click()
    panel(page).get_by_text("Examples").wait_for()
    panel(page).locator("button.gallery-item").first.click()
    panel(page).locator("img[alt='']").first.wait_for()
    choose(page, "Model", "images")
    press(page, "Encode")
    panel(page).get_by_text("32x32 pixels, 64 codes").wait_for()


def picture_of(side, opacity=255):
    x = np.random.default_rng(0).integers(0, 256, (side, side, 4), np.uint8)
    x[..., 3] = opacity
    return x


def test_a_drawing_is_an_image_and_a_mask():
    layer = picture_of(64, 0)
    layer[16:32, 16:32, 3] = 255
    drawn = {"background": picture_of(64), "layers": [layer], "composite": None}
    image, mask = drawing.drawn_mask(drawn, 3, 64, parts.NO_IMAGE)
    np.testing.assert_array_equal(image, picture_of(64)[..., :3])
    assert mask.sum() == 256 and mask[16:32, 16:32].all()
    image, mask = drawing.drawn_mask(drawn, 1, 32, parts.NO_IMAGE)
    assert image.shape == (32, 32, 1) and mask[8:16, 8:16].all() and mask.sum() == 64


@pytest.mark.parametrize(
    "drawn, said",
    [
        (None, "no image yet"),
        ({"background": None, "layers": []}, "no image yet"),
        ({"background": picture_of(8, 0), "layers": []}, "no image yet"),
        ({"background": picture_of(8), "layers": [picture_of(9)]}, "another size"),
    ],
)
def test_a_drawing_that_is_none_is_refused(drawn, said):
    with pytest.raises(UserError, match=said):
        drawing.drawn_mask(drawn, 3, 64, parts.NO_IMAGE)


def test_huge_images_and_programs_are_refused_before_they_are_read(tmp_path):
    Image.new("L", (20000, 10000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match="cannot read huge.png.*200 megapixels"):
        parts.read_upload(str(tmp_path / "huge.png"))
    (tmp_path / "eps.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(UserError, match=r"cannot read eps.png"):
        parts.read_upload(str(tmp_path / "eps.png"))


def test_mistakes_become_lines_and_faults_do_not_show_their_insides():
    def fail(e):
        raise e

    with pytest.raises(gr.Error, match="say this"):
        parts.guarded(fail)(UserError("say this"))
    with pytest.raises(gr.Error, match="log says why"):
        parts.guarded(fail)(KeyError("secret"))
    for value in (None, -1, float("nan")):
        with pytest.raises(UserError, match="seed"):
            parts.whole(value, "seed")


def test_runs_that_cannot_be_opened_are_left_out(models, tmp_path, capsys):
    for name in ("text", "images"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "text" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    shutil.copy(models / "images" / "config.json", tmp_path / "empty")
    assert [m.name for m in served(tmp_path)] == ["images"]
    assert "text is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="no trained model"):
        served(tmp_path / "empty")
    names = [m.name for m in served(models / "images-prior")]
    assert names == ["images-prior", "images"]
