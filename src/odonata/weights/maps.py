"""Two-way maps between the names and layouts of a published checkpoint and ours.

A map is a list of rules. A rule names the tensors it takes on either side and how to turn the ones into the others, so
that reading and writing come from one statement, and every round trip is bit-equal: rules rename, split, transpose and
reshape, they never compute.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from odonata.errors import WeightsError

Change = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """How some tensors of theirs become some of ours, and back.

    Names may hold `{i}`, the number of a layer, which `layers` fills in.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Change
    from_ours: Change


def rename(theirs: str, ours: str) -> Rule:
    """The same tensor under another name."""
    return Rule((theirs,), (ours,), list, list)


def pair(theirs: str, ours: str) -> list[Rule]:
    """A weight and a bias under another name."""
    return [rename(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def transpose(theirs: str, ours: str) -> Rule:
    """A matrix stored the other way round (`x @ W` against `Linear`)."""
    return permute(theirs, ours, (1, 0))


def permute(theirs: str, ours: str, dims: Sequence[int]) -> Rule:
    """Axes in another order: `dims` as for `Tensor.permute`, from theirs to ours."""
    back = [list(dims).index(i) for i in range(len(dims))]
    return Rule(
        (theirs,),
        (ours,),
        lambda tensors: [tensors[0].permute(*dims).contiguous()],
        lambda tensors: [tensors[0].permute(*back).contiguous()],
    )


def reshape(theirs: str, ours: str, their_shape: Sequence[int], our_shape: Sequence[int]) -> Rule:
    """The same numbers in another shape; -1 is allowed once on each side."""
    return Rule(
        (theirs,),
        (ours,),
        lambda tensors: [tensors[0].reshape(tuple(our_shape))],
        lambda tensors: [tensors[0].reshape(tuple(their_shape))],
    )


def split(theirs: str, ours: Sequence[str]) -> Rule:
    """One tensor that packs several of ours along its first axis, as `in_proj_weight` packs query, key and value."""
    return Rule(
        (theirs,),
        tuple(ours),
        lambda tensors: [part.clone() for part in tensors[0].chunk(len(ours))],
        lambda tensors: [torch.cat(tensors)],
    )


def packed_attention(theirs: str, ours: str, packed: str = "in_proj_{part}", out: str = "out_proj") -> list[Rule]:
    """An attention whose projections are packed in q, k, v order; `packed` names them with `{part}`."""
    rules = [
        split(f"{theirs}.{packed.replace('{part}', part)}", [f"{ours}.{name}.{part}" for name in "qkv"])
        for part in ("weight", "bias")
    ]
    return rules + pair(f"{theirs}.{out}", f"{ours}.proj")


def layers(rules: Iterable[Rule], depth: int) -> list[Rule]:
    """The rules of one layer, with `{i}` in their names, for each of `depth` layers."""
    return [
        replace(
            rule,
            theirs=tuple(name.replace("{i}", str(i)) for name in rule.theirs),
            ours=tuple(name.replace("{i}", str(i)) for name in rule.ours),
        )
        for i in range(depth)
        for rule in rules
    ]


def stacked_layers(rules: Iterable[Rule], depth: int) -> list[Rule]:
    """The rules of one layer where theirs stacks all layers along a new first axis, as Flax's scan does."""
    return [_stacked(rule, depth) for rule in rules]


def _stacked(rule: Rule, depth: int) -> Rule:
    count = len(rule.ours)

    def unstack(tensors: list[Tensor]) -> list[Tensor]:
        if tensors[0].shape[0] != depth:
            raise ValueError(f"stacks {tensors[0].shape[0]} layers, not {depth}")
        return [part.clone() for layer in tensors[0].unbind(0) for part in rule.to_ours([layer])]

    def stack(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([rule.from_ours(tensors[i * count : (i + 1) * count])[0] for i in range(depth)])]

    ours = tuple(name.replace("{i}", str(i)) for i in range(depth) for name in rule.ours)
    return Rule(rule.theirs, ours, unstack, stack)


@dataclass(frozen=True)
class KeyMap:
    """A whole checkpoint's rules, and the names that may be left out.

    Args:
        rules: each tensor of either side stands in exactly one.
        ignored: patterns (`fnmatch`) of entries that carry nothing to learn, such as stored position numbers.
    """

    rules: list[Rule]
    ignored: tuple[str, ...] = ()

    def to_ours(
        self, state: Mapping[str, Tensor], where: str = "checkpoint", strict: bool = True
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Turns their state into ours.

        Args:
            state: their tensors.
            where: what to call the checkpoint in messages.
            strict: refuse entries that no rule reads; otherwise they are only returned.

        Returns:
            Our state, and the names of entries that were not used.

        Raises:
            WeightsError: entries are missing, unknown, or of a shape that a rule cannot take.
        """
        wanted = [name for rule in self.rules for name in rule.theirs]
        missing = [name for name in wanted if name not in state]
        known = set(wanted)
        unused = sorted(name for name in state if name not in known)
        unknown = [name for name in unused if not any(fnmatchcase(name, pattern) for pattern in self.ignored)]
        if missing:
            raise WeightsError(
                f"{where}: {len(missing)} tensors are missing: {_some(missing)}"
                + (f"; it holds {len(unknown)} others: {_some(unknown, state)}" if unknown else "")
                + ". It is another architecture or an incomplete file"
            )
        if unknown and strict:
            raise WeightsError(
                f"{where}: {len(unknown)} tensors have no place in this architecture: {_some(unknown, state)}. "
                "Leaving them out would change the answers; pass strict=False to do so all the same"
            )
        return self._apply(state, where), unused

    def _apply(self, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        ours: dict[str, Tensor] = {}
        for rule in self.rules:
            tensors = [state[name] for name in rule.theirs]
            try:
                made = rule.to_ours(tensors)
                if len(made) != len(rule.ours):
                    raise ValueError(f"does not split into {len(rule.ours)} parts")
            except (RuntimeError, ValueError, IndexError) as error:
                seen = ", ".join(f"{name} of shape {list(state[name].shape)}" for name in rule.theirs)
                raise WeightsError(f"{where}: {seen} cannot become {_some(rule.ours)}: {error}") from error
            ours.update(zip(rule.ours, made, strict=True))
        return ours

    def from_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turns our state into theirs.

        Raises:
            WeightsError: our state lacks what the layout needs, or holds what it has no place for.
        """
        wanted = {name for rule in self.rules for name in rule.ours}
        missing, extra = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
        if missing or extra:
            raise WeightsError(
                "the model does not fit the published layout: "
                + "; ".join(
                    f"{len(names)} tensors {what}: {_some(names, state)}"
                    for what, names in (("missing", missing), ("without a place there", extra))
                    if names
                )
                + ". Merge adapters and take class heads off before exporting"
            )
        theirs: dict[str, Tensor] = {}
        for rule in self.rules:
            theirs.update(zip(rule.theirs, rule.from_ours([state[name] for name in rule.ours]), strict=True))
        return theirs


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str = "checkpoint") -> None:
    """Compares names and shapes of a state with those of a model.

    Args:
        state: what was read, in our names.
        wanted: `model.state_dict()`.
        where: what to call the checkpoint in messages.

    Raises:
        WeightsError: names up to eight of the keys and shapes that differ.
    """
    problems = [f"{key} is missing" for key in wanted if key not in state]
    problems += [f"{key} {list(state[key].shape)} has no place" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {list(state[key].shape)}, the model wants {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise WeightsError(f"{where} does not fit the model: {'; '.join(problems[:8])}{more}")


def depth_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """Counts the layers whose names start with `prefix`, a number and a dot."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)


def _some(names: Iterable[str], state: Mapping[str, Tensor] | None = None) -> str:
    listed = list(names)
    shown = [f"{name} {list(state[name].shape)}" if state and name in state else name for name in listed[:8]]
    return ", ".join(shown) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
