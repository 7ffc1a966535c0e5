"""Behaviours 11 and 12: no cache crosses revisions, by logits; by the records, each token has one revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest

from scope_runtime import Runtime
from scope_runtime.lifecycle import Cause, Options
from scope_runtime.llama.context import Context
from scope_runtime.llama.engine import Generation
from tests.lifecycle.conftest import PROMPT, Site

ME = Cause("test", "me")
QUIET = Options(poll_s=600.0, events=False)
Logits = npt.NDArray[np.float32]
ACME = {"tenant": "acme"}


@contextmanager
def seen_logits(runtime: Runtime) -> Iterator[list[Logits]]:
    """The logits that each token of an answer was drawn from, as decoding left them."""
    context: Context = runtime._engine.context
    found: list[Logits] = []
    decode = context.decode

    def noted(*given: object, **more: object) -> Logits:
        logits: Logits = decode(*given, **more)  # type: ignore[arg-type]
        found.append(np.array(logits))
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "decode", noted)
        yield found


def asked(runtime: Runtime, labels: dict[str, str] | None = None) -> tuple[Logits, Generation]:
    """The first answer token's logits for the prompt, over whatever the cache holds."""
    with seen_logits(runtime) as logits:
        answer = runtime.generate(PROMPT, max_tokens=4, temperature=0.0, labels=labels or {})
    return logits[0], answer


def cold(site: Site, labels: dict[str, str] | None = None) -> Logits:
    """The same in a runtime that never saw anything else."""
    with Runtime(site.model, site.policy, n_ctx=512, n_threads=1) as runtime:
        logits, answer = asked(runtime, labels)
    assert answer.n_reused == 0
    return logits


# Steered from the first token on, so that a cache of another revision would show.
TEXT = ", when: {phase: generation}"


def use(site: Site, runtime: Runtime, alpha: str) -> str:
    site.replace(site.text_with(alpha).replace(TEXT, ""))
    return runtime.hosted.lifecycle.reload(ME).revision


def test_behaviour_12_a_cached_prompt_gives_the_logits_of_a_cold_one(site: Site) -> None:
    """A, A again from the cache, B, A again; each as from cold."""
    with site.running(QUIET) as runtime:
        found = {}
        for alpha in ("0.5", "0.05", "0.5"):
            use(site, runtime, alpha)
            want = cold(site)
            first, answer = asked(runtime)
            assert answer.n_reused == 0  # of another revision
            assert np.array_equal(first, want)
            again, answer = asked(runtime)
            assert answer.n_reused > 0  # of its own
            np.testing.assert_allclose(again, want, rtol=0, atol=1e-4)
            found[alpha] = want
    assert np.abs(found["0.5"] - found["0.05"]).max() > 1e-2


def test_behaviour_12_what_was_computed_across_a_reload_is_never_used_again(site: Site) -> None:
    with site.running(QUIET) as runtime:
        use(site, runtime, "0.5")
        stream = runtime.generate(PROMPT, max_tokens=12, temperature=0.0, stream=True)
        next(stream)
        use(site, runtime, "0.05")
        *_, mixed = stream
        assert isinstance(mixed, Generation)
        assert len(mixed.revisions) == 2
        logits, answer = asked(runtime)
        assert answer.n_reused == 0  # its prompt was computed under the revision before
        assert np.array_equal(logits, cold(site))


def test_behaviour_12_labels_that_select_another_program_have_a_cache_of_their_own(
    site: Site,
) -> None:
    selecting = site.text.replace(TEXT, "").replace(
        "spec:\n", "spec:\n  selector: {tenant: acme}\n"
    )
    site.replace(selecting)
    with site.running(QUIET) as runtime:
        steered, unsteered = cold(site, ACME), cold(site)
        assert np.abs(steered - unsteered).max() > 1e-2
        for labels, want in ((ACME, steered), (None, unsteered), (ACME, steered)):
            logits, answer = asked(runtime, labels)
            assert answer.n_reused == 0
            assert np.array_equal(logits, want)


def test_behaviour_12_off_and_on_do_not_share_a_cache(site: Site) -> None:
    with site.running(QUIET) as runtime:
        use(site, runtime, "0.5")
        steered = cold(site)
        with Runtime(site.model, n_ctx=512, n_threads=1) as plain:
            unsteered, _ = asked(plain)
        assert np.array_equal(asked(runtime)[0], steered)
        runtime.hosted.lifecycle.off(ME)
        assert np.array_equal(asked(runtime)[0], unsteered)
        runtime.hosted.lifecycle.on(ME)
        assert np.array_equal(asked(runtime)[0], steered)


def test_behaviour_11_every_token_has_one_revision_on_record_and_it_was_in_force(
    site: Site,
) -> None:
    """By the records alone, while the policy changes: no gap, no overlap, nothing that was not in force then.

    Held against what the hook acknowledged as each token was computed.
    """
    with site.running(QUIET) as runtime:
        lifecycle, engine = runtime.hosted.lifecycle, runtime._engine
        acknowledged: dict[str, list[str]] = {}
        n_alphas = iter(range(1, 100))

        def note(request_id: str) -> bool:
            serial = engine.context.live_hook.acknowledged
            acknowledged.setdefault(request_id, []).append(
                engine._installed.programs[serial].revision
            )
            return False

        for number in range(4):
            name = f"request-{number}"
            stream = runtime.generate(
                PROMPT,
                max_tokens=24,
                temperature=1.0,
                seed=number,
                stream=True,
                request_id=name,
                cancelled=lambda name=name: note(name),  # type: ignore[misc]
            )
            for step, _ in enumerate(stream):
                if step % 6 == 2:
                    site.replace(site.text_with(f"0.{next(n_alphas):03}"))
                    lifecycle.reload(ME)
        events = runtime.events()
    summaries = [e for e in events if e.what == "summary"]
    assert len(summaries) == 4
    swaps = [(e.time, str(e.detail["revision"])) for e in events if e.what == "swapped"]
    n_changes = 0
    for summary in summaries:
        record = summary.record()
        name = str(record["request_id"])
        spans = [(each["from_position"], each["revision"]) for each in record["revisions"]]
        computed = len(PROMPT) + len(acknowledged[name]) - 1
        starts = [start for start, _ in spans]
        assert starts[0] == 0
        assert starts == sorted(set(starts))  # one revision a position, and no gap
        assert starts[-1] < computed
        by_position = [
            [revision for start, revision in spans if start <= position][-1]
            for position in range(len(PROMPT) - 1, computed)
        ]
        assert by_position == acknowledged[name]
        for _, revision in spans:
            assert any(revision == swapped and at <= summary.time for at, swapped in swaps)
        n_changes += len(spans) - 1
        # What each rule did is counted under the revision it was done under, and adds up to every token.
        rules = [
            e for e in events if e.what == "rule" and e.rule == "quiet" and e.request_id == name
        ]
        assert {e.detail["revision"] for e in rules} == {revision for _, revision in spans}
        assert sum(e.detail["n_tokens"] for e in rules) == computed - record.get("n_reused", 0)
    assert n_changes > 4
