"""Zero-shot classification: class names become a classifier by way of the text tower.

Source: CLIP, arXiv:2103.00020, section 3.1; openai/CLIP `notebooks/Prompt_Engineering_for_ImageNet.ipynb`: the mean of
the normalised embeddings of all phrasings, normalised again.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import DataError
from odonata.metrics.classification import Classification, classification


@torch.no_grad()
def class_embeddings(
    encode: Callable[[list[str]], Float[Tensor, "texts dim"]],
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
    *,
    batch: int = 256,
) -> Float[Tensor, "classes dim"]:
    """Turn class names into unit vectors by a prompt ensemble.

    Args:
        encode: embeds texts; need not normalise.
        names: the classes. Equal texts are embedded once.
        templates: phrasings, each with one ``{}`` or more for the name.
        batch: texts given to ``encode`` at a time.

    Raises:
        DataError: there is no name or template, or a template has no ``{}``.
    """
    if not names or not templates:
        raise DataError(f"a prompt ensemble needs names and templates; got {len(names)} and {len(templates)}")
    if bad := [template for template in templates if "{}" not in template]:
        raise DataError(f"template {bad[0]!r} has no {{}} for the class name")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    distinct = list(dict.fromkeys(prompts))
    pieces = [encode(distinct[start : start + batch]) for start in range(0, len(distinct), batch)]
    embedded = F.normalize(torch.cat(pieces).float(), dim=-1)
    place = {prompt: index for index, prompt in enumerate(distinct)}
    rows = torch.tensor([place[prompt] for prompt in prompts], device=embedded.device)
    ensemble = embedded[rows].unflatten(0, (len(names), len(templates))).mean(1)
    return F.normalize(ensemble, dim=-1)


def zeroshot(
    image: Float[Tensor, "batch dim"],
    class_embedding: Float[Tensor, "classes dim"],
    labels: Int[Tensor, "batch"],
    ks: Sequence[int] = (1, 5),
) -> Classification:
    """Classify images by the nearest class embedding.

    Args:
        image: image embeddings; their length does not matter.
        class_embedding: from `class_embeddings`.
        labels: the right classes.
        ks: which top-k to report.

    Raises:
        DataError: shapes do not fit, or a label is out of range.
    """
    if image.shape[1:] != class_embedding.shape[1:]:
        raise DataError(
            f"images have embeddings of {list(image.shape[1:])}, the classes of {list(class_embedding.shape[1:])}"
        )
    return classification(image.to(class_embedding.dtype) @ class_embedding.T, labels, ks)
