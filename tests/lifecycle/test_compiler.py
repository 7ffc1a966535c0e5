"""Policies are compiled in another process: what arrives is whole, and what both have crosses the pipe once."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from scope_runtime.compile import assumed_shape
from scope_runtime.errors import CompileError
from scope_runtime.lifecycle import Source
from scope_runtime.lifecycle.build import Bench
from scope_runtime.lifecycle.compiler import Compiler
from scope_runtime.lifecycle.worker import Order, answer
from scope_runtime.packs import FeaturePack, read_pack, write_pack
from scope_runtime.policy import load_policies
from scope_runtime.policy.revision import FileDigests
from scope_runtime.resolve import OpenFiles, load_artefacts
from scope_runtime.select import ProgramSource
from tests.lifecycle.conftest import Site

REQUESTS = [f"r{i}" for i in range(20)]


def bench(site: Site) -> Bench:
    policy = load_policies(site.policy)[0]
    return Bench(assumed_shape(policy, load_artefacts(policy)))


def partial(site: Site, alpha: str) -> None:
    """A policy of which some requests get a part: that part is compiled when the first of them comes."""
    text = site.text_with(alpha)
    assert "alpha" in text
    site.replace(
        text.replace(f"alpha: {alpha}", f"alpha: {alpha}, rollout: {{percent: 50, by: request}}")
    )


def parts(source: ProgramSource) -> list[str]:
    return [source.for_request({}, request).digest for request in REQUESTS]


def test_what_another_process_compiled_compiles_parts_here_build_after_build(site: Site) -> None:
    compiler = Compiler(bench(site))
    try:
        for alpha in ("0.5", "0.7", "0.9"):
            partial(site, alpha)
            got = compiler.build(Source(site.policy)).result()
            here = ProgramSource(load_policies(site.policy), bench(site).shape)
            assert got.revision == here.revision
            assert parts(got) == parts(here)
            assert len(set(parts(got))) == 2
    finally:
        compiler.close()


def test_open_files_cross_the_pipe_only_when_the_other_end_lacks_them(site: Site) -> None:
    digests = FileDigests()
    files = OpenFiles(digests)

    def built(has: tuple[tuple[str, str], ...]) -> bytes | None:
        return answer(Order(Source(site.policy), (), has), bench(site), digests, files).files

    first = built(())
    assert first is not None
    packs = pickle.loads(first).packs
    source = ProgramSource(load_policies(site.policy), bench(site).shape)
    assert {(name, pack.digest) for name, pack in packs.items()} < set(source.file_digests)
    assert built(source.file_digests) is None
    damaged = tuple((name, "0" * 64) for name, _ in source.file_digests)
    assert built(damaged) == first


def test_a_pack_is_read_once_while_it_stays_the_same_and_again_when_it_changes(site: Site) -> None:
    reads: list[Path] = []

    def read(path: Path) -> FeaturePack:
        reads.append(path)
        return read_pack(path)

    files = OpenFiles(FileDigests())
    pack = site.folder / "pack.gguf"
    first = files.opened(read, pack)
    files.begin()
    assert files.opened(read, pack) is first
    assert files.opened(read, pack) is first
    renamed = replace(first.model, name="another")
    write_pack(pack, renamed, first.layers.values())
    other = files.opened(read, pack)
    assert other.digest != first.digest
    assert len(reads) == 2
    # What a whole build did without is let go of.
    files.begin()
    files.begin()
    files.opened(read, pack)
    assert len(reads) == 3


def test_a_pack_that_cannot_be_read_is_an_error_each_time(site: Site) -> None:
    files = OpenFiles(FileDigests())
    for _ in range(2):
        with pytest.raises(OSError, match="No such file"):
            files.opened(lambda path: read_pack(path.resolve(strict=True)), site.folder / "none")


def test_a_build_that_takes_too_long_is_ended_and_says_so(site: Site) -> None:
    compiler = Compiler(bench(site), limit_s=0.0)
    try:
        with pytest.raises(
            CompileError, match=r"compiling took too long .* found no answer in 0 s"
        ):
            compiler.build(Source(site.policy))
    finally:
        compiler.close()
