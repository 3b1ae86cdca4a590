import os
import subprocess
import sys

import pytest
import torch

import pspfast
from pspfast import backends
from pspfast.ops import pyramid_pool

X = torch.randn(1, 2, 4, 4)


def test_auto_takes_the_compiled_kernels() -> None:
    assert backends.select("op", X) == "cpu"
    assert backends.default("cuda") in ("cuda", "triton")
    assert backends.default("xpu") == "reference"
    assert backends.select("op", X.to("meta")) == "reference"


def test_a_choice_holds_inside_the_block() -> None:
    with pspfast.backend("reference"):
        assert backends.select("op", X) == "reference"
        with pspfast.backend("cpu"):
            assert backends.select("op", X) == "cpu"
        assert backends.select("op", X) == "reference"
    assert backends.select("op", X) == "cpu"


def test_a_choice_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), pspfast.backend("reference"):
        raise KeyError
    assert backends.select("op", X) == "cpu"


def test_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match="expected one of auto, cpu, cuda, triton, reference, got"),
        pspfast.backend("tpu"),
    ):
        pass


def test_backend_of_another_device() -> None:
    with (
        pspfast.backend("triton"),
        pytest.raises(RuntimeError, match="backend 'triton': expected a tensor on cuda, got cpu"),
    ):
        pyramid_pool(X, (1,))


def test_missing_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.MISSING, "cuda", "pspfast._C was built without CUDA")
    with (
        pspfast.backend("cuda"),
        pytest.raises(RuntimeError, match=r"'cuda' is missing: pspfast\._C was built without CUDA"),
    ):
        pyramid_pool(X, (1,))


@pytest.mark.parametrize("missing", [{}, {"triton": "not installed"}])
def test_triton_serves_an_op_without_cuda_kernel(
    missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr(backends, "MISSING", missing)
    monkeypatch.setattr(backends, "_DEVICES", {"cuda": "cpu", "triton": "cpu"})
    monkeypatch.setattr(backends, "load_triton_ops", lambda: loaded.append(True))
    assert backends.select("op", X) == "cuda"
    expected = "reference" if missing else "triton"
    assert backends.select("op", X, has_cuda_kernel=False) == expected
    assert loaded == ([] if missing else [True])


@pytest.mark.parametrize(
    ("value", "expected"), [("reference", "reference"), ("tpu", "PSPFAST_BACKEND: expected one of")]
)
def test_environment_variable(value: str, expected: str) -> None:
    code = "import torch; from pspfast import backends; print(backends.select('op', torch.ones(1)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PSPFAST_BACKEND": value},
        capture_output=True,
        text=True,
    )
    assert expected in result.stdout + result.stderr
