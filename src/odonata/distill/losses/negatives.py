"""CRD's negatives, drawn where the loss is computed.

Notable:

- A draw is a hash of (seed, step, sample, place), so it is the same on every device and for every order of the batch,
  needs no generator, and a run that is resumed at a step draws what it would have drawn.
- Samples are kept sorted by class. All samples outside one class are then two runs of that list, and the j-th of them
  is found without a table per class: RepDistiller's tables hold classes × samples numbers.
- Draws are independent, as noise contrastive estimation supposes, so that a negative can come twice. RepDistiller's
  loader draws without replacement where it can. Each draw has the same distribution either way.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from odonata.errors import RecipeError

# Constants of splitmix64 (Steele, Lea, Flood 2014) as signed integers: multiplication wraps around, as it should.
_GOLDEN, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashed(value: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The splitmix64 mixing of 64-bit integers; equal on all devices.

    Source: Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators, figure 16.
    """
    value = value + _GOLDEN
    # A shift to the right keeps the sign in torch; the mask makes it the unsigned one.
    value = (value >> 30 & (1 << 34) - 1).bitwise_xor_(value).mul_(_MIX_1)
    value = (value >> 27 & (1 << 37) - 1).bitwise_xor_(value).mul_(_MIX_2)
    return (value >> 31 & (1 << 33) - 1).bitwise_xor_(value)


class Negatives(nn.Module):
    """Draws samples other than those of a batch, uniformly.

    Args:
        num_samples: of the training set.
        labels: class of each sample; negatives then come from other classes. Without labels they are any other sample.

    Raises:
        RecipeError: a sample has no possible negative.
    """

    order: Tensor
    start: Tensor
    outside: Tensor
    group: Tensor

    def __init__(self, num_samples: int, labels: Int[Tensor, "samples"] | None = None) -> None:
        super().__init__()
        group = torch.arange(num_samples) if labels is None else labels.long().cpu()
        counts = group.bincount()
        if num_samples < 2 or int(counts.max()) == num_samples:
            raise RecipeError(
                f"crd: {num_samples} samples, all of one class, leave no negatives; "
                "give data of two classes or more, or negatives = 'other_samples'"
            )
        # They follow from the data set, so checkpoints need not hold them.
        self.register_buffer("order", group.argsort(stable=True), persistent=False)
        self.register_buffer("start", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("outside", num_samples - counts, persistent=False)
        self.register_buffer("group", group, persistent=False)

    def draw(
        self, indices: Int[Tensor, "batch"], count: int, seed: Tensor, step: Tensor
    ) -> Int[Tensor, "batch negatives"]:
        """Draw negatives for samples.

        Args:
            indices: the samples.
            count: how many for each.
            seed, step: integers without axes; equal ones, with equal indices, give equal draws.
        """
        group = self.group[indices]
        outside, start = self.outside[group][:, None], self.start[group][:, None]
        row = hashed(hashed(hashed(seed) + step) + indices)
        place = torch.arange(count, device=indices.device)
        # The remainder of 63 bits favours the first samples by less than one part in 10¹².
        drawn = (hashed(row[:, None] + place) & (1 << 63) - 1).remainder_(outside)
        inside = self.outside.new_tensor(len(self.group)) - outside
        return self.order[drawn + inside * (drawn >= start)]
