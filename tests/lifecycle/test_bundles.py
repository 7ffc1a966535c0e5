"""A running process follows bundles: trusted or refused, the last good one kept, also over a restart."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scope_runtime import Runtime, ScopeError
from scope_runtime.bundle.build import build_bundle
from scope_runtime.bundle.places import push_bundle
from scope_runtime.cli.main import main
from scope_runtime.errors import BundleError, UsageError
from scope_runtime.lifecycle import BundleOptions, Cause, Lifecycle, Options, Source, State
from scope_runtime.lifecycle.build import Bench
from scope_runtime.lifecycle.config import load_config
from scope_runtime.lifecycle.feed import BundleFeed, FeedFollower
from scope_runtime.types import ModelShape
from tests.conftest import ROOT
from tests.lifecycle.conftest import PROMPT, Site, until
from tests.support.bundle_server import Server, serving
from tests.support.live import HookTarget, InProcess

ME = Cause("test", "me", "because")


def public(key: Ed25519PrivateKey, path: Path) -> Path:
    path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return path


@dataclass
class Fleet:
    """A server of bundles, the key that signs them, and a process that follows, without a model."""

    site: Site
    server: Server
    key: Ed25519PrivateKey
    folder: Path
    shape: ModelShape

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def publish(self, alpha: str, key: Ed25519PrivateKey | None = None, **metadata: object) -> str:
        """Puts a bundle of another strength on the server; returns its revision."""
        self.site.replace(self.site.text_with(alpha, **metadata))
        out = self.folder / "made.bundle"
        revision = build_bundle(self.site.folder, out, "fleet", key=key or self.key).manifest
        self.server.hold(out.read_bytes())
        return revision.revision

    def options(self, **more: object) -> BundleOptions:
        keys = (public(self.key, self.folder / "key.pem"),)
        given: dict[str, object] = {"where": self.server.address, "keys": keys, **more}
        return BundleOptions(**given)  # type: ignore[arg-type]

    @contextmanager
    def following(self, **more: object) -> Iterator[tuple[Lifecycle, HookTarget]]:
        """A lifecycle that was started; what a thread would do by itself, the test does."""
        bench = Bench(self.shape)
        with closing(HookTarget(self.shape)) as target:
            lifecycle = Lifecycle(
                target,
                Source(self.folder),
                bench,
                State(self.state),
                Options(),
                builder=InProcess(bench),
                feed=BundleFeed(self.options(**more), self.state / "bundles"),
            )
            lifecycle.start()
            yield lifecycle, target


@pytest.fixture
def fleet(site: Site, tmp_path: Path) -> Iterator[Fleet]:
    from tests.support.random_model import SHAPES

    shape = SHAPES["qwen3"]
    with serving() as server:
        yield Fleet(
            site,
            server,
            Ed25519PrivateKey.generate(),
            tmp_path,
            ModelShape(shape.architecture, shape.n_layer, shape.n_embd),
        )


def test_a_model_follows_bundles_over_https_and_is_told_of_new_ones(
    site: Site, tmp_path: Path
) -> None:
    """With a certificate of our own authority, signed, held back by the server until there is a new one."""
    from tests.support.random_model import SHAPES

    shape = SHAPES["qwen3"]
    with serving(tmp_path) as server:
        fleet = Fleet(
            site, server, Ed25519PrivateKey.generate(), tmp_path, ModelShape("qwen3", 1, 1)
        )
        assert shape.architecture == "qwen3"
        first = fleet.publish("0.5")
        options = fleet.options(ca=tmp_path / "ca.pem", poll_s=600.0, wait_s=600.0)
        with Runtime(
            site.model,
            options,
            state=fleet.state,
            watch=Options(poll_s=600.0),
            n_ctx=256,
            n_threads=1,
        ) as runtime:
            lifecycle = runtime.hosted.lifecycle
            assert runtime.generate(PROMPT, max_tokens=2).revisions[-1].revision == first
            server.waiting.wait()
            second = fleet.publish("0.25")
            until(lambda: lifecycle.revision == second, "the new bundle is in force")
            assert runtime.generate(PROMPT, max_tokens=2).revisions[-1].revision == second
            swapped = [e for e in runtime.events() if e.what == "swapped"][-1]
            assert (swapped.detail["trigger"], swapped.detail["actor"]) == (
                "bundle",
                server.address,
            )
            server.hold(b"")  # lets the request that is held back go


def test_a_server_that_nobody_vouches_for_is_not_asked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as server:
        fleet = Fleet(
            site, server, Ed25519PrivateKey.generate(), tmp_path, ModelShape("qwen3", 1, 1)
        )
        fleet.publish("0.5")
        feed = BundleFeed(fleet.options(), tmp_path / "one")
        with pytest.raises(BundleError, match=r"the server cannot be asked; found .*CERTIFICATE"):
            feed.ask()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        feed.ask()
        assert feed.latest is not None
    with pytest.raises(BundleError, match=r"nothing\.pem: no certificates"):
        BundleFeed(fleet.options(ca=tmp_path / "nothing.pem"), tmp_path / "two").ask()


def unsigned(fleet: Fleet) -> None:
    fleet.site.replace(fleet.site.text_with("0.9"))
    build_bundle(fleet.site.folder, fleet.folder / "made.bundle", "fleet")
    fleet.server.hold((fleet.folder / "made.bundle").read_bytes())


def altered(fleet: Fleet) -> None:
    fleet.publish("0.9")
    fleet.server.hold(fleet.server.held.replace(b"alpha: 0.9", b"alpha: 0.8"))


def by_a_stranger(fleet: Fleet) -> None:
    fleet.publish("0.9", Ed25519PrivateKey.generate())


def gone(fleet: Fleet) -> None:
    fleet.server.answer_with = (503, {}, b"")


BAD: list[tuple[Callable[[Fleet], None], str]] = [
    (unsigned, "the bundle is not signed"),
    (altered, "a file is not what the manifest says"),
    (by_a_stranger, "signed by a key that is not configured"),
    (gone, "the server gives no bundle; found 503"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_not_to_be_trusted_leaves_the_last_good_bundle(
    fleet: Fleet, spoil: Callable[[Fleet], None], message: str
) -> None:
    good = fleet.publish("0.5")
    with fleet.following() as (lifecycle, target):
        spoil(fleet)
        for _ in range(3):
            assert not lifecycle.follow()
        assert target.runs() == lifecycle.revision == good
        assert lifecycle.feed is not None
        status = lifecycle.feed.status()
        assert str(status.error).startswith(f"{fleet.server.address}: ")
        assert message in str(status.error)
        assert (status.ok, status.failed) == (1, 3)
        assert [what for what, _ in target.recorded][-1] == "fetch-failed"
        assert [what for what, _ in target.recorded].count("fetch-failed") == 1  # not each time
        with pytest.raises(BundleError, match=message):
            lifecycle.reload(ME)  # who asks is told
        assert lifecycle.counts.refused == 1
        assert target.runs() == good
        fleet.server.answer_with = None
        new = fleet.publish("0.25")
        assert lifecycle.follow()
        assert target.runs() == lifecycle.revision == new
        assert lifecycle.feed.status().error is None
        assert "fetch-resumed" in [what for what, _ in target.recorded]


def test_a_full_disk_leaves_the_last_good_bundle(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = fleet.publish("0.5")
    with fleet.following() as (lifecycle, target):
        fleet.publish("0.25")

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("scope_runtime.bundle.source.BundleSource.fetch", full)
            assert not lifecycle.follow()
        assert lifecycle.feed is not None
        assert "cannot be written; found No space left" in str(lifecycle.feed.status().error)
        assert target.runs() == good
        assert lifecycle.follow()


def test_a_trusted_bundle_goes_through_the_reload_that_files_go_through(fleet: Fleet) -> None:
    """Behaviours 10 and 17: checked, held against the model and the generations, or not taken up at all."""
    fleet.publish("0.5", generation=4)
    with fleet.following() as (lifecycle, target):
        good = lifecycle.revision
        fleet.publish("0.25", generation=3)
        assert lifecycle.follow()
        assert lifecycle.last is not None
        assert ":3:36: an older generation" in str(lifecycle.last.error)
        assert not lifecycle.follow()  # the same one is not tried again and again
        assert target.runs() == good
        new = fleet.publish("0.25", generation=5)
        assert lifecycle.plan()[1].revision == new
        assert target.runs() == good
        assert lifecycle.follow()  # having been planned, it is still new
        assert target.runs() == new
        assert lifecycle.reload(ME).changed is False
        assert lifecycle.rollback(ME).revision == good
        assert not lifecycle.follow()
        assert target.runs() == good


def test_what_lies_unpacked_is_not_believed(fleet: Fleet) -> None:
    good = fleet.publish("0.5")
    with fleet.following() as (lifecycle, target):
        policy = lifecycle.source.path / "policy.yaml"
        policy.write_text(policy.read_text().replace("alpha: 0.5", "alpha: 0.9"))
        assert not lifecycle.follow()
        assert lifecycle.reload(ME).revision == good
        assert "alpha: 0.5" in policy.read_text()
        assert target.runs() == good


def test_behaviour_16_a_restart_without_the_server_checks_the_signature_again(fleet: Fleet) -> None:
    good = fleet.publish("0.5")
    with fleet.following():
        pass
    gone(fleet)
    with fleet.following() as (lifecycle, target):
        assert target.runs() == lifecycle.revision == good
        assert lifecycle.feed is not None
        assert lifecycle.feed.status().error is not None
    stranger = public(Ed25519PrivateKey.generate(), fleet.folder / "stranger.pem")
    with pytest.raises(ScopeError, match="not configured"), fleet.following(keys=(stranger,)):
        pass


def whole_archive(kept: Path) -> None:
    archive = kept / "set.bundle"
    archive.write_bytes(archive.read_bytes().replace(b"alpha: 0.5", b"alpha: 0.9"))


def no_archive(kept: Path) -> None:
    (kept / "set.bundle").unlink()


def file_with_its_digest(kept: Path) -> None:
    """Whoever can write the state can write digests, but cannot sign."""
    about = json.loads((kept / "set.json").read_text())
    (kept / "files" / "more.gguf").write_bytes(b"more")
    about["files"]["more.gguf"] = f"sha256:{hashlib.sha256(b'more').hexdigest()}"
    (kept / "set.json").write_text(json.dumps(about))


@pytest.mark.parametrize("damage", [whole_archive, no_archive, file_with_its_digest])
def test_behaviour_16_what_was_kept_of_a_bundle_is_checked_again(
    fleet: Fleet, damage: Callable[[Path], None]
) -> None:
    fleet.publish("0.5")
    with fleet.following():
        pass
    gone(fleet)
    (kept,) = (fleet.state / "sets").iterdir()
    damage(kept)
    with pytest.raises(BundleError), fleet.following():
        pass


def test_a_rollback_holds_over_a_restart_even_if_the_server_comes_later(fleet: Fleet) -> None:
    first = fleet.publish("0.5")
    with fleet.following() as (lifecycle, target):
        fleet.publish("0.25")
        lifecycle.follow()
        lifecycle.rollback(ME)
        assert target.runs() == first
    gone(fleet)
    with fleet.following() as (lifecycle, target):
        assert (target.runs(), lifecycle.held) == (first, True)
        fleet.server.answer_with = None
        assert not lifecycle.follow()
        assert (target.runs(), lifecycle.held) == (first, True)
        third = fleet.publish("0.125")
        assert lifecycle.follow()
        assert (target.runs(), lifecycle.held) == (third, False)


def test_folders_and_image_layouts_are_followed_too(fleet: Fleet) -> None:
    one = fleet.publish("0.5")
    made = fleet.folder / "made.bundle"
    from scope_runtime.bundle.archive import read_archive

    layout = f"oci:{fleet.folder / 'layout'}:stable"
    push_bundle(read_archive(made), layout)
    for where, alpha in ((layout, "0.25"), (str(made), "0.125")):
        with fleet.following(where=where) as (lifecycle, target):
            assert target.runs() == one
            two = fleet.publish(alpha)
            push_bundle(read_archive(made), layout)
            assert lifecycle.follow()
            assert target.runs() == two
        one = two
        shutil.rmtree(fleet.state)


def test_nobody_waits_for_a_server_that_does_not_answer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither who goes back, nor who ends the process."""
    first = fleet.publish("0.5")
    with fleet.following(poll_s=0.001) as (lifecycle, target):
        fleet.publish("0.25")
        assert lifecycle.follow()
        feed = lifecycle.feed
        assert isinstance(feed, BundleFeed)
        asked, answer = threading.Event(), threading.Event()

        def silent(*_: object, **__: object) -> None:
            asked.set()
            answer.wait()

        monkeypatch.setattr("scope_runtime.bundle.source.BundleSource.fetch", silent)
        follower = FeedFollower(lifecycle, feed)
        follower.start()
        try:
            asked.wait()
            assert feed.source().policy_paths()  # what was fetched can be used
            feed.forget_others()
            assert lifecycle.rollback(ME).revision == first
            assert target.runs() == first
            lifecycle.close()
            follower.close()
            told = list(target.recorded)
        finally:
            answer.set()
        assert target.recorded == told


