"""The wheel: its tag and content, what it loads, and that torch stays out of the runtime."""

from __future__ import annotations

import ctypes
import email
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scope_runtime import __version__
from scope_runtime.native.abi import ABI_VERSION
from tests.conftest import Tiny


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, built as pip builds it, apart from the editable install."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--config-settings",
            f"build-dir={out / 'build'}",
            "--wheel-dir",
            str(out),
            str(root),
        ],
        check=True,
        timeout=600,
    )
    (built,) = out.glob("*.whl")
    return built


def test_wheel_is_for_every_python_3(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version) == ("scope_runtime", __version__)
    assert (python, abi) == ("py3", "none")
    assert platform.startswith("linux_")


def test_wheel_holds_what_running_needs_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "scope_runtime/native/libscope_hook.so",
        "scope_runtime/policy/policy.schema.json",
        "scope_runtime/runtime.py",
        "converters/__init__.py",
        f"scope_runtime-{__version__}.dist-info/licenses/LICENSE",
    } <= names
    top = {name.split("/")[0] for name in names}
    assert top == {"scope_runtime", "converters", f"scope_runtime-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".cpp", ".hpp", ".o", ".a", ".pyc"))]
    assert len([name for name in names if name.endswith(".so")]) == 1


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"scope_runtime-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    plain = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert not [r for r in plain if r.startswith(("torch", "transformers"))]
    assert "scope = scope_runtime.cli.main:run" in scripts.replace("=", " = ").replace("  ", " ")


def test_library_of_the_wheel_loads_alone(wheel: Path, tmp_path: Path) -> None:
    """It links neither llama.cpp nor ggml, so it loads where neither is."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    library = ctypes.CDLL(str(tmp_path / "scope_runtime" / "native" / "libscope_hook.so"))
    assert library.scope_abi_version() == ABI_VERSION
    needed = subprocess.run(
        ["readelf", "-d", str(tmp_path / "scope_runtime" / "native" / "libscope_hook.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "libllama" not in needed
    assert "libggml" not in needed


def loaded_modules(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running the code."""
    tail = "\nimport json, sys\nprint('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_little() -> None:
    assert not loaded_modules("import scope_runtime") & {
        "torch",
        "transformers",
        "llama_cpp",
        "numpy",
    }


def test_running_needs_no_torch(tiny: Tiny) -> None:
    code = (
        "from scope_runtime import Runtime\n"
        f"with Runtime(model={str(tiny.model)!r}, policy={str(tiny.policy)!r}, n_ctx=64) as rt:\n"
        "    rt.generate('hello', max_tokens=4, temperature=0.0)\n"
    )
    loaded = loaded_modules(code)
    assert "llama_cpp" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "matplotlib"}
