"""What the site needs in addition to MkDocs: files of the repository, diagrams and equations.

The pages of docs/ are written for GitHub, too. There, a link may lead to any file of the
repository, Mermaid blocks are drawn, and `$...$` is an equation. For the site,

- each file outside of docs/ that a page links to becomes a page below repository/, so that no
  link needs the address of the repository; files that git ignores, such as credentials, do not;
- each Mermaid block is replaced by its drawing in docs/images/diagrams, which is made once, by
  `make diagrams`: otherwise each browser would load Mermaid from another server;
- each equation becomes MathML, which browsers show without a script.
"""

from __future__ import annotations

import hashlib
import html
import json
import posixpath
import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parent
DIAGRAMS = "docs/images/diagrams"
COPIES = "repository"
# Pages of the navigation, which no page has to link to.
ALWAYS_SHOWN = ("CHANGELOG.md", "CONTRIBUTING.md", "conf/README.md", ".ci/README.md")
# Parts of names that are not shown where there is no git to ask.
PRIVATE = ("credentials", "secrets", ".env", "conf/local/")
LANGUAGES = {
    ".py": "python",
    ".ipynb": "json",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
}
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^()\s]+(?=\))")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
MERMAID_CLI = "@mermaid-js/mermaid-cli@11"
# Labels as SVG text: HTML inside of a picture is not shown everywhere.
MERMAID_OPTIONS = {"theme": "neutral", "htmlLabels": False, "flowchart": {"htmlLabels": False}}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside of docs/ that the site links to, directly or not."""
    waiting = list(ALWAYS_SHOWN)
    for page in files.documentation_pages():
        waiting += linked_files(f"docs/{page.src_uri}")
    added = set()
    while waiting:
        path = waiting.pop()
        if path in added:
            continue
        added.add(path)
        copy = File.generated(config, site_path(path), content=page_text(path))
        # Names that begin with a dot would be left out, and pages without navigation reported.
        copy.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(copy)
        waiting += linked_files(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text with the links and the diagrams of the site."""
    del config, files
    path = repository_path(page.file.src_uri)
    if path.endswith(".md"):
        markdown = MERMAID.sub(lambda block: diagram_markdown(block[1], path), markdown)
        markdown = with_links(markdown, path)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's HTML with MathML instead of LaTeX."""
    del page, config, files
    return EQUATION.sub(to_mathml, html)


def site_path(path: str) -> str:
    """Return where the site has a file or folder of the repository: a path below docs_dir."""
    file = PROJECT / path
    if file.is_dir():
        has_page = (file / "README.md").is_file()
        return site_path(f"{path}/README.md") if has_page else f"{COPIES}/{path}/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{COPIES}/{path}" if path.endswith(".md") else f"{COPIES}/{path}.md"


def repository_path(place: str) -> str:
    """Return the path in the repository of a page: the inverse of `site_path`."""
    if not place.startswith(f"{COPIES}/"):
        return f"docs/{place}"
    path = place.removeprefix(f"{COPIES}/")
    candidates = [path, path.removesuffix(".md"), path.removesuffix("/index.md")]
    return next(candidate for candidate in candidates if (PROJECT / candidate).exists())


@cache
def git_files(folder: Path) -> frozenset[str]:
    """Return the paths of the files that git does not ignore; none where there is no checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return frozenset()
    return frozenset(listed.stdout.split("\0")) - {""}


def is_published(path: str, project: Path = PROJECT) -> bool:
    """Return whether the site may show a file: it is text, and git does not ignore it.

    Args:
        path: of the file, in the repository.
        project: the folder of the repository.
    """
    known = git_files(project)
    if known and path not in known:
        return False
    # Such as an archive of the sources.
    if not known and any(word in path for word in PRIVATE):
        return False
    try:
        text = (project / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "\0" not in text


def folder_files(path: str, project: Path = PROJECT) -> list[str]:
    """Return the paths of the files in a folder that the site may show, in the order of names."""
    names = sorted(each.name for each in (project / path).iterdir() if each.is_file())
    return [f"{path}/{name}" for name in names if is_published(f"{path}/{name}", project)]


def page_text(path: str) -> str:
    """Return the page that shows a file or folder outside of docs/."""
    file = PROJECT / path
    if file.is_dir():
        rows = []
        for each in folder_files(path):
            rows.append(f"- [{posixpath.basename(each)}]({posixpath.basename(site_path(each))})")
        return "\n".join([f"# {path}/", "", *rows, ""])
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(file.suffix, "text")
    # Nothing of a file is worth a search: its comments repeat what the pages say.
    header = "---\nsearch: {exclude: true}\n---\n"
    return f"{header}# {path}\n\n``````{language}\n{text}\n``````\n"


def linked_files(path: str) -> list[str]:
    """Return the files and folders that a page links to and that are no pages of docs/."""
    file = PROJECT / path
    if file.is_dir():
        return folder_files(path)
    if not path.endswith(".md"):
        return []
    found = []
    for piece in CODE.split(file.read_text(encoding="utf-8")):
        # A link may have code in its text, but none in its target.
        for link in LINK.findall(piece):
            target = link_target(link, path)
            if target and site_path(target).startswith(f"{COPIES}/"):
                found.append(target)
    return found


def link_target(link: str, path: str) -> str | None:
    """Return the path in the repository that a page's link leads to; None: no file to show."""
    name, _, _ = link.partition("#")
    if not name or ":" in name:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    if target.startswith("..") or not (PROJECT / target).exists():
        return None
    is_outside = (PROJECT / target).is_file() and not target.startswith("docs/")
    if is_outside and not is_published(target):
        return None
    # A folder with a page of its own is that page.
    is_folder = (PROJECT / target / "README.md").is_file()
    return f"{target}/README.md" if is_folder else target


