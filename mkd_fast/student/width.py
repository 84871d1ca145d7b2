"""A narrower student: fewer units of the residual stream, heads and feed-forward units.

The stream's units are the same ones wherever it is written or read (``stream.py``), heads are kept
or dropped whole, and the rows of a feed-forward unit go with its columns (``anatomy.py`` finds
them). So each matrix product of the student is the teacher's with the dropped units at zero, but
for what "activation" and "pca" make up for as ``stream.py`` says.

Embeddings that a family multiplies by sqrt(hidden_size) are multiplied by sqrt(D / D'), and the
norm before a head that is tied to them is divided by it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from mkd_fast.checks import width as checks
from mkd_fast.layer_list import layers_of
from mkd_fast.student.activity import measure_activity
from mkd_fast.student.anatomy import FEED_FORWARD, HEADS, Anatomy, find_anatomy
from mkd_fast.student.norms import norms_of
from mkd_fast.student.plan import Cut, Source
from mkd_fast.student.sizes import Sizes
from mkd_fast.student.stream import Picked, Stream, Turned, check_turnable, principal
from mkd_fast.student.units import Units, choose_units

WIDTHS = ("uniform", "activation", "pca")


@dataclass(frozen=True)
class WidthRequest:
    """What a caller asks for; None keeps the teacher's number.

    Attributes:
        hidden_size: units of the residual stream.
        num_heads: query heads.
        num_key_value_heads: None follows num_heads, in whole groups.
        intermediate_size: feed-forward units.
        width: how units are chosen, one of WIDTHS.
        compensate: make up for what norms and matrices lose, unless width is "uniform".
    """

    hidden_size: int | None
    num_heads: int | None
    num_key_value_heads: int | None
    intermediate_size: int | None
    width: str
    compensate: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether all of the width is kept."""
        numbers = (
            self.hidden_size, self.num_heads, self.num_key_value_heads, self.intermediate_size
        )  # fmt: skip
        return all(number is None for number in numbers)

    def sizes(self, teacher: Sizes) -> Sizes:
        """The student's.

        Raises:
            ValueError: a number that is none, larger than the teacher's or at odds with another.
        """
        for name in ("hidden_size", "num_heads", "num_key_value_heads", "intermediate_size"):
            value, largest = getattr(self, name), getattr(teacher, name)
            if value is not None and not 1 <= value <= largest:
                raise checks.number_out_of_range(name, value, largest)
        hidden_size, num_heads = self.hidden_size, self.num_heads
        if teacher.heads_fill_hidden:
            head_dim = teacher.head_dim
            hidden_size = hidden_size or (num_heads or teacher.num_heads) * head_dim
            if hidden_size % head_dim:
                raise checks.hidden_is_not_heads(hidden_size, head_dim)
            if num_heads not in (None, hidden_size // head_dim):
                raise checks.heads_do_not_fill_hidden(num_heads, hidden_size, head_dim)
            num_heads = hidden_size // head_dim
        num_heads = num_heads or teacher.num_heads
        return replace(
            teacher,
            hidden_size=hidden_size or teacher.hidden_size,
            num_heads=num_heads,
            num_key_value_heads=self._groups(teacher, num_heads),
            intermediate_size=self.intermediate_size or teacher.intermediate_size,
        )

    def _groups(self, teacher: Sizes, num_heads: int) -> int:
        size, groups = teacher.heads_per_group, self.num_key_value_heads
        if groups is None:
            if num_heads % size:
                raise checks.groups_are_cut(num_heads, size)
            return num_heads // size
        if num_heads % groups or num_heads // groups > size:
            raise checks.groups_do_not_fit(num_heads, groups, size)
        return groups


@dataclass(frozen=True, eq=False)
class Narrowing:
    """How a teacher becomes a narrower student.

    Attributes:
        width: how units were chosen, one of WIDTHS.
        anatomy: the teacher's.
        sizes: the student's.
        units: what is kept of the layers.
        stream: what is kept of the residual stream; None for all of it.
    """

    width: str
    anatomy: Anatomy
    sizes: Sizes
    units: Units
    stream: Picked | Turned | None

    def write(self, config: PretrainedConfig) -> None:
        """Put the student's sizes into its config.

        Raises:
            ValueError: the family refuses them.
        """
        self.sizes.write(config)
        if isinstance(self.stream, Turned):
            config.tie_word_embeddings = False
        try:
            type(config).from_dict(config.to_dict())  # as from_pretrained will
        except StrictDataclassError as error:
            raise checks.sizes_refused(type(config).__name__, error) from error

    def narrowed(self, source: Source, shape: tuple[int, ...]) -> Source:
        """The source with fewer units of a tensor, which has that shape in the teacher."""
        cut, said = Cut({}, {}), list[str]()
        if self.stream is not None and self.anatomy.residual.get(source.name):
            cut, said = self.stream.cut(source.name)
        rows = dict(cut.rows)
        for number, axis in self.anatomy.axes_inside(source.name).items():
            kept, num_units = self._kept(source.name, axis.kind)
            if len(kept) == num_units:
                continue
            rows[number] = axis.rows(kept, shape[number])
            said.append(
                f"{HEADS} {' '.join(map(str, kept.tolist()))}"
                if axis.kind == HEADS
                else f"{FEED_FORWARD} ({self.width} {len(kept)} of {num_units})"
            )
        if not said:
            return source
        how = ", ".join(said if source.how == "copied" else (source.how, *said))
        return replace(source, how=how, cut=replace(cut, rows=rows))

    def _kept(self, name: str, kind: str) -> tuple[Tensor, int]:
        """The units of a kind that are kept in a tensor's layer, and how many there are."""
        layer = self.anatomy.layer_of(name)
        assert layer is not None
        if kind == HEADS:
            return self.units.heads[layer], self.anatomy.sizes.num_heads
        return self.units.feed_forward[layer], self.anatomy.sizes.intermediate_size


def narrow(
    teacher: PreTrainedModel,
    layer_list: str,
    request: WidthRequest,
    calibration: Iterable[Any] | None,
) -> Narrowing | None:
    """How the teacher becomes as narrow as asked for; None where it is so already.

    Args:
        teacher: the model to copy from.
        layer_list: the dotted name of its list of layers.
        request: what is asked for.
        calibration: batches of text; not read for "uniform".

    Raises:
        ValueError: sizes that the teacher cannot be cut to, a family whose units cannot be told
            apart or turned, or no calibration where the choice needs one.
        TypeError: a calibration batch without input_ids or attention_mask.
    """
    checks.one_of("copy_init", "width", request.width, WIDTHS)
    if request.is_empty:
        return None
    whole = Sizes.of(teacher)
    sizes = request.sizes(whole)
    is_turned = request.width == "pca" and request.hidden_size is not None
    if sizes == whole and not is_turned:
        return None
    if request.width != "uniform" and calibration is None:
        raise checks.calibration_missing(request.width)
    anatomy = find_anatomy(teacher, layer_list, whole)
    if is_turned:
        check_turnable(teacher, anatomy)
    norms = norms_of(teacher, anatomy.norms)
    num_layers = len(layers_of(teacher, layer_list))
    activity = None
    if request.width != "uniform":
        assert calibration is not None
        activity = measure_activity(teacher, anatomy, norms, calibration, num_layers)
    units = choose_units(whole, sizes, num_layers, activity)
    stream = Stream(teacher, anatomy, norms)
    if anatomy.embeddings_grow:
        factor = math.sqrt(whole.hidden_size / sizes.hidden_size)
        stream = replace(stream, embedding_factor=factor)
    kept: Picked | Turned | None = None
    how = f"{request.width} {sizes.hidden_size} of {whole.hidden_size}"
    if sizes.hidden_size < whole.hidden_size:
        if activity is not None and request.compensate:
            stream = replace(stream, moments=activity.moments)
        kept = Picked(stream, units.residual, how)
    if is_turned:
        assert activity is not None
        kept = principal(stream, activity.second, sizes.hidden_size, how)
    return Narrowing(request.width, anatomy, sizes, units, kept)
