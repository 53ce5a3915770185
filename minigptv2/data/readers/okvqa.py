"""OK-VQA: questions about COCO images that need world knowledge, in VQA's format. Card: datasets/okvqa.md.

{"image_id": 51606, "question": "What is the hairstyle of the blond called?", "question_id": 516065}
{"image_id": 51606, "question_id": 516065, "answers": [{"answer": "pony tail", "raw_answer": "pony tail", ...}, ...]}
"""

from minigptv2.data.dataset_files import Layout
from minigptv2.data.readers.vqav2 import VqaV2

PAGE = "https://okvqa.allenai.org/download.html"
LAYOUT: Layout = {
    "train": ("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"),
    "val": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
}
COUNTS = {"train": 9009, "val": 5046}
_FILES = "https://okvqa.allenai.org/static/data/"
DOWNLOADS = {f"{_FILES}{name}.zip": "" for places in LAYOUT.values() for name in places}


class OkVqa(VqaV2):
    """One record per question. Its references are all ten answers as the official evaluation takes them."""

    page, layout = PAGE, LAYOUT
