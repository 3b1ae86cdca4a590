import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

import pspfast
from pspfast import _extension, backends
from pspfast.cli.info import report
from pspfast.ops import pyramid_pool

X = torch.randn(1, 2, 4, 4)


@pytest.fixture
def fresh_choices() -> Iterator[None]:
    """What was found out about devices is forgotten before the test and behind it."""
    backends._unserved.cache_clear()
    yield
    backends._unserved.cache_clear()


FakeGpus = Callable[..., None]


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch, fresh_choices: None) -> FakeGpus:
    """``fake_gpus(capabilities, codes, hip)``: GPUs of these compute capabilities are visible, and
    the library holds these codes, or none."""

    def fake(
        capabilities: list[tuple[int, int]], codes: str | None, hip: str | None = None
    ) -> None:
        info = dict(_extension.build_info or {}, cuda="13.0" if codes else None, cuda_archs=codes)
        monkeypatch.setattr(_extension, "build_info", info)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.version, "cuda", None if hip else "13.0")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU number {i}")
        monkeypatch.setattr(backends, "MISSING", backends._find_missing())

    return fake


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
    missing: dict[str, str], monkeypatch: pytest.MonkeyPatch, fresh_choices: None
) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr(backends, "MISSING", missing)
    monkeypatch.setattr(backends, "_DEVICES", {"cuda": "cpu", "triton": "cpu"})
    backends._unserved.cache_clear()
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


DEFAULT_CODES = "sm_75 sm_80 sm_90 sm_100 compute_100"


@pytest.mark.parametrize(
    ("capability", "codes", "expected"),
    [
        ((7, 5), DEFAULT_CODES, "sm_75"),
        ((8, 0), DEFAULT_CODES, "sm_80"),
        ((8, 9), DEFAULT_CODES, "sm_80"),
        ((10, 0), DEFAULT_CODES, "sm_100"),
        ((10, 3), DEFAULT_CODES, "sm_100"),
        ((12, 0), DEFAULT_CODES, "compute_100"),
        ((7, 0), DEFAULT_CODES, None),
        ((8, 0), "sm_90", None),
        ((12, 0), "sm_90", None),
        ((8, 0), "sm_86", None),
        ((8, 9), "sm_80 sm_86 compute_80", "sm_86"),
        ((9, 0), "compute_80 compute_90", "compute_90"),
        ((8, 0), "compute_90", None),
        ((9, 0), "sm_90a", "sm_90a"),
        ((10, 3), "sm_100a compute_100a", None),
        ((10, 3), "sm_100f", "sm_100f"),
        ((12, 0), "compute_100f", None),
    ],
)
def test_code_for_a_gpu(capability: tuple[int, int], codes: str, expected: str | None) -> None:
    """As NVIDIA's documents of nvcc have it, "GPU Feature List" and "Compatibility"."""
    assert backends.code_for(capability, codes) == expected


@pytest.mark.parametrize(
    ("capability", "codes", "served", "without_cuda"),
    [
        ((7, 5), DEFAULT_CODES, "cuda", "reference"),
        ((7, 5), "sm_80", "reference", "reference"),
        ((8, 0), "sm_90", "triton", "triton"),
        ((8, 0), "sm_80", "cuda", "triton"),
        ((12, 0), DEFAULT_CODES, "cuda", "triton"),
        ((9, 0), None, "triton", "triton"),
    ],
)
def test_auto_takes_cuda_where_the_library_holds_code(
    fake_gpus: FakeGpus,
    capability: tuple[int, int],
    codes: str | None,
    served: str,
    without_cuda: str,
) -> None:
    fake_gpus([capability], codes)
    assert backends.default("cuda") == served
    assert backends.default("cuda", 0, False) == without_cuda


def test_each_gpu_has_its_own_backend_and_info_says_why(fake_gpus: FakeGpus) -> None:
    fake_gpus([(9, 0), (8, 0), (7, 5)], "sm_90")
    assert [backends.default("cuda", i) for i in range(3)] == ["cuda", "triton", "reference"]
    lines = report().splitlines()
    lack = "             no cuda: the op library is built for sm_90, and the GPU has compute "
    assert lines[-6:] == [
        "cuda:0       cuda (sm_90), triton for ops without CUDA C++ kernels: GPU number 0, compute "
        "capability 9.0",
        "cuda:1       triton: GPU number 1, compute capability 8.0",
        f"{lack}capability 8.0: reinstall pspfast on this machine or with TORCH_CUDA_ARCH_LIST=8.0",
        "cuda:2       reference: GPU number 2, compute capability 7.5",
        f"{lack}capability 7.5: reinstall pspfast on this machine or with TORCH_CUDA_ARCH_LIST=7.5",
        "             no triton: Triton needs compute capability 8.0, the GPU has 7.5",
    ]


def test_a_gpu_is_asked_once(fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fake_gpus([(8, 0)], "sm_80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (asked.append(i), (8, 0))[1])
    for _ in range(3):
        assert backends.default("cuda") == "cuda"
    assert asked == [0]


def test_a_chosen_backend_must_serve_the_gpu(fake_gpus: FakeGpus) -> None:
    fake_gpus([(8, 0), (7, 5)], "sm_80")
    with pspfast.backend("cuda"):
        assert backends._select("op", "cuda", 0, True) == "cuda"
        assert backends._select("op", "cuda", 0, False) == "triton"
        with pytest.raises(RuntimeError, match=r"op: backend 'cuda': .* built for sm_80, and the"):
            backends._select("op", "cuda", 1, True)
    with pspfast.backend("triton"), pytest.raises(RuntimeError, match="Triton needs compute"):
        backends._select("op", "cuda", 1, True)


def test_rocm_has_triton(fake_gpus: FakeGpus) -> None:
    """gfx90a is 9.0 there, which no code of the library is for, and Triton serves all."""
    fake_gpus([(9, 0)], None, hip="6.4")
    assert backends.default("cuda") == backends.default("cuda", 0, False) == "triton"
    assert "cuda:0       triton: GPU number 0" in report().splitlines()


def test_rocm_beside_a_library_with_cuda(fake_gpus: FakeGpus) -> None:
    fake_gpus([(9, 0)], "sm_90", hip="6.4")
    assert backends.default("cuda") == "triton"
    assert "is no CUDA build" in backends.MISSING["cuda"]


def test_the_choice_is_a_constant_of_compiled_code(
    fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus([(8, 0)], "sm_90")

    @torch.compile(fullgraph=True, backend="eager")
    def chosen(x: torch.Tensor) -> torch.Tensor:
        backend = backends._select("op", "cuda", x.device.index or 0, True)
        return x + 1 if backend == "triton" else x

    assert torch.equal(chosen(X), X + 1)
