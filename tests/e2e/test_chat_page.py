"""The chat page in a real Chromium: streaming, stopping, errors, settings, looks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from millpond.api.request import ErrorInfo
from millpond.base.errors import QueueFullError
from millpond.serve.keys import ApiKeys
from millpond.serve.settings import ServeSettings
from tests.e2e.conftest import PageServer, answer_text, ask, open_page
from tests.support.server_process import ServerProcess
from tests.support.tiny_checkpoints import make_llama_dir

pytestmark = pytest.mark.browser

MARKDOWN = """Some **bold**, *soft* and `code` words.

1. first
2. second
   - inner

```python
def f(x):
    return x < 1
```

| a | b |
|---|---|
| 1 | 2 |

See [a page](https://example.org/x)."""
HOSTILE = """<img src=x onerror="window.hit=1"> <script>window.hit=1</script> [x](javascript:window.hit=1)

```html
<b>bold</b>
```
<think><i>hm</i></think> **<u>u</u>**"""


def prompts(server: PageServer) -> list[str]:
    """What the engine was asked, as text."""
    tokenizer = server.engine.text.tokenizer
    return [tokenizer.decode(request.prompt_token_ids, False) for request in server.engine.requests]


def test_an_answer_streams_in_and_is_measured(page: Page, server: PageServer) -> None:
    server.engine.stop_at = 4
    ask(page, "Good morning")
    expect(page.locator(".message.assistant .body")).to_have_text(re.compile("^Hello"))
    expect(page.locator("#log")).to_have_attribute("aria-busy", "true")
    server.call(server.engine.go_on.set)
    assert answer_text(page) == "Hello there, miller."
    expect(page.locator(".message.user .body")).to_have_text("Good morning")
    expect(page.locator(".stats")).to_have_text(
        re.compile(r"[\d.]+ tokens/s · first token after [\d.]+ s · \d+ tokens")
    )


def test_stop_ends_the_answer_and_frees_the_engine(page: Page, server: PageServer) -> None:
    server.engine.stop_at = 4
    ask(page, "Go on for ever")
    expect(page.locator(".message.assistant .body")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".stats")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert answer_text(page).startswith("Hello")
    page.wait_for_timeout(50)
    assert len(server.engine.closed) == 1


def test_escape_stops_as_well(page: Page, server: PageServer) -> None:
    server.engine.stop_at = 4
    ask(page, "Go on for ever")
    expect(page.locator(".message.assistant .body")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator(".stats")).to_contain_text("stopped")


def test_enter_sends_and_shift_enter_does_not(page: Page, server: PageServer) -> None:
    page.keyboard.type("one")  # the field has the focus from the start
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.get_by_label("Message", exact=True)).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    answer_text(page)
    assert "user\none\ntwo<|im_end|>" in prompts(server)[0]


def test_nothing_is_sent_without_text(page: Page, server: PageServer) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    ask(page, "   ")
    page.wait_for_timeout(50)
    assert server.engine.requests == []


def test_the_conversation_is_sent_along(page: Page, server: PageServer) -> None:
    ask(page, "first question")
    answer_text(page)
    ask(page, "second question")
    expect(page.locator(".stats")).to_have_count(2)
    second = prompts(server)[1]
    assert second.index("first question") < second.index("Hello there") < second.index("second question")


def test_a_new_chat_forgets(page: Page, server: PageServer) -> None:
    ask(page, "first question")
    answer_text(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "second question")
    answer_text(page)
    assert "first question" not in prompts(server)[1]


def test_a_new_chat_while_an_answer_comes_stops_it(page: Page, server: PageServer) -> None:
    server.engine.stop_at = 4
    ask(page, "first question")
    expect(page.locator(".message.assistant .body")).not_to_be_empty()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    server.call(server.engine.go_on.set)
    ask(page, "second question")
    answer_text(page)
    expect(page.locator(".message")).to_have_count(2)


def test_the_conversation_outlives_a_reload(page: Page, server: PageServer) -> None:
    ask(page, "first question")
    answer_text(page)
    page.reload()
    expect(page.locator(".message.user .body")).to_have_text("first question")
    expect(page.locator(".message.assistant .body")).to_have_text("Hello there, miller.")


