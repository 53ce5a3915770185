"""Benchmark: GQA, one answer a question. A row is a question in the order of the file, from 0.

Two forms are read: the official object, question number -> question, and the flat list of the published evaluation,
{"image": "n161313.jpg", "question": "...", "answer": "..."}.
"""

from __future__ import annotations

from minigptv2.data import gqa
from minigptv2.data.annotations import Malformed, damaged, name_of, read_json, words_of
from minigptv2.eval.benchmark import Item, Rules, minigpt_v2
from minigptv2.eval.short_answers import ShortAnswers, annotation_files, image_path, picture_folder
from minigptv2.tasks import EVALUATION


class Gqa(ShortAnswers):
    """root: holds the questions and `images/`, or `images` names that folder. questions: the file's name below root."""

    def __init__(self, root: str, split: str = "testdev", images: str = "", questions: str = ""):
        (file,) = annotation_files(root, gqa.LAYOUT, split, gqa.PAGE, (questions,))
        super().__init__(f"gqa {split if not questions else questions.removesuffix('.json')}", (file,))
        if split == "testdev" and not questions:
            self.published = {"accuracy": minigpt_v2(60.3, 58.8, "arXiv 2310.09478v1")}
        folder, content = picture_folder(root, images, "images"), read_json(file)
        if not isinstance(content, (dict, list)):
            raise damaged(file, "it is neither an object of questions nor a list of them")
        keys = [str(key) for key in content] if isinstance(content, dict) else [""] * len(content)
        for place, row in enumerate(content.values() if isinstance(content, dict) else content):
            try:
                words, answer = words_of(row, "question"), words_of(row, "answer")
                name = name_of(row, "image") if "image" in row else f"{name_of(row, 'imageId')}.jpg"
                image = image_path(folder, name)
            except Malformed as error:
                self.leave_out(place, error, f"{file.name} row {place}")
                continue
            asked = EVALUATION["gqa"].replace("{}", words)
            self.rows.append(Item(place, image, (0, 0), asked, name, answer, words=words, key=keys[place]))

    def judge(self, item: Item, answer: str, rules: Rules) -> dict[str, float]:
        """The same words: in lower case, strict without a full stop at the end."""
        said = answer.lower() if rules.scoring == "compat" else answer.lower().rstrip(".").strip()
        return {"accuracy": float(said == item.truth.lower())}
