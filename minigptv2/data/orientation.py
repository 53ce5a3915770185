"""EXIF orientation of images and their boxes: does an annotation file describe the stored or the upright image?

A camera may store an image turned or mirrored, with an EXIF orientation (1..8; 1: upright) that says how to turn it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigptv2.boxes import Box, stored_box, upright_box
from minigptv2.data.annotations import InvalidRecord
from minigptv2.images import image_header, upright_size

ORIENTATIONS = ("auto", "stored", "upright")
OTHER_FRAME = "a size that is of the {} image, while `orientation` says that the boxes are of the {} one"
SWAPPED_SIZE = "a size whose width and height are swapped"


def boxes_orientation(
    given: tuple[int, int] | None, stored: tuple[int, int], orientation: int, choice: str = "auto"
) -> tuple[int, str]:
    """The EXIF orientation by which the boxes of an image must be turned (1: they are upright), and the problem if the
    size in the annotations contradicts `choice`, else "".

    given: (width, height) in the annotations, None if they have none. stored, orientation: of the image file, see
    `images.image_header`. choice: the image that the boxes belong to, "stored" or "upright"; "auto": the one that has
    the given size, or the stored one if the size does not decide. The size decides if the image is not square and its
    orientation turns it by 90 degrees. Raises InvalidRecord if width and height are swapped and no orientation explains
    it.
    """
    upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    frame_of_size = ""
    if given is not None and upright != stored and given[0] != given[1]:
        frame_of_size = "upright" if (given[0] > given[1]) == (upright[0] > upright[1]) else "stored"
    elif given is not None and given != stored and given == stored[::-1]:
        raise InvalidRecord(SWAPPED_SIZE)
    frame = choice if choice != "auto" else frame_of_size or "stored"
    problem = OTHER_FRAME.format(frame_of_size, frame) if frame_of_size and frame_of_size != frame else ""
    return (orientation if frame == "stored" else 1), problem


@dataclass(frozen=True)
class UprightTransform:
    """Turns boxes of an image upright.

    turn: EXIF orientation of the boxes, 1 if they are upright. source_size: (width, height) in the annotations, before
    turning. problem: the contradiction between that size and the reader's option, "" if there is none.
    """

    turn: int
    source_size: tuple[int, int]
    problem: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image, in pixels of the annotations."""
        return upright_size(self.source_size, self.turn)

    def box(self, box: Box) -> Box:
        """A box of the annotations as a box of the upright image."""
        return upright_box(box, self.source_size, self.turn) if self.turn != 1 else box

    def back(self, box: Box) -> Box:
        """A box of the upright image as a box of the annotations."""
        return stored_box(box, self.source_size, self.turn) if self.turn != 1 else box


def upright_transform(path: Path, size: tuple[int, int], given: bool, orientation: str) -> UprightTransform:
    """The transform for an image file, whose header is read. size: (width, height) of the image that the boxes belong
    to. given: whether the annotations have it. orientation: the reader's option, one of ORIENTATIONS.

    Raises InvalidRecord if the size contradicts the image's, and UserError if its header cannot be read.
    """
    turn, problem = boxes_orientation(size if given else None, *image_header(path), orientation)
    return UprightTransform(turn, size, problem)
