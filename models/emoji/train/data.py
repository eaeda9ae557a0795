"""Scenes: one emoji on a plain background, with the caption and labels that describe it.

Subjects are the icons named in subjects.txt, rendered once from the npm package @iconify-json/fluent-emoji-flat
(`npm pack`, unpacked; the path of icons.json comes from EMOJI_ICONS). A scene is an emoji of random size and place.
"""

import io
import json
import os
import pathlib
import random

import numpy as np
import resvg_py
from PIL import Image

HERE = pathlib.Path(__file__).parent
SIDE = 128
ICONS = os.environ.get("EMOJI_ICONS", "package/icons.json")

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "grey": (150, 150, 150),
    "red": (214, 48, 49),
    "orange": (250, 150, 40),
    "yellow": (255, 228, 90),
    "green": (80, 175, 90),
    "blue": (52, 88, 214),
    "sky blue": (150, 214, 255),
    "purple": (138, 78, 188),
    "pink": (255, 178, 212),
    "brown": (140, 94, 60),
}
COLOURS = list(BACKGROUNDS)
SIZES = ["normal", "small", "big"]
PLACES = ["centre", "left", "right", "top", "bottom"]


def subjects():
    """Icon names and, for each, the names captions use; in file order."""
    rows = []
    for line in (HERE / "subjects.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            icon, names = line.split(":")
            rows.append((icon.strip(), [n.strip() for n in names.split(",")]))
    return rows


SUBJECTS = subjects()


def render(side=512):
    """All subjects as premultiplied RGBA pictures of `side` pixels."""
    icons = json.load(open(ICONS))["icons"]
    out = []
    for icon, _ in SUBJECTS:
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="{side}" height="{side}">'
            f'{icons[icon]["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
        out.append(Image.open(io.BytesIO(png)).convert("RGBA").convert("RGBa"))
    return out


def clashes(subject, colour):
    """A plain shape on its own colour is not to be seen: such pairs are neither trained nor scored."""
    icon, names = SUBJECTS[subject]
    words = names[0].split()
    own = {"star": "yellow", "sun": "orange", "cloud": "white", "ghost": "white", "top-hat": "purple"}
    if own.get(icon) == colour:
        return True
    return words[0] in colour.split() and words[-1] in ("heart", "circle", "square", "diamond")


class Scenes:
    """Draws scenes; `style` may repaint a subject's picture (used by the LoRA)."""

    def __init__(self, seed=0, style=None):
        self.rng = random.Random(seed)
        self.full = render()
        self.style = style
        self.cache = {}

    def sprite(self, subject, size):
        key = (subject, size)
        if key not in self.cache:
            im = self.full[subject]
            if self.style:
                im = self.style(im)
            self.cache[key] = np.asarray(im.resize((size, size), Image.LANCZOS), np.float32) / 255
        return self.cache[key]

    def compose(self, subject, colour, size, x, y):
        """A float32 picture (SIDE, SIDE, 3) in 0..1 with the subject's corner at x, y."""
        back = np.asarray(BACKGROUNDS[colour], np.float32) / 255
        out = np.broadcast_to(back, (SIDE, SIDE, 3)).copy()
        s = self.sprite(subject, size)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, SIDE), min(y + size, SIDE)
        cut = s[y0 - y : y1 - y, x0 - x : x1 - x]
        out[y0:y1, x0:x1] = cut[..., :3] + out[y0:y1, x0:x1] * (1 - cut[..., 3:])
        return out.clip(0, 1)

    def place(self, size_name, place):
        """Side of the subject and its corner in pixels."""
        r = self.rng
        low, high = {"normal": (86, 96), "small": (54, 62), "big": (110, 120)}[size_name]
        size = r.randrange(low, high + 1, 2)
        free = SIDE - size
        x = free // 2 + r.randint(-3, 3)
        y = free // 2 + r.randint(-3, 3)
        edge = r.randint(2, 8) if size_name != "big" else r.randint(0, 3)
        if place == "left":
            x = edge
        elif place == "right":
            x = free - edge
        elif place == "top":
            y = edge
        elif place == "bottom":
            y = free - edge
        return size, x, y

    def draw(self, subject=None):
        """A picture, its caption, its labels (subject, background, size, place) and whether the caption names the background."""
        r = self.rng
        subject = r.randrange(len(SUBJECTS)) if subject is None else subject
        named = r.random() > 0.08
        colour = r.randrange(len(COLOURS)) if named else 0
        if clashes(subject, COLOURS[colour]):
            return self.draw(subject)
        size = r.choices(range(3), (0.72, 0.18, 0.10))[0]
        place = r.choices(range(5), (0.80, 0.05, 0.05, 0.05, 0.05))[0] if size != 2 else 0
        side, x, y = self.place(SIZES[size], PLACES[place])
        picture = self.compose(subject, COLOURS[colour], side, x, y)
        text = caption(r, subject, COLOURS[colour] if named else None, SIZES[size], PLACES[place])
        return picture, text, (subject, colour, size, place), named


def article(words):
    return ("an " if words[0] in "aeiou" and not words.startswith(("ufo", "unicorn")) else "a ") + words


def caption(r, subject, colour=None, size="normal", place="centre"):
    """One of the ways a user may describe the scene."""
    names = SUBJECTS[subject][1]
    what = names[0] if r.random() < 0.7 else r.choice(names)
    if size == "small":
        what = r.choice(["small", "small", "little", "tiny"]) + " " + what
    elif size == "big":
        what = r.choice(["big", "large", "huge"]) + " " + what
    elif place == "centre" and r.random() < 0.03:
        what = r.choice(["cute", "nice", "simple", "happy", "beautiful"]) + " " + what
    form = r.random()
    what = article(what) if form < 0.75 else "the " + what if form < 0.8 else what
    if r.random() < 0.15:
        what = r.choice(["a picture of ", "an emoji of ", "emoji of ", "an icon of ", "a drawing of ", "a photo of "]) + what
    if place in ("left", "right"):
        what += r.choice([f" on the {place}", f" at the {place}", f" on the {place} side"])
    elif place in ("top", "bottom"):
        what += r.choice([f" at the {place}", f" on the {place}"])
    elif r.random() < 0.03:
        what += r.choice([" in the middle", " in the centre", " in the center"])
    if colour:
        if colour == "grey" and r.random() < 0.3:
            colour = "gray"
        if colour == "sky blue" and r.random() < 0.2:
            colour = "light blue"
        b = r.random()
        if b < 0.5:
            what += f" on {article(colour)} background"
        elif b < 0.7:
            what += f", {colour} background"
        elif b < 0.8:
            what += f" on {colour}"
        elif b < 0.87:
            what += r.choice([f" on {colour} background", f", {colour}", f" with {article(colour)} background"])
        elif b < 0.95:
            what += r.choice([f" in front of {article(colour)} background", f" in front of a {colour} wall", f", {article(colour)} background"])
        else:
            what = f"{colour} background, {what}"
    if r.random() < 0.06:
        what += r.choice([", emoji", ", flat icon", ", high quality", ", vector art", ", simple", "."])
    if r.random() < 0.05:
        what = what.capitalize()
    return what
