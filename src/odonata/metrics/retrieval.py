"""Cross-modal retrieval: recall at k and median rank, both ways, with any number of captions for an image.

Protocol of Karpathy and Fei-Fei (arXiv:1412.2306, section 4.1) as CLIP's and ALBEF's evaluations use it: an image finds
its text if *any* of its captions is among the first k; a caption finds its image if that one image is.

Ties are pessimistic: a wrong candidate as similar as the right one stands before it. So a model whose embeddings have
collapsed to one point scores 0, not 100 %, and the order of the candidates does not matter. Equal content (two images
with one caption text) must therefore be told by ``image_of_text`` or tolerated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import DataError


@dataclass(frozen=True)
class RetrievalScores:
    """What one direction of retrieval reports.

    Args:
        recall: k to the share of queries, in [0, 1], whose best right candidate ranks k-th or better.
        median_rank: the median of those ranks; the best is 1.
        mean_rank: their mean.
        queries: how many queries there were.
    """

    recall: dict[int, float]
    median_rank: float
    mean_rank: float
    queries: int


@dataclass(frozen=True)
class Retrieval:
    """Both directions."""

    image_to_text: RetrievalScores
    text_to_image: RetrievalScores

    @property
    def mean_recall(self) -> float:
        """The mean of all recalls of both directions (the "RSUM" of the literature, as a mean)."""
        values = [*self.image_to_text.recall.values(), *self.text_to_image.recall.values()]
        return sum(values) / len(values)

    def flat(self) -> dict[str, float]:
        """Return one figure per name, for logs: ``image_to_text/recall@1`` and so on."""
        figures: dict[str, float] = {}
        for name, scores in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            figures |= {f"{name}/recall@{k}": value for k, value in scores.recall.items()}
            figures[f"{name}/median_rank"] = scores.median_rank
        return figures


def retrieval(
    image: Float[Tensor, "images dim"],
    text: Float[Tensor, "texts dim"],
    image_of_text: Int[Tensor, "texts"] | None = None,
    *,
    ks: tuple[int, ...] = (1, 5, 10),
    chunk: int = 1024,
) -> Retrieval:
    """Rank all texts for every image and all images for every text by the product of their embeddings.

    Args:
        image: image embeddings, of unit length for the cosine.
        text: text embeddings.
        image_of_text: the row of the image that each text describes; None where row i of both belong together.
        ks: the ranks to report.
        chunk: queries compared at a time; memory is ``chunk`` × the number of candidates.

    Returns:
        the scores of both directions. Images that no text describes are candidates, not queries.

    Raises:
        DataError: shapes do not fit, an embedding is not finite, or a text's image does not exist.
    """
    owner = torch.arange(len(text), device=text.device) if image_of_text is None else image_of_text
    by_image, by_text = ranks(image, text, owner, chunk)
    return Retrieval(_scores(by_image, ks), _scores(by_text, ks))


def ranks(
    image: Float[Tensor, "images dim"],
    text: Float[Tensor, "texts dim"],
    owner: Int[Tensor, "texts"],
    chunk: int = 1024,
) -> tuple[Int[Tensor, "images"], Int[Tensor, "texts"]]:
    """Return the rank of each query's best right candidate, 1 being the best, for both directions; see `retrieval`.

    Returns:
        one rank an image (0 where no text describes it) and one rank a text.
    """
    _check(image, text, owner)
    image_ranks: list[Tensor] = []
    for start in range(0, len(image), chunk):
        rows = torch.arange(start, min(start + chunk, len(image)), device=image.device)
        image_ranks.append(_best_ranks(image[rows] @ text.T, rows[:, None] == owner[None, :]))
    text_ranks: list[Tensor] = []
    candidates = torch.arange(len(image), device=image.device)
    for start in range(0, len(text), chunk):
        rows = slice(start, start + chunk)
        text_ranks.append(_best_ranks(text[rows] @ image.T, owner[rows, None] == candidates[None, :]))
    return torch.cat(image_ranks), torch.cat(text_ranks)


def _best_ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """The rank of each row's best right candidate among the wrong ones; 0 where the row has none."""
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ahead = ((similarity >= best) & ~right).sum(1)
    return torch.where(right.any(1), ahead + 1, 0)


def _scores(ranks: Tensor, ks: tuple[int, ...]) -> RetrievalScores:
    ranks = ranks[ranks > 0].double()
    recall = {k: (ranks <= k).double().mean().item() for k in ks}
    return RetrievalScores(recall, ranks.quantile(0.5).item(), ranks.mean().item(), len(ranks))


def _check(image: Tensor, text: Tensor, owner: Tensor) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or 0 in (len(image), len(text)):
        raise DataError(
            f"retrieval needs embeddings [images, dim] and [texts, dim], not {list(image.shape)} and {list(text.shape)}"
        )
    if owner.shape != text.shape[:1] or owner.is_floating_point():
        raise DataError(f"image_of_text must be {len(text)} integers, not {list(owner.shape)} of {owner.dtype}")
    if owner.min() < 0 or owner.max() >= len(image):
        row = int(((owner < 0) | (owner >= len(image))).nonzero()[0])
        raise DataError(f"text {row} belongs to image {int(owner[row])}, but there are {len(image)} images")
    for name, embeddings in (("image", image), ("text", text)):
        if not embeddings.isfinite().all():
            row = int((~embeddings.isfinite().all(1)).nonzero()[0])
            raise DataError(f"the embedding of {name} {row} is not finite")
