"""What TensorBoard shows of a run, in a real browser."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import free_port

from n2n_dist.training.curves import CHARTS

TEXT = """
const found = [];
const visit = node => {
    if (node.nodeType === Node.TEXT_NODE) found.push(node.textContent);
    if (node.shadowRoot) node.shadowRoot.childNodes.forEach(visit);
    if (!["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) node.childNodes.forEach(visit);
};
visit(document.body);
return found.join(" ").split(/\\s+/).join(" ");
"""
"""All text of the page, inside its components too."""


class Pages:
    """TensorBoard's pages for one run."""

    def __init__(self, driver: object, address: str) -> None:
        self.driver = driver
        self.address = address

    def wait_for(self, page: str, *texts: str) -> None:
        """Open a page and wait until it shows all texts."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#{page}")
        end = time.monotonic() + 60
        while missing := [text for text in texts if text not in self.driver.execute_script(TEXT)]:
            if time.monotonic() > end:
                shown = self.driver.execute_script(TEXT)
                pytest.fail(f"{page} does not show {missing} but: {shown}")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def pages(interrupted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={interrupted_run.parent}", f"--port={port}"]
    log = tmp_path_factory.mktemp("tensorboard") / "log"
    with log.open("w") as file, subprocess.Popen([*command, "--host=127.0.0.1"], stdout=file, stderr=file) as server:
        try:
            end = time.monotonic() + 60
            while "http://" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            options = selenium.ChromeOptions()
            options.binary_location = browser
            for argument in ("--headless=new", "--disable-gpu", "--window-size=1600,1800"):
                options.add_argument(argument)
            if os.geteuid() == 0:
                options.add_argument("--no-sandbox")  # as root Chromium starts without it only
            driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver_path))
            try:
                yield Pages(driver, f"http://127.0.0.1:{port}")
            finally:
                driver.quit()
        finally:
            server.terminate()


def test_the_charts_that_matter_first_have_a_page_of_their_own(pages: Pages) -> None:
    pages.wait_for("custom_scalars", *CHARTS, *(name for names in CHARTS.values() for name in names if "*" not in name))


def test_every_curve_is_there(pages: Pages) -> None:
    pages.wait_for("timeseries", "train", "validation", "speed", "memory", "train 5 cards")


def test_strips_are_shown(pages: Pages) -> None:
    pages.wait_for("images", "demo: noisy, denoised, reference", "again: noisy, denoised, reference", "step 6")


def test_runs_compare_by_their_settings_and_last_scores(pages: Pages) -> None:
    pages.wait_for(
        "hparams", "optim.lr", "loss.pixel", "validation/demo/psnr", "validation/again/lpips", "run/tensorboard"
    )