def with_links(markdown: str, path: str) -> str:
    """Return a page's text with links that lead to pages of the site."""
    folder = posixpath.dirname(site_path(path))

    def site_link(match: re.Match[str]) -> str:
        link = match[0]
        target = link_target(link, path)
        if target is None:
            # MkDocs reports links that lead nowhere.
            return link
        _, mark, anchor = link.partition("#")
        return posixpath.relpath(site_path(target), folder or ".") + mark + anchor

    pieces = CODE.split(markdown)
    for index, piece in enumerate(pieces):
        if not piece.startswith("`"):
            pieces[index] = LINK.sub(site_link, piece)
    return "".join(pieces)


def diagram_markdown(diagram: str, path: str) -> str:
    """Return the Markdown of a diagram's drawing.

    Raises:
        PluginError: the diagram has none.
    """
    drawing = drawing_path(diagram)
    if not (PROJECT / drawing).is_file():
        raise PluginError(
            f"{path} has a diagram without a drawing ({drawing}): run 'make diagrams', which needs "
            f"Node.js and the network, and commit what it writes"
        )
    address = posixpath.relpath(drawing, posixpath.dirname(path) or ".")
    # A click shows it in its full size.
    return f"[![Diagram]({address})]({address})"


def drawing_path(diagram: str) -> str:
    """Return the path in the repository of a diagram's drawing, which names its exact source."""
    digest = hashlib.sha256(diagram.encode()).hexdigest()
    return f"{DIAGRAMS}/{digest[:12]}.svg"


def to_mathml(equation: re.Match[str]) -> str:
    """Return the MathML of an equation of `pymdownx.arithmatex`.

    Raises:
        PluginError: it has a command that the converter does not know and would show as text.
    """
    is_block = equation["tag"] == "div"
    latex = html.unescape(equation["latex"]).strip()
    mathml = convert(latex, display="block" if is_block else "inline")
    unknown = re.search(r"\\\w+", mathml)
    if unknown:
        raise PluginError(f"{unknown[0]} has no MathML, in the equation {latex}")
    return mathml


def site_diagrams() -> dict[str, str]:
    """Return drawing -> source of every Mermaid block of docs/."""
    found = {}
    for page in sorted((PROJECT / "docs").rglob("*.md")):
        for source in MERMAID.findall(page.read_text(encoding="utf-8")):
            found[drawing_path(source)] = source
    return found


def draw_diagrams() -> None:
    """Make the drawings that are missing, and remove those that no page has."""
    wanted = site_diagrams()
    folder = PROJECT / DIAGRAMS
    folder.mkdir(exist_ok=True)
    for file in folder.glob("*.svg"):
        if f"{DIAGRAMS}/{file.name}" not in wanted:
            file.unlink()
    with TemporaryDirectory() as temporary:
        options = Path(temporary) / "options.json"
        options.write_text(json.dumps(MERMAID_OPTIONS))
        for drawing, source in wanted.items():
            if (PROJECT / drawing).is_file():
                continue
            command = ["npx", "--yes", MERMAID_CLI, "--quiet", "--configFile", str(options)]
            # Its ids, and so the file, would be random without a name.
            command += [
                "--svgId",
                f"diagram-{Path(drawing).stem}",
                "--input",
                "-",
                "--output",
                drawing,
            ]
            subprocess.run(command, input=source, text=True, check=True, cwd=PROJECT)


if __name__ == "__main__":
    draw_diagrams()
