"""The rules of the house, read from the source: who may import whom, where errors are made, what the docs must say."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, NOT_OPERATIONS

import fastsoftmax

PACKAGE = Path(fastsoftmax.__file__).parent
TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}

# Floors, the lowest first. A module imports from lower floors and from its own folder, never from above or beside.
FLOORS = [
    {"kernels", "datasets", "_processors"},
    {"_arrays", "_threads"},
    {"_program", "_rows"},
    {"_columns"},
    {"_affine"},
    {"functional"},
    {"layers", "optimizers", "gradcheck", "_batches", "_checkpoint", "numba_support"},
    {"_training"},
    {"models"},
    {"dropin", "sklearn"},
    {"__init__"},
    {"_peers"},
    {"_cli"},
    {"__main__"},
]

# Where an exception may be built, and why there; everything else asks _arrays for its errors.
MAY_RAISE = {
    "_arrays.py": "it is the place",
    "numba_support.py": "in a user's compiled code, which cannot call _arrays",
    "datasets.py": "about files: the message names the file",
    "_checkpoint.py": "about files: the message names the file",
    "models.py": "about files: the message names the file",
    "_threads.py": "about a number and an environment variable, on a floor of its own",
    "kernels/_jit.py": "about the compiler and its environment, before any argument is seen",
    "kernels/_entry.py": "about the code being made, before any argument is seen",
    "kernels/_board.py": "hands on what numba raised elsewhere",
    "kernels/_lock.py": "about the compiler and its environment, before any argument is seen",
    "__main__.py": "the command line",
    "_cli/": "the command line",
    "_peers/": "the command line",
    "dropin/": "another library's exceptions, by its contract",
    "sklearn/": "another library's exceptions, by its contract",
}
MAY_PRINT = {
    "__main__.py": "the command line",
    "_cli/": "the command line",
    "_training.py": "the progress that verbose=True asks for",
    "functional.py": "show_config prints",
    "dropin/_teaching.py": "the courses' own progress lines, by their contract",
    "sklearn/_mlp.py": "scikit-learn's verbose=True, by its contract",
}

OPERATIONS = [
    "softmax", "log_softmax", "logsumexp", "softmax_backward", "log_softmax_backward", "cross_entropy",
    "cross_entropy_with_grad", "cross_entropy_grad_hess", "affine", "affine_backward", "relu", "relu_backward",
    "linear_cross_entropy", "linear_cross_entropy_with_grad",
]  # fmt: skip
NAMES = [
    *OPERATIONS, *sorted(NOT_OPERATIONS), "Affine", "ReLU", "SoftmaxCrossEntropy", "SoftmaxRegression", "MLP", "SGD",
    "Adam", "load_digits", "load_mnist", "read_idx", "gradient_check",
]  # fmt: skip


def allowed(name, table):
    return any(name == entry or (entry.endswith("/") and name.startswith(entry)) for entry in table)


def imported_modules(name):
    """(line, dotted module) of every import of the file, relative ones made absolute, those in functions included.

    What stands under ``if TYPE_CHECKING:`` is never imported.
    """
    parts = ("fastsoftmax/" + name).removesuffix(".py").split("/")
    blocks = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    unseen = {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}
    for node in ast.walk(TREES[name]):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(p for p in (base, node.module or "") if p)
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def floor_of(part):
    return next((i for i, floor in enumerate(FLOORS) if part in floor), None)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down(name):
    part = name.split("/")[0].removesuffix(".py")
    own = floor_of(part)
    assert own is not None, f"{name} has no floor: give it one in FLOORS"
    for line, module in imported_modules(name):
        path = module.split(".")
        if path[0] != "fastsoftmax" or len(path) < 2 or floor_of(path[1]) is None:
            continue
        assert path[1] == part or floor_of(path[1]) < own, f"{name}:{line} imports {module}, which is not below it"


@pytest.mark.parametrize("name", SOURCES)
def test_only_kernels_know_numba(name):
    if name.startswith("kernels/") or name == "numba_support.py":
        return
    for line, module in imported_modules(name):
        assert module.split(".")[0] not in ("numba", "llvmlite"), f"{name}:{line} imports {module}"


@pytest.mark.parametrize("name", SOURCES)
def test_errors_are_made_in_one_place(name):
    if allowed(name, MAY_RAISE):
        return
    for node in ast.walk(TREES[name]):
        # A bare raise, or one of an exception kept, passes on what was made elsewhere.
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            pytest.fail(f"{name}:{node.lineno} builds an exception: that is for _arrays.py")
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno} asserts: gone under -O"


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_prints(name):
    if allowed(name, MAY_PRINT):
        return
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name}:{node.lineno} prints"


def test_the_allow_lists_name_files_that_exist():
    for table in (MAY_RAISE, MAY_PRINT):
        for entry in table:
            assert any(name == entry or name.startswith(entry) for name in SOURCES), f"{entry} is not there any more"


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith("kernels/")])
def test_kernels_do_not_raise_or_allocate_results(name):
    """A kernel: inputs first, outputs last, no exceptions; the machinery beside the kernels may."""
    if name.split("/")[-1].startswith("_"):
        return
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Raise | ast.Try), f"{name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert node.attr not in ("empty_like", "zeros_like", "full_like", "exp", "log", "log1p"), (
                f"{name}:{node.lineno} np.{node.attr}: results are the caller's, and scalar exp and log are libm calls"
            )


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda p: p.name)
def test_no_comparison_is_thrown_away(path):
    """A comparison, or a function that only answers, standing alone as a statement checks nothing."""
    silent = {"array_equal", "allclose", "isclose", "all", "any", "isnan", "isfinite", "shares_memory", "issubset"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr):
            value = node.value
            assert not isinstance(value, ast.Compare | ast.BoolOp), f"{path.name}:{node.lineno}"
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
                assert value.func.attr not in silent, f"{path.name}:{node.lineno}"


# --- the vocabulary ---


def test_top_level_names():
    missing = set(NAMES) - set(fastsoftmax.__all__)
    assert not missing, f"not in __all__: {sorted(missing)}"
    assert len(set(fastsoftmax.__all__)) == len(fastsoftmax.__all__)
    for name in fastsoftmax.__all__:
        assert getattr(fastsoftmax, name).__doc__, f"{name} has no docstring"
    assert set(fastsoftmax.__all__) <= set(dir(fastsoftmax))


def test_every_operation_has_a_row_in_the_table():
    assert {case.function for case in CASES} == set(OPERATIONS)
    functions = {n for n in fastsoftmax.__all__ if inspect.isfunction(getattr(fastsoftmax, n))}
    elsewhere = {"load_digits", "load_mnist", "read_idx", "gradient_check"}  # data and tools: tests of their own
    assert functions - NOT_OPERATIONS - elsewhere <= set(OPERATIONS)
    assert len({str(case) for case in CASES}) == len(CASES)


def test_the_readme_names_everything():
    text = README.read_text(encoding="utf-8")
    missing = [name for name in fastsoftmax.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing in ([], ["__version__"]), missing


@pytest.mark.parametrize("name", OPERATIONS)
def test_signature(name):
    """As designed: arrays first, then options by name with these defaults."""
    expected = {
        "softmax": "(logits, axis=-1, *, out=None)",
        "log_softmax": "(logits, axis=-1, *, out=None)",
        "logsumexp": "(logits, axis=-1, *, keepdims=False)",
        "softmax_backward": "(grad_probs, probs, axis=-1, *, out=None)",
        "log_softmax_backward": "(grad_log_probs, log_probs, axis=-1, *, out=None)",
        "cross_entropy": "(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, ignore_index=-100, "
        "label_smoothing=0.0, reduction='mean')",
        "cross_entropy_with_grad": "(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, "
        "ignore_index=-100, label_smoothing=0.0, reduction='mean', grad_loss=None, out=None)",
        "cross_entropy_grad_hess": "(logits, targets, *, sample_weight=None, hessian_scale=1.0)",
        "affine": "(x, weight, bias=None, *, out=None)",
        "affine_backward": "(grad_out, x, weight, *, need_grad_x=True, out=None)",
        "relu": "(x, *, out=None)",
        "relu_backward": "(grad_out, x, *, out=None)",
        "linear_cross_entropy": "(x, weight, targets, bias=None, *, class_weight=None, sample_weight=None, "
        "ignore_index=-100, label_smoothing=0.0, reduction='mean')",
        "linear_cross_entropy_with_grad": "(x, weight, targets, bias=None, *, class_weight=None, sample_weight=None, "
        "ignore_index=-100, label_smoothing=0.0, reduction='mean', need_grad_x=True)",
    }
    signature = inspect.signature(getattr(fastsoftmax, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == expected[name]
    annotated = [p for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert not annotated, f"{name}: no type for {annotated}"
    assert signature.return_annotation is not inspect.Signature.empty


def documented_parameters(doc):
    """name -> (its line, its text), from the Parameters of a numpy docstring; ``a, b : type`` counts for both."""
    lines = inspect.cleandoc(doc).splitlines()
    found, names = {}, []
    for line, below in zip(lines[lines.index("Parameters") + 2 :], [*lines[lines.index("Parameters") + 3 :], ""]):
        if re.fullmatch(r"-{3,}", below):
            break
        if match := re.fullmatch(r"(\w+(?:, \w+)*)(?: : (.+))?", line):
            names = match.group(1).split(", ")
            found.update({name: [match.group(2) or "", ""] for name in names})
        else:
            for name in names:
                found[name][1] += line + "\n"
    return found


def stated_default(line, text):
    """What a description says the default is, if it does: a phrase, or the first of the values in braces."""
    value = r"""(\([^)]*\)|"[^"]*"|'[^']*'|-?[\w.]+?)"""
    if match := re.search(rf"\bdefaults?(?: is| to)?[:,]? +`*{value}`*(?=[,;.)]?(?:\s|$))", f"{line}\n{text}"):
        return match.group(1)
    if match := re.match(r"\{([^,}]+),", line):
        return match.group(1)
    return None


