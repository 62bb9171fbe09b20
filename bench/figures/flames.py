"""A flame graph as one file: how often each stack was seen, callers below. Whatever shows SVG shows it; the mouse tells names."""

from collections import Counter
from html import escape

WIDTH, HEIGHT = 1600, 17
# Narrower than this nothing can be read.
LEAST = 0.6


def drawn(title: str, stacks: Counter) -> str:
    """`stacks` counts tuples of names, outermost first."""
    total = max(1, stacks.total())
    deepest = max(map(len, stacks), default=0)
    top = (deepest + 2) * HEIGHT
    boxes: list[str] = []

    def draw(level: int, left: float, entries: Counter) -> None:
        callees: dict[str, Counter] = {}
        for stack, count in entries.items():
            if stack:
                callees.setdefault(stack[0], Counter())[stack[1:]] += count
        for name, rest in sorted(callees.items()):
            width = rest.total() * WIDTH / total
            if width >= LEAST:
                boxes.append(box(name, left, top - (level + 2) * HEIGHT, width, 100 * rest.total() / total))
                draw(level + 1, left, rest)
            left += width

    draw(0, 0, stacks)
    head = f"<text x='4' y='{HEIGHT - 4}'>{escape(title)}, {total} samples</text>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {top}' font-family='monospace' font-size='11'>"
        f"<rect width='100%' height='100%' fill='#fff'/>{head}{''.join(boxes)}</svg>\n"
    )


def box(name: str, left: float, top: int, width: float, percent: float) -> str:
    hue = sum(name.split("::")[0].encode()) * 37 % 360
    room = int(width / 6.7)
    label = f"<text x='{left + 2:.1f}' y='{top + HEIGHT - 5}'>{escape(name[:room])}</text>" if room > 3 else ""
    return (
        f"<g><title>{escape(name)}: {percent:.1f} %</title>"
        f"<rect x='{left:.1f}' y='{top}' width='{width:.1f}' height='{HEIGHT - 1}' fill='hsl({hue} 65% 75%)'/>{label}</g>"
    )
