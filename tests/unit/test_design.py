"""The house rules that a program can check."""

import ast
import inspect
import itertools
import re
import statistics
from pathlib import Path

import pytest

import batch_infer
from batch_infer.adapters.providers import PROVIDERS
from docs import generate
from tests.support.paths import ROOT

PACKAGE = ROOT / "batch_infer"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MEDIAN_LINES = 150
BANNED = {"utils", "util", "common", "helpers", "misc", "core"}


def name_of(path):
    return str(path.relative_to(ROOT))


def code_lines(node):
    """Lines of a function's body, its docstring aside."""
    body = node.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return (body[-1].end_lineno - body[0].lineno + 1) if body else 0


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MOST_LINES
    assert path.stem not in BANNED
    first = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    assert first.endswith((".", ":")), "the docstring's first line is a sentence"
    if path.stem not in ("__init__", "__main__") and "testing" not in path.parts:
        assert re.search(r"\b(driver|workers?)\b", ast.get_docstring(tree) or "", re.IGNORECASE), "say where it runs"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert code_lines(node) <= MOST_FUNCTION_LINES, node.name


def test_the_median_module_is_short():
    assert statistics.median(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) < MEDIAN_LINES


RIDDLES = re.compile(r"(Of|Times|How|What|Where|Until|Whose|Since|Between|Above|Below|For|From|In|As|With)\b")
"""Words with which a constant's text begins when its subject is the constant above it."""


def constants_with_texts(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in itertools.pairwise(body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if is_text and isinstance(target, ast.Name) and target.id.isupper():
            yield target.id, after.value.value


def test_a_constants_text_begins_with_a_noun():
    """It makes sense with the constant's name covered, for a reader who has never met the authors."""
    for path in MODULES:
        for name, text in constants_with_texts(path):
            assert not RIDDLES.match(text), f"{name_of(path)}: {name}: begin with a noun and its unit"


def test_public_functions_hide_no_arguments():
    for name in batch_infer.__all__:
        function = getattr(batch_infer, name)
        if inspect.isfunction(function):
            kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name


def test_providers_are_named_in_their_own_modules_alone():
    """An `if` on a provider's name elsewhere would be a second place to change."""
    names = "|".join(name for name in PROVIDERS if name not in ("local", "openai"))
    condition = re.compile(rf"(==|!=|\bin\b) *\(?['\"]({names})['\"]")
    for path in MODULES:
        if {"providers", "testing", "credentials"} & set(path.parts):  # schemes of references are no providers
            continue
        assert condition.search(path.read_text(encoding="utf-8")) is None, name_of(path)


@pytest.mark.parametrize("page", sorted(Path(generate.DOCS).glob("*.md")), ids=lambda path: path.name)
def test_the_tables_of_the_documentation_are_the_codes(page):
    text = page.read_text(encoding="utf-8")
    assert generate.written(text) == text, "run make docs"


def test_the_readme_is_a_face():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
