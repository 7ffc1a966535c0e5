"""One whole SAE layer: residuals in, active latents out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import cached_sha256
from scope_runtime.pack_types import F32Array, I64Array, layer_name
from scope_runtime.policy.model import GateKind
from scope_runtime.sae.active import Active
from scope_runtime.sae.encoder import WholeEncoder
from scope_runtime.sae.gates import opened
from scope_runtime.sae.preselect import MOST_TOKENS, Preselection
from scope_runtime.sae.product import Product

SCORE_BYTES = 64 << 20
"""About as many bytes of pre-activations are held at a time; one token's at least."""


class FullLayer:
    """A layer whose every latent can be measured.

    Attributes:
        layer: 0-based block whose output it was trained on, or `EMBEDDING`.
        encoder: its rows, in their file.
        gate: never ``none``.
        k: of its top-k, if it has one.
        file: what it was read from.
        labels: of latents that have one, by id.
        notes: sentences on what is not exact.
    """

    def __init__(
        self,
        *,
        layer: int,
        encoder: WholeEncoder,
        gate: GateKind,
        k: int | None,
        file: Path,
        decoder: Callable[[I64Array], F32Array],
        labels: Mapping[int, str] | None = None,
        notes: tuple[str, ...] = (),
        n_threads: int | None = None,
    ) -> None:
        """Take what a set or pack has; see `SaeLayers.open`.

        Args:
            layer: and others: see the class.
            decoder: gives directions of latents that exist, (n, width).
            n_threads: of `encode`; all CPUs by default.

        Raises:
            PackError: a gate that this layer has not what it takes for.
        """
        self.layer, self.encoder, self.gate, self.k, self.file = layer, encoder, gate, k, file
        self.labels: Mapping[int, str] = dict(labels or {})
        self.notes = notes
        self._decoder, self._n_threads = decoder, n_threads
        self._product = Product(encoder, n_threads)
        self._version = _version(file)
        self._preselection: Preselection | None = None
        if gate is GateKind.NONE or (gate is GateKind.THRESHOLD and encoder.thresholds is None):
            self._fail("its gate says of no latent whether it is active", found=str(gate))
        if gate is GateKind.TOPK and k is None:
            self._fail("k of the top-k gate is not known", expected="k in config.json")
        if gate is GateKind.TOPK and k is not None and not 1 <= k <= encoder.d_sae:
            self._fail("k is no count of latents", found=str(k), expected=f"1 to {encoder.d_sae}")

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.encoder.d_sae

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.encoder.width

    @property
    def digest(self) -> str:
        """SHA-256 of its file; read once, then remembered."""
        return cached_sha256(self.file, PackError)

    def encode(self, residual: F32Array) -> Active:
        """Every active latent of every token.

        Args:
            residual: (n_tokens, width) or (width,), F32, before any change.

        Raises:
            UsageError: residuals of another width, or that are not finite.
            PackError: the encoder holds a NaN or an infinity, or its file has changed.
        """
        h = self._checked(residual)
        self._check_file()
        step = max(SCORE_BYTES // (4 * self.d_sae), 1)
        parts = [self._gated(h[first : first + step]) for first in range(0, len(h), step)]
        return Active.concatenated(parts, self.d_sae)

    def preselect(self) -> None:
        """Makes `encode` of a few tokens at a time twice as fast, at the price of memory.

        For answers that are watched token by token. An F16 copy of an F32 encoder (half its bytes, in
        memory) finds candidates, and F32 decides; what comes out is the same. Of files in F16 or BF16
        nothing is copied: they are as fast as they come.

        Raises:
            PackError: no memory for the copy, or rows that are not finite.
        """
        self._check_file()
        if self.encoder.type == "F32" and self._preselection is None:
            try:
                self._preselection = Preselection(self.encoder, self._n_threads)
            except PackError as error:
                error.location = error.location or Location(str(self.file))
                raise

    def values(self, residual: F32Array, ids: Iterable[int]) -> F32Array:
        """Activations of chosen latents, 0 where not active, (n_tokens, n_ids).

        Under a top-k gate this takes the whole encoder, under others the chosen rows alone.

        Raises:
            UsageError: as `encode`; or there is no such latent.
            PackError: as `encode`.
        """
        chosen = self._ids(ids)
        if self.gate is GateKind.TOPK:
            return self.encode(residual).of(chosen.tolist())
        scores = self.pre(residual, chosen.tolist())
        thresholds = self.encoder.thresholds
        least = np.zeros(len(chosen), np.float32) if thresholds is None else thresholds[chosen]
        return np.where(scores > least, scores, np.float32(0))

    def pre(self, residual: F32Array, ids: Iterable[int]) -> F32Array:
        """Pre-activations of chosen latents, before any gate, (n_tokens, n_ids). Raises as `values`."""
        self._check_file()
        chosen, h = self._ids(ids), self._checked(residual)
        scores = h @ self.encoder.take(chosen).T + self.encoder.bias[chosen]
        self._check_scores(scores)
        return scores

    def decoder(self, ids: Iterable[int]) -> F32Array:
        """Directions as stored, (n_ids, width).

        Raises:
            UsageError: there is no such latent.
            PackError: the pack does not hold its direction, or its file has changed.
        """
        self._check_file()
        return self._decoder(self._ids(ids))

    def _scores(self, h: F32Array) -> F32Array:
        """Pre-activations of every latent, (n_tokens, d_sae)."""
        out = self._product(h)
        out += self.encoder.bias
        self._check_scores(out)
        return out

    def _gated(self, h: F32Array) -> Active:
        if self._preselection is not None and len(h) <= MOST_TOKENS:
            found = self._preselection.active(h, self.gate, self.k)
            for _, values in found:
                self._check_scores(values)
        else:
            found = []
            for scores in self._scores(h):
                ids = opened(scores, self.gate, self.k, self.encoder.thresholds)
                found.append((ids, scores[ids]))
        return Active(
            np.cumsum([0, *(len(ids) for ids, _ in found)], dtype=np.int64),
            np.concatenate([ids for ids, _ in found]).astype(np.int32),
            np.concatenate([values for _, values in found]),
            self.d_sae,
        )

    def _checked(self, residual: F32Array) -> F32Array:
        h = np.ascontiguousarray(np.atleast_2d(residual), dtype=np.float32)
        if h.ndim != 2 or h.shape[1] != self.width:
            raise UsageError(
                f"residuals do not fit the SAE of layer {layer_name(self.layer)}",
                location=Location(str(self.file)),
                found=f"shape {np.shape(residual)}",
                expected=f"(n_tokens, {self.width})",
            )
        if not np.isfinite(h).all():
            token = int(np.argmin(np.isfinite(h).all(axis=1)))
            raise UsageError("a residual is not finite", found=f"token {token}")
        return h

    def _check_file(self) -> None:
        """Rows are mapped, and the system ends a process that reads what a file has no more.

        A file that another was renamed over, or that was deleted, is there as long as it is mapped.
        """
        now = _version(self.file)
        if self._version is None or now is None or now[0] != self._version[0]:
            return
        if now != self._version:
            self._fail(
                "its file was written to while it is in use",
                found=f"{now[1]} bytes",
                expected=f"{self._version[1]} bytes, unchanged",
                hint="Rename a new file over the old one, and open it again",
            )

    def _ids(self, ids: Iterable[int]) -> I64Array:
        chosen = np.fromiter(ids, np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= self.d_sae)]
        if len(wrong):
            raise UsageError(
                f"the SAE of layer {layer_name(self.layer)} has no such feature",
                location=Location(str(self.file)),
                found=str(wrong[0]),
                expected=f"0 to {self.d_sae - 1}",
            )
        return chosen

    def _check_scores(self, scores: F32Array) -> None:
        # A NaN or an infinity in a row shows in its score whatever finite residual meets it, so the
        # file need not be read from end to end before it is used.
        fine = np.isfinite(scores)
        if not fine.all():
            self._fail(
                "the encoder is not finite, or products with it overflow",
                found=f"{scores[~fine][0]} at latent {int(np.argwhere(~fine)[0][-1])} of those taken",
            )

    def _fail(
        self,
        message: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> NoReturn:
        raise PackError(
            f"layer {layer_name(self.layer)}: {message}",
            location=Location(str(self.file)),
            found=found,
            expected=expected,
            hint=hint,
        )


def _version(file: Path) -> tuple[tuple[int, int], int, int] | None:
    """Which file it is, its bytes, and when it was written last; None: there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return (about.st_dev, about.st_ino), about.st_size, about.st_mtime_ns
