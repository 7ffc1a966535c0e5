"""The hook preloaded into a stock llama-server: each slot as the runtime alone would have answered it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.attached.shared import SharedHook
from scope_runtime.compile import compile_policy
from scope_runtime.errors import HookError
from scope_runtime.llama import library
from scope_runtime.native.abi import RawEvent, library_path
from scope_runtime.native.hook import Span
from scope_runtime.policy.load import load_policy
from scope_runtime.program import Program
from scope_runtime.runtime import Runtime
from scope_runtime.types import ModelShape
from tests.support.attached_server import AttachedServer, attached_server, running_server
from tests.support.hooked_llama import hooked_llama
from tests.support.interventions import prompt
from tests.support.policy_files import write_policy
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.random_pack import RandomPack, make_random_pack
from tests.support.torch_reference import Rule

library.load()

BOUND = 1e-3
"""Largest difference of two logprobs that counts as equal, in units of the logits' range: both have F16 caches."""

NEAR = 2 * BOUND
"""Largest lead of the likeliest token over one that is as likely, in the same units: either may be off by the bound."""

N_PREDICT = 12
N_LONG = 200
REQUEST_END, SUMMARY = 4, 3


@dataclass
class Place:
    """A proved server, its controller, and policies for it."""

    model: RandomModel
    pack: RandomPack
    server: AttachedServer
    hook: SharedHook
    policies: dict[str, Path]
    endings: list[int]
    """Tokens that end an answer: a server that is told to ignore them draws the next best."""
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10_000)))

    def program(self, name: str) -> Program:
        shape = self.model.shape
        return compile_policy(
            load_policy(self.policies[name]),
            ModelShape(shape.architecture, shape.n_layer, shape.n_embd),
        )

    @contextmanager
    def held(self, *names: str) -> Iterator[list[int]]:
        """The policies' programs in the hook, by their serials, whatever becomes of the test."""
        serials = [self.hook.hold(self.program(name).blob) for name in names]
        try:
            yield serials
        finally:
            self.hook.assign({})
            for serial in serials:
                self.hook.release(serial)

    def greedy(self, answer: list[int], logits: np.ndarray) -> bool:
        """Whether each token is the likeliest, or as likely but for what other columns in a batch change in a sum."""
        drawn = logits.copy()
        drawn[:, self.endings] = -np.inf
        taken = drawn[np.arange(len(answer)), answer]
        return bool((drawn.max(axis=1) - taken <= NEAR * np.ptp(logits, axis=1)).all())

    def tokens(self, n_tokens: int = 20, seed: int = 0) -> list[int]:
        return prompt(self.model.shape.n_vocab, n_tokens, seed)


