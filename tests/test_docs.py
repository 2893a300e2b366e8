"""The pages of the documentation: complete, connected, and with examples that run."""

import re
from pathlib import Path

import pytest

import sb3_happo

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
# Examples train for so many steps at most: the test is that they run
MAX_STEPS = 150
# Pages with examples that follow one another
RUN = [*sorted((DOCS / "algorithms").glob("*.md")), DOCS / "getting_started.md"]


def page_id(page: Path) -> str:
    """Path in the documentation without suffix, as tables of contents name it."""
    return page.relative_to(DOCS).with_suffix("").as_posix()


def python_blocks(page: Path) -> list[str]:
    """Code of a page, with short trainings."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    text = "\0".join(blocks)
    text = re.sub(r"learn\([\d_]+", f"learn({MAX_STEPS}", text)
    text = re.sub(r"learning_starts=[\d_]+", "learning_starts=100", text)
    return text.split("\0") if blocks else []


def test_every_public_name_is_documented() -> None:
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    documented = set(re.findall(r"auto(?:class|function|data):: (?:sb3_happo\.)?(\w+)", texts))
    assert set(sb3_happo.__all__) - documented == {"__version__"}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for entries in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            folder = page.parent.relative_to(DOCS)
            names = [line for line in entries.splitlines() if line and not line.startswith(":")]
            listed |= {(folder / name).as_posix() for name in names}
    assert {page_id(page) for page in PAGES} == listed


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    "page", [page for page in RUN if python_blocks(page)], ids=lambda page: page.stem
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpe2")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in python_blocks(page):
        exec(block, scope)
