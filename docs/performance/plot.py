"""Draws peers.csv as peers.svg: our time over each peer's, a bar each; below the line at 1 we are faster.

    python3 docs/performance/plot.py

Needs nothing but Python. A row of the table: work, type, our seconds, peer, its seconds.
"""

import csv
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
LEFT, WIDTH, BAR, TOP = 360, 420, 22, 48
COLOURS = {"OpenVINO": "#0b6bcb", "PyTorch": "#d9480f", "candle": "#6741d9", "stable-diffusion.cpp": "#2b8a3e"}


def colour(peer):
    return next((shade for name, shade in COLOURS.items() if peer.startswith(name)), "#666")


def text(x, y, words, **more):
    kept = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<text x="{x:.0f}" y="{y:.0f}"{kept}>{escape(words)}</text>'


def draw(rows):
    rows = sorted(rows, key=lambda row: (row["work"], row["type"], row["peer"]))
    ratios = [float(row["ours_s"]) / float(row["peer_s"]) for row in rows]
    scale = WIDTH / max(1.25, *ratios)
    height = TOP + len(rows) * (BAR + 8) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(12, 20, "Time of sd-worker over the peer's, side by side; less is better", font_weight="bold"),
    ]
    for i, (row, ratio) in enumerate(zip(rows, ratios)):
        y = TOP + i * (BAR + 8)
        parts += [
            text(LEFT - 8, y + 16, f'{row["work"]}, {row["type"]}: {row["peer"]}', text_anchor="end"),
            f'<rect x="{LEFT}" y="{y}" width="{ratio * scale:.1f}" height="{BAR}" fill="{colour(row["peer"])}"/>',
            text(LEFT + ratio * scale + 6, y + 16, f"{ratio:.2f}"),
        ]
    one = LEFT + scale
    parts.append(f'<path d="M{one:.1f} {TOP - 8}V{height - 10}" stroke="#222" stroke-dasharray="4 3"/>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    with open(HERE / "peers.csv", newline="") as table:
        (HERE / "peers.svg").write_text(draw(list(csv.DictReader(table))))
