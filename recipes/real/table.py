"""The runs of `held_out.py` as rows of CSV: loss at hidden positions by section, at the step that other sections chose.

python recipes/real/table.py sections.jsonl patients.jsonl --out recipes/real/held_out.csv
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd


def rows_of(lines: list[dict]) -> list[dict]:
    """A row per run and section; runs of `patients` choose the step for G on F."""
    rows, guesses = [], {}
    for line in lines:
        if "guesses" in line:
            guesses = line["guesses"]
            continue
        loss, step = line["best"]["choosing"]
        (point,) = [point for point in line["curve"] if point["step"] == step]
        for section, value in point["reported"].items():
            row = {"split": line["split"], "run": line["name"], "seed": line["seed"], "section": section}
            row |= {"step": step, "last_step": line["curve"][-1]["step"], "asked": line["steps"], "masked": value}
            row |= {"choosing": loss, "in_training": point["training"]}
            row |= {key.replace(" ", "_"): guesses[section].get(key) for key in (
                "all training sections", "other sections of the patient", "the section itself")}  # fmt: skip
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [r for path in options.runs for r in rows_of([json.loads(x) for x in path.read_text().splitlines()])]
    table = pd.DataFrame(rows)
    table.to_csv(options.out, index=False, float_format="%.5g")
    print(table.groupby(["split", "run"], sort=False)[["masked", "the_section_itself", "last_step"]].mean().round(3))


if __name__ == "__main__":
    main()
