"""The site: it builds without a warning, needs no other server, and its generated pages are new."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project

from tests.documentation import PROJECT

sys.path.append(str(PROJECT))
import mkdocs_hooks

# Attributes that make a browser load something.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    """Return path -> HTML of every page but the one for unknown addresses."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":
            found[path.relative_to(site).as_posix()] = path.read_text(encoding="utf-8")
    return found


class LoadedFiles(HTMLParser):
    """Collects what a browser loads to show a page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in LOADED and value:
                self.loaded.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)


def test_every_page_of_docs_and_every_decision_is_in_the_site(site: Path) -> None:
    built = pages(site)
    for path in sorted((PROJECT / "docs").rglob("*.md")):
        name = path.relative_to(PROJECT / "docs").as_posix()
        name = re.sub(r"README\.md$", "index.md", name)
        assert name.removesuffix(".md") + ".html" in built


def test_no_page_loads_anything_from_another_server_and_every_file_is_there(site: Path) -> None:
    built = pages(site)

    assert len(built) > 80

    for name, html in built.items():
        parser = LoadedFiles()
        parser.feed(html)
        folder = (site / name).parent
        for address in parser.loaded:
            assert not re.match(r"\w+:|//", address), f"{name} loads {address}"
        for address in [*parser.loaded, *parser.links]:
            path, _, _ = address.partition("#")
            if path and ":" not in path:
                # A browser shows the files of a folder, or nothing, where it is no file.
                assert (folder / path).is_file(), f"{name} leads to {address}"


def test_styles_load_nothing_from_another_server(site: Path) -> None:
    styles = list(site.rglob("*.css"))

    assert styles

    for path in styles:
        assert not re.search(r"url\(\W?(https?:)?//|@import", path.read_text(encoding="utf-8"))


def test_links_to_files_of_the_repository_lead_to_their_pages(site: Path) -> None:
    built = pages(site)
    environment = built["repository/conf/caltech/parameters.yml.html"]
    folder = built["repository/conf/base/catalog/index.html"]

    assert "efficientnet" in environment
    catalog = {path.name for path in (PROJECT / "conf" / "base" / "catalog").glob("*.yml")}
    assert set(re.findall(r'href="(\w+\.yml)\.html"', folder)) == catalog
    # A page of the repository leads back into the site.
    assert 'href="../docs' not in built["repository/CONTRIBUTING.html"]
    assert 'href="../architecture.html"' in built["repository/CONTRIBUTING.html"]


def test_diagrams_are_drawn_and_every_drawing_is_shown(site: Path) -> None:
    wanted = mkdocs_hooks.site_diagrams()
    folder = PROJECT / mkdocs_hooks.DIAGRAMS
    drawings = {f"{mkdocs_hooks.DIAGRAMS}/{path.name}" for path in folder.iterdir()}

    assert len(wanted) >= 3
    assert drawings == set(wanted)

    html = "".join(pages(site).values())
    for drawing in wanted:
        assert Path(drawing).name in html
    # Material for MkDocs would load Mermaid from another server for it.
    assert 'class="mermaid"' not in html


def test_a_changed_diagram_without_its_drawing_stops_the_build() -> None:
    with pytest.raises(mkdocs_hooks.PluginError, match="make diagrams"):
        mkdocs_hooks.diagram_markdown("flowchart LR\n    a --> b\n", "docs/index.md")


def test_links_in_code_are_left_as_they_are() -> None:
    text = "`a[0](../conf)` and [b](../conf/README.md)\n\n```python\nf[1](../conf)\n```\n"
    changed = mkdocs_hooks.with_links(text, "docs/pilot.md")

    assert "`a[0](../conf)`" in changed
    assert "f[1](../conf)" in changed
    assert "[b](repository/conf/README.md)" in changed


def planted(folder: Path) -> list[str]:
    """Write files next to each other that a site may show, and some that it may not."""
    conf = folder / "conf" / "base"
    conf.mkdir(parents=True)
    for name in ("globals.yml", "credentials.yml", "notes.yml", ".env"):
        (conf / name).write_text("key: value\n")
    (conf / "picture.yml").write_bytes(b"\x89PNG\xff")
    (conf / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / ".gitignore").write_text("*credentials*\n.env\n/conf/base/notes.yml\n")
    return mkdocs_hooks.folder_files("conf/base", folder)


def test_files_that_git_ignores_and_files_without_text_are_not_in_the_site(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)

    assert planted(tmp_path) == ["conf/base/globals.yml"]


def test_without_git_the_names_decide_what_is_in_the_site(tmp_path: Path) -> None:
    assert planted(tmp_path) == ["conf/base/globals.yml", "conf/base/notes.yml"]
    assert not mkdocs_hooks.is_published("conf/local/parameters.yml", tmp_path)


def test_a_link_to_a_file_that_git_ignores_is_left_for_mkdocs_to_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = ("../pyproject.toml", "docs/pilot.md")
    assert mkdocs_hooks.link_target(*link) == "pyproject.toml"
    monkeypatch.setattr(mkdocs_hooks, "git_files", lambda _: frozenset({"README.md"}))
    assert mkdocs_hooks.link_target(*link) is None


def test_equations_become_mathml() -> None:
    html = r'<p>A <span class="arithmatex">\(a &lt; b\)</span></p>'
    changed = mkdocs_hooks.EQUATION.sub(mkdocs_hooks.to_mathml, html)

    assert "<math" in changed
    assert "&lt;" in changed or "&#x0003C;" in changed
    assert "arithmatex" not in changed


@pytest.mark.parametrize("page", ["stages", "parameters"])
def test_reference_pages_are_what_make_reference_writes(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pu_kd_pipeline.cli.reference import reference

    monkeypatch.chdir(PROJECT)
    bootstrap_project(PROJECT)
    result = CliRunner().invoke(reference, [page], catch_exceptions=False)
    committed = (PROJECT / "docs" / f"{page}.md").read_text(encoding="utf-8")

    # Not compared by pytest, whose difference of long texts takes minutes.
    is_new = result.stdout == committed
    assert is_new, f"docs/{page}.md: run 'make reference'"


def test_every_parameter_has_a_meaning() -> None:
    text = (PROJECT / "docs" / "parameters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*", text, flags=re.MULTILINE)

    assert len(rows) > 400

    for row in rows:
        assert not row.endswith("|  |"), row
