"""Which axis of which tensor is the residual stream, heads or feed-forward units.

An axis that is longer in a model with a larger intermediate_size is the feed-forward's. Heads are
found by running a probe (``probe.py``). What else grows with hidden_size is the residual stream.
Then the claim is proved: with the units of each kind in another order, the same everywhere, the
probe must say the same. A family whose units are bound to their place, or where a tensor was
taken for what it is not, fails that and is refused.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mkd_fast.checks import width as checks
from mkd_fast.student import probe as probes
from mkd_fast.student.sizes import Sizes, changed_axes

RESIDUAL, HEADS, FEED_FORWARD = "residual units", "heads", "feed-forward units"


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of heads or of feed-forward units, cut into blocks of equal length.

    Attributes:
        kind: HEADS or FEED_FORWARD.
        owners: int64 [blocks, n], the units that each block belongs to: n heads where they share
            it, -1 where there are fewer.
    """

    kind: str
    owners: Tensor

    def rows(self, kept: Tensor, length: int) -> Tensor:
        """Indices, on an axis of that length, of what belongs to a kept unit."""
        blocks = torch.isin(self.owners, kept).any(1)
        return blocks.repeat_interleave(length // len(blocks)).nonzero().squeeze(1)

    def reordered_rows(self, order: Tensor, length: int) -> Tensor:
        """Indices that put unit order[i] where unit i is."""
        places = defaultdict(list)
        for block, owners in enumerate(self.owners.tolist()):
            places[frozenset(owners)].append(block)
        moved = torch.cat((order, torch.tensor([-1])))  # -1 stays
        source = torch.empty(len(self.owners), dtype=torch.int64)
        for owners, blocks in places.items():
            wanted = frozenset(moved[list(owners)].tolist())
            source[blocks] = torch.tensor(places[wanted])
        inside = torch.arange(length // len(source))
        return (source[:, None] * len(inside) + inside).flatten()


@dataclass(frozen=True, eq=False)
class Anatomy:
    """How a model is laid out.

    Attributes:
        sizes: the model's.
        layer_list: the name of its list of layers.
        residual: by tensor, its axes on the residual stream.
        inside: by name within a layer, by axis, heads and feed-forward units.
        writers: HEADS and FEED_FORWARD, and the matrix within a layer that reads them.
        norms: modules with a weight for each residual unit.
        norm_before: by matrix, the norm whose output it reads, if it reads one's.
        embeddings_grow: whether the word embeddings are multiplied by sqrt(hidden_size).
    """

    sizes: Sizes
    layer_list: str
    residual: Mapping[str, tuple[int, ...]]
    inside: Mapping[str, Mapping[int, Axis]]
    writers: Mapping[str, str]
    norms: tuple[str, ...]
    norm_before: Mapping[str, str]
    embeddings_grow: bool

    def layer_of(self, name: str) -> int | None:
        """The number of the layer that a tensor or module is in."""
        if not name.startswith(f"{self.layer_list}."):
            return None
        return int(name.removeprefix(f"{self.layer_list}.").partition(".")[0])

    def axes_inside(self, name: str) -> Mapping[int, Axis]:
        """The axes of a tensor that are heads or feed-forward units."""
        return _inside_layer(self.inside, self.layer_list, name)


def find_anatomy(model: PreTrainedModel, layer_list: str, sizes: Sizes) -> Anatomy:
    """The layout of a model of these sizes.

    Raises:
        ValueError: a family that is laid out in another way.
    """
    small = probes.small_sizes(sizes)
    probe = probes.build_probe(model, small)
    more_units = replace(sizes, intermediate_size=sizes.intermediate_size + 1)
    first_layer = f"{layer_list}.0."
    wires = _wires(probe, first_layer, small, changed_axes(model, sizes, more_units))
    missing = {HEADS, FEED_FORWARD} - {wire.kind for wire in wires}
    if missing and not (missing == {HEADS} and sizes.num_heads == 1):
        raise checks.laid_out_otherwise(
            type(model).__name__, f"whose {' and '.join(sorted(missing))} were not found"
        )
    inside = _inside(probe, wires, first_layer, sizes)
    residual = {}
    for name, axes in changed_axes(model, sizes, sizes.wider).items():
        known = _inside_layer(inside, layer_list, name)
        residual[name] = tuple(axis for axis in axes if axis not in known)
    norms = {}
    for name, module in probe.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1 and residual.get(f"{name}.weight"):
            norms[name] = module
    anatomy = Anatomy(
        sizes,
        layer_list,
        residual,
        inside,
        {wire.kind: wire.reader for wire in wires},
        tuple(norms),
        probes.norms_before(probe, norms),
        probes.embeddings_grow(probe, layer_list),
    )
    as_probe = replace(anatomy, sizes=small, inside=_inside(probe, wires, first_layer, small))
    _prove(model, probe, as_probe)
    return anatomy


@dataclass(frozen=True, eq=False)
class _Wire:
    """Within a layer, a matrix whose output blocks reach single units of what another reads."""

    kind: str
    writer: str
    reader: str
    reach: Tensor  # bool [blocks, units]


def _wires(
    probe: PreTrainedModel, layer: str, small: Sizes, feed_forward: Mapping[str, tuple[int, ...]]
) -> list[_Wire]:
    found = {n: m for n, m in probes.matrices(probe).items() if n.startswith(layer)}

    def num_blocks(name: str, axis: int) -> int:
        length: int = found[name].weight.shape[axis]
        if axis in feed_forward.get(f"{name}.weight", ()):
            return length
        return length // small.head_dim if length % small.head_dim == 0 else 0

    outputs = {name: num_blocks(name, probes.output_axis(m)) for name, m in found.items()}
    outputs = {name: blocks for name, blocks in outputs.items() if blocks}
    wires = []
    for writer, readers in probes.moved_inputs(probe, outputs).items():
        for reader, moved in readers.items():
            if reader not in found:
                continue
            axis = 1 - probes.output_axis(found[reader])
            if not (units := num_blocks(reader, axis)):
                continue
            reach = moved.unflatten(1, (units, -1)).any(2)
            if (reach.sum(1) % units != 0).all():  # some of them, and never all
                is_units = axis in feed_forward.get(f"{reader}.weight", ())
                kind = FEED_FORWARD if is_units else HEADS
                within = writer.removeprefix(layer), reader.removeprefix(layer)
                wires.append(_Wire(kind, *within, reach))
    return wires


def _inside_layer(
    inside: Mapping[str, Mapping[int, Axis]], layer_list: str, name: str
) -> Mapping[int, Axis]:
    prefix = f"{layer_list}."
    if not name.startswith(prefix):
        return {}
    return inside.get(name.removeprefix(prefix).partition(".")[2], {})


def _inside(
    probe: PreTrainedModel, wires: list[_Wire], layer: str, sizes: Sizes
) -> dict[str, dict[int, Axis]]:
    """The axes of heads and feed-forward units in a layer of a model of these sizes."""
    inside: dict[str, dict[int, Axis]] = defaultdict(dict)
    found = probes.matrices(probe)
    for wire in wires:
        units = sizes.intermediate_size if wire.kind == FEED_FORWARD else wire.reach.shape[1]
        writer, reader = found[f"{layer}{wire.writer}"], found[f"{layer}{wire.reader}"]
        owned = Axis(wire.kind, _owners(wire.reach, units))
        inside[f"{wire.writer}.weight"][probes.output_axis(writer)] = owned
        if writer.bias is not None:
            inside[f"{wire.writer}.bias"][0] = owned
        read = Axis(wire.kind, torch.arange(units)[:, None])
        inside[f"{wire.reader}.weight"][1 - probes.output_axis(reader)] = read
    return dict(inside)


def _owners(reach: Tensor, units: int) -> Tensor:
    """Whose each block is; the probe's pattern where the model has more units.

    Fused feed-forward rows lie one part after the other (0 1 2 0 1 2) or unit by unit (0 0 1 1).
    """
    if units == reach.shape[1]:
        width = int(reach.sum(1).max())
        indices = torch.arange(units).expand_as(reach).masked_fill(~reach, units)
        owners = indices.sort(1).values[:, :width]
        return owners.masked_fill(owners == units, -1)
    parts = len(reach) // reach.shape[1]
    rows = torch.arange(parts * units)
    by_unit = bool(reach[:parts, 0].all())
    return (rows // parts if by_unit else rows % units)[:, None]


def _prove(model: PreTrainedModel, probe: PreTrainedModel, small: Anatomy) -> None:
    """Raise unless the units' order makes no difference to the probe."""
    sizes, generator = small.sizes, torch.Generator().manual_seed(2)
    group = sizes.heads_per_group
    groups = torch.randperm(sizes.num_key_value_heads, generator=generator)
    orders = {
        RESIDUAL: torch.randperm(sizes.hidden_size, generator=generator),
        HEADS: (groups[:, None] * group + torch.randperm(group, generator=generator)).flatten(),
        FEED_FORWARD: torch.randperm(sizes.intermediate_size, generator=generator),
    }
    wanted = probes.run(probe)
    for kind, order in orders.items():
        other = probes.build_probe(model, sizes)
        other.load_state_dict(
            {
                name: _reordered(small, name, tensor, kind, order)
                for name, tensor in probe.state_dict().items()
            }
        )
        got = probes.run(other)
        if kind == RESIDUAL and model is model.base_model:  # which hands out the stream itself
            got = got[..., order.argsort()]
        if not probes.same_outputs(wanted, got):
            raise checks.laid_out_otherwise(
                type(model).__name__, f"whose {kind} are bound to their place"
            )


def _reordered(anatomy: Anatomy, name: str, tensor: Tensor, kind: str, order: Tensor) -> Tensor:
    if kind == RESIDUAL:
        for axis in anatomy.residual.get(name, ()):
            tensor = tensor.index_select(axis, order)
        return tensor
    for number, inside in anatomy.axes_inside(name).items():
        if inside.kind == kind:
            rows = inside.reordered_rows(order, tensor.shape[number])
            tensor = tensor.index_select(number, rows)
    return tensor
