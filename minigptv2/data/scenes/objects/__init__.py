"""The object classes of the generated world: a name and how it is drawn, one file each."""

from minigptv2.data.scenes.objects.ball import ball
from minigptv2.data.scenes.objects.balloon import balloon
from minigptv2.data.scenes.objects.boat import boat
from minigptv2.data.scenes.objects.box import box
from minigptv2.data.scenes.objects.car import car
from minigptv2.data.scenes.objects.cat import cat
from minigptv2.data.scenes.objects.cloud import cloud
from minigptv2.data.scenes.objects.cup import cup
from minigptv2.data.scenes.objects.fish import fish
from minigptv2.data.scenes.objects.flower import flower
from minigptv2.data.scenes.objects.heart import heart
from minigptv2.data.scenes.objects.house import house
from minigptv2.data.scenes.objects.kite import kite
from minigptv2.data.scenes.objects.moon import moon
from minigptv2.data.scenes.objects.person import person
from minigptv2.data.scenes.objects.star import star
from minigptv2.data.scenes.objects.sun import sun
from minigptv2.data.scenes.objects.tree import tree
from minigptv2.data.scenes.objects.triangle import triangle
from minigptv2.data.scenes.objects.umbrella import umbrella

OBJECT_CLASSES = {
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