def test_behaviour_24_readiness_can_ask_for_fresh_bundles(fleet: Fleet) -> None:
    from fastapi.testclient import TestClient
    from prometheus_client import CollectorRegistry

    from scope_runtime.lifecycle.probes import probes_app
    from scope_runtime.metrics import Metrics
    from scope_runtime.metrics.collect import lifecycle_reader

    fleet.publish("0.5")
    registry = CollectorRegistry()
    with fleet.following(stale_after_s=1e-9) as (lifecycle, _):
        metrics = Metrics(registry)
        metrics.read(lifecycle_reader(lifecycle))
        client = TestClient(probes_app(lifecycle, registry))
        gone(fleet)
        lifecycle.follow()
        answer = client.get("/ready")
        assert (answer.status_code, answer.json()["stale"]) == (503, True)
        assert client.get("/health").status_code == 200  # never depends on policies
        text = client.get("/metrics").text
        assert "scope_bundle_fetch_success 0.0" in text
        assert 'scope_bundle_fetches_total{result="failed"} 1.0' in text
    with fleet.following() as (lifecycle, _):
        client = TestClient(probes_app(lifecycle, CollectorRegistry()))
        assert client.get("/ready").status_code == 200  # not asked for


CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {path: model.gguf}
  policy: {bundle: {from: FROM, keys: [key.pem], wait_s: 60}, state: state}
