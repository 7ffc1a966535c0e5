"""What taking ten features out of a large SAE costs: memory, bytes and time, against reading it whole.

    python benchmarks/converters.py            # writes some 6 GB of files, and removes them
    python benchmarks/converters.py --quick    # small files, to see that it runs
    python benchmarks/converters.py --sae-lens ENV/bin/python    # SAELens too, from an environment that has it

Every measurement is a process of its own, run twice on the same file; the second, on a warm page
cache, is what counts. Memory is the peak above what the process held once everything was imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

BEGIN, END = "<!-- converters:begin -->", "<!-- converters:end -->"
N_FEATURES = 10
N_LAYERS = 20
PAGE_BYTES = 4096
MAX_PEAK_BYTES = 200e6
MAX_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Size:
    """Of one layer's SAE."""

    d_sae: int
    width: int

    @property
    def layer_bytes(self) -> int:
        """Encoder and decoder in F32, without the biases."""
        return 8 * self.d_sae * self.width


FULL = {"pt": Size(81_920, 5_120), "safetensors": Size(8_192, 2_048)}
QUICK = {"pt": Size(512, 64), "safetensors": Size(256, 64)}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to get at the ten features."""

    name: str
    file: str
    ours: bool


CASES = (
    Case("10 features, this project", "pt", True),
    Case("torch.load, whole", "pt", False),
    Case("10 features, this project", "safetensors", True),
    Case("safetensors.torch.load_file, one layer whole", "safetensors", False),
    Case("SAELens, one layer whole", "safetensors", False),
)
SAE_LENS = 4


def main(arguments: list[str] | None = None) -> int:
    """Makes the files, measures, and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="small files: figures mean nothing")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results")
    add("--scratch", type=Path, help="folder for the generated files (default: the system's)")
    add(
        "--sae-lens",
        type=Path,
        metavar="PYTHON",
        help="interpreter that has SAELens: measure it too",
    )
    add("--child", nargs=3, metavar=("CASE", "FOLDER", "FEATURES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        number, folder, d_sae = options.child
        print(json.dumps(measure(CASES[int(number)], Path(folder), int(d_sae))))
        return 0
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="scope-bench-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        tell(f"writing {sizes['pt'].layer_bytes / 1e9:.2f} GB as one .pt layer")
        make_pt(folder / "pt", sizes["pt"])
        tell(f"writing {N_LAYERS} layers of {sizes['safetensors'].layer_bytes / 1e9:.2f} GB")
        make_safetensors(folder / "safetensors", sizes["safetensors"])
        rows = []
        for number, case in enumerate(CASES):
            python = options.sae_lens if number == SAE_LENS else Path(sys.executable)
            if python is None:
                continue
            tell(f"{case.file}: {case.name}")
            d_sae = sizes[case.file].d_sae
            found = [child(python, number, folder, d_sae) for _ in range(2)][-1]
            rows.append({**asdict(case), **found, **needed(case, sizes[case.file])})
    from benchmarks.report import machine  # the children need nothing that it brings along

    results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "sizes": {name: asdict(size) for name, size in sizes.items()},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "converters.json").write_text(json.dumps(results, indent=1) + "\n")
    text = section(results)
    readme = options.out.parent / "README.md"
    if readme.exists():
        write_section(readme, text)
    print(text)
    return 0


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


# -- files


def make_pt(folder: Path, size: Size) -> None:
    """``layer20.sae.pt`` as Qwen-Scope has it, without ever holding it in memory."""
    import torch

    folder.mkdir(parents=True)
    d_sae, width = size.d_sae, size.width
    config = {"model_type": "topk_sae", "k": 50, "d_sae": d_sae, "d_model": width, "num_layers": 64}
    (folder / "config.json").write_text(json.dumps(config))
    flat = folder / "flat"
    fill(flat, d_sae * width)
    try:
        numbers = torch.from_file(str(flat), shared=False, size=d_sae * width)
        tensors = {
            "W_enc": numbers.view(d_sae, width),
            # Of its own storage, or the file would hold the numbers once.
            "W_dec": torch.from_file(str(flat), shared=False, size=d_sae * width).view(
                width, d_sae
            ),
            "b_enc": torch.zeros(d_sae),
            "b_dec": torch.zeros(width),
        }
        torch.save(tensors, folder / "layer20.sae.pt")
    finally:
        flat.unlink()


def make_safetensors(folder: Path, size: Size) -> None:
    """SAELens folders, one a layer."""
    from safetensors.numpy import save_file

    shape = (size.d_sae, size.width)
    rng = np.random.default_rng(0)
    dec = rng.standard_normal(shape, dtype=np.float32)
    tensors = {
        "W_enc": np.ascontiguousarray(dec.T),
        "W_dec": dec,
        "b_enc": np.zeros(size.d_sae, np.float32),
        "b_dec": np.zeros(size.width, np.float32),
    }
    for layer in range(N_LAYERS):
        place = folder / f"blocks.{layer}.hook_resid_post"
        place.mkdir(parents=True)
        config = {
            "architecture": "standard",
            "d_in": size.width,
            "d_sae": size.d_sae,
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "metadata": {"hook_name": place.name, "model_name": "generated"},
        }
        (place / "cfg.json").write_text(json.dumps(config))
        save_file(tensors, place / "sae_weights.safetensors")


def fill(path: Path, count: int) -> None:
    """That many F32 numbers, written by pieces."""
    rng = np.random.default_rng(0)
    piece = rng.standard_normal(min(count, 1 << 22), dtype=np.float32)
    with path.open("wb") as file:
        for start in range(0, count, piece.size):
            file.write(piece[: min(piece.size, count - start)].tobytes())


# -- one measurement, in a process of its own


def child(python: Path, number: int, folder: Path, d_sae: int) -> dict[str, float]:
    """Runs `measure` in a new interpreter."""
    command = [str(python), "-m", "benchmarks.converters", "--child"]
    command += [str(number), str(folder), str(d_sae)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(case: Case, folder: Path, d_sae: int) -> dict[str, float]:
    """Seconds, bytes read, and peak memory above what was held before."""
    work = prepared(case, folder / case.file, d_sae)
    reset_peak()
    memory, read = status("VmRSS"), io("rchar")
    mapped = status("RssFile")
    started = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - started
    found = {
        "seconds": seconds,
        "peak_bytes": max(status("VmHWM") - memory, 0),
        "read_bytes": io("rchar") - read,
        # Pages of mapped files that were touched and are still held: the SAE's, and some of code first used here.
        "mapped_bytes": max(status("RssFile") - mapped, 0),
    }
    del kept
    return found


def prepared(case: Case, folder: Path, d_sae: int) -> Callable[[], Any]:
    """The work itself, everything it needs imported."""
    import safetensors.torch
    import torch

    layer = 20 if case.file == "pt" else N_LAYERS // 2
    if case.ours:
        from converters.load import open_source

        def ours() -> Any:
            opened = open_source(folder)
            sae = opened.open(layer)  # type: ignore[union-attr]
            return sae.rows(np.linspace(0, d_sae - 1, N_FEATURES).astype(np.int64))

        return ours
    ids = torch.linspace(0, d_sae - 1, N_FEATURES).long()
    if case.file == "pt":

        def whole() -> Any:
            sae = torch.load(folder / "layer20.sae.pt", weights_only=True)
            return sae["W_enc"][ids], sae["W_dec"][:, ids]

        return whole
    place = folder / f"blocks.{layer}.hook_resid_post"
    if case is CASES[SAE_LENS]:
        from sae_lens import SAE

        def through_sae_lens() -> Any:
            sae = SAE.load_from_disk(place)
            return sae.W_enc[:, ids], sae.W_dec[ids]

        return through_sae_lens

    def loaded() -> Any:
        sae = safetensors.torch.load_file(place / "sae_weights.safetensors")
        return sae["W_enc"][:, ids], sae["W_dec"][ids]

    return loaded


def reset_peak() -> None:
    """Makes the kernel forget the highest memory so far, where it lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def io(key: str) -> int:
    """A line of /proc/self/io."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


# -- what the figures are held against


def needed(case: Case, size: Size) -> dict[str, float]:
    """Bytes that the features themselves take, and that the page cache must touch for them.

    A direction is a column of a row-major matrix in Qwen-Scope's W_dec, an encoder row in SAELens's
    W_enc: every number of it lies in a page of its own.
    """
    row = 4 * size.width
    return {
        "rows_bytes": N_FEATURES * (2 * row + 4),
        "straight_bytes": N_FEATURES * (row + 4),
        "column_pages_bytes": N_FEATURES * size.width * PAGE_BYTES,
        "file_bytes": size.layer_bytes,
    }


def section(results: dict[str, Any]) -> str:
    """What stands between the README's marks."""
    sizes, machine_ = results["sizes"], results["machine"]
    pt, other = Size(**sizes["pt"]), Size(**sizes["safetensors"])
    lines = [
        f"{results['date']}, {machine_['cpu']}, {machine_['cores']} cores, {machine_['system']}. "
        f"`.pt`: one Qwen-Scope layer of {pt.d_sae:,} features, width {pt.width:,}, "
        f"{pt.layer_bytes / 1e9:.2f} GB. safetensors: {N_LAYERS} SAELens layers of {other.d_sae:,} "
        f"features, width {other.width:,}, {other.layer_bytes / 1e9:.2f} GB each; one is wanted.",
        "",
        "| file | way | time, s | peak memory, MB | read, MB | mapped, MB | the features' own, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['file']} | {row['name']} | {row['seconds']:.3f} | {row['peak_bytes'] / 1e6:.1f} "
        f"| {row['read_bytes'] / 1e6:.2f} | {row['mapped_bytes'] / 1e6:.1f} | {row['rows_bytes'] / 1e6:.2f} |"
        for row in results["rows"]
    ]
    ours = [row for row in results["rows"] if row["ours"]]
    lines += ["", *(f"- {row['file']}: {verdict(row)}" for row in ours)]
    return "\n".join(lines)


def verdict(row: dict[str, Any]) -> str:
    """Which bounds hold."""
    bounds = {
        f"peak below {MAX_PEAK_BYTES / 1e6:.0f} MB": row["peak_bytes"] < MAX_PEAK_BYTES,
        "read within 3 times the rows and the pages of the columns": row["read_bytes"]
        <= 3 * row["straight_bytes"] + row["column_pages_bytes"],
        f"under {MAX_SECONDS:.0f} s": row["seconds"] < MAX_SECONDS,
    }
    words = ", ".join(f"{what}: {'met' if met else '**not met**'}" for what, met in bounds.items())
    column = row["column_pages_bytes"] / 1e6
    return (
        f"{words}. The limit of the last but one: {row['straight_bytes'] / 1e6:.2f} MB lie in one piece a "
        "feature; the other half are columns of a row-major matrix, each number in a page of its own, "
        f"so a cold disk has to give up to {column:.0f} MB for them"
    )


def write_section(readme: Path, text: str) -> None:
    """Replaces what stands between the marks. Raises ValueError where they are missing."""
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme} has no {BEGIN} … {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
