"""The soft organs of the phantom: neck, airway, lungs, heart, vessels and abdomen, in template mm."""

from __future__ import annotations

import numpy as np

from deepatlas.phantom.shapes import Array, Canvas, Shape, ellipsoid, halfspace, stack, tube, union

# The tops of the right and the left dome of the diaphragm (x, y, z).
DIAPHRAGM = ((54, 4, -36), (-52, 4, -46))
ABDOMEN_FILL = ("visceral_fat",)


def diaphragm_height(x: Array, y: Array) -> Array:
    """z of the diaphragm at points of the axial plane. The right dome is higher; the heart rests on the middle."""
    domes = [np.float32(z) - 0.0105 * ((x - cx) ** 2 + 0.75 * (y - cy) ** 2) for cx, cy, z in DIAPHRAGM]
    middle = -54 - 0.012 * (x**2 + (y - 24) ** 2)
    return np.maximum(np.maximum(*domes), middle).astype(np.float32)


def _above_diaphragm(margin: float) -> Shape:
    low, high = np.array([-130.0, -100, -150]), np.array([130.0, 100, 100])
    return Shape(
        low, high, lambda x, y, z: (diaphragm_height(x, y) + np.float32(margin) - z) * np.float32(0.8)
    )


def _below_diaphragm(margin: float) -> Shape:
    low, high = np.array([-130.0, -100, -330]), np.array([130.0, 100, 0])
    return Shape(
        low, high, lambda x, y, z: (z - diaphragm_height(x, y) + np.float32(margin)) * np.float32(0.8)
    )


def paint_neck(canvas: Canvas) -> None:
    """Paint vessels, thyroid, glands and oesophagus; :func:`paint_airway` paints the airway."""
    for side in (1, -1):
        canvas.paint(tube([(20 * side, 12, 58), (26 * side, 6, 100), (30 * side, 8, 152)], 5), "artery")
        canvas.paint(
            tube([(30 * side, 14, 58), (38 * side, 6, 100), (40 * side, -4, 156)], [8, 7, 5.5]), "vein"
        )
        canvas.paint(ellipsoid((18 * side, 18, 88), (9, 10, 19)), "thyroid", label="thyroid")
        # The parotid and the submandibular gland.
        canvas.paint(ellipsoid((50 * side, 8, 142), (9, 14, 17)), "soft")
        canvas.paint(ellipsoid((30 * side, 36, 112), (10, 13, 8)), "soft")
    canvas.paint(ellipsoid((0, 27, 86), (10, 4, 6)), "thyroid", label="thyroid")
    canvas.paint(tube([(0, -4, 100), (-3, -10, 40), (-5, -12, -20), (-12, -4, -56)], 6), "muscle")


def airway() -> Shape:
    """The lumen of pharynx, larynx, trachea and main bronchi."""
    course = [(0, 24, 158), (0, 15, 134), (0, 17, 112), (0, 20, 96), (0, 12, 70), (1, -2, 36)]
    shape = tube(course, [11, 11.5, 10.5, 9.5, 11, 11.5], steps=16)
    bronchi = [tube([(1, -2, 38), (18, -7, 24), (40, -10, 8)], [10, 9, 7], steps=4)]
    return union(shape, bronchi[0], bronchi[0].mirrored(), blend=4)


def paint_airway(canvas: Canvas) -> None:
    """Paint the airway: a wall of cartilage, filled with air."""
    shape = airway()
    canvas.paint(shape.grown(2.4), "cartilage")
    canvas.paint(shape, "airway", label="airway")


