"""A change of the files reaches the model between two tokens, however it was made; a bad one reaches nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scope_runtime import Runtime, ScopeError
from scope_runtime.compile import check_against_packs
from scope_runtime.errors import PolicyErrors, UsageError
from scope_runtime.lifecycle import Cause, Options, Source
from scope_runtime.lifecycle.build import Bench, build
from scope_runtime.llama.engine import Generation
from scope_runtime.policy import load_policies, load_policy, policy_revision, set_revision
from scope_runtime.policy.revision import FileDigests
from scope_runtime.types import ModelShape
from tests.lifecycle.conftest import PROMPT, Site, until

BAD = "mute: [one, two]", "mute: [one, tow]"


def revision(site: Site) -> str:
    return policy_revision(load_policy(site.policy))


def in_force(runtime: Runtime) -> str:
    """Of the next request, as its own record says."""
    answer = runtime.generate(PROMPT, max_tokens=2, temperature=0.0)
    return answer.revisions[-1].revision


def wait_for(runtime: Runtime, revision: str) -> None:
    until(lambda: runtime.hosted.lifecycle.revision == revision, f"{revision} is in force")


def in_place(site: Site, text: str) -> None:
    site.policy.write_text(text, encoding="utf-8")


def renamed(site: Site, text: str) -> None:
    site.replace(text)


def made_anew(site: Site, text: str) -> None:
    site.policy.unlink()
    site.policy.write_text(text, encoding="utf-8")


def by_an_editor(site: Site, text: str) -> None:
    """What vim does: a swap file, the old file moved to a backup, a new file, the backup and swap file gone."""
    swap = site.folder / ".policy.yaml.swp"
    swap.write_bytes(b"b0VIM 9.1")
    backup = site.folder / "policy.yaml~"
    site.policy.rename(backup)
    site.policy.write_text(text, encoding="utf-8")
    backup.unlink()
    swap.unlink()


def a_hundred_times(site: Site, text: str) -> None:
    for n in range(100):
        site.policy.write_text(site.text_with(f"0.{n + 1:03}"), encoding="utf-8")
    site.policy.write_text(text, encoding="utf-8")


EDITS = [in_place, renamed, made_anew, by_an_editor, a_hundred_times]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_behaviour_13_however_a_file_is_changed_it_is_taken_up(
    site: Site, edit: Callable[[Site, str], None]
) -> None:
    with site.running() as runtime:
        edit(site, site.text_with("0.25"))
        wait_for(runtime, revision(site))
        assert in_force(runtime) == revision(site)


def test_behaviour_13_a_kubernetes_mount_is_swapped(site: Site, tmp_path: Path) -> None:
    """A ConfigMap is links through ``..data``, a link that is renamed over."""
    mount = tmp_path / "mount"

    def publish(number: int, text: str) -> None:
        folder = mount / f"..2026_{number}"
        folder.mkdir(parents=True)
        (folder / "policy.yaml").write_text(text, encoding="utf-8")
        for name in ("pack.gguf", "vector.gguf"):
            shutil.copy(site.folder / name, folder / name)
        (mount / "..data_tmp").symlink_to(folder.name)
        (mount / "..data_tmp").rename(mount / "..data")

    publish(1, site.text)
    for name in ("policy.yaml", "pack.gguf", "vector.gguf"):
        (mount / name).symlink_to(Path("..data") / name)
    with site.running(policy=mount) as runtime:
        publish(2, site.text_with("0.125"))
        shutil.rmtree(mount / "..2026_1")
        wait_for(runtime, policy_revision(load_policy(mount / "policy.yaml")))


def test_a_pack_that_changed_under_the_same_policy_is_taken_up(site: Site, tmp_path: Path) -> None:
    from tests.support.random_model import SHAPES
    from tests.support.random_pack import make_random_pack

    other = tmp_path / "other"
    other.mkdir()
    make_random_pack(SHAPES["qwen3"], other, seed=99)
    with site.running() as runtime:
        before = runtime.hosted.lifecycle.revision
        (other / "pack.gguf").rename(site.folder / "pack.gguf")
        wait_for(runtime, revision(site))
        assert revision(site) != before


def test_behaviour_14_without_events_the_digests_tell(site: Site) -> None:
    with site.running(Options(poll_s=0.01, events=False)) as runtime:
        assert runtime.hosted.follower.hints == "digests every 0.01 s alone"
        site.policy.write_text(site.text_with("0.25"), encoding="utf-8")
        wait_for(runtime, revision(site))


def test_a_content_that_kept_its_size_and_time_is_seen_all_the_same(site: Site) -> None:
    with site.running(Options(poll_s=0.01, events=False)) as runtime:
        status = site.policy.stat()
        in_place(site, site.text_with("0.6"))
        os.utime(site.policy, ns=(status.st_atime_ns, status.st_mtime_ns))
        wait_for(runtime, revision(site))


def test_behaviour_9_a_bad_edit_leaves_the_old_policy_serving(site: Site) -> None:
    with site.running() as runtime:
        lifecycle = runtime.hosted.lifecycle
        good, logits = lifecycle.revision, runtime.logits(PROMPT)
        site.replace(site.text.replace(*BAD))
        until(lambda: lifecycle.counts.refused == 1, "the edit is refused")
        assert lifecycle.last is not None
        where = f"{site.policy}:10:33"
        assert str(lifecycle.last.error).startswith(where)
        assert runtime.metrics.get_sample_value("scope_policy_reload_success") == 0
        assert in_force(runtime) == good
        assert np.array_equal(runtime.logits(PROMPT), logits)
        refused = [e for e in runtime.events() if e.what == "refused"][-1]
        assert refused.detail["in_force"] == good
        site.replace(site.text)
        until(lambda: lifecycle.counts.ok == 1, "the mended file is accepted")
        assert runtime.metrics.get_sample_value("scope_policy_reload_success") == 1
        assert in_force(runtime) == good


def test_behaviour_9_a_policy_that_is_gone_goes_on_steering(site: Site) -> None:
    with site.running() as runtime:
        good = runtime.hosted.lifecycle.revision
        shutil.rmtree(site.folder)
        until(lambda: runtime.hosted.lifecycle.counts.refused > 0, "the loss is noticed")
        assert in_force(runtime) == good


def test_behaviour_10_a_directory_is_taken_up_as_a_whole(site: Site) -> None:
    second = site.folder / "second.yaml"
    watch = site.text.replace("name: tiny", "name: second").replace(
        "mute: [one, two]", "alert: one, above: 1"
    )
    watch = "\n".join(
        line for line in watch.splitlines() if "push" not in line and "watch" not in line
    )
    second.write_text(watch, encoding="utf-8")
    with site.running(policy=site.folder) as runtime:
        lifecycle = runtime.hosted.lifecycle
        good = lifecycle.revision
        assert good == set_revision(map(policy_revision, load_policies(site.folder)))
        site.replace(watch.replace("above", "abov"), second)
        until(lambda: lifecycle.counts.refused == 1, "the bad one is refused")
        site.replace(site.text_with("0.25"))  # sound by itself
        until(lambda: lifecycle.counts.refused == 2, "and with it the good one")
        assert in_force(runtime) == lifecycle.current.revision == good
        site.replace(watch, second)
        until(
            lambda: (
                lifecycle.revision == set_revision(map(policy_revision, load_policies(site.folder)))
            ),
            "both are taken up",
        )


def test_behaviour_11_no_token_mixes_revisions(site: Site) -> None:
    """While the policy changes again and again, each position belongs to exactly one of the revisions."""
    with site.running(Options(poll_s=30.0, debounce_ms=0)) as runtime:
        lifecycle = runtime.hosted.lifecycle
        known = {lifecycle.revision}
        stream = runtime.generate(PROMPT, max_tokens=400, temperature=0.0, stream=True)
        for n in range(8):
            next(stream)
            site.replace(site.text_with(f"0.{n + 1}1"))
            wait_for(runtime, revision(site))
            known.add(revision(site))
        *_, answer = stream
        assert isinstance(answer, Generation)
        seen = [span.revision for span in answer.revisions]
        assert len(seen) > 2
        assert set(seen) <= known
        starts = [span.from_position for span in answer.revisions]
        assert starts == sorted(set(starts))
        rules = [e for e in answer.report if e.what == "rule" and e.rule == "quiet"]
        n_computed = len(PROMPT) + len(answer.tokens) - 1
        assert sum(e.detail["n_tokens"] for e in rules) == n_computed
        assert {e.detail["revision"] for e in rules} == set(seen)


def test_behaviour_12_no_cache_crosses_revisions(site: Site) -> None:
    """A prompt cached under A and asked again under B gives what B gives from cold."""
    with site.running() as runtime:
        runtime.generate(PROMPT, max_tokens=20, temperature=0.0)
        site.replace(site.text_with("0.05"))
        wait_for(runtime, revision(site))
        warm = runtime.generate(PROMPT, max_tokens=20, temperature=0.0)
        assert warm.n_reused == 0
    with Runtime(site.model, site.policy, n_ctx=512, n_threads=1) as cold:
        assert cold.generate(PROMPT, max_tokens=20, temperature=0.0).tokens == warm.tokens


def test_a_request_to_reload_says_what_is_wrong_and_where(site: Site) -> None:
    with site.running(Options(poll_s=30.0, events=False)) as runtime:
        site.replace(site.text.replace(*BAD))
        with pytest.raises(PolicyErrors, match=r"policy\.yaml:10:33: unknown feature"):
            runtime.hosted.lifecycle.reload(Cause("test", "me"))
        site.replace(site.text)
        outcome = runtime.hosted.lifecycle.reload(Cause("test", "me"))
        assert not outcome.changed
        assert outcome.revision == revision(site)


def test_a_policy_that_makes_no_numbers_is_refused_by_the_dry_run(site: Site) -> None:
    program = check_against_packs(load_policy(site.policy))
    shape = ModelShape(program.architecture, program.n_layer, program.n_embd)
    ordinary, broken = (np.full((4, shape.n_embd), size, np.float32) for size in (1.0, np.nan))
    for sample, wanted in ((ordinary, None), (broken, "that are no numbers")):
        bench = Bench(shape, samples=dict.fromkeys(range(shape.n_layer), sample))
        built = build(Source(site.policy), bench, FileDigests())
        assert (wanted or "None") in str(built.error)


def test_a_compiler_that_dies_is_a_refusal_and_is_replaced(site: Site) -> None:
    with site.running(Options(poll_s=30.0, events=False)) as runtime:
        lifecycle = runtime.hosted.lifecycle
        process = lifecycle._compiler._process
        assert process is not None
        process.kill()
        process.wait()
        site.replace(site.text_with("0.25"))
        assert lifecycle.reload(Cause("test", "me")).revision == revision(site)


def test_who_follows_files_is_told_by_files(site: Site) -> None:
    with (
        site.running() as runtime,
        pytest.raises(UsageError, match=r"this runtime follows .*policy\.yaml"),
    ):
        runtime.set_policy(None)


def test_there_must_be_something_to_follow(site: Site) -> None:
    with pytest.raises(UsageError, match="there is no policy to follow"):
        Runtime(site.model, watch=True, n_ctx=64)


def test_fail_open_starts_unsteered_until_there_is_a_policy(site: Site) -> None:
    """Behaviour 23: what happens without a policy is a choice."""
    site.policy.unlink()
    with pytest.raises(ScopeError), site.running():
        pass
    with site.running(Options(poll_s=30.0, fail="open")) as runtime:
        assert in_force(runtime) == "none"
        site.replace(site.text)
        wait_for(runtime, revision(site))
