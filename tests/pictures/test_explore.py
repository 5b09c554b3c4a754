"""The page of `explore` in a real browser: clicks, keys, and numbers equal to the tensors given."""

from __future__ import annotations

import json
import re
import shutil

import networkx
import pytest
import torch

from graphattn import Edges, Full, Grid, Window, attention
from graphattn.plot import explore
from graphattn.plot.style import COLORS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WORDS = ["I", "saw", "</script><b>a</b>", "saw & $aw"]


def weights_of(pattern, heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(pattern.num_targets, heads, 4, generator=generator)
    key = torch.randn(pattern.num_sources, heads, 4, generator=generator)
    return attention(query, key, key, pattern, return_weights=True)[1]


@pytest.fixture(scope="module")
def browser():
    reason = "needs a Chromium and pip install 'graphattn[browser]'"
    driver = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip(reason)
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(120_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else told.append(request.url))
    yield page
    page.close()
    assert told == []


def shown(page):
    """The selected node, and the listed sources with their weights."""
    (selected,) = page.query_selector_all("[role=option][aria-selected=true]")
    assert selected.get_attribute("id") == page.get_attribute("#stage", "aria-activedescendant")
    listed = {
        int(row.get_attribute("data-source")): float(row.query_selector(".number").text_content())
        for row in page.query_selector_all("#sources button")
    }
    return int(selected.get_attribute("data-node")), listed


def numbers(page, where):
    return [float(text) for text in page.locator(f"{where} .number").all_inner_texts()]


def brightness(page, selector, what="background-color"):
    color = page.eval_on_selector(selector, f"element => getComputedStyle(element)['{what}']")
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


def expected(pattern, weight, target, most=12):
    """The strongest sources of a target and the sum of all, from the [E] weights of a head."""
    total: dict[int, float] = {}
    for (source, into), value in zip(pattern.edge_index.t().tolist(), weight.tolist(), strict=True):
        if into == target:
            total[source] = total.get(source, 0.0) + value
    strongest = dict(sorted(total.items(), key=lambda pair: -pair[1])[:most])
    return strongest, sum(total.values())


def assert_shows(page, pattern, weight, target):
    node, listed = shown(page)
    strongest, total = expected(pattern, weight, target)
    # Four decimals, and at most 16 bits off.
    assert node == target and listed == pytest.approx(strongest, abs=1e-4)
    assert float(page.text_content("#sum").split()[-1]) == pytest.approx(total, abs=2e-4)


def test_a_click_a_head_and_a_layer_show_their_weights(page, tmp_path):
    pattern = Full(4)
    layers = [weights_of(pattern, 3), weights_of(pattern, 2, seed=1)]
    path = explore(
        tmp_path / "page.html", pattern, layers, names=WORDS, layer_names=["<i>low", "high"], title="A & <b>"
    )
    page.goto(path.as_uri())
    assert page.title() == page.text_content("h1") == "A & <b>"
    assert [word.text_content() for word in page.query_selector_all(".word span")] == WORDS
    assert page.query_selector_all("b:not(#selected b), i:not(.word i, .legend i)") == []
    page.click("#target-1")
    assert_shows(page, pattern, layers[0][:, 0], 1)
    page.click("#heads button >> nth=2")
    assert_shows(page, pattern, layers[0][:, 2], 1)
    # The second layer has fewer heads: the last of them stays chosen.
    page.click("text=high")
    assert_shows(page, pattern, layers[1][:, 1], 1)
    page.click("text=mean")
    assert_shows(page, pattern, layers[1].mean(1), 1)
    page.click("#sources button[data-source='3']")
    assert_shows(page, pattern, layers[1].mean(1), 3)
    # The address keeps it all.
    page.reload()
    assert_shows(page, pattern, layers[1].mean(1), 3)


def test_keys_walk_and_choose(page, tmp_path):
    pattern = Window([3, 2], radius=1)
    layers = [weights_of(pattern, 2), weights_of(pattern, 2, seed=1)]
    page.goto(explore(tmp_path / "page.html", pattern, layers, names=list("abcde")).as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stage"
    steps = (("Home", 0, 0, 0), ("ArrowRight", 1, 0, 0), ("h", 1, 0, 1), ("l", 1, 1, 1), ("End", 4, 1, 1))
    for key, node, layer, head in (*steps, ("0", 4, 1, 0), ("ArrowUp", 1, 1, 0), ("Shift+L", 1, 0, 0)):
        page.keyboard.press(key)
        assert_shows(page, pattern, layers[layer][:, head], node)
    page.keyboard.press("m")
    assert_shows(page, pattern, layers[0].mean(1), 1)
    assert page.get_attribute("#heads button >> nth=2", "aria-checked") == "true"
    # The groups of buttons are walked with arrows too, without moving the node.
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert_shows(page, pattern, layers[1].mean(1), 1)


def test_pixels_answer(page, tmp_path):
    grid = Grid((5, 6), radius=1)
    weights = weights_of(grid, 2)
    page.goto(explore(tmp_path / "page.html", grid, weights, image=torch.rand(5, 6, 3)).as_uri())
    page.click("#target-20", force=True)
    assert_shows(page, grid, weights[:, 0], 20)
    assert "row 3, column 2" in page.text_content("#selected")
    for key, node in (("ArrowUp", 14), ("ArrowLeft", 13), ("ArrowDown", 19), ("1", 19)):
        page.keyboard.press(key)
        assert shown(page)[0] == node
    assert_shows(page, grid, weights[:, 1], 19)
    assert len(page.query_selector_all("svg g:last-child rect")) == 9


def test_a_large_picture_is_not_covered(page, tmp_path):
    grid = Grid((14, 14), radius=1)
    page.goto(explore(tmp_path / "page.html", grid, weights_of(grid, 1), image=torch.rand(14, 14)).as_uri())
    fill = "element => getComputedStyle(element).fill"
    assert {page.eval_on_selector(f"#target-{node}", fill) for node in (0, 105, 195)} == {"rgba(0, 0, 0, 0)"}


@pytest.mark.parametrize("width", [360, 1100])
def test_rows_and_columns_of_sources_can_be_read(page, tmp_path, width):
    grid = Grid((28, 28), radius=1)
    page.set_viewport_size({"width": width, "height": 720})
    page.goto(explore(tmp_path / "page.html", grid, weights_of(grid, 1)).as_uri())
    cut = "elements => elements.filter(element => element.scrollWidth > element.clientWidth).length"
    assert (
        page.text_content("#sources .name").startswith("row 1")
        and page.eval_on_selector_all("#sources .name", cut) == 0
    )


def test_nodes_answer(page, tmp_path):
    # Both edges of a pair that is there twice add up.
    graph = Edges(torch.cat([Edges(networkx.karate_club_graph()).edge_index, torch.tensor([[1], [0]])], 1))
    weights = weights_of(graph, 2)
    page.goto(explore(tmp_path / "page.html", graph, weights, position="kamada_kawai").as_uri())
    page.click("#target-0", force=True)
    assert_shows(page, graph, weights[:, 0], 0)
    assert len(page.query_selector_all("svg line")) == 16
    before = page.eval_on_selector("#target-0", "element => element.getBoundingClientRect().x")
    page.keyboard.press("ArrowRight")
    node, _ = shown(page)
    assert page.eval_on_selector(f"#target-{node}", "element => element.getBoundingClientRect().x") > before


def test_cross_attention_has_two_lines(page, tmp_path):
    pattern = Full(3, 4)
    weights = weights_of(pattern, 1)
    page.goto(explore(tmp_path / "page.html", pattern, weights, names=(WORDS, ["x", "y", "z"])).as_uri())
    page.click("#target-2")
    assert_shows(page, pattern, weights[:, 0], 2)
    # The number over the highest bar, 1.2rem at most, has room below the heading.
    box = "element => element.getBoundingClientRect()"
    heading, bar = (page.eval_on_selector(what, box) for what in (".line h2", ".word i"))
    assert bar["top"] - heading["bottom"] > 19
    assert page.text_content("#sources li .name").rsplit(" (", 1)[0] in WORDS


@pytest.mark.parametrize(("layout", "marked"), [("words", ".word.negative"), ("nodes", "circle.negative")])
def test_negative_weights_are_striped_or_hollow(page, tmp_path, layout, marked):
    weights = torch.tensor([[0.5, 0.5], [-0.25, 0.5], [0.1, 0.5], [-0.5, 0.5]])
    path = explore(tmp_path / "page.html", Full(4), weights.repeat(4, 1), layout=layout)
    page.goto(path.as_uri())
    node = "elements => elements.map(element => Number(element.dataset.node))"
    assert page.eval_on_selector_all(marked, node) == [1, 3]
    assert page.eval_on_selector_all(
        "#sources button:has(.bar.negative)", "rows => rows.map(row => Number(row.dataset.source))"
    ) == [1, 3]
    assert page.is_visible("#below")
    page.keyboard.press("1")
    assert page.query_selector_all(f"{marked}, #sources .negative") == [] and not page.is_visible("#below")


@pytest.mark.parametrize("kind", ["words", "pixels", "nodes"])
def test_classes_have_their_color_and_their_share_of_the_weights(page, tmp_path, kind):
    pattern = Full(4)
    weights, label = weights_of(pattern, 1), torch.tensor([5, 1, 5, 1])
    options = {"image": torch.rand(2, 2)} if kind == "pixels" else {"layout": kind}
    names = ["", "<b>", "", "", "", "verb"]
    page.goto(explore(tmp_path / "page.html", pattern, weights, label=label, label_names=names, **options).as_uri())
    page.click("#target-2", force=True)
    assert_shows(page, pattern, weights[:, 0], 2)
    assert page.text_content("#selected").endswith(", verb attends to")
    listed = dict(zip(page.locator("#classes .name").all_inner_texts(), numbers(page, "#classes"), strict=True))
    into = weights[8:12, 0]
    assert listed == pytest.approx({"<b>": float(into[[1, 3]].sum()), "verb": float(into[[0, 2]].sum())}, abs=2e-4)
    color = "element => getComputedStyle(element).getPropertyValue('--class')"
    assert [page.eval_on_selector(f"#target-{node}", color) for node in (0, 1)] == [COLORS[5], COLORS[1]]


def test_without_classes_nothing_is_said_of_them(page, tmp_path):
    page.goto(explore(tmp_path / "page.html", Full(2), torch.ones(4)).as_uri())
    assert not page.is_visible("#by-class") and page.query_selector_all(".chip, .classed") == []


@pytest.mark.parametrize("kind", ["words", "pixels", "nodes"])
def test_the_page_is_dark_where_the_system_is(page, tmp_path, kind):
    options = {"image": torch.rand(2, 2)} if kind == "pixels" else {"layout": kind}
    page.goto(
        explore(tmp_path / "page.html", Full(4), weights_of(Full(4), 2), label=torch.arange(4), **options).as_uri()
    )
    for scheme, is_dark in (("light", False), ("dark", True), ("light", False)):
        page.emulate_media(color_scheme=scheme)
        # The page hears of it before the next frame.
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        ground, strongest = (brightness(page, what) for what in ("body", "#sources .bar"))
        # The strongest weight is far from the page, and so is the text.
        assert (ground < 60 and strongest > 200) if is_dark else (ground > 240 and strongest < 60)
        assert abs(brightness(page, "body", "color") - ground) > 180


def test_one_node_has_one_edge(page, tmp_path):
    page.goto(explore(tmp_path / "page.html", Full(1), torch.ones(1, 1)).as_uri())
    assert page.text_content("#about").endswith(": 1 node, 1 edge")
    assert page.text_content("#sum").startswith("1 source, ")


def test_a_thousand_nodes_stay_fluid(page, tmp_path):
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(1000, (2, 50_000), generator=generator)
    layers = [torch.rand(50_000, 8, generator=generator) for _ in range(3)]
    graph = Edges(edge_index, 1000)
    path = explore(tmp_path / "page.html", graph, layers, position=torch.rand(1000, 2, generator=generator))
    assert path.stat().st_size < 5_000_000
    page.goto(path.as_uri())
    # What a redraw costs without a clock, which a busy machine would upset: how often it touches the page.
    watch = """node => {
        const observer = new MutationObserver(() => {});
        const what = {subtree: true, childList: true, attributes: true, characterData: true};
        observer.observe(document.body, what);
        select({node});
        return observer.takeRecords().length;
    }"""
    touched = [page.evaluate(watch, node) for node in range(50)]
    assert 0 < max(touched) < graph.num_targets
    assert_shows(page, graph, layers[0][:, 0], 49)


def test_classes_are_in_the_page_in_the_order_of_their_numbers(tmp_path):
    label = torch.tensor([3, 0, 3, 1])
    text = explore(tmp_path / "page.html", Full(4), torch.ones(16), label=label).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1])
    assert data["classOf"] == [2, 0, 2, 1]
    assert data["classes"] == [{"name": f"class {x}", "color": COLORS[x]} for x in (0, 1, 3)]


