"""Control vectors out of features and of other vectors, each with the recipe that makes it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.combine import Editing, combine, edit
from converters.expression import NAME, parse_expression
from converters.features import FeatureRequest
from converters.pack import Report
from converters.recipe import (
    find_input,
    find_inputs,
    input_of,
    metadata,
    recipe_of,
)
from converters.sources import read_features, read_protected, read_vectors
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.vectors import ControlVector, read_control_vector, write_control_vector

MAX_NUMBER = 1e30
"""As in policies: far from where F32 ends, far beyond what anybody steers with."""


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """What is done to directions before they are written, in this order.

    Attributes:
        orthogonal_to: packs or vectors that the result must not move: what they hold for a layer is
            taken out of that layer's direction.
        project_out: packs or vectors; all that they hold, whatever its layer, spans one subspace
            that is taken out of every direction.
        normalise: whether each layer's direction is given length 1.
        alpha: factor at the end.

    Raises:
        UsageError: alpha is 0, too large or no number; when applied: nothing is left of a direction.
    """

    orthogonal_to: tuple[Path, ...] = ()
    project_out: tuple[Path, ...] = ()
    normalise: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < abs(self.alpha) <= MAX_NUMBER:
            raise UsageError(
                "alpha is no factor to steer with",
                found=str(self.alpha),
                expected=f"a number other than 0, at most {MAX_NUMBER:g} either way",
            )

    def data(self) -> dict[str, Any]:
        """As the recipe holds it."""
        return {
            "orthogonal_to": [input_of(path).data() for path in self.orthogonal_to],
            "project_out": [input_of(path).data() for path in self.project_out],
            "normalise": self.normalise,
            "alpha": self.alpha,
        }

    def apply(self, directions: Mapping[int, Any]) -> dict[int, F32Array]:
        """The directions as they are written."""
        editing = Editing(
            tuple(read_protected(path) for path in self.orthogonal_to),
            tuple(read_protected(path) for path in self.project_out),
            self.normalise,
            self.alpha,
        )
        edited = edit(directions, editing)
        for layer, direction in edited.items():
            if not direction.any():
                raise UsageError(
                    f"nothing is left of the direction at {layer_name(layer)}: it would steer nothing"
                )
        return edited


def vector_of_features(
    source: str | Path,
    features: Sequence[FeatureRequest],
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    options: VectorOptions = VectorOptions(),
    model_hint: str = "",
    digests: bool = True,
    report: Report = lambda _: None,
) -> ControlVector:
    """A control vector of features' decoder directions.

    Args:
        source: an SAE, a set of them, or a feature pack.
        features: what is wanted; features of one layer are added up.
        out: the file to be written, replaced if it exists.
        layers: where the direction acts; None: each at the layer of its own SAE. Given, the features
            must be of one layer, and their direction is added at each of these.
        options: what is done to the directions.
        model_hint: architecture of the model, where the source does not say.
        digests: whether the recipe records the SAE files' SHA-256.
        report: told what is being done.

    Returns:
        The vector, read back from ``out``.

    Raises:
        PackError: the source or a feature of it cannot be used, or llama.cpp would refuse the file.
        UsageError: nothing is asked for, or too much.
    """
    if not features:
        raise UsageError("no feature is asked for", hint="Name some with --feature LAYER:ID")
    report("reading features")
    found = read_features(Path(source), tuple(features), digests=digests)
    directions = dict(found.layers)
    if layers is not None:
        if len(directions) != 1:
            raise UsageError(
                "features of several layers cannot be spread over others",
                found=", ".join(map(layer_name, directions)),
                expected="features of one layer, or no --layers",
            )
        [direction] = directions.values()
        directions = dict.fromkeys(sorted(set(layers)), direction)
    _check_layers(directions, out)
    recipe = {
        "make": "features",
        "inputs": [each.data() for each in found.inputs],
        "features": [[each.layer, each.id] for each in features],
        "spread": None if layers is None else sorted(set(layers)),
        "layers": sorted(directions),
        "model_hint": found.model_hint or model_hint,
        **options.data(),
    }
    report(f"writing {Path(out).name}")
    about = metadata(
        recipe,
        source=", ".join(each.name for each in found.inputs),
        sae_sha256=found.inputs[0].sha256,
        features=", ".join(f"{layer_name(each.layer)}:{each.id}" for each in features),
        alpha=repr(options.alpha),
    )
    hint = found.model_hint or model_hint
    write_control_vector(out, options.apply(directions), model_hint=hint, metadata=about)
    return read_control_vector(out)


def combined_vector(
    sources: Mapping[str, Path],
    expression: str,
    out: str | Path,
    *,
    options: VectorOptions = VectorOptions(),
    report: Report = lambda _: None,
) -> ControlVector:
    """A control vector that is a linear combination of others; see `vector_of_features`.

    Args:
        sources: vector files by the name that the expression calls them.
        expression: such as ``0.7*a - 0.2*b``.
        out: the file to be written, replaced if it exists.
        options: what is done to the combination.
        report: told what is being done.
    """
    coefficients = parse_expression(expression)
    unused = sorted(set(sources) - set(coefficients))
    if unused:
        raise UsageError(f"the expression does not use {unused[0]!r}", found=repr(expression))
    report("reading vectors")
    read = {name: read_vectors(path) for name, path in sources.items()}
    combined = combine(coefficients, {name: each.layers for name, each in read.items()})
    _check_layers(combined, out)
    hints = sorted({each.model_hint for each in read.values() if each.model_hint})
    if len(hints) > 1:
        raise PackError("the vectors are for different models", found=", ".join(hints))
    hint = hints[0] if hints else ""
    recipe = {
        "make": "combine",
        "expression": expression,
        "inputs": {name: each.inputs[0].data() for name, each in sorted(read.items())},
        "layers": sorted(combined),
        **options.data(),
    }
    report(f"writing {Path(out).name}")
    about = metadata(
        recipe,
        source=", ".join(each.inputs[0].name for each in read.values()),
        alpha=repr(options.alpha),
    )
    write_control_vector(out, options.apply(combined), model_hint=hint, metadata=about)
    return read_control_vector(out)


def name_sources(arguments: Sequence[str]) -> dict[str, Path]:
    """Vector files by name: ``name=path``, or a path whose stem is the name.

    Raises:
        UsageError: two of one name, or a stem that is no name.
    """
    out: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, path = Path(argument).stem, argument
        if name in out:
            raise UsageError(f"two inputs are called {name!r}", hint="Call one name=path")
        out[name] = Path(path)
    return out


def replay(
    file: str | Path, out: str | Path, folders: Sequence[str | Path] | None = None
) -> ControlVector:
    """Makes a control vector again from its recipe: the same bytes, if the inputs are the same.

    Args:
        file: a control vector that was made here.
        out: the file to be written.
        folders: where the inputs lie; the file's own folder if None.

    Raises:
        PackError: the file has no recipe.
        UsageError: an input is not there, or is another file.
    """
    recipe = recipe_of(read_control_vector(file))
    if recipe is None:
        raise PackError("it does not say how it was made", location=Location(str(file)))
    places = [Path(each) for each in folders or [Path(file).parent]]
    try:
        if recipe["make"] == "contrast":
            from converters.contrast import replay_contrast

            return replay_contrast(recipe, out, places)
        options = VectorOptions(
            tuple(find_inputs(recipe["orthogonal_to"], places)),
            tuple(find_inputs(recipe["project_out"], places)),
            bool(recipe["normalise"]),
            float(recipe["alpha"]),
        )
        if recipe["make"] == "combine":
            named = {name: find_input(each, places) for name, each in recipe["inputs"].items()}
            return combined_vector(named, recipe["expression"], out, options=options)
        inputs = find_inputs(recipe["inputs"], places)
        return vector_of_features(
            inputs[0] if len(inputs) == 1 and inputs[0].suffix == ".gguf" else inputs[0].parent,
            [FeatureRequest(layer, id) for layer, id in recipe["features"]],
            out,
            layers=recipe["spread"],
            options=options,
            model_hint=recipe["model_hint"],
            digests=bool(recipe["inputs"][0]["sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise PackError(
            "its recipe is damaged", location=Location(str(file)), found=repr(reason)[:120]
        ) from None


def _check_layers(directions: Mapping[int, Any], out: str | Path) -> None:
    for layer in directions:
        if layer in (EMBEDDING, 0):
            raise PackError(
                f"llama.cpp's control vectors do not reach {layer_name(layer)}",
                location=Location(str(out)),
                expected="layer 1 or above",
                hint="The embedding and block 0 can be steered with a feature pack",
            )
