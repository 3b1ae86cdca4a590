"""The examples in the docstrings of everything public, run; each public function has one."""

import doctest
import inspect
from types import ModuleType

import pytest
import torch

import pspfast

PUBLIC = [
    *(f"pspfast.{name}" for name in pspfast.__all__ if name != "ops"),
    *(f"pspfast.ops.{name}" for name in pspfast.ops.__all__),
]


@pytest.mark.parametrize("path", PUBLIC)
def test_example(path: str) -> None:
    found = pspfast
    for name in path.split(".")[1:]:
        found = getattr(found, name)
    module = found if isinstance(found, ModuleType) else inspect.getmodule(found)
    names = {**vars(module), "torch": torch}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(found), names, path, None, None)
    assert example.examples, f"{path} has no example"
    runner = doctest.DocTestRunner()
    said: list[str] = []
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
