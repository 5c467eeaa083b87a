"""The site as a reader meets it: in a headless Chromium, from a server and from a folder."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.browser

DESKTOP, PHONE = (1440, 1000), (390, 844)
MECHANISM = "mechanisms/attention.html"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def server(site):
    """Return the address of a server of the site on this machine."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture(scope="module")
def chromium():
    """Return a headless browser."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no Chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--disable-back-forward-cache",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium):
    """Return the browser with a desktop's window, a light system and nothing remembered."""
    window(chromium, DESKTOP)
    system(chromium, "light")
    chromium.get("about:blank")
    chromium.get_log("browser")
    chromium.get_log("performance")
    return chromium


def window(browser, size, *, mobile=False):
    """Give the page a size."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def system(browser, scheme):
    """Set what the system prefers, light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def pages(site):
    """List the pages of the site by their addresses within it."""
    return [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html")) if path.name != "404.html"]


def until(browser, script, *arguments, patience=10):
    """Wait until a script returns something true, and return it."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, patience).until(lambda b: b.execute_script(script, *arguments))


def requests(browser):
    """List the addresses that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


EMPTY_FORMULAS = """
return [...document.querySelectorAll('math')].filter(m => m.checkVisibility()).filter(m => {
  const box = m.getBoundingClientRect(); return box.width < 3 || box.height < 3
}).map(m => m.getAttribute('alttext'))
"""


@pytest.fixture(scope="module")
def survey(chromium, server, site):
    """Visit every page once, on a desk and on a telephone; return by page what was seen."""
    seen = {}
    for page in pages(site):
        window(chromium, DESKTOP)
        chromium.get(server + page)
        seen[page] = {
            "console": chromium.get_log("browser"),
            "requests": requests(chromium),
            "empty formulas": chromium.execute_script(EMPTY_FORMULAS),
        }
        window(chromium, PHONE, mobile=True)
        seen[page]["width"] = chromium.execute_script("return document.documentElement.scrollWidth")
    return seen


def test_no_page_logs_an_error(survey):
    """Every page loads without a message of the console."""
    assert {page: seen["console"] for page, seen in survey.items() if seen["console"]} == {}


def test_no_request_leaves_the_site(survey, server):
    """Whatever a page asks for comes from the site itself."""
    inside = (server, "data:", "about:", "blob:")
    assert all(any(url.startswith(server) for url in seen["requests"]) for seen in survey.values())
    strangers = {page: [u for u in seen["requests"] if not u.startswith(inside)] for page, seen in survey.items()}
    assert {page: urls for page, urls in strangers.items() if urls} == {}


def test_every_formula_has_a_size(survey):
    """No formula is empty or invisible, but for those in folded parts."""
    assert {page: seen["empty formulas"] for page, seen in survey.items() if seen["empty formulas"]} == {}


def test_no_page_scrolls_sideways_on_a_phone(survey):
    """On a telephone every page is as wide as its window; only code and tables scroll within themselves."""
    assert {page: seen["width"] for page, seen in survey.items() if seen["width"] > PHONE[0]} == {}


def test_formulas_are_drawn_as_formulas(browser, server):
    """A fraction is taller than a letter: the browser lays MathML out."""
    browser.get(server + MECHANISM)
    tall, flat = browser.execute_script(
        "const height = q => document.querySelector(q).getBoundingClientRect().height;"
        "return [height('.equation:has(#eq-R4) mfrac'), height('.equation:has(#eq-R4) mi')]"
    )
    assert tall > 1.5 * flat


def test_permalinks_land_on_their_block(browser, server):
    """Loading the address of a block brings the block, marked, to the upper half of the window."""
    browser.get(server + MECHANISM)
    ids = browser.execute_script("return [...document.querySelectorAll('.row[data-equation]')].map(r => r.id)")
    assert len(ids) > 10
    for ident in ids[:: max(1, len(ids) // 5)]:
        browser.get("about:blank")
        browser.get(f"{server}{MECHANISM}#{ident}")
        script = "const t = document.querySelector(':target'); return t && [t.id, t.getBoundingClientRect().top]"
        found, top = until(browser, script)
        assert found == ident
        assert 0 <= top < DESKTOP[1] / 2, ident


def test_an_equation_leads_to_its_code_and_back(browser, server):
    """The link beside an equation lands on a block of code whose number leads back to the equation."""
    browser.get(server + MECHANISM)
    browser.execute_script("document.querySelector('#eq-R18 .to-code').click()")
    block = until(browser, "const t = document.querySelector(':target'); return t && t.dataset.equation && t.id")
    browser.execute_script("document.querySelector(':target .beside .number').click()")
    assert until(browser, "const t = document.querySelector(':target'); return t && t.id") == "eq-R18"
    assert block.endswith("R18")


def brightness(browser):
    """Return how bright the page's ground is, 0 to 255."""
    script = "return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    return sum(browser.execute_script(script)) / 3


def test_dark_follows_the_system_and_the_button(browser, server):
    """A dark system gets a dark page, with the dark drawing; the button overrules the system."""
    browser.get(server + MECHANISM)
    assert brightness(browser) > 200
    system(browser, "dark")
    browser.get(server + MECHANISM)
    assert until(browser, "return document.body.dataset.mdColorScheme === 'slate'")
    assert brightness(browser) < 60
    drawn = (
        "return [...document.querySelectorAll('.picture img')].filter(i => i.checkVisibility()).map(i => i.className)"
    )
    assert set(browser.execute_script(drawn)) == {"dark"}
    browser.execute_script("document.querySelector('label[for=__palette_1]:not([hidden])').click()")
    assert until(browser, "return document.body.dataset.mdColorScheme === 'default'")
    assert brightness(browser) > 200
    browser.execute_script("localStorage.clear()")


def test_code_stands_beside_prose_or_below_it(browser, server):
    """Wide windows show two columns; a telephone shows the prose above its code."""
    corner = (
        "const r = document.querySelector('.row.docstring');"
        "const at = q => r.querySelector(q).getBoundingClientRect();"
        "return [at('.prose').left, at('.code').left, at('.prose').bottom, at('.code').top]"
    )
    browser.get(server + MECHANISM)
    left, right, _, _ = browser.execute_script(corner)
    assert right > left + 200
    window(browser, PHONE, mobile=True)
    browser.get(server + MECHANISM)
    left, right, bottom, top = browser.execute_script(corner)
    assert abs(right - left) < 20
    assert top >= bottom - 1


def test_the_handout_blanks_numbered_lines_only(browser, server):
    """The switch above a module empties the lines that compute equations, and no others."""
    browser.get(server + MECHANISM)
    colour = "return getComputedStyle(document.querySelector(arguments[0])).color"
    numbered, other = ".row[data-equation] .code code span", ".row.docstring .code code span"
    before = browser.execute_script(colour, other)
    browser.execute_script("document.querySelector('.blanks').click()")
    assert browser.execute_script(colour, numbered) == "rgba(0, 0, 0, 0)"
    assert browser.execute_script(colour, other) == before


def test_answers_are_folded_away(browser, server):
    """An exercise shows its code and hides its answer until it is unfolded."""
    browser.get(server + MECHANISM)
    browser.execute_script("document.querySelectorAll('details.exercises').forEach(d => d.open = true)")
    answer = "return document.querySelector('.exercise details p').checkVisibility()"
    assert not browser.execute_script(answer)
    browser.execute_script("document.querySelector('.exercise details summary').click()")
    assert browser.execute_script(answer)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_words_and_functions(browser, server, site, scheme):
    """The search finds a function by its name, from a server and from a folder."""
    base = server if scheme == "http" else site.as_uri() + "/"
    browser.get(base + "index.html")
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    box = browser.find_element("css selector", ".md-search__input")
    box.send_keys("masked_logits")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href).join(' ')"
    assert "attention" in until(browser, found)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