def test_an_answer_can_be_asked_for_again(page: Page, server: PageServer) -> None:
    ask(page, "first question")
    answer_text(page)
    server.engine.answers = ["Another answer."]
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("Another answer.")
    expect(page.locator(".message")).to_have_count(2)


def test_markdown_becomes_elements(page: Page, server: PageServer) -> None:
    server.engine.answers = [MARKDOWN]
    ask(page, "Show me")
    answer_text(page)
    body = page.locator(".message.assistant .body")
    expect(body.locator("strong")).to_have_text("bold")
    expect(body.locator("p em")).to_have_text("soft")
    expect(body.locator("ol > li")).to_have_count(2)
    expect(body.locator("ol > li ul > li")).to_have_text("inner")
    expect(body.locator("figure figcaption span")).to_have_text("python")
    expect(body.locator("figure pre code")).to_have_text("def f(x):\n    return x < 1")
    expect(body.locator("table td")).to_have_text(["1", "2"])
    expect(body.locator("a")).to_have_attribute("href", "https://example.org/x")
    expect(body.locator("a")).to_have_attribute("rel", "noopener noreferrer")


def test_no_answer_becomes_markup(page: Page, server: PageServer) -> None:
    server.engine.answers = [HOSTILE]
    ask(page, "<b>Mine</b>")
    answer_text(page)
    body = page.locator(".message.assistant .body")
    for tag in ("img", "script", "b", "i", "u", "a"):
        expect(body.locator(tag)).to_have_count(0)
    expect(body.locator("p").first).to_contain_text('<img src=x onerror="window.hit=1">')
    expect(page.locator(".message.user .body")).to_have_text("<b>Mine</b>")
    assert page.evaluate("window.hit") is None


def test_code_and_answers_can_be_copied(context: BrowserContext, page: Page, server: PageServer) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.engine.answers = [MARKDOWN]
    ask(page, "Show me")
    answer_text(page)
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x < 1"
    page.get_by_role("button", name="Copy answer").click()
    page.wait_for_timeout(50)
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_a_full_queue_is_shown_and_can_be_tried_again(page: Page, server: PageServer) -> None:
    server.engine.refusal = QueueFullError("16 sequences wait.", retry_after_s=3)
    ask(page, "Good morning")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server is busy. Try again in 3 s.")
    server.engine.refusal = None
    alert.get_by_role("button", name="Try again").click()
    assert answer_text(page) == "Hello there, miller."
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".message.user")).to_have_count(1)


def test_an_error_in_the_middle_is_shown_and_can_be_tried_again(page: Page, server: PageServer) -> None:
    server.engine.stop_at = 4
    server.engine.failure = ErrorInfo("engine_dead", "The engine process ended.")
    ask(page, "Good morning")
    expect(page.get_by_role("alert")).to_contain_text("The engine process ended.")
    server.engine.stop_at = None
    page.get_by_role("button", name="Try again").click()
    assert answer_text(page) == "Hello there, miller."
    expect(page.locator(".message.assistant")).to_have_count(1)


def test_a_server_that_is_gone_is_shown(page: Page, server: PageServer) -> None:
    server.close()
    ask(page, "Good morning")
    expect(page.get_by_role("alert")).to_contain_text("No connection")
    expect(page.locator("#model")).to_have_attribute("data-state", "offline")


