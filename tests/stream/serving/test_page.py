"""The live page in a real browser: what it shows, that it goes on after a restart, that it stays at home."""

import json
import shutil
import socket
from types import SimpleNamespace

import pytest
from browser import CHROMIUM, Browser
from livenet import three_exits
from playing import played
from served import picture

from eex.policies.algorithms.ucb import UCB
from eex.policies.core.schedule import parse_schedule
from eex.stream.config import StreamConfig
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.run import page_of_run

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    with Browser(folder) as browser:
        yield browser
    shutil.rmtree(folder, ignore_errors=True)


def text(browser, id):
    return browser.evaluate(f"document.getElementById('{id}').innerText")


def test_it_shows_a_stream_and_follows_it(opened, browser):
    client = opened(thumbnails=True)
    for _ in range(20):
        client.answer("door")
    client.answer("yard")
    browser.open(client.url + "/#door")
    browser.until("document.querySelectorAll('#threshold svg path').length == 2")
    browser.until("document.querySelectorAll('#shares svg path').length == 3")
    for id in ("latency", "confidence", "curve"):
        browser.until(f"document.querySelector('#{id} svg path')?.getAttribute('d').length > 5")
    assert "live" in text(browser, "state")
    assert browser.evaluate("[...document.querySelectorAll('#streams button')].map(b => b.textContent)") == [
        "door",
        "yard",
    ]
    frames = "document.querySelector('#figures dd').innerText"
    browser.until(f"{frames} == '20'")
    for _ in range(10):
        client.answer("door", name="<b>x</b>")
    browser.until(f"{frames} == '30'")
    browser.until("document.querySelector('#last').innerText.includes('<b>x</b>')")  # names are text
    browser.until("document.querySelectorAll('#last img').length > 0")
    client.settings(overhead=0.123)
    browser.open(client.url + "/#yard")
    browser.until(f"{frames} == '1'")
    assert not browser.problems
    assert all(url.startswith((client.url, "data:image/png")) for url in browser.asked if url != "about:blank")


def test_it_is_used_by_keyboard_and_sets_settings(opened, browser):
    client = opened()
    client.answer("door")
    client.answer("yard")
    browser.open(client.url + "/#door")
    browser.until("document.querySelectorAll('#streams button').length == 2")
    browser.evaluate("document.querySelector('#streams button:nth-child(2)').focus()")
    browser.press("Enter", "\r")
    browser.until("document.querySelector('#streams button:nth-child(2)').getAttribute('aria-pressed') == 'true'")
    browser.evaluate("document.querySelector('[name=overhead]').focus()")
    browser.call("Input.insertText", text="0.37")
    for _ in range(3):
        browser.press("Tab")
    assert browser.evaluate("document.activeElement.name") == "thresholds"
    browser.press("Tab")
    browser.press("Enter", "\r")
    browser.until("document.getElementById('set').textContent == 'set'")
    assert client.get("/v1/settings?stream=yard")[1]["overhead"] == 0.37
    browser.evaluate(
        "document.querySelector('[name=overhead]').value = '-3'; document.querySelector('#settings button').click()"
    )
    browser.until("document.getElementById('set').textContent.includes('overhead must lie in [0, 1]')")


def test_a_stream_that_is_gone_is_said_and_comes_back(opened, browser):
    client = opened()
    client.answer("door")
    client.answer("yard")
    browser.open(client.url + "/#door")
    browser.until("document.querySelector('#figures dd')?.innerText == '1'")
    client.service.watch.forget("door")
    browser.until("document.getElementById('state').innerText.includes(\"no stream 'door'\")")
    assert browser.evaluate("document.getElementById('cards').hidden")  # no other's figures, and no settings
    client.answer("door")
    browser.until("!document.getElementById('cards').hidden && document.getElementById('state').innerText == 'live'")