def paint_lungs(canvas: Canvas, cavity: Shape, generator: np.random.Generator) -> None:
    """Paint both lungs with their vessels, and the fat of the mediastinum between them."""
    middle = stack(
        [
            (90, 22, 30, -8, 2),
            (50, 25, 42, -6, 2),
            (0, 27, 60, -6, 2),
            (-60, 32, 68, -4, 2),
            (-110, 34, 68, -4, 2),
        ]
    )
    chest = (cavity.grown(-2.5) & _above_diaphragm(3)) - middle
    canvas.paint(cavity & _above_diaphragm(-3), "visceral_fat")
    canvas.paint(cavity & _above_diaphragm(-3) & _below_diaphragm(0), "muscle")
    for side, sign in (("right", 1), ("left", -1)):
        lung = chest & halfspace((-sign, 0, 0), -2)
        canvas.paint(lung, "lung", label=f"lung_{side}")
        canvas.paint(lung & halfspace((0, 1, 0.1), -38), "lung_dependent", label=f"lung_{side}")
        hilum = np.array([34.0 * sign, -6, -2])
        for _ in range(46):
            end = np.array(
                [sign * generator.uniform(30, 100), generator.uniform(-62, 52), generator.uniform(-88, 72)]
            )
            bend = (hilum + end) / 2 + generator.normal(0, 7, 3)
            branch = tube([hilum, bend, end], [4.2, 2.6, 1.3], steps=5)
            canvas.paint(branch, "lung_vessel", keep_label=True, inside=f"lung_{side}")
            for _ in range(2):
                twig = end + generator.normal(0, 16, 3)
                canvas.paint(
                    tube([bend, twig], [2.2, 1.2], steps=1),
                    "lung_vessel",
                    keep_label=True,
                    inside=f"lung_{side}",
                )


def paint_heart(canvas: Canvas) -> None:
    """Paint the heart with four chambers, the great vessels, and the aorta down to its bifurcation."""
    heart = union(
        ellipsoid((-22, 22, -16), (43, 36, 37), roll=-25),
        ellipsoid((12, 12, -4), (32, 32, 38)),
        ellipsoid((-42, 36, -34), (27, 24, 22), yaw=30),
        blend=18,
    )
    canvas.paint(heart.grown(3.5), "visceral_fat")
    canvas.paint(tube([(23, 8, 62), (24, 10, 4)], 8.5, steps=1), "vein")
    canvas.paint(tube([(20, 4, -178), (19, 4, -120), (24, 2, -76), (22, 8, -22)], [10, 11, 11, 11]), "vein")
    canvas.paint(tube([(-12, 36, 6), (-16, 28, 28), (-8, 14, 30)], [12, 12, 11]), "blood_right")
    for sign in (1, -1):
        canvas.paint(tube([(-8, 14, 30), (20 * sign, 8, 20), (42 * sign, 2, 4)], [11, 9, 6.5]), "blood_right")
    canvas.paint(heart, "myocardium", label="heart")
    for centre, radii, blood, turn in (
        ((-38, 24, -24), (17, 14, 28), "blood_left", 45),
        ((-12, 42, -22), (27, 12, 23), "blood_right", 20),
        ((24, 18, -8), (16, 20, 25), "blood_right", 0),
        ((-4, -8, 4), (27, 12, 17), "blood_left", 0),
    ):
        canvas.paint(ellipsoid(centre, radii, roll=turn), blood, label="heart")
    for sign in (1, -1):
        fork = [
            (-7 + 3 * sign, 4, -172),
            (-2 + 26 * sign, 0, -212),
            (50 * sign, 16, -246),
            (64 * sign, 40, -276),
        ]
        canvas.paint(tube([*fork, (68 * sign, 44, -420)], [8, 7.5, 7, 7, 7]), "artery")
        fork = [(18, -2, -176), (28 * sign, -10, -212), (52 * sign, 6, -246), (54 * sign, 40, -280)]
        canvas.paint(tube([*fork, (56 * sign, 40, -420)], [9, 8, 8, 8, 8]), "vein")
    for points in ([(2, 26, 56), (20, 13, 66)], [(-24, 10, 60), (-20, 13, 76)]):
        canvas.paint(tube(points, 5.5, steps=1), "artery")
    course = [(-2, 16, 6), (11, 24, 30), (2, 27, 52), (-20, 12, 60), (-30, -12, 52), (-30, -25, 28),
              (-27, -23, -6), (-23, -16, -50), (-14, -4, -95), (-8, 5, -135), (-7, 5, -180)]  # fmt: skip
    canvas.paint(
        tube(course, [14, 14.5, 14, 13.5, 13, 13, 12.5, 12, 11.5, 11, 10.5], steps=30),
        "artery",
        label="aorta",
    )