def test_settings_reach_the_engine_and_are_kept(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("System prompt").fill("Speak like a miller.")
    page.get_by_role("slider", name="Temperature").fill("0.25")
    page.get_by_label("Longest answer, tokens").fill("3")
    page.get_by_role("button", name="Done").click()
    page.reload()
    ask(page, "Good morning")
    answer_text(page)
    params = server.engine.requests[0].params
    assert (params.temperature, params.max_tokens) == (0.25, 3)
    assert prompts(server)[0].startswith("<|im_start|>system\nSpeak like a miller.<|im_end|>")
    expect(page.locator(".stats")).to_contain_text("cut at the length limit")


def test_a_key_is_asked_for_and_used(context: BrowserContext) -> None:
    server = PageServer(ServeSettings(keys=ApiKeys(["sk-mill"])))
    page = context.new_page()
    open_page(page, server.url)
    ask(page, "Good morning")
    page.get_by_label("API key").fill("sk-mill")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Try again").click()
    assert answer_text(page) == "Hello there, miller."
    server.close()


def test_the_models_name_and_state_are_shown(context: BrowserContext) -> None:
    server = PageServer(ServeSettings(), is_loaded=False)
    page = context.new_page()
    page.goto(server.url)
    expect(page.get_by_role("status").first).to_contain_text("loading")
    server.finish_loading()
    expect(page.get_by_role("status").first).to_have_text(re.compile("tiny.*ready"))
    expect(page).to_have_title("tiny · Millpond")
    server.close()


@pytest.mark.parametrize("width", [320, 360, 1100])
def test_nothing_is_wider_than_the_window(browser: Browser, server: PageServer, width: int) -> None:
    server.engine.answers = [
        f"{MARKDOWN}\n\n```\n{'wide ' * 60}\n```\n\n{'x' * 300} `{'y' * 200}`\n\n|{'cell|' * 30}\n|{'-|' * 30}"
    ]
    context = browser.new_context(viewport={"width": width, "height": 640})
    page = context.new_page()
    open_page(page, server.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ask(page, "z" * 300)
    answer_text(page)
    server.engine.refusal = QueueFullError("16 sequences wait.", retry_after_s=3)
    ask(page, "Again")
    page.get_by_role("alert").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth"
    )
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        if box is not None:
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
    page.get_by_role("button", name="Settings", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_end_stays_in_sight_unless_one_scrolls_up(page: Page, server: PageServer) -> None:
    server.engine.answers = ["line\n\n" * 60]
    ask(page, "Write much")
    answer_text(page)
    at_end = "(s => s.scrollHeight - s.scrollTop - s.clientHeight < 2)(document.getElementById('scroll'))"
    assert page.evaluate(at_end)
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -400)
    jump = page.get_by_role("button", name="Jump to the latest message")
    expect(jump).to_be_visible()
    jump.click()
    expect(jump).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_colours_with_enough_contrast(browser: Browser, server: PageServer, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    open_page(page, server.url)
    ground, text, soft = (
        luminance(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}"))
        for selector, name in (("body", "backgroundColor"), ("body", "color"), (".hint", "color"))
    )
    assert (ground > 0.5) == (scheme == "light")
    assert contrast(ground, text) >= 7
    assert contrast(ground, soft) >= 4.5
    context.close()


def luminance(colour: str) -> float:
    """Relative luminance, as in WCAG."""
    values = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_everything_that_can_be_pressed_has_a_name(page: Page, server: PageServer) -> None:
    server.engine.answers = [MARKDOWN]
    ask(page, "Show me")
    answer_text(page)
    names = page.evaluate("[...document.querySelectorAll('button')].map(b => (b.ariaLabel || b.textContent).trim())")
    assert all(names)
    expect(page.locator("#log")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#announcer")).to_have_text("Answer complete.")


def test_it_loads_from_its_own_server_alone_and_breaks_no_policy(context: BrowserContext, server: PageServer) -> None:
    page = context.new_page()
    urls: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_page(page, server.url)
    server.engine.answers = [MARKDOWN]
    ask(page, "Show me")
    answer_text(page)
    assert problems == []
    assert all(url.startswith((server.url, "data:")) for url in urls)


def test_a_real_server_answers(context: BrowserContext, tmp_path: Path) -> None:
    model = make_llama_dir(tmp_path / "tiny-llama")
    with ServerProcess(model, "--dtype", "float32", "--threads", "1") as server:
        page = context.new_page()
        open_page(page, server.wait_ready().url)
        # A tiny model writes faster than anyone presses Stop, so the answer ends at a length.
        page.get_by_role("button", name="Settings", exact=True).click()
        page.get_by_label("Longest answer, tokens").fill("12")
        page.get_by_role("button", name="Done").click()
        ask(page, "Good morning")
        assert answer_text(page)
        expect(page.locator(".stats")).to_contain_text("tokens")
        expect(page.locator("#model-name")).to_have_text("tiny-llama")
