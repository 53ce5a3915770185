"""MiniGPT-v2's multi-task conversations, which change from task to task. Card: datasets/multitask_conversation.md.

The format is LLaVA's. Task tags, phrase tags and boxes are part of the text and are kept verbatim; the boxes are in
hundredths of each side, rounded down as in the published code:

    [{"id": "000000111222", "conversations": [
        {"from": "human", "value": "<image>\\n[grounding] describe this image in detail"},
        {"from": "gpt", "value": "<p>a man</p> {<10><20><54><98>} on ..."}, ...]}, ...]
"""

from minigptv2.data.dataset_files import Layout
from minigptv2.data.readers.llava import CONTEXT, Llava

PAGE = "https://github.com/Vision-CAIR/MiniGPT-4/blob/main/dataset/README_MINIGPTv2_FINETUNE.md"
LAYOUT: Layout = {"train": ("multitask_conversation.json",)}
COUNTS: dict[str, int] = {}  # not published
DOWNLOADS: dict[str, str] = {}  # the page leads to a shared folder


class MultitaskConversation(Llava):
    """One record per dialogue, verbatim. root: holds the JSON file. images: holds COCO's images, where not root.
    context: as LLaVA's."""

    page, layout = PAGE, LAYOUT

    def __init__(self, root: str, split: str = "train", images: str = "", context: int = CONTEXT):
        super().__init__(root, split, images, context)