def paint_abdomen(canvas: Canvas, cavity: Shape) -> None:
    """Paint the organs of abdomen and pelvis: first the bowel, which fills the free space, then the solid organs."""
    space = cavity.grown(-4) & _below_diaphragm(5)
    _paint_small_bowel(canvas, space)
    _paint_colon(canvas)
    for side, name in ((1, "right"), (-1, "left")):
        psoas = [(29 * side, -30, -112), (41 * side, -20, -185), (62 * side, 12, -245), (84 * side, 2, -290)]
        muscle = tube(psoas, [8, 19, 18, 12])
        canvas.paint(muscle, "muscle")
        # Below the groin it is one with the other muscles of the hip.
        canvas.paint(muscle & halfspace((0, 0, -1), 262), "muscle", label=f"psoas_{name}")
        rectus = stack([(-70, 26, 5, 68, 3), (-160, 26, 5, 72, 3), (-270, 14, 5, 52, 3)])
        canvas.paint(rectus, "muscle", over=("fat",))
    canvas.paint(
        tube([(34, 14, -126), (6, 20, -118), (-30, 4, -112), (-62, -20, -108)], [11, 9, 9, 8]), "pancreas"
    )
    duodenum = tube([(18, 30, -128), (42, 18, -132), (44, 6, -160), (12, 10, -170)], 10.5)
    canvas.paint(duodenum, "bowel_wall", (3, "bowel_content"))

    spleen = ellipsoid((-79, -34, -98), (29, 33, 46), roll=12, yaw=-20) & space
    canvas.paint(spleen, "spleen", label="spleen")
    stomach = tube(
        [(-36, 0, -66), (-54, 8, -88), (-54, 26, -118), (-30, 40, -136), (6, 38, -134)], [25, 33, 28, 20, 13]
    )
    stomach = stomach & space
    canvas.paint(stomach.grown(2) & space, "visceral_fat")
    canvas.paint(stomach, "stomach_wall", (4, "stomach_fluid"), label="stomach")
    canvas.paint(stomach.grown(-4) & halfspace((0, -1, 0), -24), "gas", label="stomach")
    _paint_liver(canvas, space)
    for name, sign, centre, turn in (
        ("kidney_right", 1, (56, -29, -152), -10),
        ("kidney_left", -1, (-55, -29, -138), 10),
    ):
        kidney = ellipsoid(centre, (25, 21, 45), roll=turn, yaw=-20 * sign)
        canvas.paint(kidney.grown(5) & space, "visceral_fat")
        canvas.paint(kidney, "kidney_cortex", (8, "kidney_medulla"), label=name)
        cx, cy, cz = centre
        sinus = ellipsoid((cx - 11 * sign, cy + 5, cz), (10, 7, 17))
        canvas.paint(sinus, "visceral_fat", (4, "urine"), label=name)

    bladder = ellipsoid((0, 8, -256), (37, 32, 33), pitch=-15)
    canvas.paint(bladder.grown(5), "visceral_fat", over=("bowel_wall", "bowel_content", "gas", "stool"))
    canvas.paint(bladder, "bladder_wall", (4, "urine"), label="bladder")
    canvas.paint(ellipsoid((0, 6, -297), (20, 18, 14)), "soft", over=("muscle", "fat", "visceral_fat"))


