"""The whole story in one file: policy → program → hook → events → log, around one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.events import Event, Kind, Sink
from scope_runtime.llama.chat import Message
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.llama.context import ContextOptions
from scope_runtime.llama.embedding import Embedder, Embedding
from scope_runtime.llama.engine import Began, Engine, Generation
from scope_runtime.llama.observe import Observed
from scope_runtime.llama.parallel import Parallel
from scope_runtime.llama.probe import Proof
from scope_runtime.llama.room import beyond_training
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.single import Single
from scope_runtime.metrics.collect import engine_reader
from scope_runtime.policy.load import load_policies
from scope_runtime.policy.model import Apply, Policy
from scope_runtime.program import Program
from scope_runtime.records import Records
from scope_runtime.select import ProgramSource, check_labels
from scope_runtime.types import ModelShape, Pooling

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from scope_runtime.lifecycle import BundleOptions, Hosted, Options

_SAMPLING = tuple(Sampling.__dataclass_fields__)


class GenerateOptions(TypedDict, total=False):
    """Options of ``generate`` and ``chat``.

    Attributes:
        labels: the request's labels, for policies that select by them.
        max_tokens: most tokens of the answer; 256.
        temperature: 0 is greedy; 0.8.
        seed: of the draw; random when not given.
        top_k, top_p, min_p: 40, 0.95 and 0; not used at temperature 0.
        frequency_penalty, presence_penalty, logit_bias: see Sampling.
        stop: texts that end the answer, and are left out of it.
        grammar: GBNF that the answer must follow.
        top_logprobs: how many of the likeliest tokens to list with each; None leaves log probabilities out.
        request_id: the caller's own id for the records.
        cancelled: asked before each token; True ends the answer.
        began: told once, when the prompt is computed, under which program and revisions.
        trial: policies that this request alone runs under, instead of those in force (``compile`` makes them). It is on
            record as any request, as a trial; alerts over all requests and drift pass it over. While steering is
            switched off it runs under none.
    """

    labels: Mapping[str, str]
    max_tokens: int
    temperature: float
    seed: int | None
    top_k: int
    top_p: float
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    stop: tuple[str, ...]
    grammar: str
    top_logprobs: int | None
    request_id: str
    cancelled: Callable[[], bool]
    began: Began
    trial: ProgramSource | None


class Runtime:
    """A model that obeys a policy.

        with Runtime(model="m.gguf", policy="p.yaml", n_ctx=2048) as rt:
            print(rt.generate("…", max_tokens=64, temperature=0.0).text)

    Args:
        model: GGUF file of a text model.
        policy: policy file, or a directory of policies that are in force together; BundleOptions follow bundles of
            them, which needs ``state``; None runs unsteered.
        policy_root: directory that files named by policies must lie in; by default each policy's own.
        watch: follow the policies: a change of their files takes effect between two tokens, a bad one changes nothing.
        state: directory in which followed policies outlive the process, so that they can be rolled back to and a
            restart without them comes back steering.
        control: Unix socket at which ``scope status``, ``reload``, ``off``, ``on`` and ``rollback`` find this process.
        audit: audit log to append events to (docs/audit.md): its file, or AuditOptions; None keeps them in memory
            only (``events()``).
        metrics: registry to put metrics into (docs/observability.md), one runtime to each; one of its own by default.
        sinks: where else events go, in this order, after memory and log; closed with the runtime.
        n_ctx: tokens of context, for each request; by default what the model was trained with, at most 4,096.
        n_parallel: requests that are computed side by side, each under its own program; more wait. Each has memory for
            ``n_ctx`` tokens. Above 1, ``stream``s are computed ahead of who reads them.
        n_gpu_layers: blocks to offload to the GPU, -1 for all. On such blocks plain ``amplify`` rules use llama.cpp's
            control vector, which is free there but is not measured.
        n_threads: CPU threads; None leaves it to llama.cpp.
        use_extra_bufts: llama.cpp's repacked weights; None decides by CPU.
        embeddings: what of a text's tokens ``embed`` makes its vector of; None: no embeddings, and no memory for them
            (a context of ``n_ctx`` tokens more).
        progress: called with 0.0 to 1.0 while the model loads.

    Raises:
        ScopeError: model, packs or policy are not sound or do not fit each other, or the hook cannot prove itself.
    """

    def __init__(
        self,
        model: str | Path,
        policy: str | Path | BundleOptions | None = None,
        *,
        policy_root: str | Path | None = None,
        watch: bool | Options = False,
        state: str | Path | None = None,
        control: str | Path | None = None,
        audit: str | Path | AuditOptions | None = None,
        metrics: CollectorRegistry | None = None,
        sinks: Sequence[Sink] = (),
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_parallel: int = 1,
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        use_extra_bufts: bool | None = None,
        embeddings: Pooling | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._policy_root = policy_root
        self._hosted: Hosted | None = None
        self._embedder: Embedder | None = None
        self._records = Records(audit, metrics, sinks)
        options = ContextOptions(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_seq_max=n_parallel,
            n_gpu_layers=n_gpu_layers,
            n_threads=n_threads,
            use_extra_bufts=use_extra_bufts,
        )
        self._n_gpu_layers = n_gpu_layers
        self.n_parallel = n_parallel
        follows = bool(watch) or state is not None or control is not None
        try:
            if isinstance(policy, (str, Path)) and not follows:
                self._check_first(Path(model), policy)
            self.model = Path(model)
            self.model_digest = f"sha256:{model_digest(Path(model))}"
            self._records.model_digest = self.model_digest
            engine = Parallel if n_parallel > 1 else Single
            self._engine: Engine = engine(
                model, options, self, self.model_digest, progress=progress
            )
        except BaseException:
            self._records.close()
            raise
        self._records.metrics.read(engine_reader(self._engine))
        try:
            if embeddings is not None:
                self._embedder = Embedder(
                    self._engine.context,
                    embeddings,
                    lambda: self._engine.source,
                    self,
                    self.model_digest,
                )
            said = {"notes": list(self.notes)} if self.notes else {}
            words = list(self._engine.proof.words)
            self.record("start", Kind.RUNTIME, model=str(model), attach=words, **said)
            if not follows and (policy is None or isinstance(policy, (str, Path))):
                self.set_policy(policy)
            else:
                self._follow(policy, watch, state, control)
        except BaseException:
            self.close()
            raise

    def _check_first(self, model: Path, policy: str | Path) -> None:
        """Holds the policy against the model's header: a slip in it need not wait for gigabytes of weights."""
        info = check_model(model)
        try:
            loaded = load_policies(policy, root=self._policy_root)
            ProgramSource(loaded, ModelShape(info.architecture, info.n_layer, info.n_embd))
        except ScopeError as error:
            detail = {"policy": str(policy), "model": str(model), **error.fields()}
            self.record("refused", Kind.POLICY, digests={}, **detail)
            raise

    def _follow(
        self,
        policy: str | Path | BundleOptions | None,
        watch: bool | Options,
        state: str | Path | None,
        control: str | Path | None,
    ) -> None:
        """Takes the policies up through a lifecycle of their own."""
        if policy is None:
            raise UsageError("there is no policy to follow", expected="policy=FILE or DIRECTORY")
        # Whoever follows nothing needs neither watchdog nor a web server.
        from scope_runtime.lifecycle import Hosted, Options, Source
        from scope_runtime.lifecycle.build import Bench

        samples = self._engine.sample_residuals()
        root = Path(self._policy_root) if self._policy_root else None
        self._hosted = Hosted(
            self,
            Source(Path(policy), root) if isinstance(policy, (str, Path)) else policy,
            Bench(self.shape, self.control_vector_layers, samples),
            watch if isinstance(watch, Options) else Options(),
            self._records.metrics,
            state=Path(state) if state is not None else None,
            control=Path(control) if control is not None else None,
        )

    @property
    def metrics(self) -> CollectorRegistry:
        """The registry with this runtime's metrics."""
        return self._records.metrics.registry

    @property
    def hosted(self) -> Hosted:
        """What follows the policies. Raises UsageError where nothing does."""
        if self._hosted is None:
            raise UsageError("this runtime follows no policies", hint="Open it with watch=True")
        return self._hosted

    @property
    def acknowledged(self) -> bool:
        """Whether a token was computed under the program that is active now."""
        return self._engine.acknowledged

    @property
    def audit(self) -> AuditLog | None:
        """The audit log, for its status."""
        return self._records.audit

    # -- a sink itself: one place through which every event goes

    def write(self, events: Sequence[Event]) -> None:
        """Hands events to every sink: what one cannot take, those after it get all the same.

        Raises:
            Exception: the first that a sink raised, such as AuditError.
        """
        self._records.write(events)

    def record(self, what: str, kind: Kind, **detail: object) -> None:
        """Puts an event that concerns no request on record."""
        self._records.record(what, kind, **detail)

    def events(self) -> tuple[Event, ...]:
        """The last 10,000 events, oldest first."""
        return self._records.events()

    # -- policy

    @property
    def program(self) -> Program:
        """Every policy's every rule; a request may get a part of it (selector, rollout, exceptions)."""
        return self._engine.source.program

    @property
    def proof(self) -> Proof:
        """Which attach points were seen to work on this model."""
        return self._engine.proof

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever opened the model should know of it, in words."""
        context = self._engine.context
        note = beyond_training(context.info, context.options.n_ctx)
        return (note,) if note else ()

    @property
    def shape(self) -> ModelShape:
        return self._engine.context.shape

    def compile(self, policy: str | Path | None) -> ProgramSource:
        """Loads, checks and compiles a policy for this model, for ``take_up``; None: the empty program.

        Raises:
            ScopeError: it cannot be carried out.
        """
        return self.compiled(
            load_policies(policy, root=self._policy_root) if policy is not None else ()
        )

    def compiled(self, policies: Sequence[Policy]) -> ProgramSource:
        """As ``compile``, for policies that are loaded already."""
        layers = self.control_vector_layers
        return ProgramSource(policies, self.shape, control_vector_layers=layers)

    def set_policy(self, policy: str | Path | None) -> Program:
        """Loads, checks, compiles and swaps in a policy; None switches steering off.

        Atomic: no token sees two policies, and on any ScopeError the old one stays. Both are on record.

        Raises:
            UsageError: this runtime follows files; change those, or ask ``hosted``.
        """
        if self._hosted is not None:
            raise UsageError(
                f"this runtime follows {self._hosted.lifecycle.source.path}",
                hint="Change the file, roll back or switch off",
            )
        try:
            source = self.compile(policy)
            self.take_up(source, policy=str(policy) if policy is not None else None)
        except ScopeError as error:
            self.record("refused", Kind.POLICY, policy=str(policy), **error.fields())
            raise
        return source.program

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None:
        """Swaps in policies that are compiled already, and puts it on record as ``what`` with ``detail``.

        Args:
            now: reach the running answer at its next token, whatever the policies say (``spec.apply``).
        """
        previous = self._engine.source.revision
        swap_ms = self._engine.use(source, now=now or source.apply is Apply.NEXT_TOKEN)
        hook_swap_ms = self._engine.context.live_hook.stats.swap_ns / 1e6
        self._records.taken_up(
            source, previous, what=what, swap_ms=swap_ms, hook_swap_ms=hook_swap_ms, **detail
        )

    @property
    def control_vector_layers(self) -> frozenset[int]:
        """Blocks on a GPU: llama.cpp offloads the last ``n_gpu_layers``, -1 is all; none where there is no GPU."""
        # One vector is for all sequences, and theirs differ.
        if self.n_parallel > 1 or not self._engine.context.llama.api.llama_supports_gpu_offload():
            return frozenset()
        layers = self.shape.n_layer
        n = layers if self._n_gpu_layers < 0 else min(self._n_gpu_layers, layers)
        return frozenset(range(layers - n, layers))

    # -- work

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str | Generation]: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Iterator[str | Generation]:
        """Continues a raw prompt (text, or token ids).

        Args:
            prompt: what to continue; control tokens written out in a text count as such.
            stream: yield pieces of text as they come, and the Generation at last.
            options: see GenerateOptions.

        Raises:
            UsageError: the prompt is empty or does not fit.
            AuditError: the audit log cannot be written, and nothing is served without it (``on_failure``).
        """
        tokens = self._engine.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        return self._answer(tokens, stream, options)

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str | Generation]: ...

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Iterator[str | Generation]:
        """Answers messages through the model's chat template; a bare string is one user message."""
        return self._answer(self.tokenize_chat(messages), stream, options)

    def _answer(
        self, tokens: Sequence[int], stream: bool, options: GenerateOptions
    ) -> Generation | Iterator[str | Generation]:
        unknown = sorted(options.keys() - GenerateOptions.__annotations__.keys())
        if unknown:
            raise UsageError(
                f"no such option: {', '.join(unknown)}",
                expected=", ".join(GenerateOptions.__annotations__),
            )
        check_labels(options.get("labels", {}))
        self._records.admit()
        drawn = {key: options[key] for key in _SAMPLING if key in options}  # type: ignore[literal-required]
        running = self._engine.generate(
            tokens,
            Sampling(**drawn),
            options.get("labels", {}),
            request_id=options.get("request_id"),
            cancelled=options.get("cancelled", lambda: False),
            began=options.get("began", lambda program, revisions: None),
            trial=options.get("trial"),
        )
        if stream:
            return running
        *_, last = running
        if not isinstance(last, Generation):
            raise RuntimeError("the engine ended a request without its result")
        return last

    def logits(
        self,
        tokens: Sequence[int],
        labels: Mapping[str, str] | None = None,
        *,
        n_prompt: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits (n_tokens, n_vocab) at every position under the active policy, computed afresh.

        Args:
            n_prompt: tokens that count as prompt (all by default): position n_prompt - 1 is the first in phase
                ``generation``.
        """
        return self._engine.logits(tokens, check_labels(labels or {}), n_prompt)

    def embed(
        self,
        text: str | Sequence[int],
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Embedding:
        """A text (or token ids) as a vector of length 1, computed under the policies that select the request.

        All of it is in phase ``prompt``.

        Raises:
            UsageError: the runtime was opened without ``embeddings``; no text, or more than fits.
            AuditError: the audit log cannot be written, and nothing is served without it (``on_failure``).
        """
        embedder = self._embeds()
        tokens = self.tokenize(text) if isinstance(text, str) else list(text)
        checked = check_labels(labels or {})
        self._records.admit()
        return embedder.embed(tokens, checked, request_id=request_id, cancelled=cancelled)

    @property
    def embeds(self) -> bool:
        """Whether it was opened with ``embeddings``."""
        return self._embedder is not None

    def check_text(self, tokens: Sequence[int]) -> None:
        """Refuses what ``embed`` would refuse. Raises UsageError."""
        self._embeds().check(tokens)

    def _embeds(self) -> Embedder:
        if self._embedder is None:
            raise UsageError(
                "this runtime computes no embeddings",
                hint="Open it with embeddings=Pooling.LAST, MEAN, CLS or MODEL",
            )
        return self._embedder

    def observe(
        self,
        tokens: Sequence[int],
        layers: Iterable[int],
        labels: Mapping[str, str] | None = None,
        *,
        n_prompt: int | None = None,
        n_next: int = 0,
    ) -> Observed:
        """Residuals of tokens at some layers, and the likeliest next tokens, under the active policy; computed afresh.

        Args:
            layers: 0-based blocks whose output is wanted, or `EMBEDDING`; before the policy's change there.
            n_prompt: as in ``logits``; what follows is read token by token, as an answer is.
            n_next: how many next tokens to list with each token.
        """
        return self._engine.observe(tokens, layers, check_labels(labels or {}), n_prompt, n_next)

    @property
    def n_vocab(self) -> int:
        """Tokens that the model knows; their ids are 0 to n_vocab - 1."""
        return self._engine.context.n_vocab

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        return tuple(t for t in range(self.n_vocab) if self._engine.context.ends(t))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as ``generate`` would see it."""
        return self._engine.encode_prompt(text)

    def tokenize_chat(self, messages: str | Sequence[Message]) -> list[int]:
        """Token ids of messages through the model's chat template, as ``chat`` would see them."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._engine.encode_chat(messages)

    def tokenize_answer(self, text: str) -> list[int]:
        """Token ids of an answer's text as it follows a prompt: control tokens written out in it are mere text."""
        return self._engine.context.tokenize(text, special=False, add_bos=False)

    def piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens written out; of several tokens only the whole need be UTF-8."""
        return self._engine.context.piece(token, special=True)

    def control_texts(self) -> list[str]:
        """Texts that a prompt must not have where a stranger wrote it: they count as control tokens."""
        return self._engine.context.control_texts()

    def close(self) -> None:
        """Waits for the running request, then frees model and logs. Safe to call twice."""
        if self._hosted is not None:
            self._hosted.close()
        self._records.metrics.close()
        if self._embedder is not None:
            self._embedder.close()
        self._engine.close()
        self._records.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