def policies_of(pack: RandomPack) -> dict[str, Path]:
    latents = pack.latents
    rules = {
        "mute": Rule("mute", tuple(latents[1][:6])),
        "push": Rule("amplify", (latents[2][0],), alpha=8.0, phase="generation"),
        "pull": Rule("amplify", (latents[0][0],), alpha=-6.0),
    }
    return {
        name: write_policy(pack.folder / f"{name}.yaml", pack, [rule])
        for name, rule in rules.items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return make_random_model("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> RandomPack:
    return make_random_pack(SHAPES["qwen3"], tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def place(
    model: RandomModel, pack: RandomPack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("attached") / "control"
    with attached_server(model, folder) as (server, hook):
        with pytest.raises(HookError, match="the server's context is not proved"):
            hook.begin(0, 1, 0)
        hook.prove(server.probe, prompt(model.shape.n_vocab, 8))
        with hooked_llama(model.path) as hooked:
            endings = [token for token in range(hooked.n_vocab) if hooked.ends(token)]
        yield Place(model, pack, server, hook, policies_of(pack), endings)


@pytest.fixture
def reference(model: RandomModel, pack: RandomPack) -> Iterator[Callable[..., np.ndarray]]:
    """Logits (n_tokens, n_vocab) of the runtime alone under a policy."""
    open_runtimes: list[Runtime] = []

    def logits(policy: Path | None, tokens: list[int], n_prompt: int) -> np.ndarray:
        runtime = Runtime(model.path, policy, n_ctx=256, n_threads=1, use_extra_bufts=False)
        open_runtimes.append(runtime)
        return runtime.logits(tokens, n_prompt=n_prompt)

    yield logits
    for runtime in open_runtimes:
        runtime.close()


def all_logprobs(server: AttachedServer, tokens: list[int], slot: int, n_vocab: int) -> np.ndarray:
    """Of every token as the next one. The bias draws a whole character: see `StockServer.logprobs`."""
    out: np.ndarray = answer_logprobs(server, tokens, slot, n_vocab, 1)[0]
    return out


def answer_logprobs(
    server: AttachedServer, tokens: list[int], slot: int, n_vocab: int, n_predict: int
) -> np.ndarray:
    """As `all_logprobs`, at each token of an answer that says the same letter all the time: (n_predict, n_vocab)."""
    answer = server.complete(tokens, slot, n_predict, n_probs=n_vocab, logit_bias=[["a", 1e6]])
    out = np.full((n_predict, n_vocab), np.nan)
    for row, place in zip(out, answer["completion_probabilities"], strict=True):
        for each in place["top_logprobs"]:
            row[each["id"]] = each["logprob"]
    return out


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logits.astype(np.float64) - logits.max()
    out: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return out


def summaries(events: list[RawEvent], serial: int) -> list[RawEvent]:
    return [e for e in events if e.kind == SUMMARY and e.serial == serial]


def test_slots_side_by_side_answer_as_the_runtime_alone(
    place: Place, reference: Callable[..., np.ndarray]
) -> None:
    """Three policies in three slots at once, and a slot with none."""
    names: list[str | None] = ["mute", "push", "pull", None]
    prompts = [place.tokens(18 + slot, seed=slot) for slot in range(4)]

    def request(slot: int, serial: int) -> list[int]:
        place.hook.begin(slot, next(place.numbers), serial)
        try:
            answer = place.server.complete(prompts[slot], slot, N_PREDICT)
        finally:
            end = place.hook.end(slot)
        assert (end.n_unsteered, end.answer_start) == (0, len(prompts[slot]) - 1)
        assert end.spans == (Span(0, len(prompts[slot]) + N_PREDICT - 1, serial),)
        return list(answer["tokens"])

    with place.held("mute", "push", "pull") as serials, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(request, range(4), [*serials, 0]))
    assert place.hook.status.n_unmatched == 0
    for slot, (name, answer) in enumerate(zip(names, answers, strict=True)):
        n_prompt = len(prompts[slot])
        policy = place.policies[name] if name else None
        logits = reference(policy, prompts[slot] + answer, n_prompt)
        assert place.greedy(answer, logits[n_prompt - 1 : -1])
        plain = reference(None, prompts[slot] + answer, n_prompt)
        assert (name is None) == bool(np.array_equal(logits, plain))


def test_a_slot_without_a_policy_is_as_alone_beside_a_muted_one_in_the_same_batches(
    place: Place, reference: Callable[..., np.ndarray]
) -> None:
    """Every logprob of an answer, while the other slot answers as well."""
    n_vocab = place.model.shape.n_vocab
    muted, plain = place.tokens(18, seed=21), place.tokens(21, seed=22)

    def ask(slot: int) -> np.ndarray:
        place.hook.begin(slot, next(place.numbers), 0)
        try:
            return answer_logprobs(place.server, plain, slot, n_vocab, N_PREDICT)
        finally:
            assert place.hook.end(slot).n_unsteered == 0

    before = place.hook.status.n_ubatches
    alone = ask(1)
    n_alone = place.hook.status.n_ubatches - before
    with place.held("mute") as (serial,), ThreadPoolExecutor(1) as pool:
        place.hook.begin(0, next(place.numbers), serial)
        before = place.hook.status.n_ubatches
        request = pool.submit(place.server.complete, muted, 0, N_LONG)
        beside = []
        while not request.done():
            if place.hook.slot(0).n_columns > len(muted):
                beside.append(ask(1))
        answer = list(request.result()["tokens"])
        end = place.hook.end(0)
        n_together = place.hook.status.n_ubatches - before
    # Had each its own there were as many as alone, and N_LONG of the muted one: its prompt's, and one for a token.
    n_shared = N_LONG + len(beside) * n_alone - n_together
    assert beside
    assert n_shared > len(beside)
    assert end.spans == (Span(0, len(muted) + N_LONG - 1, serial),)
    for found in beside:
        assert (np.abs(found - alone).max(axis=1) <= BOUND * np.ptp(alone, axis=1)).all()
    logits = reference(place.policies["mute"], muted + answer, len(muted))
    assert place.greedy(answer, logits[len(muted) - 1 : -1])
    assert not np.array_equal(logits, reference(None, muted + answer, len(muted)))


@pytest.mark.parametrize("name", ["mute", "push", "pull"])
def test_every_logprob_is_the_runtimes(
    name: str, place: Place, reference: Callable[..., np.ndarray]
) -> None:
    tokens, n_vocab = place.tokens(seed=7), place.model.shape.n_vocab
    with place.held(name) as (serial,):
        place.hook.begin(2, next(place.numbers), serial)
        found = all_logprobs(place.server, tokens, 2, n_vocab)
        place.hook.end(2)
    logits = reference(place.policies[name], tokens, len(tokens))[-1]
    plain = reference(None, tokens, len(tokens))[-1]
    assert np.abs(found - log_softmax(logits)).max() <= BOUND * np.ptp(logits)
    assert np.abs(found - log_softmax(plain)).max() > 10 * BOUND * np.ptp(plain)


def test_events_come_with_their_positions(place: Place) -> None:
    with place.held("push") as (serial,):
        place.hook.drain()
        number = next(place.numbers)
        tokens = place.tokens(15)
        place.hook.begin(1, number, serial)
        place.server.complete(tokens, 1, N_PREDICT)
        place.hook.end(1)
        events = place.hook.drain()
    (summary,) = summaries(events, serial)
    # The answer's last token is drawn and never computed.
    assert (summary.request_id, summary.sequence) == (number, 1)
    assert (summary.n_tokens, summary.n_fired) == (N_PREDICT, N_PREDICT)
    assert (summary.first_position, summary.last_position) == (14, 14 + N_PREDICT - 1)
    assert events[-1].kind == REQUEST_END
    assert events[-1].n_tokens == 15 + N_PREDICT - 1
    assert place.hook.status.n_dropped == 0


def test_a_program_changes_between_two_tokens(place: Place) -> None:
    """The answer goes on under the new one, from the position that the spans name."""
    with place.held("pull", "push") as (first, second):
        tokens = place.tokens(16, seed=3)
        place.hook.begin(0, next(place.numbers), first)
        with ThreadPoolExecutor(1) as pool:
            request = pool.submit(place.server.complete, tokens, 0, N_LONG)
            while place.hook.slot(0).n_columns < 20 and not request.done():
                pass  # a slot's state is a read of memory
            place.hook.assign({0: second})
            answer = list(request.result()["tokens"])
        end = place.hook.end(0)
    assert end.spans is not None
    assert [span.serial for span in end.spans] == [first, second]
    change = end.spans[1].first
    assert 19 < change < 16 + N_LONG - 1
    assert len(answer) == N_LONG
    with hooked_llama(place.model.path) as hooked:
        hook = hooked.live_hook
        hook.install(place.program("pull").blob)
        hook.request_begin(0, 1, 16)
        rows = hooked.decode((tokens + answer)[:change], 0, all_logits=True)
        hook.install(place.program("push").blob)
        rows = np.concatenate(
            [rows, hooked.decode((tokens + answer)[change:], change, all_logits=True)]
        )
    assert place.greedy(answer, rows[15:-1])


def test_what_runs_without_a_request_is_unsteered_and_counted(
    place: Place, reference: Callable[..., np.ndarray]
) -> None:
    with place.held("mute") as (serial,):
        place.hook.assign({3: serial})
        before = place.hook.slot(3)
        assert before.serial == serial
        tokens, n_vocab = place.tokens(9), place.model.shape.n_vocab
        found = all_logprobs(place.server, tokens, 3, n_vocab)
        assert place.hook.slot(3).n_stray - before.n_stray == 9
    logits = reference(None, tokens, 9)[-1]
    assert np.abs(found - log_softmax(logits)).max() <= BOUND * np.ptp(logits)


def test_a_damaged_program_is_refused_and_the_last_good_one_stays(place: Place) -> None:
    good = place.program("mute").blob
    bad = bytearray(good)
    bad[-1] ^= 0xFF
    with place.held("mute") as (serial,):
        place.hook.assign({}, others=serial)
        with pytest.raises(HookError, match="checksum"):
            place.hook.hold(bytes(bad))
        with pytest.raises(HookError, match="the program is neither held nor in force"):
            place.hook.begin(0, next(place.numbers), serial + 1)
        assert place.hook.slot(0).serial == serial
        assert set(place.hook.programs) == {serial}
        assert sorted(p.name for p in place.server.folder.glob("*.bin")) == [
            f"program-{serial}.bin"
        ]


def test_a_request_is_begun_and_ended_once(place: Place) -> None:
    with pytest.raises(HookError, match="no request is open on this slot"):
        place.hook.end(0)
    place.hook.begin(0, next(place.numbers), 0)
    with pytest.raises(HookError, match="a request is open on this slot"):
        place.hook.begin(0, next(place.numbers), 0)
    assert place.hook.slot(0).request_id is not None
    assert place.hook.end(0).request_id is None
    with pytest.raises(HookError, match="the slot is out of range"):
        place.hook.begin(256, next(place.numbers), 0)


def test_a_slot_says_what_its_kv_was_computed_under(place: Place) -> None:
    """Before a request goes out: whether the server may reuse what the slot holds."""
    tokens = place.tokens(20, seed=9)

    def run(serial: int) -> tuple[tuple[Span, ...] | None, tuple[Span, ...] | None, int]:
        begun = place.hook.begin(3, next(place.numbers), serial)
        place.server.complete(tokens, 3, cache_prompt=True)
        end = place.hook.end(3)
        return begun.spans, end.spans, end.n_columns

    with place.held("mute", "pull") as (first, second):
        run(first)
        held = (Span(0, 20, first),)
        assert run(first) == (held, held, 1)  # reused, but for the token whose logits are wanted
        assert run(second) == (held, (Span(0, 19, first), Span(19, 20, second)), 1)


def test_without_a_program_every_bit_is_as_without_the_hook(place: Place, tmp_path: Path) -> None:
    tokens, n_vocab = place.tokens(17, seed=4), place.model.shape.n_vocab
    place.hook.begin(1, next(place.numbers), 0)
    found = all_logprobs(place.server, tokens, 1, n_vocab)
    place.hook.end(1)
    with running_server(place.model, {}, folder=tmp_path) as stock:
        np.testing.assert_array_equal(found, all_logprobs(stock, tokens, 1, n_vocab))


def test_there_is_one_controller_at_a_time(place: Place) -> None:
    with pytest.raises(HookError, match="another process holds it"):
        SharedHook.adopt(place.server.folder)


CONTROLLER = """
import sys
from pathlib import Path
from scope_runtime.attached.shared import SharedHook
from scope_runtime.types import ModelShape
from tests.support.attached_server import AttachedServer
folder, socket, blob, architecture, n_layer, n_embd = sys.argv[1:]
hook = SharedHook.create(folder, ModelShape(architecture, int(n_layer), int(n_embd)))
print("made", flush=True)
socket = sys.stdin.readline().strip()
server = AttachedServer(Path(socket), None, Path(folder))
hook.prove(server.probe, list(range(5, 13)))
serial = hook.hold(Path(blob).read_bytes())
hook.begin(2, 77, serial)
print(serial, flush=True)
sys.stdin.readline()
"""


def test_a_killed_controller_leaves_the_server_steering_and_the_next_one_goes_on(
    model: RandomModel, pack: RandomPack, tmp_path: Path, reference: Callable[..., np.ndarray]
) -> None:
    policies = policies_of(pack)
    shape = ModelShape(model.shape.architecture, model.shape.n_layer, model.shape.n_embd)
    program = compile_policy(load_policy(policies["mute"]), shape)
    (tmp_path / "blob").write_bytes(program.blob)
    folder = tmp_path / "control"
    arguments = [str(folder), "", str(tmp_path / "blob"), shape.architecture]
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments, str(shape.n_layer), str(shape.n_embd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert controller.stdin is not None
    assert controller.stdout is not None
    tokens, n_vocab = prompt(model.shape.n_vocab, 14), model.shape.n_vocab
    try:
        assert controller.stdout.readline() == "made\n"
        environment = {"LD_PRELOAD": str(library_path()), "SCOPE_SHM": str(folder)}
        with running_server(model, environment, folder=folder) as server:
            controller.stdin.write(f"{server.socket}\n")
            controller.stdin.flush()
            serial = int(controller.stdout.readline())
            with pytest.raises(HookError, match="another process holds it"):
                SharedHook.adopt(folder)
            controller.send_signal(signal.SIGKILL)
            controller.wait()
            # Nobody is there, and the request that was begun is steered all the same.
            found = all_logprobs(server, tokens, 2, n_vocab)
            logits = reference(policies["mute"], tokens, 14)[-1]
            assert np.abs(found - log_softmax(logits)).max() <= BOUND * np.ptp(logits)

            hook = SharedHook.adopt(folder)
            assert hook.status.proved
            assert hook.status.pid == server.process.pid
            assert hook.programs == {serial: f"sha256:{program.blob[32:64].hex()}"}
            assert hook.slot(2).request_id == 77
            assert hook.end(2).spans == (Span(0, 14, serial),)
            assert len(summaries(hook.drain(), serial)) == 1
            again = hook.hold(program.blob)
            assert again == serial + 1
            hook.begin(2, 78, again)
            np.testing.assert_array_equal(all_logprobs(server, tokens, 2, n_vocab), found)
            hook.end(2)

            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
            assert not hook.alive
            with pytest.raises(HookError, match="the server is gone"):
                hook.begin(2, 79, again)
            hook.close()
        with pytest.raises(HookError, match="no server holds the control folder"):
            SharedHook.adopt(folder)
        with pytest.raises(HookError, match="File exists"):
            SharedHook.create(folder, shape)
        # A folder is for one server process: what the last one knew is gone with it.
        with running_server(model, environment, folder=folder) as server:
            with pytest.raises(HookError, match="no server holds"):
                SharedHook.adopt(folder)
            assert "each needs its own" in server.log()
    finally:
        controller.kill()
        controller.communicate()


def test_a_server_without_the_preload_is_refused_in_words(
    model: RandomModel, tmp_path: Path
) -> None:
    shape = ModelShape(model.shape.architecture, model.shape.n_layer, model.shape.n_embd)
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(HookError, match=r"others may reach into .*; found mode 755 of user"):
        SharedHook.create(tmp_path / "open", shape)
    hook = SharedHook.create(tmp_path / "control", shape)
    with pytest.raises(HookError, match="the server has started without the hook"):
        hook.wait_loaded(0.0)
    with pytest.raises(HookError, match="the server is gone, or has no hook in it"):
        hook.hold(b"")
    hook.close()


def test_a_draft_context_is_neither_steered_nor_counted(
    model: RandomModel, pack: RandomPack, tmp_path: Path, reference: Callable[..., np.ndarray]
) -> None:
    """The draft is the same model unsteered, so that steering makes most of its proposals wrong: each is taken back."""
    policies = policies_of(pack)
    shape = ModelShape(model.shape.architecture, model.shape.n_layer, model.shape.n_embd)
    program = compile_policy(load_policy(policies["push"]), shape)
    options = ["--model-draft", str(model.path), "--spec-type", "draft-simple"]
    with attached_server(model, tmp_path / "control", *options) as (server, hook):
        hook.prove(server.probe, prompt(model.shape.n_vocab, 8))
        tokens = prompt(model.shape.n_vocab, 16, 3)
        serial = hook.hold(program.blob)
        hook.begin(1, 5, serial)
        answer = server.complete(tokens, 1, 40)
        end = hook.end(1)
        timings = answer["timings"]
        assert timings["draft_n"] > timings["draft_n_accepted"]
        logits = reference(policies["push"], tokens + answer["tokens"], 16)
        assert answer["tokens"] == [int(t) for t in logits[15:-1].argmax(axis=1)]
        (summary,) = summaries(hook.drain(), serial)
        assert hook.status.n_unmatched == 0
        assert end.spans is not None
        assert [span.serial for span in end.spans] == [serial]
        # What was rejected left nothing: as many tokens as the answer has, but for the last ones, which the draft
        # had right and nobody wanted any more.
        assert 39 <= summary.n_fired <= 39 + 1 + timings["draft_n_accepted"]
        assert summary.n_fired == end.spans[0].end - 15
