"""The page's files, without a browser: what the scripts look for exists, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest

from fmcnet.server.routes.info import FILES, PAGE
from tests.server.service import running

TEXTS = {name: (PAGE / name).read_text(encoding="utf-8") for name in FILES}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


TAGS = Tags(TEXTS["index.html"]).found
IDS = [attributes["id"] for _, attributes in TAGS if "id" in attributes]


def test_every_file_is_served_with_its_type_and_the_policy(tmp_path):
    with running(tmp_path) as one:
        for name, kind in FILES.items():
            reply = one.client.get(f"/page/{name}")
            assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
            assert "script-src 'self'" in reply.headers["content-security-policy"]
        assert one.client.get("/page/routes.py").status_code == 404


def test_ids_are_unique_and_named_where_they_are_used():
    assert len(IDS) == len(set(IDS))
    for text in SCRIPTS.values():
        assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= set(IDS)
    for _, attributes in TAGS:
        for name in ("for", "aria-describedby", "aria-labelledby", "list"):
            assert set((attributes.get(name) or "").split()) <= set(IDS)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_what_a_script_imports_is_exported(name):
    for names, source in re.findall(r'^import \{([^}]+)\} from "\./([^"]+)";', SCRIPTS[name], re.M):
        exported = re.findall(r"^export (?:async )?(?:const|function|class) ([\w$]+)", SCRIPTS[source], re.M)
        assert {one.strip() for one in names.split(",")} <= set(exported)
    assert len(re.findall(r"^import ", SCRIPTS[name], re.M)) == len(
        re.findall(r'^import \{[^}]+\} from "\./', SCRIPTS[name], re.M)
    )


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    for tag, attributes in TAGS:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or "src" in attributes
        address = attributes.get("src") or attributes.get("href") or ""
        assert not re.match(r"/|[a-z]+:", address), address  # relative: also below a path of a proxy
    for name, text in TEXTS.items():
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name
        assert not re.search(r"\b(eval|innerHTML|outerHTML|insertAdjacentHTML|document\.write)\b", text), name


def test_what_the_scripts_ask_for_are_routes_below_the_page(tmp_path):
    assert re.findall(r"\bfetch\((.+?),", " ".join(SCRIPTS.values())) == ["path"]
    asked = {
        urljoin("/reid/", re.sub(r"\$\{.+", "{}", path.partition("?")[0]))
        for text in SCRIPTS.values()
        for path in re.findall(r"\bcall\([\"`]([^\"`]+)", text)
    }
    with running(tmp_path) as one:
        paths = one.client.get("/openapi.json").json()["paths"]
        routes = {"/reid" + re.sub(r"\{\w+\}", "{}", path) for path in paths}
    assert len(asked) == 5
    assert asked <= routes
