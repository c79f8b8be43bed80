"""The outline of the body and the bones, in template mm (x to the right, y to the front, z to the head).

The proportions are those of a young child. Because of the large head and the sitting height of 64 cm, every structure
is several voxels wide even at a network input of 32 voxels per axis.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from deepatlas.phantom.shapes import Array, Canvas, Shape, ellipsoid, halfspace, stack, tube, union

# For each level: z, and centre y, half width and half depth of the vertebral body.
SPINE = np.array(
    [
        (172, -31, 11, 9),
        (150, -28, 12, 10),
        (122, -20, 14, 11),
        (95, -21, 15, 12),
        (65, -30, 16, 13),
        (25, -37, 18, 14),
        (-25, -38, 20, 15),
        (-75, -32, 22, 17),
        (-125, -23, 25, 18),
        (-165, -20, 27, 19),
        (-192, -28, 27, 19),
        (-220, -42, 22, 17),
    ],
    dtype=np.float64,
)[::-1]
_spine = PchipInterpolator(SPINE[:, 0], SPINE[:, 1:])
SPINE_TOP, SPINE_BOTTOM = 160.0, -196.0
CANAL_RADIUS = 10.5

# Cross-sections of trunk and cavity: z, half width, half depth, centre y, power of the super-ellipse.
BODY_SECTIONS = [
    (112, 45, 48, -8, 2.1),
    (92, 62, 52, -8, 2.2),
    (72, 104, 66, -6, 2.3),
    (48, 126, 78, -4, 2.4),
    (10, 132, 87, -1, 2.5),
    (-40, 130, 92, 1, 2.5),
    (-90, 123, 92, 2, 2.4),
    (-140, 116, 90, 2, 2.4),
    (-180, 122, 88, 0, 2.4),
    (-225, 140, 92, -4, 2.4),
    (-262, 148, 94, -6, 2.4),
    (-288, 146, 84, -4, 2.4),
    (-304, 138, 72, -4, 2.2),
]

CAVITY_SECTIONS = [
    (84, 30, 28, -14, 2.2),
    (64, 64, 48, -12, 2.3),
    (32, 88, 60, -8, 2.4),
    (0, 100, 67, -5, 2.4),
    (-40, 106, 71, -3, 2.4),
    (-90, 105, 71, -1, 2.4),
    (-120, 100, 69, 1, 2.4),
    (-160, 96, 66, 4, 2.4),
    (-195, 98, 63, 3, 2.4),
    (-225, 88, 57, 0, 2.3),
    (-258, 58, 54, -6, 2.2),
    (-288, 44, 40, -10, 2.1),
    (-306, 24, 20, -12, 2.0),
]

CRANIUM = ellipsoid((0, -8, 227), (71, 87, 74))
# The half-space above the sloping base of the skull.
BASE = halfspace((0, 0.296, -1), -178)
BRAIN_CAVITY = ellipsoid((0, -8, 227), (62.5, 78.5, 65.5)) & BASE


def spine_at(z: float) -> tuple[float, float, float]:
    """Centre y, half width and half depth of the vertebral bodies at height z."""
    y, a, b = _spine(z)
    return float(y), float(a), float(b)


def canal() -> Shape:
    """The spinal canal, from the foramen magnum to the sacrum."""
    heights = np.linspace(166, -222, 30)
    points = []
    for z in heights:
        y, _, depth = spine_at(z)
        points.append((0, y - depth - CANAL_RADIUS + 1, z))
    return tube(points, CANAL_RADIUS, steps=36)


def body() -> Shape:
    """The outline of the skin: trunk, shoulders, neck, head with nose and ears, and thighs."""
    limbs = [
        tube([(58, -10, 68), (110, -12, 64), (140, -12, 52), (147, -10, 24)], [34, 36, 34, 27]),
        tube([(76, 0, -276), (77, 2, -340), (74, 4, -430)], [74, 71, 64], steps=4),
    ]
    perineum = ellipsoid((0, -6, -296), (46, 54, 30))
    head = union(
        CRANIUM.grown(5),
        ellipsoid((0, 18, 166), (64, 68, 54)),
        ellipsoid((0, 40, 126), (52, 52, 32)),
        blend=26,
    )
    head = union(head, tube([(0, 84, 178), (0, 90, 160)], [7, 10], steps=1), blend=14)
    neck = tube([(0, -12, 60), (0, -12, 112), (0, -16, 165)], [58, 47, 50], steps=6)
    ears = ellipsoid((72, -4, 188), (7, 13, 20), yaw=20)
    trunk = stack(BODY_SECTIONS)
    skin = union(trunk, perineum, *limbs, *(s.mirrored() for s in limbs), blend=30)
    skin = union(skin, neck, blend=40)
    skin = union(skin, head, blend=22)
    return union(skin, ears, ears.mirrored(), blend=6)


def cavity() -> Shape:
    """The cavity inside the rib cage, the abdominal wall and the pelvis."""
    return stack(CAVITY_SECTIONS)


def paint_bone(canvas: Canvas, shape: Shape, label: str | None = None, cortex: float = 3.2) -> None:
    """Paint a bone: a cortical shell, ``cortex`` mm thick, around marrow."""
    canvas.paint(shape, "cortical", (cortex, "marrow"), label=label)


def paint_skeleton(canvas: Canvas, ribcage: Shape) -> None:
    """Paint all bones of trunk and limbs. The ribs run in the wall of the cavity ``ribcage``."""
    _paint_ribs(canvas, ribcage)
    _paint_shoulder(canvas)
    _paint_pelvis(canvas)
    _paint_spine(canvas)


def _paint_ribs(canvas: Canvas, ribcage: Shape) -> None:
    pitch, slope = 19.5, 0.44

    def ribs(x: Array, y: Array, z: Array) -> Array:
        wall = ribcage.distance(x, y, z)
        wall = np.maximum(-wall, wall - 9)
        # The ribs descend from the spine to the front, and rise again towards the sternum.
        course = z + np.float32(slope) * (y + 70) - np.float32(0.008) * np.maximum(y - 15, 0) ** 2
        phase = (course - 82) / np.float32(pitch)
        band = (np.abs(phase - np.round(phase)) * np.float32(pitch) - np.float32(5.2)).astype(np.float32)
        extent = np.maximum(course - 88, -118 - course)
        # The rib cage is open below the sternum, along the costal margin.
        arch = (-34 - z) - np.float32(0.85) * np.abs(x)
        open_front = np.where(y > 0, arch, -50).astype(np.float32)
        return np.maximum(np.maximum(wall, band), np.maximum(extent, open_front))

    low, high = np.array([-120.0, -90, -135]), np.array([120.0, 80, 82])
    shape = Shape(low, high, ribs)
    canvas.paint(shape, "cortical", (2.6, "marrow"), over=("muscle", "fat", "soft", "visceral_fat"))
    front = halfspace((0, -1, 0), -46) & shape
    canvas.paint(front & ellipsoid((0, 60, 0), (78, 40, 110)), "cartilage")
    paint_bone(canvas, ellipsoid((0, 70.5, 14), (17, 7.5, 50), pitch=9, power=3))


def _paint_shoulder(canvas: Canvas) -> None:
    clavicle = tube([(13, 60, 62), (52, 52, 76), (92, 22, 86), (124, 0, 84)], 7)
    blade = ellipsoid((80, -57, 22), (36, 6.5, 54), yaw=32, roll=-8)
    ridge = tube([(58, -64, 48), (100, -52, 76), (128, -20, 88)], 6.5)
    neck = tube([(98, -42, 56), (112, -28, 56)], [10, 15], steps=1)
    humerus = union(
        ellipsoid((134, -15, 54), (22, 22, 22)),
        tube([(138, -14, 46), (145, -12, 20)], [17, 14], steps=1),
        blend=8,
    )
    for side, flip in (("right", False), ("left", True)):
        for part in (blade, neck, ridge, clavicle):
            paint_bone(canvas, part.mirrored() if flip else part, cortex=2.4)
        paint_bone(canvas, humerus.mirrored() if flip else humerus, f"humerus_{side}")


def _paint_pelvis(canvas: Canvas) -> None:
    def wing(x: Array, y: Array, z: Array) -> Array:
        surface = 71 + np.float32(0.56) * (y + 5) + np.float32(0.26) * (z + 262)
        surface = surface + np.float32(0.0035) * (y + 12) ** 2 - 4
        return np.abs(x - surface) / np.float32(1.18) - np.float32(7.5)

    plate = Shape(np.array([20.0, -90, -300]), np.array([140.0, 70, -150]), wing) & ellipsoid(
        (80, -12, -218), (80, 60, 47), pitch=-12
    )
    head = (75, -5, -266)
    socket = (
        ellipsoid(head, (35, 34, 34))
        - ellipsoid(head, (24.5, 24.5, 24.5))
        - ellipsoid((112, -2, -290), (42, 40, 40))
    )
    ischium = tube(
        [(68, -28, -276), (58, -40, -300), (46, -30, -314), (24, 6, -304), (9, 30, -284)], [14, 13, 11, 8, 10]
    )
    ramus = tube([(64, 16, -258), (34, 36, -262), (9, 38, -272)], [11, 9, 11])
    hip = union(plate, socket, ischium, ramus, blend=8)
    femur = union(
        ellipsoid(head, (22.5, 22.5, 22.5)),
        tube([head, (104, -8, -282)], [14, 15], steps=1),
        tube([(110, -12, -274), (107, -8, -300), (100, -1, -345), (94, 4, -430)], [17, 18, 16, 16], steps=6),
        blend=8,
    )
    sacrum = union(
        tube([(0, -42, -200), (0, -63, -232), (0, -66, -258), (0, -48, -284)], [21, 19, 13, 7]),
        ellipsoid((0, -54, -212), (46, 15, 22), pitch=28),
        blend=12,
    )
    for side, flip in (("right", False), ("left", True)):
        paint_bone(canvas, hip.mirrored() if flip else hip, "pelvis")
        joint = ellipsoid(head, (24.5, 24.5, 24.5))
        canvas.paint(joint.mirrored() if flip else joint, "cartilage")
        paint_bone(canvas, femur.mirrored() if flip else femur, f"femur_{side}", cortex=4)
    canvas.paint(ellipsoid((0, 35, -276), (4, 10, 16)), "cartilage")
    paint_bone(canvas, sacrum, "pelvis")


def _levels() -> list[tuple[float, float]]:
    """Centre z and height of every vertebra from top to bottom. The heights increase downwards."""
    levels, z = [], SPINE_TOP
    while z > SPINE_BOTTOM:
        pitch = float(np.interp(z, [-190, -60, 70, 160], [31, 24, 19, 15]))
        levels.append((z - pitch / 2, pitch))
        z -= pitch
    return levels


def _paint_spine(canvas: Canvas) -> None:
    canvas.paint(_column(), "disc", label="spine")
    for z, pitch in _levels():
        y, a, b = spine_at(z)
        back = y - b - CANAL_RADIUS + 1
        paint_bone(canvas, ellipsoid((0, y, z), (a, b, 0.4 * pitch), power=4.5), "spine", cortex=2.4)
        ring = ellipsoid((0, back, z), (CANAL_RADIUS + 7, CANAL_RADIUS + 6, 0.42 * pitch), power=3)
        process = tube([(0, back - 8, z), (0, back - 20 if z < 100 else back - 14, z - 7)], [6.5, 5], steps=1)
        wing = tube([(12, back, z), (a + 15, back - 4, z + 2)], [6.5, 4.5], steps=1)
        paint_bone(canvas, union(ring, process, wing, wing.mirrored(), blend=4), "spine", cortex=2.4)
    tunnel = canal()
    canvas.paint(tunnel, "csf", (4.2, "cord"), label="spinal_canal")


def _column() -> Shape:
    rows = [(z, a * 0.95, b * 0.95, y, 2.3) for z, y, a, b in SPINE]
    return stack(rows, low=SPINE_BOTTOM, high=SPINE_TOP)
