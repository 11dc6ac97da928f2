"""How much of a mask equals one window over the whole image, for some cores and halos.

    python -m benchmarks.halo SLIDE MODEL [--write]

With --write the table goes onto the card (MODEL is then its path), and the smallest halo that keeps
99.8 % at the default core becomes its default.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import wsiseg

CORES = (512, 1024)
HALOS = (0, 16, 32, 64, 128, 256)
DEFAULT_CORE = 1024
KEEP = 0.998
WHOLE = 1 << 20


def mask(slide: Path, model: str, **options: Any) -> np.ndarray[Any, Any]:
    """The mask before the tissue filter."""
    with tempfile.TemporaryDirectory() as out:
        report = wsiseg.segment(slide, out, model, image="none", tissue_filter=False, **options)
        return np.asarray(wsiseg.open_store(report.store).mask()[:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("model")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    reference = mask(arguments.slide, arguments.model, core=WHOLE, exact=True)
    rows = []
    print("core  halo  same as one window  pixels that differ  pixels computed per pixel kept")
    for core in CORES:
        for halo in HALOS:
            found = mask(arguments.slide, arguments.model, core=core, halo=halo)
            same = float((found == reference).mean())
            rows.append({"core": core, "halo": halo, "agreement": round(same, 6)})
            cost = ((core + 2 * halo) / core) ** 2
            print(
                f"{core:4}  {halo:4}  {100 * same:17.3f}%  {int((found != reference).sum()):18}  {cost:.2f}"
            )
    if arguments.write:
        path = Path(arguments.model)
        card = json.loads(path.read_text())
        good = [r["halo"] for r in rows if r["core"] == DEFAULT_CORE and r["agreement"] >= KEEP]
        card["windows"] |= {
            "core": DEFAULT_CORE,
            "halo": min(good, default=None),
            "agreement": rows,
            "measured_on": f"{arguments.slide.name} without tissue filter, against one window over all of it",
        }
        path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