def test_the_accuracy_is_that_of_the_last_second_with_labels(opened, browser):
    client = opened()
    client.answer("door", label="h")
    client.service.watch.tick()
    client.answer("door")
    client.service.watch.tick()
    browser.open(client.url + "/#door")
    name = "[...document.querySelectorAll('#figures dt')].find((t) => t.innerText.startsWith('accuracy'))"
    browser.until(f"['0.0 %', '100.0 %'].includes({name}?.nextSibling.innerText)")


def test_names_come_decoded_from_the_address(browser):
    frames = SimpleNamespace(schedule=parse_schedule("pristine:100"), total=640, live=False)
    said = []
    with page_of_run(ServeConfig(port=0), said.append)(
        StreamConfig(policy="ucb", worker="none"), three_exits(), frames, 0.0
    ) as viewer:
        for label in ("ucb", "ucb (2)"):
            played(viewer, label, UCB([0.2, 0.8], exits=2))
        browser.open(said[0].split()[-1] + "#ucb%20(2)")
        pressed = "document.querySelector('#streams [aria-pressed=true]')?.textContent"
        browser.until(f"{pressed} == 'ucb (2)'")
        browser.evaluate("document.querySelector('#streams button').click()")
        browser.until(f"{pressed} == 'ucb'")
        browser.evaluate("document.querySelector('#streams button:nth-child(2)').click()")
        browser.until(f"{pressed} == 'ucb (2)'")
        assert browser.evaluate("location.hash") == "#ucb%20(2)"


def test_it_goes_on_after_a_restart(opened, browser, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = opened(port=port)
    first.answer("door")
    browser.open(first.url + "/#door")
    browser.until("document.querySelector('#figures dd')?.innerText == '1'")
    first.stop()
    browser.until("document.getElementById('state').dataset.state == 'lost'")
    second = opened(port=port)
    for _ in range(3):
        second.answer("door")
    browser.until("document.getElementById('state').dataset.state == 'live'")
    browser.until("document.querySelector('#figures dd').innerText == '3'")


def test_it_asks_for_the_token(opened, browser, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    client = opened(token_file=tmp_path / "token")
    client("POST", "/v1/answer?stream=door", picture(), {"Authorization": f"Bearer {TOKEN}"})
    browser.open(client.url + "/")
    browser.until("!document.getElementById('token').hidden")
    assert browser.evaluate("getComputedStyle(document.getElementById('cards')).display") == "none"
    browser.evaluate(f"document.querySelector('[name=token]').value = {json.dumps(TOKEN)}")
    browser.evaluate("document.querySelector('#token button').click()")
    browser.until("document.getElementById('token').hidden && document.querySelector('#figures dd')?.innerText == '1'")
    browser.evaluate("sessionStorage.clear()")


def test_it_shows_the_schedule_and_the_regret_of_a_played_stream(browser):
    said, frames = (
        [],
        SimpleNamespace(schedule=parse_schedule("pristine:100,gaussian_blur@1:60"), total=320, live=False),
    )
    config = StreamConfig(policy="ucb", worker="none")
    with page_of_run(ServeConfig(port=0), said.append)(config, three_exits(), frames, 0.0) as viewer:
        played(viewer, "ucb", UCB([0.2, 0.8], exits=2))
        browser.open(said[0].split()[-1], 390, 900)
        browser.until("document.querySelectorAll('#regret svg rect').length == 4")
        browser.until("document.querySelectorAll('#regret svg path').length == 2")  # the line, and its uncertainty
        assert "ucb: 320 of 320 frames" in text(browser, "regret")
        assert "gaussian_blur@1" in text(browser, "regret")
        assert browser.evaluate("document.getElementById('set-card').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert not browser.problems


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_it_fits_a_phone_and_the_dark(opened, browser, width, dark):
    client = opened()
    for _ in range(5):
        client.answer("a-stream-with-quite-a-long-name-that-may-not-fit")
    browser.open(client.url + "/", width, 900, dark)
    browser.until("document.querySelectorAll('#cards svg').length >= 4")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    back = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(back.split("(")[1].split(",")[0]) < 60) == dark