@pytest.mark.parametrize("name", OPERATIONS)
def test_docstring_names_the_parameters_and_their_true_defaults(name):
    function = getattr(fastsoftmax, name)
    described = documented_parameters(function.__doc__)
    parameters = inspect.signature(function).parameters
    assert set(described) == set(parameters), f"{name}: documented {list(described)}, takes {list(parameters)}"
    for parameter in parameters.values():
        if (stated := stated_default(*described[parameter.name])) is not None:
            assert ast.literal_eval(stated) == parameter.default, f"{name}: {parameter.name} is not {stated} by default"


def test_a_stated_default_is_found():
    """The reader of docstrings itself, on the ways in which they say it."""
    assert stated_default("int, default -1", "") == "-1"
    assert stated_default("int", "    Along which. The default, -1, is per row.") == "-1"
    assert stated_default('{"mean", "sum", "none"}', "") == '"mean"'
    assert stated_default("float, default 0.0", "") == "0.0"
    assert stated_default("sequence of int, default (100,)", "") == "(100,)"
    assert stated_default("int", "    Nothing said.") is None
    assert set(documented_parameters(fastsoftmax.softmax.__doc__)) == {"logits", "axis", "out"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_docstring_sections(name):
    doc = inspect.cleandoc(getattr(fastsoftmax, name).__doc__).splitlines()
    for section in ("Parameters", "Returns", "Raises"):
        assert section in doc, f"{name} has no section {section}"


# --- what an import costs ---


def test_importing_does_not_load_numba():
    code = "import json, sys, fastsoftmax; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    top = {module.split(".")[0] for module in loaded}
    assert not top & {"numba", "llvmlite", "tqdm", "scipy", "sklearn", "matplotlib", "torch", "jax"}
