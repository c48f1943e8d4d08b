"""scripts/playground in a real browser: the real Cog server, the embedded bundle, Debian's Chromium."""

import base64
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, expect

from scripts.cog_server import CogServer
from tests.browser import ROOT, Playground, open_browser, open_playground
from tests.replicate_api import ReplicateApi

pytestmark = pytest.mark.slow
SECONDS = 90_000
"""How long a step may take, in milliseconds, where other work runs beside."""

DROP = """([name, kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: kind }));
    const target = document.querySelector("#shown");
    for (const type of ["dragover", "drop"])
        target.dispatchEvent(new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
COPY = """async (data) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
}"""
CONTRAST = """(selector) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) =>
            value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const part = document.querySelector(selector), color = getComputedStyle(part).color;
    let behind = part;
    while (behind.parentElement && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
        behind = behind.parentElement;
    const [low, high] = [color, getComputedStyle(behind).backgroundColor].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""
"""The contrast of a text by WCAG: 4.5 is enough."""


def photo(kind: str = "JPEG", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    stream = io.BytesIO()
    with Image.open(ROOT / "examples/animal.jpg") as image:
        image.resize(size).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as running:
        yield running


@pytest.fixture(scope="module")
def playground(browser: Browser) -> Iterator[Playground]:
    """The page with the server that it starts itself; the browser comes first, since it may skip."""
    with open_playground() as running:
        yield running


@contextlib.contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page of its own. Errors of its scripts fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(SECONDS)
    page, errors = context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.locator(".status.ready")).to_be_visible(timeout=SECONDS)
    yield page
    assert errors == []
    context.close()


def give(page: Page, name: str, content: bytes) -> None:
    """Drop a file, and wait until the page has looked at it."""
    page.evaluate(DROP, [name, f"image/{name.rpartition('.')[2]}", base64.b64encode(content).decode()])
    expect(page.locator("#facts")).to_contain_text(name, timeout=SECONDS)


def fill(page: Page, name: str, value: str) -> None:
    box = page.locator(f"#input-{name} input[type=number]")
    box.fill(value)
    box.press("Tab")


def start(page: Page) -> None:
    page.click("#run")
    expect(page.locator("#cancel")).to_be_enabled(timeout=SECONDS)


def run(page: Page) -> None:
    """Run, and wait for the result."""
    newest = "document.querySelector('#right input')?.value ?? ''"
    before = page.evaluate(newest)
    page.click("#run")
    page.wait_for_function(f"(before) => ({newest}) !== before", arg=before)
    expect(page.locator("#run")).to_be_enabled()


def run_quickly(page: Page, content: bytes, name: str = "photo.jpg") -> None:
    give(page, name, content)
    fill(page, "num_inference_steps", "1")
    run(page)
    expect(page.locator("#slider img").first).to_be_visible(timeout=SECONDS)


def download(page: Page) -> bytes:
    with page.expect_download() as found:
        page.click("#download")
    return Path(found.value.path()).read_bytes()


def copied_call(page: Page, language: str) -> str:
    """What the copy button of a call gives."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if not page.locator("#calls [role=tab]").first.is_visible():
        page.click("#calls > button")
    page.get_by_role("tab", name=language).click()
    page.locator(
        f"#call-{language.lower()} button[aria-label=Copy], #call-{language.lower()} button[title=Copy]"
    ).click()
    return page.evaluate("navigator.clipboard.readText()")


def ask_server(page: Page, inputs: dict[str, Any]) -> bytes:
    """The file that the page's server answers to the same request."""
    found = re.search(r"http://[\d.:]+/predictions", copied_call(page, "curl"))
    assert found
    body = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(found[0], body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return base64.b64decode(json.load(response)["output"].partition(",")[2])


def data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def seed_of(page: Page) -> int:
    return int(page.inner_text("#details code"))


def natural_sizes(page: Page) -> list[list[int]]:
    return page.evaluate(
        "[...document.querySelectorAll('#slider img')].map((image) => [image.naturalWidth, image.naturalHeight])"
    )


@pytest.fixture
def page(browser: Browser, playground: Playground) -> Iterator[Page]:
    with visit(browser, playground.url) as found:
        yield found


def test_the_page_is_light_quick_and_asks_nobody_else(browser: Browser, playground: Playground) -> None:
    context = browser.new_context()
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(playground.url)
    expect(page.locator(".status.ready")).to_be_visible(timeout=SECONDS)
    page.wait_for_load_state("load")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    entries = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    weight = page.evaluate(f"{entries}.reduce((sum, entry) => sum + entry.encodedBodySize, 0)")
    print(f"first paint after {paint:.0f} ms, {weight / 1e3:.0f} kB in {len(asked)} requests")
    assert [url for url in asked if not url.startswith((playground.url, "data:", "blob:"))] == []
    assert weight < 1_000_000
    assert paint < 5000
    context.close()


def test_drop_run_compare_download_and_repeat(page: Page, tmp_path: Path) -> None:
    small = photo()
    give(page, "photo.jpg", small)
    expect(page.locator("#facts")).to_contain_text("64 × 48 → 256 × 192")
    expect(page.locator("#facts")).to_contain_text(re.compile(r"About [\d.]+ s here"), timeout=SECONDS)
    fill(page, "num_inference_steps", "1")
    page.click("#more > button")
    expect(page.locator("#input-seed input")).to_have_value("")
    run(page)
    expect(page.locator("#slider img").first).to_be_visible(timeout=SECONDS)
    page.wait_for_function("[...document.querySelectorAll('#slider img')].every((image) => image.naturalWidth)")
    assert natural_sizes(page) == [[256, 192], [256, 192]], "the input is enlarged to the result's size"
    for text in ("Tags", "SeeSR-tiny on cpu", "latent tiles", "Retries"):
        expect(page.locator("#details")).to_contain_text(text)
    expect(page.locator("#stages li")).to_have_count(8)
    expect(page.locator("#costs tbody tr").first).to_contain_text("$0.0")

    result, seed = download(page), seed_of(page)
    assert seed > 0, "an empty seed is drawn"
    assert Image.open(io.BytesIO(result)).size == (256, 192)
    asked = {"image": data_uri(small), "num_inference_steps": 1, "seed": seed}
    assert ask_server(page, asked) == result, "the server's bytes"

    (tmp_path / "photo.jpg").write_bytes(small)
    for language, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        subprocess.run([*command, copied_call(page, language)], cwd=tmp_path, check=True)
        assert (tmp_path / "result.png").read_bytes() == result
        (tmp_path / "result.png").unlink()
    if shutil.which("node"):
        (tmp_path / "call.mjs").write_text(copied_call(page, "JavaScript"))
        subprocess.run(["node", "call.mjs"], cwd=tmp_path, check=True)
        assert (tmp_path / "result.png").read_bytes() == result

    page.click("#again")
    expect(page.locator("#input-seed input")).to_have_value(str(seed))
    run(page)
    expect(page.locator("#right input")).to_have_value(re.compile("^2: "))
    assert download(page) == result, "the same seed gives the same bytes"


def test_the_line_is_dragged_and_moved_by_keys(page: Page) -> None:
    run_quickly(page, photo())
    line, upper = page.locator("[data-testid=slider]"), page.locator("#slider img").nth(1)

    def clip() -> float:
        found = re.search(r"inset\(0(?:px)? 0(?:px)? 0(?:px)? ([\d.]+)%\)", upper.get_attribute("style") or "")
        assert found, upper.get_attribute("style")
        return float(found[1])

    page.wait_for_timeout(300)
    box = line.bounding_box()
    assert box
    middle = clip()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 120, y, steps=5)
    page.mouse.up()
    dragged = clip()
    assert dragged < middle - 5
    line.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert clip() > dragged + 2
    before = upper.get_attribute("style")
    page.keyboard.press("+")
    page.wait_for_timeout(500)
    assert "scale(1)" not in (upper.get_attribute("style") or ""), before


def test_a_damaged_file_is_named_and_the_form_keeps_its_values(page: Page) -> None:
    fill(page, "scale_factor", "2")
    give(page, "broken.png", b"not a photograph")
    sentence = (
        "image must be an image file (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF), got a file that is none of these"
    )
    expect(page.locator("#problem [role=alert]")).to_have_text(f"broken.png: {sentence}", timeout=SECONDS)
    page.click("#run")
    expect(page.locator("#problem [role=alert]")).to_have_text(sentence, timeout=SECONDS)
    expect(page.locator("#input-scale_factor input[type=number]")).to_have_value("2")
    give(page, "photo.jpg", photo())
    expect(page.locator("#problem")).not_to_be_visible()
    expect(page.locator("#facts")).to_contain_text("64 × 48 → 128 × 96")


def test_the_sentence_of_what_cannot_be_comes_before_running(page: Page) -> None:
    sentence, problem = "target_long_side must be 1 to 8 times", page.locator("#problem [role=alert]")
    give(page, "photo.jpg", photo())
    fill(page, "target_long_side", "5000")
    expect(page.locator("#facts")).to_contain_text(sentence, timeout=SECONDS)
    page.click("#run")
    expect(problem).to_contain_text(sentence, timeout=SECONDS)
    expect(page.locator("#facts")).not_to_contain_text(sentence)
    fill(page, "target_long_side", "0")
    expect(problem).not_to_be_visible()
    steps = page.locator("#input-num_inference_steps input[type=number]")
    steps.fill("9")
    steps.press("Control+Enter")
    expect(problem).to_have_text("num_inference_steps: 9 is greater than the maximum of 4", timeout=SECONDS)
    expect(page.locator(".toast-body")).to_have_count(0)


def test_a_run_shows_its_stage_and_is_cancelled(page: Page) -> None:
    give(page, "photo.jpg", photo(size=(200, 150)))
    fill(page, "scale_factor", "8")
    start(page)
    bar = page.locator("#progress [role=progressbar]")
    expect(page.locator("#progress")).to_contain_text("Denoising", timeout=SECONDS)
    assert int(bar.get_attribute("aria-valuenow") or 0) < 100
    page.keyboard.press("Escape")
    expect(page.locator("#problem")).to_contain_text("Cancelled.", timeout=SECONDS)
    expect(page.locator("#run")).to_be_enabled()
    expect(page.locator("#progress")).not_to_be_visible()
    page.click("#log > button")
    expect(page.locator("#log pre")).to_contain_text("encode: ")
    page.keyboard.press("Control+Enter")  # and again, by the keyboard
    expect(page.locator("#cancel")).to_be_enabled(timeout=SECONDS)
    page.click("#cancel")
    expect(page.locator("#run")).to_be_enabled(timeout=SECONDS)


def test_a_pasted_photograph_is_removed_and_the_webcam_gives_another(page: Page) -> None:
    page.locator("#examples button").first.click()
    expect(page.locator("#facts")).to_contain_text("animal.jpg 112 × 75", timeout=SECONDS)
    page.context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
    page.evaluate(COPY, base64.b64encode(photo("PNG")).decode())
    page.click("h1")
    page.keyboard.press("Control+v")
    expect(page.locator("#facts")).to_contain_text("image.png 64 × 48", timeout=SECONDS)
    expect(page.locator("#facts")).not_to_contain_text("animal.jpg")
    page.get_by_label("Remove Image").click()
    expect(page.locator("#facts")).not_to_contain_text("image.png")
    page.wait_for_timeout(500)
    page.click("#run")
    expect(page.locator("#problem")).to_contain_text("There is no photograph yet", timeout=SECONDS)
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#input-image video').videoWidth > 0")
    page.get_by_label("capture photo").click()
    expect(page.locator("#facts")).to_contain_text(re.compile(r"image.png \d{3,} × \d{3,} →"), timeout=SECONDS)


def test_a_chosen_file_keeps_its_bytes_and_orientation(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    (tmp_path / "turned.jpg").write_bytes(photo(exif=exif))
    page.set_input_files("#input-image input[type=file]", tmp_path / "turned.jpg")
    expect(page.locator("#facts")).to_contain_text("turned.jpg 48 × 64 → 192 × 256", timeout=SECONDS)


def test_tiff_of_16_bits_is_previewed_and_downloaded_as_it_is(page: Page) -> None:
    gradient = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint16) * 500
    stream = io.BytesIO()
    Image.fromarray(gradient).save(stream, "TIFF")
    page.get_by_label("tiff", exact=True).check()
    run_quickly(page, stream.getvalue(), "deep.tiff")
    expect(page.locator("#input-image img")).to_have_js_property("naturalWidth", 64)
    page.wait_for_function("[...document.querySelectorAll('#slider img')].every((image) => image.naturalWidth)")
    assert natural_sizes(page) == [[256, 192], [256, 192]]
    expect(page.locator("#download")).to_have_text("Download TIFF")
    result = Image.open(io.BytesIO(download(page)))
    assert (result.format, result.mode, result.size) == ("TIFF", "I;16", (256, 192))


def test_two_results_of_the_visit_are_compared(page: Page) -> None:
    run_quickly(page, photo())
    fill(page, "fidelity", "1")
    run(page)
    expect(page.locator("#right input")).to_have_value(re.compile("^2: .*fidelity 1"))
    expect(page.locator("#strip button.thumbnail-item")).to_have_count(2)
    page.click("#left input")
    page.get_by_role("option", name=re.compile("^1: ")).click()
    sources = "[...document.querySelectorAll('#slider img')].map((image) => image.src.split('/').pop())"
    page.wait_for_function(f"!{sources}[0].startsWith('before')")
    first = seed_of(page)
    page.locator("#strip button.thumbnail-item").nth(1).click()
    expect(page.locator("#right input")).to_have_value(re.compile("^1: "))
    page.wait_for_function(f"document.querySelector('#details code').innerText != '{first}'")
    give(page, "large.jpg", photo(size=(200, 150)))
    fill(page, "scale_factor", "8")
    start(page)
    page.click("#left input")
    page.keyboard.press("Escape")
    page.get_by_label("Fullscreen").click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    expect(page.locator("#progress")).not_to_contain_text("Cancelling")
    page.locator("h1").click()
    page.keyboard.press("Escape")
    expect(page.locator("#problem")).to_contain_text("Cancelled.", timeout=SECONDS)


def test_a_narrow_window_and_the_dark_scheme(browser: Browser, playground: Playground) -> None:
    light: list[str] = []
    for scheme in ("light", "dark"):
        with visit(browser, playground.url, color_scheme=scheme) as page:
            page.set_viewport_size({"width": 390, "height": 800})
            run_quickly(page, photo())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            for name in ("#run", "#slider", "#download", "#inputs"):
                box = page.locator(name).bounding_box()
                assert box
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 390
            for text in ("#run", ".hint", "#facts li span", "#details dt", "#inputs [class*=info]"):
                assert page.evaluate(CONTRAST, text) >= 4.5, f"{text} in the {scheme} scheme"
            light.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert light[0] != light[1]


def test_a_busy_server_lets_the_next_wait_its_turn(page: Page, playground: Playground, browser: Browser) -> None:
    give(page, "photo.jpg", photo(size=(160, 120)))
    fill(page, "scale_factor", "8")
    with visit(browser, playground.url) as second:
        give(second, "photo.jpg", photo())
        fill(second, "num_inference_steps", "1")
        start(page)
        expect(page.locator("#progress")).to_contain_text("Denoising", timeout=SECONDS)
        start(second)
        expect(second.locator("#progress")).to_contain_text("busy with another request", timeout=SECONDS)
        page.click("#cancel")
        expect(second.locator("#slider img").first).to_be_visible(timeout=SECONDS)


def test_a_dead_server_is_said_and_started_again(page: Page, playground: Playground) -> None:
    give(page, "photo.jpg", photo(size=(160, 120)))
    fill(page, "scale_factor", "8")
    start(page)
    expect(page.locator("#progress")).to_contain_text("Denoising", timeout=SECONDS)
    os.kill(cog_worker(playground.process.pid), signal.SIGKILL)
    expect(page.locator("#problem [role=alert]")).to_be_visible(timeout=SECONDS)
    expect(page.locator(".status.away")).to_be_visible(timeout=SECONDS)
    expect(page.locator(".status.ready")).to_be_visible(timeout=SECONDS)
    expect(page.locator("#input-scale_factor input[type=number]")).to_have_value("8")
    fill(page, "scale_factor", "2")
    fill(page, "num_inference_steps", "1")
    run(page)
    expect(page.locator("#slider img").first).to_be_visible(timeout=SECONDS)


def cog_worker(pid: int) -> int:
    """The process below `pid` that runs the model."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(row[0]), int(row[1]), row[2]) for row in (line.split(None, 2) for line in table.splitlines())]
    family = {pid}
    for _ in range(5):
        family |= {child for child, parent, _ in rows if parent in family}
    (worker,) = [
        child for child, _, words in rows if child in family and "cog.server" not in words and "coglet" in words
    ]
    return worker


OTHER = """
from cog import BasePredictor, Input, Path

class Predictor(BasePredictor):
    def predict(
        self,
        image: Path = Input(description="A file."),
        shade: float = Input(default=0.5, ge=0, le=1, description="How dark."),
        mode: str = Input(default="a", choices=["a", "b"], description="A mode."),
    ) -> str:
        return f"{image.stat().st_size} bytes, {shade}, {mode}"
"""


def test_another_cog_server_and_an_input_that_nobody_knows(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    with (
        CogServer(tmp_path, "other.py:Predictor") as server,
        open_playground("--url", server.url) as running,
        visit(browser, running.url) as page,
    ):
        page.click("#more > button")
        expect(page.locator("#input-shade")).to_contain_text("How dark.")
        fill(page, "shade", "0.25")
        page.locator("#input-mode").get_by_label("b", exact=True).check()
        give(page, "photo.jpg", photo())
        page.click("#run")
        expect(page.locator("#problem")).to_contain_text(f"{len(photo())} bytes, 0.25, b", timeout=SECONDS)


def test_several_photographs_on_replicate(browser: Browser, tmp_path: Path) -> None:
    with ReplicateApi(predictor="predict.py:BatchPredictor") as api:
        api.add_model("owner", "many")
        api.add_version("owner", "many")
        with open_playground("--model", "owner/many", **api.env) as running, visit(browser, running.url) as page:
            give(page, "first.jpg", photo())
            about = PngImagePlugin.PngInfo()
            about.add_text("Comment", random.Random(1).randbytes(200_000).hex())
            second = photo("PNG", (40, 56), pnginfo=about)  # above what goes as a data URI
            give(page, "second.png", second)
            expect(page.locator("#facts")).to_contain_text(
                re.compile(r"About [\d.]+ s to [\d.]+ s on Replicate, \$0\.0")
            )
            expect(page.locator("#facts li")).to_have_count(2)
            expect(page.locator("#facts")).to_contain_text("40 × 56 → 160 × 224", timeout=SECONDS)
            fill(page, "num_inference_steps", "1")
            api.fail_next("POST", "/v1/predictions", 429, retry_after=1)
            run(page)
            expect(page.locator("#strip button.thumbnail-item")).to_have_count(2, timeout=SECONDS)
            assert [request.path for request in api.requests if request.method == "POST"].count("/v1/files") == 1
            (view,) = [job.view for job in api.predictions.values()]
            files = [api.files[address.partition("/files/")[2]] for address in view["output"]]
            assert download(page) == files[0]
            page.locator("#strip button.thumbnail-item").first.click()
            expect(page.locator("#details")).to_contain_text("160 × 224")
            assert download(page) == files[1]
            (tmp_path / "second.png").write_bytes(second)
            command = [sys.executable, "-c", copied_call(page, "Python")]
            subprocess.run(command, cwd=tmp_path, env=os.environ | api.env, check=True)
            assert [path.name for path in tmp_path.glob("result*")] == ["result-1.png"]
            assert (tmp_path / "result-1.png").read_bytes() == files[1], "the second alone, with its own seed"
            assert api.token not in page.content()
            fill(page, "scale_factor", "8")
            fill(page, "num_inference_steps", "4")
            start(page)
            expect(page.locator("#progress")).to_contain_text("Denoising", timeout=SECONDS)
            page.click("#cancel")
            expect(page.locator("#problem")).to_contain_text("Cancelled.", timeout=SECONDS)
