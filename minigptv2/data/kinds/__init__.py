"""The kinds of thing that the generated world holds: a name and how it is drawn, one file each."""

from minigptv2.data.kinds.ball import ball
from minigptv2.data.kinds.balloon import balloon
from minigptv2.data.kinds.boat import boat
from minigptv2.data.kinds.box import box
from minigptv2.data.kinds.car import car
from minigptv2.data.kinds.cat import cat
from minigptv2.data.kinds.cloud import cloud
from minigptv2.data.kinds.cup import cup
from minigptv2.data.kinds.fish import fish
from minigptv2.data.kinds.flower import flower
from minigptv2.data.kinds.heart import heart
from minigptv2.data.kinds.house import house
from minigptv2.data.kinds.kite import kite
from minigptv2.data.kinds.moon import moon
from minigptv2.data.kinds.person import person
from minigptv2.data.kinds.star import star
from minigptv2.data.kinds.sun import sun
from minigptv2.data.kinds.tree import tree
from minigptv2.data.kinds.triangle import triangle
from minigptv2.data.kinds.umbrella import umbrella

KINDS = {
    "balloon": balloon,
    "ball": ball,
    "box": box,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "house": house,
    "tree": tree,
    "car": car,
    "cup": cup,
    "fish": fish,
    "moon": moon,
    "flower": flower,
    "umbrella": umbrella,
    "boat": boat,
    "kite": kite,
    "sun": sun,
    "cloud": cloud,
    "person": person,
    "cat": cat,
}