def _paint_liver(canvas: Canvas, space: Shape) -> None:
    liver = union(
        ellipsoid((56, 4, -86), (62, 64, 54)),
        ellipsoid((-2, 34, -76), (48, 30, 30), roll=8),
        ellipsoid((72, 10, -118), (32, 40, 44)),
        blend=20,
    )
    liver = liver & space
    canvas.paint(liver.grown(1.5) & space, "visceral_fat")
    canvas.paint(liver, "liver", label="liver")
    hepatic: list[tuple[list[tuple[float, float, float]], list[float]]] = [
        ([(26, 2, -62), (60, 4, -72), (88, 0, -98)], [6, 4, 2.5]),
        ([(26, 4, -62), (40, 34, -76), (46, 52, -92)], [5, 3.5, 2.5]),
        ([(24, 6, -62), (2, 32, -72), (-26, 42, -76)], [5, 3.5, 2.5]),
        ([(20, 14, -112), (46, 10, -98), (80, -18, -104)], [7, 5.5, 3]),
        ([(46, 10, -98), (62, 30, -108)], [5, 3]),
    ]
    for points, radii in hepatic:
        canvas.paint(tube(points, radii, steps=6), "hepatic_vein", keep_label=True, inside="liver")
    gallbladder = ellipsoid((42, 44, -128), (12, 14, 20), pitch=-30)
    canvas.paint(gallbladder, "soft", (2, "gallbladder"), label="gallbladder")


def _paint_small_bowel(canvas: Canvas, space: Shape) -> None:
    """Paint loops along the level sets of a distorted gyroid: a wall with content and some gas, and fat in between."""

    def loops(x: Array, y: Array, z: Array) -> Array:
        k = np.float32(2 * np.pi / 54)
        a = k * (x + 7 * np.sin(z / 21) + 4 * np.sin(y / 15))
        b = k * (y + 6 * np.sin(x / 19) + 5 * np.sin(z / 16))
        c = k * (z + 6 * np.sin(y / 23) + 5 * np.sin(x / 17))
        level = np.sin(a) * np.cos(b) + np.sin(b) * np.cos(c) + np.sin(c) * np.cos(a)
        return (-(level + 0.25) * 7.5).astype(np.float32)

    box = Shape(np.array([-82.0, -40, -262]), np.array([82.0, 60, -128]), loops)
    belly = box & space.grown(-3) & ellipsoid((0, 22, -196), (86, 46, 70), power=3)
    canvas.paint(belly, "bowel_wall", (3, "bowel_content"), over=ABDOMEN_FILL)
    canvas.paint(belly.grown(-4.5) & halfspace((0.4, -1, 0.2), -78), "gas", over=("bowel_content",))


def _paint_colon(canvas: Canvas) -> None:
    course = [(72, 6, -212), (78, -4, -186), (80, 0, -152), (58, 42, -146), (4, 54, -162), (-50, 44, -150),
              (-80, 2, -142), (-84, -8, -180), (-78, -6, -212), (-44, 2, -240), (-8, -22, -236),
              (0, -40, -262), (0, -36, -296)]  # fmt: skip
    colon = tube(course, [19, 19, 16, 14, 15, 14, 13, 13, 13, 12, 13, 16, 9], steps=60)

    def pouches(x: Array, y: Array, z: Array) -> Array:
        wave = np.sin((x + 0.7 * y) / 5.2) + np.sin(z / 5.0 + 0.4)
        return (colon.distance(x, y, z) + np.float32(1.3) * wave).astype(np.float32)

    shape = Shape(colon.low, colon.high, pouches)
    canvas.paint(shape.grown(3), "visceral_fat", over=("bowel_wall", "bowel_content", "gas"))
    canvas.paint(shape, "bowel_wall", (2.8, "stool"))
    canvas.paint(shape.grown(-3) & halfspace((0, -1, 0), -46), "gas", over=("stool",))
    canvas.paint(
        shape.grown(-3) & ellipsoid((78, 6, -180), (20, 30, 44)) & halfspace((0, -1, 0), -4),
        "gas",
        over=("stool",),
    )
