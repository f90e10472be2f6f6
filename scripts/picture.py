#!/usr/bin/env python3
"""Draws what a terminal showed as an SVG, for the README.

usage: make demo | tee run.log; scripts/picture.py < run.log > docs/images/demo.svg

Lines that begin with "$ " are drawn as commands. Escape sequences are left out; of lines that were drawn over by a
carriage return, the last state is kept.
"""
import re
import sys
from xml.sax.saxutils import escape

CHARACTER = 7.83  # width of a character at 13 px, the same in all the fonts that are named below
LINE = 18
TOP = 54


def lines(text):
    for line in text.splitlines():
        line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.split("\r")[-1]).rstrip()
        yield line


def colour(line):
    if line.startswith("$ "):
        return ' fill="#8bd5ff" font-weight="bold"'
    if re.match(r"\[ *[0-9.]+ s\]", line):
        return ' fill="#a6e3a1"'
    if "own share" in line or " is Running after" in line:
        return ' fill="#f9e2af"'
    return ""


def main():
    shown = list(lines(sys.stdin.read()))
    width = max(600, int(40 + CHARACTER * max(map(len, shown), default=0)))
    height = TOP + LINE * len(shown)
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="A machine boots from a cloned disk in a terminal">'
    )
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#11151c"/>')
    for x, fill in ((20, "#ff5f56"), (40, "#ffbd2e"), (60, "#27c93f")):
        print(f'<circle cx="{x}" cy="18" r="6" fill="{fill}"/>')
    print(
        '<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" font-size="13" '
        'fill="#d5dbe5" xml:space="preserve">'
    )
    for number, line in enumerate(shown):
        if line:
            text = escape(line).replace(" ", "&#160;")
            print(
                f'<text x="20" y="{TOP + LINE * number}"{colour(line)} textLength="{CHARACTER * len(line):.1f}" '
                f'lengthAdjust="spacingAndGlyphs">{text}</text>'
            )
    print("</g>\n</svg>")


main()
