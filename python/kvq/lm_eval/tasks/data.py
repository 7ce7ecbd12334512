"""Items of the offline tasks, and how an answer is judged."""
import json
import os
import pathlib
import re

import datasets


def load(file, **_):
    """The file's lines as the split "test"; the folder is that of --task-data or KVQ_TASK_DATA."""
    folder = os.environ.get("KVQ_TASK_DATA")
    if not folder:
        raise FileNotFoundError(f"{file}: say with --task-data or KVQ_TASK_DATA in which folder it lies")
    with (pathlib.Path(folder) / file).open(encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def starts_with_answer(doc, results):
    """As `kvq eval --generate` counts: what was generated begins with the answer."""
    return {"exact": float(results[0].startswith(doc["answer"]))}


def choices(doc):
    """The answer, and wrong ones of the same kind: other codes of the notes."""
    codes = re.findall(r"is (\d{3})\.", doc["prompt"])
    wrong = [f" {code}" for code in dict.fromkeys(codes) if f" {code}" != doc["answer"]]
    return [doc["answer"], *wrong[:7]]


def final_number(text):
    """What stands behind "####", without separators; None if nothing does."""
    match = re.search(r"####\s*(-?[\d.,]+)", text)
    return match.group(1).replace(",", "").rstrip(".") if match else None


def same_number(doc, results):
    """GSM8K's strict match."""
    return {"exact": float(final_number(results[0]) == final_number(doc["answer"]))}
