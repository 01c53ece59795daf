"""Odonata: landmark methods of visual and multimodal learning on one small core.

```python
import odonata
run = odonata.train("siglip", steps=200)          # or any recipe, with any of its fields
model = odonata.load(run)                          # a run folder, or published weights
model.predict("photo.jpg", labels=["a red 3", "a blue 7"])
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odonata.app.api import evaluate, load, recipe, train
    from odonata.app.catalog import methods

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "methods", "recipe", "train"]


def __getattr__(name: str) -> Any:
    # The façade imports torch; `odonata --help` must not.
    if name in ("train", "load", "evaluate", "recipe"):
        from odonata.app import api

        return getattr(api, name)
    if name == "methods":
        from odonata.app.catalog import methods

        return methods
    raise AttributeError(f"module 'odonata' has no attribute {name!r}")