"""


def test_a_configuration_names_a_bundle(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    path = fleet.folder / "scope.yaml"
    for written, meant in (
        ("https://policies.example/fleet.bundle", "https://policies.example/fleet.bundle"),
        ("oci:layout:stable", f"oci:{fleet.folder}/layout:stable"),
        ("fleet.bundle", str(fleet.folder / "fleet.bundle")),
    ):
        path.write_text(CONFIG.replace("FROM", f'"{written}"'))
        policy = load_config(path).policy
        assert isinstance(policy, BundleOptions)
        assert (policy.where, policy.keys) == (meant, (fleet.folder / "key.pem",))
        assert (policy.poll_s, policy.wait_s, policy.stale_after_s) == (30.0, 60.0, None)
    assert main(["check", str(path), "--no-warnings"]) == 1
    assert "key.pem: error: no such file" in capsys.readouterr().out
    public(fleet.key, fleet.folder / "key.pem")
    assert main(["check", str(path), "--no-warnings"]) == 0
    assert main(["explain", str(path)]) == 0
    assert "the policies come as bundles from" in capsys.readouterr().out


def test_the_example_of_the_page_is_right(fleet: Fleet) -> None:
    page = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (fleet.folder / "scope.yaml").write_text(example)
    policy = load_config(fleet.folder / "scope.yaml").policy
    assert isinstance(policy, BundleOptions)
    assert policy.wait_s == 60.0


WRONG: Sequence[tuple[str, str, str]] = (
    (", state: state", "", '5:12: "bundle" goes only with "state"'),
    ("state: state", "state: state, path: x", "keys that exclude each other"),
    ("state: state", "state: state, root: x", '"root" goes only with "path"'),
    ("from: FROM, ", "", '5:20: missing key "from"'),
    ("[key.pem]", "[]", "empty list (at spec.policy.bundle.keys)"),
)


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_what_is_wrong_with_it_has_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "scope.yaml"
    path.write_text(CONFIG.replace(old, new))
    with pytest.raises(ScopeError) as refused:
        load_config(path)
    assert message in str(refused.value)


def test_what_cannot_be_followed_is_wrong_usage(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bundles need a state directory"):
        Runtime(fleet.site.model, fleet.options(), n_ctx=64)
    with pytest.raises(UsageError, match="only a server can hold its answer back"):
        BundleFeed(BundleOptions("a.bundle", wait_s=1.0), tmp_path / "x")