def test_a_page_holds_all_that_it_needs(tmp_path):
    path = explore(tmp_path / "page.html", Full(4), weights_of(Full(4), 1), names=WORDS)
    text = path.read_text(encoding="utf-8")
    assert text == explore(path, Full(4), weights_of(Full(4), 1), names=WORDS).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script[^>]*src|<link[^>]*stylesheet|@import|url\(", text)
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert json.loads(embedded)["sourceNames"] == WORDS


@pytest.mark.parametrize(
    ("pattern", "options", "kind"),
    [
        (Full(4), {}, "words"),
        (Full(4), {"image": torch.rand(2, 2)}, "pixels"),
        (Full(4), {"layout": "nodes"}, "nodes"),
        (Grid((2, 2), 1), {}, "pixels"),
        (Grid([(2, 2, 2), (3, 1, 1)], 1), {}, "pixels"),
        (Edges(networkx.path_graph(3)), {}, "nodes"),
        (Edges(networkx.path_graph(3)), {"layout": "words"}, "words"),
        (Edges(torch.tensor([[3], [0]]), num_sources=4, num_targets=2), {}, "words"),
    ],
)
def test_the_pattern_decides_on_the_layout(pattern, options, kind, tmp_path):
    path = explore(tmp_path / "page.html", pattern, torch.ones(pattern.num_edges), **options)
    assert f'"kind": "{kind}"' in path.read_text(encoding="utf-8")
